"""The command line without a terminal: what it prints where, and the exit status it leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command_line import Result, call, one_error
from fake_hub import CONTENT, FakeHub, serving
from make_tiny_gguf import make_tiny

from pylogquant import Model, SamplingOptions, hub
from pylogquant._sources import HubFile
from pylogquant.chat import generate
from pylogquant.cli.options import complete_model
from pylogquant.cli.output import bytes_text, shown
from pylogquant.session import Sampler

COMMAND = [sys.executable, "-m", "pylogquant.cli"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("cli") / "tiny.gguf")


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small, but its KV cache takes 8 KiB per token."""
    return make_tiny(tmp_path_factory.mktemp("cli") / "wide.gguf", n_kv_heads=4, head_dim=256)


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLOGQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)


# ---- the program itself ----------------------------------------------------------------------------------------------


def test_version_costs_nothing() -> None:
    code = (
        "import sys; sys.argv = ['pylogquant', '--version']; from pylogquant.cli import main; main();"
        "loaded = {'typer', 'rich', 'prompt_toolkit', 'numpy', 'cffi', 'huggingface_hub'} & set(sys.modules);"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    from importlib.metadata import version

    assert done.stdout == f"pylogquant {version('pylogquant')}\n"
    assert call("--version").out == done.stdout


def test_importing_the_package_does_not_import_the_command_line() -> None:
    code = "import sys, pylogquant; sys.exit(any(name.startswith('pylogquant.cli') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_loads_neither_core_nor_network() -> None:
    code = (
        "import sys; sys.argv = ['pylogquant', 'chat', '--help']; from pylogquant.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "loaded = {'prompt_toolkit', 'numpy', 'cffi', 'huggingface_hub', 'pylogquant._native'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--repeat-penalty" in done.stdout


def test_run_loads_nothing_that_an_answer_does_not_need(model: Path) -> None:
    """What makes a start slow is what it pulls in, so that is pinned; a clock would only be flaky."""
    pulled = hub.cache_dir() / "models" / "hub" / "acme" / "tiny" / "m.gguf"
    pulled.parent.mkdir(parents=True)
    shutil.copy(model, pulled)
    unwanted = "numpy jinja2 rich prompt_toolkit huggingface_hub psutil logging hashlib"
    unwanted += " pylogquant._download pylogquant.chat pylogquant.chat_stats pylogquant.templates"
    code = (
        "import sys; from pylogquant.cli import main\n"
        "try: main()\n"
        f"finally: print('loaded:', set({unwanted.split()!r}) & set(sys.modules), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "run", "acme/tiny:m.gguf", "-p", "hello", "-n", "4"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "loaded: set()\n")
    assert done.stdout.strip()


def test_help_names_every_command_and_shared_option() -> None:
    top = call("--help").out
    for command in ("chat", "run", "info", "eval", "spikes", "bench", "pull", "list", "rm", "doctor"):
        assert f"\n  {command} " in top
        assert call(command, "--help").status == 0
    shared = (
        "--kv --kv-k --kv-v --window --sinks --overlay --select --ctx --threads --chunk --temp --top-k --top-p --min-p"
        " --repeat-penalty --frequency-penalty --presence-penalty --seed --template --pre --system --allow-long-context"
        " --max-tokens --stop"
    )
    for command in ("chat", "run"):
        text = call(command, "--help").out
        for option in shared.split():
            assert option in text


def test_defaults_are_those_of_the_library() -> None:
    text = " ".join(call("run", "--help").out.split())
    defaults = SamplingOptions()
    for option, value in (
        ("--temp", defaults.temperature),
        ("--top-k", defaults.top_k),
        ("--top-p", defaults.top_p),
        ("--min-p", defaults.min_p),
        ("--repeat-penalty", defaults.repeat_penalty),
        ("--frequency-penalty", defaults.frequency_penalty),
        ("--presence-penalty", defaults.presence_penalty),
    ):
        after = text.partition(f"{option} ")[2]
        told = after.partition("[default: ")[2].removeprefix("the model's, else ")
        assert told.startswith(f"{value}]"), option


def test_completion(model: Path, tmp_path: Path) -> None:
    shutil.copy(model, tmp_path / "some.gguf")
    (tmp_path / "notes.txt").touch()
    assert "smollm2-135m" in complete_model("smo")
    assert complete_model("som") == ["some.gguf"]
    assert str(tmp_path / "some.gguf") in complete_model(f"{tmp_path}/s")
    assert complete_model(str(tmp_path / "nowhere" / "x")) == []
    assert complete_model("not") == []
    environment = {
        **os.environ,
        "_PYLOGQUANT_COMPLETE": "complete_bash",
        "COMP_WORDS": "pylogquant do",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["doctor"]


def test_sizes_and_control_characters() -> None:
    assert [bytes_text(n) for n in (0, 1023, 1024, 98_362_432, 3 * 2**40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "93.8 MiB",
        "3,072.0 GiB",
    ]
    assert shown("a\x1b[31mb\rc\x9b\n\td\N{IDEOGRAPHIC SPACE}\N{GRINNING FACE}") == (
        "a\ufffd[31mbc\ufffd\n\td\N{IDEOGRAPHIC SPACE}\N{GRINNING FACE}"
    )


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_wrong_files_are_one_line_each(model: Path, tmp_path: Path) -> None:
    whole = model.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "empty.gguf").touch()
    for command in (["run", "-p", "x"], ["chat"], ["info"]):
        one_error(call(*command, "nowhere.gguf"), "nowhere.gguf", "no such file")
        one_error(call(*command, tmp_path), "is a folder")
        one_error(call(*command, "cut.gguf"), "cut.gguf")
        one_error(call(*command, "text.gguf"), "text.gguf", "GGUF")
        one_error(call(*command, "empty.gguf"), "empty.gguf")
        one_error(call(*command, "smollm2-13m", "--offline"), "did you mean smollm2-135m?")
        one_error(call(*command, "smollm2-135m", "--offline"), "offline")


def unsupported(model: Path, path: Path) -> Path:
    """The model with another architecture's name of the same length."""
    data = model.read_bytes()
    at = data.index(b"llama", data.index(b"general.architecture"))
    path.write_bytes(data[:at] + b"mamba" + data[at + 5 :])
    return path


def test_an_unsupported_architecture(model: Path, tmp_path: Path) -> None:
    path = unsupported(model, tmp_path / "mamba.gguf")
    one_error(call("run", path, "-p", "x"), "mamba")
    one_error(call("chat", path), "mamba")
    found = call("info", path, "--json").json()
    assert found["runs_here"] is False
    assert "mamba" in found["reason"]
    assert found["model"] is None
    assert found["plans"] == []
    assert found["metadata"]["general.architecture"] == "mamba"
    text = call("info", path)
    assert text.status == 0
    assert "runs here" in text.out
    assert "no: " in text.out


def test_settings_that_cannot_be(model: Path) -> None:
    for command in (["run", model, "-p", "x"], ["chat", model]):
        one_error(call(*command, "--ctx", 513), "512", "--allow-long-context")
        one_error(call(*command, "--ctx", 2**28 + 1, "--allow-long-context"), "too long")
        one_error(call(*command, "--top-p", 0), "top-p")
        one_error(call(*command, "--seed", 2**64), "seed")
        one_error(call(*command, "--threads", 5000), "threads")
        one_error(call(*command, "--pre", "nonsense"), "nonsense", "qwen2")


def test_too_large_a_context_for_the_memory(wide_model: Path) -> None:
    for command in (["run", wide_model, "-p", "x"], ["chat", wide_model]):
        one_error(call(*command, "--ctx", 2**28, "--allow-long-context"), "needs", "free", "try a context of")


def test_stop_that_cannot_be(model: Path) -> None:
    one_error(call("run", model, "-p", "x", "--stop", ""), "stop")
    one_error(call("chat", model, "--stop", "", stdin="x\n"), "stop")


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["run"],
        ["run", "M", "-p", "x", "--system", "s"],
        ["run", "M", "-p", "x", "--template", "chatml"],
        ["run", "M", "-p", "x", "--logprobs", "1"],
        ["run", "M", "-p", "x", "--ctx", "-1"],
        ["run", "M", "-p", "x", "--max-tokens", "0"],
        ["run", "M", "-p", "x", "--temp", "hot"],
        ["chat"],
        ["pull"],
        ["list", "extra"],
    ],
)
def test_usage_errors_exit_with_2(arguments: Sequence[str], model: Path) -> None:
    result = call(*[str(model) if argument == "M" else argument for argument in arguments])
    assert result.status == 2
    assert result.out == ""
    assert "Usage: pylogquant" in result.err


# ---- run -------------------------------------------------------------------------------------------------------------


def run_json(model: Path, *arguments: object, stdin: str = "") -> Any:
    return call("run", model, "--json", "-n", 24, *arguments, stdin=stdin).json()


def test_run_says_what_the_library_says(model: Path) -> None:
    with Model(model) as loaded, loaded.session() as session:
        options = SamplingOptions(temperature=1.0, seed=7, logprobs=True)
        ids = loaded.tokenizer.encode("hello world", eos=False)
        pieces = list(generate(session, loaded.tokenizer, Sampler(options), ids, max_tokens=24, top=2))
    found = run_json(model, "-p", "hello world", "--temp", 1, "--seed", 7, "--logprobs", 2)
    assert found["tokens"] == [piece.token for piece in pieces]
    assert found["text"] == "".join(piece.text for piece in pieces)
    assert found["finish_reason"] == pieces[-1].finish
    assert found["prompt_tokens"] == len(ids)
    assert [entry["logprob"] for entry in found["logprobs"]] == pytest.approx([piece.logprob for piece in pieces])
    assert [entry["token"] for entry in found["logprobs"]] == found["tokens"]
    assert [[other["token"] for other in entry["top"]] for entry in found["logprobs"]] == [
        [other.token for other in piece.top] for piece in pieces
    ]
    assert set(found["timings"]) == {
        "load_s",
        "prompt_s",
        "prompt_tokens_per_s",
        "answer_s",
        "answer_tokens_per_s",
    }
    assert all(value > 0 for value in found["timings"].values())
    text = call("run", model, "-n", 24, "-p", "hello world", "--temp", 1, "--seed", 7)
    assert (text.status, text.err) == (0, "")
    assert text.out == found["text"] + "\n"


def test_run_reads_its_prompt_where_it_is_told(model: Path) -> None:
    given = run_json(model, "-p", "hello", "--temp", 0)["tokens"]
    assert run_json(model, "-p", "-", "--temp", 0, stdin="hello")["tokens"] == given
    assert run_json(model, "--temp", 0, stdin="hello")["tokens"] == given
    assert run_json(model, "--temp", 0, stdin="hello\n")["tokens"] == given
    assert run_json(model, "--temp", 0, stdin="hello\r\n")["tokens"] == given
    assert run_json(model, "--temp", 0, stdin="hello\n\n")["prompt_tokens"] == len("hello\n") - 4
    with_bom = "\ufeffhello"
    assert run_json(model, "--temp", 0, stdin=with_bom)["tokens"] == given
    assert (
        call("chat", model, "--temp", 0, "-n", 8, stdin=with_bom).out
        == call("chat", model, "--temp", 0, "-n", 8, stdin="hello").out
    )
    one_error(call("run", model, stdin=""), "empty")
    one_error(call("run", model, stdin=b"caf\xe9"), "UTF-8")


def test_a_prompt_and_what_is_piped_in_are_both_read(model: Path) -> None:
    """The text after the prompt, a blank line between them."""
    whole = run_json(model, "-p", "hello\n\nthe text\n", "--temp", 0)
    assert run_json(model, "-p", "hello", "--temp", 0, stdin="the text\n\n")["tokens"] == whole["tokens"]
    assert run_json(model, "-p", "hello", "--temp", 0, stdin="the text\n\n")["prompt_tokens"] == whole["prompt_tokens"]
    asked = run_json(model, "-p", "hello\n\nthe text\n", "--chat")["prompt_tokens"]
    assert run_json(model, "-p", "hello", "--chat", stdin="\ufeffthe text\n\n")["prompt_tokens"] == asked
    alone = run_json(model, "-p", "hello")["prompt_tokens"]
    assert run_json(model, "-p", "hello", stdin="\n")["prompt_tokens"] == alone
    for stdin in (subprocess.DEVNULL, subprocess.PIPE):
        command = [*COMMAND, "run", str(model), "-p", "hello", "--json", "-n", "1"]
        done = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.stdin is not None:
            assert done.stderr is not None
            assert done.stderr.readline().startswith("note: waiting for standard input")
        out, _ = done.communicate()
        assert json.loads(out)["prompt_tokens"] == alone


def test_log_probabilities_have_the_bytes(model: Path) -> None:
    found = run_json(model, "-p", "hello", "--temp", 2, "--top-k", 0, "--seed", 3, "--logprobs", 2)
    with Model(model) as loaded:
        for entry in found["logprobs"]:
            for token in (entry, *entry["top"]):
                assert bytes(token["bytes"]) == loaded.tokenizer.token_bytes(token["token"])
                assert token["text"] == bytes(token["bytes"]).decode(errors="replace")
    raw = b"".join(bytes(entry["bytes"]) for entry in found["logprobs"])
    assert "\ufffd" in raw.decode(errors="replace"), "take another seed: there must be a part of a character"


def test_every_sampling_option_has_its_effect(model: Path) -> None:
    greedy = run_json(model, "-p", "hello", "--temp", 0)["tokens"]
    assert len(greedy) == 24, "the model must not end by itself here; take another prompt"
    warm = ["-p", "hello", "--temp", 2, "--seed", 1]
    off = ["--top-k", 0, "--top-p", 1, "--min-p", 0]
    drawn = run_json(model, *warm, *off)["tokens"]
    assert drawn != greedy
    assert drawn == run_json(model, *warm, *off)["tokens"]
    assert drawn != run_json(model, "-p", "hello", "--temp", 2, "--seed", 2, *off)["tokens"]
    for narrow in (["--top-k", 1], ["--top-p", 1e-6], ["--min-p", 0.999]):
        name = narrow[0]
        rest = [value for pair in zip(off[::2], off[1::2], strict=True) if pair[0] != name for value in pair]
        assert run_json(model, *warm, *rest, *narrow)["tokens"] == greedy, name
    for penalty in (["--repeat-penalty", 50], ["--frequency-penalty", 50], ["--presence-penalty", 50]):
        tokens = run_json(model, "-p", "hello", "--temp", 0, *penalty)["tokens"]
        assert tokens != greedy, penalty[0]
        assert len(set(tokens)) > len(set(greedy)), penalty[0]


def test_penalties_look_at_as_many_tokens_as_asked_for(model: Path) -> None:
    heavy = ["--repeat-penalty", 1000, "--temp", 0, "-p", "hello"]
    narrow, wide = (run_json(model, *heavy, "--penalty-last-n", n)["tokens"] for n in (1, 0))
    assert len(set(wide)) == len(wide) == 24
    assert len(set(narrow)) < len(narrow)
    assert "--penalty-last-n" in call("chat", "--help").out
    assert (
        call("chat", model, *heavy[:4], "--penalty-last-n", 1, "-n", 24, stdin="hello\n").out
        != call("chat", model, *heavy[:4], "--penalty-last-n", 0, "-n", 24, stdin="hello\n").out
    )


def test_a_fresh_seed_each_time_and_it_is_told(model: Path) -> None:
    first, second = (run_json(model, "-p", "hello", "--temp", 2) for _ in range(2))
    assert first["setup"]["seed"] != second["setup"]["seed"]
    again = run_json(model, "-p", "hello", "--temp", 2, "--seed", first["setup"]["seed"])
    assert again["tokens"] == first["tokens"]


def test_settings_reach_the_session(model: Path) -> None:
    setup = run_json(model, "-p", "hello", "--ctx", 100, "--threads", 1, "--chunk", 3)["setup"]
    assert setup["n_ctx"] == 100
    assert setup["threads"] == 1
    assert setup["chunk"] == 3
    assert run_json(model, "-p", "hello", "--ctx", 0)["setup"]["n_ctx"] == 512
    assert run_json(model, "-p", "hello", "--ctx", 600, "--allow-long-context")["setup"]["n_ctx"] == 600


def test_the_default_context_is_modest(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "long.gguf", n_ctx=100_000)
    assert run_json(model, "-p", "hello")["setup"]["n_ctx"] == 4096
    assert run_json(model, "-p", "hello", "--ctx", 0)["setup"]["n_ctx"] == 100_000


def test_stop_strings_end_the_text(model: Path) -> None:
    for seed in range(20):  # a text in which some character comes late for the first time
        whole = run_json(model, "-p", "hello", "--seed", seed)["text"]
        at = next((n for n in range(4, len(whole)) if whole[n].isascii() and whole[n] not in whole[:n]), None)
        if at is not None:
            break
    assert at is not None
    found = run_json(model, "-p", "hello", "--seed", seed, "--stop", "never this", "--stop", whole[at])
    assert found["finish_reason"] == "stop"
    assert found["text"] == whole[:at]


def test_a_full_context_ends_the_text_with_a_note(model: Path) -> None:
    arguments = ["-p", "hello", "--temp", 0, "--ctx", 16]
    found = call("run", model, "--json", *arguments).json()
    assert found["finish_reason"] == "context"
    assert found["prompt_tokens"] + len(found["tokens"]) >= 16
    text = call("run", model, *arguments)
    assert text.status == 0
    assert text.out == found["text"] + "\n"
    assert text.err.startswith("note: the context of 16 tokens is full")
    assert "--ctx" in text.err
    one_error(call("run", model, "-p", "x" * 50, "--ctx", 16), "50 tokens", "holds 16", "--ctx")


def test_run_chat_goes_through_the_template(model: Path) -> None:
    plain = run_json(model, "-p", "hello")
    chat = run_json(model, "-p", "hello", "--chat")
    briefed = run_json(model, "-p", "hello", "--chat", "--system", "Be brief.")
    assert plain["prompt_tokens"] < chat["prompt_tokens"] < briefed["prompt_tokens"]
    template = Path("t.jinja")
    template.write_text("{{ messages[0].content }}")
    assert run_json(model, "-p", "hello", "--chat", "--template", template)["prompt_tokens"] == 1
    one_error(call("run", model, "-p", "x", "--chat", "--template", "nowhere"), "nowhere")


THINKING = (
    "{{ messages[0].content }}{% if enable_thinking is defined and enable_thinking is false %}<no>\n{% endif %}"
    "{{ style | default('') }}"
)


def test_template_variables(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "thinking.gguf", chat_template=THINKING)
    plain, off, text = (
        run_json(model, "-p", "hi", "--chat", *options)["prompt_tokens"]
        for options in ((), ("--template-var", "enable_thinking=false"), ("--template-var", "style=a b=c"))
    )
    assert plain < off
    assert plain < text
    assert chat(model, "hi", options=("--template-var", "enable_thinking=false")).status == 0
    one_error(call("run", model, "-p", "x", "--chat", "--template-var", "think=1"), "'think'", "enable_thinking, style")
    one_error(call("chat", model, "--template-var", "messages=[]"), "messages", "cannot be set")
    one_error(call("chat", model, "--template-var", "style"), "NAME=VALUE")
    one_error(call("chat", model, "--template-var", "style=1", "--template-var", "style=2"), "style is given twice")
    assert "--template-var has an effect with --chat only" in call("run", model, "--template-var", "style=1").err


def test_info_prints_the_template(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "thinking.gguf", chat_template=THINKING)
    found = call("info", model, "--template")
    assert (found.status, found.out, found.err) == (0, THINKING + "\n", "")
    assert "--template prints it" in call("info", model).out
    for option in (["--json"], ["--chunk", 64], ["--allow-long-context"], ["--ctx", 64]):
        assert call("info", model, "--template", *option).status == 2
    one_error(call("info", make_tiny(tmp_path / "base.gguf", chat_template=None), "--template"), "no chat template")


def test_control_tokens_in_a_prompt_need_to_be_asked_for(model: Path) -> None:
    text = "<|im_start|>"
    assert run_json(model, "-p", text)["prompt_tokens"] > 8
    assert run_json(model, "-p", text, "--special")["prompt_tokens"] == 1
    empty = run_json(model, "-p", "", "--chat")["prompt_tokens"]
    assert run_json(model, "-p", text, "--chat")["prompt_tokens"] > empty + 8


def test_control_tokens_of_an_answer_are_shown_where_asked_for(tmp_path: Path) -> None:
    """A model some of whose tokens have become control tokens."""
    path = make_tiny(tmp_path / "m.gguf")
    with Model(path) as loaded:
        plain = loaded.gguf.numbers("tokenizer.ggml.token_type")
        types = [kind if i % 2 or loaded.tokenizer.token(i) in "hello" else 3 for i, kind in enumerate(plain)]
        data = path.read_bytes().replace(plain.tobytes(), array("i", types).tobytes())
    model = tmp_path / "marks.gguf"
    model.write_bytes(data)
    for extra in ([], ["--chat"]):
        arguments = ("-p", "hello", "--temp", 0, *extra)
        hidden, shown = (run_json(model, *arguments, *more) for more in ([], ["--special"]))
        assert hidden["tokens"] == shown["tokens"]
        assert len(hidden["text"]) < len(shown["text"])
        assert call("run", model, "-n", 24, *arguments, "--special").out == shown["text"] + "\n"
    asked = ("chat", model, "--temp", 0, "-n", 24)
    assert call(*asked, stdin="hello\n").out == hidden["text"] + "\n"
    assert call(*asked, "--special", stdin="hello\n").out == shown["text"] + "\n"


def test_a_model_without_a_template_completes_but_does_not_chat(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "base.gguf", chat_template=None)
    assert call("run", model, "-p", "hello", "-n", 2).status == 0
    one_error(call("chat", model), "--template", "run")
    one_error(call("run", model, "-p", "hello", "--chat"), "--template")
    assert call("chat", model, "--template", "chatml", "--max-tokens", 2, stdin="hi\n").status == 0


# ---- chat without a terminal -----------------------------------------------------------------------------------------


def chat(model: Path, *lines: str, options: Sequence[object] = ()) -> Result:
    return call("chat", model, "--temp", 0, "--max-tokens", 8, *options, stdin="".join(f"{line}\n" for line in lines))


def saved(name: str) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in json.loads(Path(name).read_text())["messages"]]


def test_each_line_is_a_turn_and_nothing_else_is_printed(model: Path) -> None:
    with Model(model) as loaded, loaded.chat(sampling=SamplingOptions(temperature=0)) as conversation:
        answers = [conversation.send(text, max_tokens=8) for text in ("hello", "and now?")]
    result = chat(model, "hello", "", "and now?")
    assert (result.status, result.err) == (0, "")
    assert result.out == "".join(f"{answer}\n" for answer in answers)


def test_fences_and_slashes(model: Path) -> None:
    result = chat(
        model, '"""', "one", "", "two", '"""', '"""in one line"""', "//not a command", "/save chat.json", "/exit", "no"
    )
    assert result.status == 0
    users = [content for role, content in saved("chat.json") if role == "user"]
    assert users == ["one\n\ntwo", "in one line", "/not a command"]


def test_an_open_fence_ends_with_the_input(model: Path) -> None:
    result = chat(model, "/save empty.json", '"""', "one", "two")
    assert result.status == 0
    assert saved("empty.json") == []
    assert result.out.count("\n") >= 1


def test_commands(model: Path) -> None:
    result = chat(
        model,
        "hello",
        "/save one.json",
        "/system Be brief.",
        "/system",
        "hi",
        "/save two.json",
        "/reset",
        "/save three.json",
        "/load one.json",
        "and?",
        "/save four.json",
        "/stats",
        "/help",
        options=["--system", "Be long."],
    )
    assert result.status == 0
    assert [role for role, _ in saved("one.json")] == ["system", "user", "assistant"]
    assert saved("one.json")[0] == ("system", "Be long.")
    assert saved("two.json")[:2] == [("system", "Be brief."), ("user", "hi")]
    assert saved("three.json") == [("system", "Be brief.")]
    assert saved("four.json")[:3] == saved("one.json")
    assert saved("four.json")[3] == ("user", "and?")
    for word in ("Be brief.\n", "tokens/s", " packed\n", "/reset", "/load FILE"):
        assert word in result.out
    for word in ("starts over", "3 messages loaded"):
        assert word in result.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/nonsense", "unknown command /nonsense"),
        ("/laod one.json", "unknown command /laod"),
        ("/save", "/save needs"),
        ("/save nowhere/x.json", "cannot write"),
        ("/load", "/load needs"),
        ("/load missing", "cannot read missing"),
        ("/undo", "cannot go back"),
        ("/undo x", "/undo needs a number"),
        (f"/undo {'9' * 5000}", "/undo needs a number"),
        ("/save ~a\0b/x", "zero"),
        ("/load ~a\0b/x", "null byte"),
        ("/undo\tx", "/undo needs a number"),
        ("/edit", "/edit needs"),
        ("/retry", "cannot go back"),
        ("/switch nowhere", "no branch nowhere"),
        ("/branch main", "a branch main already"),
    ],
)
def test_a_script_can_tell_that_a_command_failed(model: Path, line: str, words: str) -> None:
    one_error(chat(model, line, "hello"), words)


def test_files_at_home(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no shell that would say what ~ stands for."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    shutil.copy(model, tmp_path / "m.gguf")
    result = call("chat", "~/m.gguf", "-n", 3, stdin="hello\n/save ~/talk.json\n/load ~/talk.json\n")
    assert result.status == 0, result.err
    assert len(saved("talk.json")) == 2
    assert "2 messages loaded" in result.err


def test_a_script_can_tell_that_a_turn_failed(model: Path) -> None:
    result = chat(model, "/load nowhere.json", "hello")
    one_error(result, "nowhere.json")
    result = chat(model, "hello", "x" * 100, "hello", options=["--ctx", 64])
    assert result.status == 1
    assert result.err.count("\n") == 1
    assert "--ctx" in result.err
    one_error(call("chat", model, stdin=b"\xff\n"), "UTF-8")


# ---- info, doctor, the cache -----------------------------------------------------------------------------------------


def test_info(model: Path) -> None:
    found = call("info", model, "--json", "--ctx", 64).json()
    with Model(model) as loaded:
        plan = loaded.plan(64)
        facts = loaded.info()
        assert found["n_weights"] == facts.n_params
        assert found["metadata"].keys() == set(loaded.gguf.metadata)
    assert found["model"]["n_ctx_train"] == facts.n_ctx_train == 512
    assert found["bytes"] == model.stat().st_size
    assert found["plans"][0]["n_ctx"] == 64
    assert found["plans"][0]["total_bytes"] == plan.total_bytes
    assert sum(kind["bytes"] for kind in found["tensor_types"].values()) == facts.weight_bytes
    text = call("info", model)
    assert (text.status, text.err) == (0, "")
    for word in (
        "tiny llama",
        "trained context  512 tokens",
        "chat template    yes",
        "f16",
        "F32",
        "tokenizer.ggml.tokens",
        " strings]",
    ):
        assert word in text.out


def test_info_plans_beyond_what_a_model_was_trained_for_with_a_note(model: Path) -> None:
    told = call("info", model, "--ctx", 513)
    assert (told.status, told.err) == (0, "")
    assert "note: 513 tokens are more than the 512 this model was trained for" in told.out
    assert "--allow-long-context" in told.out
    found = call("info", model, "--ctx", 513, "--json").json()
    assert found["plans"][0]["n_ctx"] == 513
    assert found["notes"][-1].startswith("513 tokens")
    for arguments in (["--ctx", 512], ["--ctx", 513, "--allow-long-context"]):
        assert "note:" not in call("info", model, *arguments).out
        assert call("info", model, *arguments, "--json").json()["notes"] == []


def test_info_counts_the_weights_in_the_total(model: Path) -> None:
    found = call("info", model, "--json", "--ctx", 64).json()
    plan = next(plan for plan in found["plans"] if plan["kv"] == "f16")
    weights = found["model"]["weight_bytes"]
    assert plan["with_weights_bytes"] == plan["total_bytes"] + weights
    line = next(line for line in call("info", model, "--ctx", 64).out.splitlines() if line.startswith("  f16 "))
    assert line.endswith(bytes_text(plan["total_bytes"] + weights))


def test_info_shows_plans_that_do_not_fit(wide_model: Path) -> None:
    text = call("info", wide_model, "--ctx", 2**28, "--allow-long-context")
    assert text.status == 0
    assert "does not fit" in text.out


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    result = call("doctor")
    assert (result.status, result.err) == (0, "")
    for word in ("SIMD level", "KV types         logquant, ", "self-test        passed", "tokenizers", "all is well"):
        assert word in result.out
    monkeypatch.setenv("PYLOGQUANT_CACHE", "/dev/null/cache")
    result = call("doctor")
    assert result.status == 1
    assert "BROKEN" in result.out
    assert "PYLOGQUANT_CACHE" in result.out


@pytest.mark.parametrize("variable", ["LQ_CPU", "LOGQUANT_LIBRARY"])
def test_doctor_reports_a_core_that_does_not_load(variable: str) -> None:
    environment = {**os.environ, variable: "bogus"}
    done = subprocess.run([*COMMAND, "doctor"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == ""
    assert "BROKEN" in done.stdout
    assert "bogus" in done.stdout
    assert "dependencies" in done.stdout, "one broken part must not hide the others"


def test_pull_list_rm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pylogquant._download._SPARE_BYTES", 0)
    with serving(FakeHub(files={"acme/m/m-Q4_0.gguf": CONTENT})) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.endpoint)
        pulled = call("pull", "acme/m:Q4_0")
        assert (pulled.status, pulled.err) == (0, "")
        path = Path(pulled.out.removesuffix("\n"))
        assert path.read_bytes() == CONTENT
        one_error(call("pull", "acme/m:Q5_0"), "m-Q4_0.gguf")
    listed = call("list", "--json").json()
    assert [(entry["name"], entry["path"]) for entry in listed] == [
        ("smollm2-135m", None),
        ("gemma3-270m", None),
        ("acme/m:m-Q4_0.gguf", str(path)),
    ]
    text = call("list")
    assert "not fetched" in text.out
    assert str(path) in text.out
    one_error(call("rm", path), "path")
    one_error(call("rm", "smollm2-135m"), "not in the cache")
    assert path.exists()
    assert call("rm", "acme/m:Q4_0").out.startswith("acme/m:Q4_0: ")
    assert not path.exists()


def test_a_built_in_name_is_fetched_on_first_use(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import hashlib
    from dataclasses import replace

    data = model.read_bytes()
    record = replace(
        hub.BUILTINS["smollm2-135m"], n_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), file="m.gguf"
    )
    monkeypatch.setitem(hub.BUILTINS, record.name, record)
    source = record.sources[0]
    assert isinstance(source, HubFile)
    with serving(FakeHub(files={f"{source.repo}/{source.file}": data})) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.endpoint)
        result = call("run", "smollm2-135m", "-p", "hello", "-n", 2)
        assert (result.status, result.err) == (0, "")
    assert call("run", "smollm2-135m", "-p", "hello", "-n", 2, "--offline").status == 0


def test_what_is_ignored_of_a_file_is_noted(tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "m.gguf")
    data = path.read_bytes()
    key = b"tokenizer.ggml.eos_token_id"
    at = data.index(key) + len(key) + 4  # behind the type
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(data[:at] + (99_999).to_bytes(4, "little") + data[at + 4 :])
    note = "tokenizer.ggml.eos_token_id is 99999"
    assert note in call("run", bad, "-p", "hi", "-n", 1).err
    assert any(note in line for line in call("info", bad, "--json").json()["notes"])
    assert note in call("info", bad).out
    assert call("info", path, "--json").json()["notes"] == []

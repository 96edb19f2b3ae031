"""How answers are drawn where nothing is said: by the file's advice, or a built-in model's record."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from command_line import call
from gguf_copy import Typed, copy_gguf
from make_tiny_gguf import make_tiny

from pylogquant import Model, SamplingOptions, hub
from pylogquant.defaults import answer_defaults
from pylogquant.session import Sampler

OURS = SamplingOptions()


def advice(**values: object) -> dict[str, object]:
    return {"general.architecture": "llama", **{f"general.sampling.{name}": value for name, value in values.items()}}


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ({}, {}),
        ({"temp": 0.6, "top_k": 20, "min_p": 0.1}, {"temperature": 0.6, "top_k": 20, "min_p": 0.1}),
        ({"top_p": 0.9}, {"top_p": 0.9}),
        ({"penalty_repeat": 1.05, "penalty_last_n": 128}, {"repeat_penalty": 1.05, "penalty_last_n": 128}),
        ({"temp": 0.0}, {"temperature": 0.0}),
        ({"temp": -1.0}, {"temperature": 0.0}),  # llama.cpp: greedy
        ({"top_k": -1}, {"top_k": 0}),  # off
        ({"top_k": 0}, {"top_k": 0}),
        ({"top_p": 1.5}, {"top_p": 1.0}),
        ({"min_p": -0.5}, {"min_p": 0.0}),
        ({"penalty_last_n": -1}, {"penalty_last_n": 0}),  # the whole context, which is 0 here
        ({"penalty_last_n": 0, "penalty_repeat": 1.3}, {"repeat_penalty": 1.0}),  # none, so that nothing is penalized
        ({"mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1}, {}),
        ({"xtc_probability": 0.0, "xtc_threshold": 0.1}, {}),
        ({"sequence": "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature"}, {}),
    ],
)  # fmt: skip
def test_what_is_followed(values: dict[str, object], options: dict[str, Any]) -> None:
    found = answer_defaults(advice(**values), Path("some.gguf"))
    assert found.options == replace(OURS, **options)
    assert (found.not_followed, found.note) == ((), "")
    assert set(options) == set(found.named)
    assert found.source == ("the file" if options else "")


@pytest.mark.parametrize(
    "values",
    [
        {"mirostat": 2, "mirostat_tau": 5.0, "mirostat_eta": 0.1},
        {"xtc_probability": 0.5, "xtc_threshold": 0.1},
        {"sequence": "top_k;temperature"},  # leaves others out
        {"sequence": "penalties;temperature;top_k;top_p;min_p"},  # another order
        {"typical_p": 0.9},  # a key of the future
        {"temp": float("nan")},
        {"temp": 1e9},
        {"temp": "warm"},
        {"temp": [0.5]},
        {"top_k": True},
        {"top_k": 2**40},
        {"top_p": 0.0},
        {"min_p": 1.0},
        {"penalty_repeat": 0.0},
        {"penalty_last_n": float("inf")},
    ],
)
def test_what_is_not_followed_is_named(values: dict[str, object]) -> None:
    found = answer_defaults(advice(**values), Path("some.gguf"))
    assert found.options == OURS
    assert [text.partition(" = ")[0] for text in found.not_followed] == [f"general.sampling.{name}" for name in values]
    assert all(text in found.note for text in found.not_followed)


def test_every_key_that_the_format_knows_is_decided() -> None:
    keys = {value for name, value in vars(gguf.Keys.General).items() if name.startswith("SAMPLING_")}
    assert len(keys) >= 12
    found = answer_defaults(dict.fromkeys(keys, 0.5), Path("some.gguf"))
    assert len(found.named) + len(found.not_followed) == len(keys)


@pytest.fixture(scope="module")
def advised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose file advises, and asks for what there is not."""
    folder = tmp_path_factory.mktemp("sampling")
    kinds = gguf.GGUFValueType
    keys: dict[str, Typed | None] = {
        "general.sampling.temp": Typed(0.0, kinds.FLOAT32),
        "general.sampling.penalty_repeat": Typed(1.5, kinds.FLOAT32),
        "general.sampling.mirostat": Typed(2, kinds.INT32),
    }
    copy_gguf(make_tiny(folder / "plain.gguf"), folder / "advised.gguf", keys=keys)
    return folder / "advised.gguf"


def test_a_chat_and_a_run_follow_the_file_and_what_is_said_wins(advised: Path) -> None:
    note = "note: the file asks for what is not done here: general.sampling.mirostat = 2\n"
    with Model(advised) as model:
        options = replace(OURS, temperature=0.0, repeat_penalty=1.5)
        assert model.answer_defaults().options == options
        with model.chat(n_ctx=128) as chat, model.chat(n_ctx=128, sampling=OURS) as mine:
            assert (chat.sampler.options, mine.sampler.options) == (options, OURS)
            answer = chat.send("hello", max_tokens=8)
        with model.chat(n_ctx=128, sampling=replace(options, repeat_penalty=1.0)) as other:
            plain = other.send("hello", max_tokens=8)
    assert answer != plain, "the penalty must change something here; take another prompt"
    for command in (["chat", advised, "-n", 8], ["run", advised, "--chat", "-n", 8]):
        found = call(*command, stdin="hello\n")
        assert (found.out, found.err) == (f"{answer}\n", note), command
        assert call(*command, "--repeat-penalty", 1, stdin="hello\n").out == f"{plain}\n", command


def test_info_shows_them(advised: Path) -> None:
    text = call("info", advised).out
    assert (
        "temperature 0: always the most probable token, repeat penalty 1.5 (temperature, repeat penalty: from the f"
        in text
    )
    assert "the file asks for what is not done here: general.sampling.mirostat = 2" in text
    found = call("info", advised, "--json").json()["sampling"]
    assert (found["options"]["repeat_penalty"], found["source"]) == (1.5, "the file")
    assert found["not_followed"] == ["general.sampling.mirostat = 2"]


def test_in_words() -> None:
    found = answer_defaults(advice(temp=0.6, top_k=20), Path("some.gguf"))
    assert found.describe(found.options) == (
        "temperature 0.6, top-k 20, top-p 0.95, min-p 0.05 (temperature, top-k: from the file)"
    )
    assert found.describe(replace(found.options, temperature=1.0)) == (
        "temperature 1, top-k 20, top-p 0.95, min-p 0.05 (top-k: from the file)"
    )
    off = SamplingOptions(temperature=1, top_k=0, top_p=1, min_p=0, presence_penalty=0.5)
    assert answer_defaults({}, Path("some.gguf")).describe(off) == "temperature 1, presence penalty 0.5"


@pytest.fixture
def built_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Makes a tiny model a built-in one with a record."""

    def make(source: Path) -> Path:
        path = Path(shutil.copy(source, tmp_path / "built-in.gguf"))
        known = hub.Builtin(
            "tiny", "", path.name, path.stat().st_size, "", "", (), {"temperature": 0.25, "min_p": 0.2}, "Be kind."
        )
        monkeypatch.setitem(hub.BUILTINS, "tiny", known)
        return path

    return make


def test_a_built_in_model_has_a_record_unless_its_file_speaks(
    advised: Path, built_in: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = built_in(advised.with_name("plain.gguf"))
    with Model(path) as model:
        found = model.answer_defaults()
        with model.chat(n_ctx=128) as chat, model.chat("", n_ctx=128) as bare, model.chat("Hi.", n_ctx=128) as mine:
            assert (chat.system, bare.system, mine.system) == ("Be kind.", None, "Hi.")
    assert (found.options, found.source) == (replace(OURS, temperature=0.25, min_p=0.2), "the built-in record")
    told = call("info", path).out
    assert "system message   Be kind.\n" in told
    for command in (["chat", path, "-n", 8], ["run", path, "--chat", "-n", 8]):
        by_record, same, none = (
            call(*command, "--temp", 0, *more, stdin="hello\n").out
            for more in ([], ["--system", "Be kind."], ["--system", ""])
        )
        assert by_record == same
        assert by_record != none, "the message must change something here; take another one"
    assert found.describe(found.options).endswith("(temperature, min-p: from the built-in record)")
    other = Path(shutil.copy(path, tmp_path / "other.gguf"))  # a file of another name is another model
    with Model(other) as model:
        assert model.answer_defaults().options == OURS
    with Model(built_in(advised)) as model:
        found = model.answer_defaults()
        assert (found.source, found.system) == ("the file", "")


def test_the_records_are_options() -> None:
    for known in hub.BUILTINS.values():
        Sampler(replace(OURS, **known.sampling))  # type: ignore[arg-type]


def test_the_first_answer_of_the_model_that_newcomers_try(smollm2_path: Path) -> None:
    known = hub.BUILTINS["smollm2-135m"]
    with Model(smollm2_path, threads=2) as model:
        defaults = model.answer_defaults()
        assert set(defaults.named) == set(known.sampling) != set()
        likeliest = replace(defaults.options, temperature=0.0)
        with model.chat(n_ctx=512, sampling=likeliest) as chat:
            assert chat.system == known.system
            assert chat.send("What is the capital of France?", max_tokens=300) == "The capital of France is Paris."
            assert chat.stats().last.finish == "eog"

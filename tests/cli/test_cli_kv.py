"""The command line's options about KV caches: what they reach, what is refused, and what is told about the cache."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import call, one_error
from make_tiny_gguf import make_tiny

from pylogquant import KvLayer, Model
from pylogquant.cli.options import DEFAULT_KV, complete_kv, complete_overlay, complete_select
from pylogquant.kv import KvOptions, kv_names

SETTINGS = {
    "--kv": "logquant-hq",
    "--kv-k": "4:1/2,1:1/2",
    "--kv-v": 4,
    "--window": 192,
    "--sinks": 0,
    "--overlay": "q8_0",
    "--select": "even",
}
AS_OPTIONS = KvOptions("logquant-hq", "4:1/2,1:1/2", 4, 192, 0, "q8_0", "even")
ARGUMENTS = [item for pair in SETTINGS.items() for item in pair]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("cli") / "tiny.gguf")


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def run_json(model: Path, *arguments: object) -> Any:
    return call("run", model, "--json", "-n", 4, "--temp", 0, "-p", "hello", *arguments).json()


# ---- defaults and settings -------------------------------------------------------------------------------------------


def test_one_default_everywhere(model: Path) -> None:
    assert kv_names()[0] == DEFAULT_KV == KvOptions().name
    for function in (Model.session, Model.plan, Model.chat, KvLayer.__init__):
        assert inspect.signature(function).parameters["kv"].default == DEFAULT_KV
    for command in ("chat", "run"):
        assert f"[default: {DEFAULT_KV}]" in " ".join(call(command, "--help").out.split())
    found = run_json(model)
    assert found["setup"]["kv"] == found["kv"]["options"]["name"] == DEFAULT_KV


def test_settings_reach_the_cache(model: Path) -> None:
    found = run_json(model, *ARGUMENTS)["kv"]["options"]
    assert KvOptions(**found) == AS_OPTIONS
    # Each alone: the others stay as the type has them.
    usual = run_json(model)["kv"]["options"]
    for name, field in zip(SETTINGS, KvOptions.__dataclass_fields__, strict=True):
        found = run_json(model, name, SETTINGS[name])["kv"]["options"]
        assert found[field] == getattr(AS_OPTIONS, field) != usual[field], name
        if name != "--kv":
            assert {key for key in found if found[key] != usual[key]} == {field}


def test_every_type_answers(model: Path) -> None:
    for name in kv_names():
        found = run_json(model, "--kv", name)
        assert found["setup"]["kv"] == name
        assert len(found["tokens"]) > 0


def test_completion() -> None:
    assert complete_kv("f") == ["f16"]
    assert complete_kv("") == kv_names()
    assert complete_overlay("") == ["f16", "q8_0"]
    assert complete_overlay("q") == ["q8_0"]
    assert complete_select("h") == ["heaviest"]
    for words, expected in (
        ("pylogquant chat m.gguf --overlay q", ["q8_0"]),
        ("pylogquant run m.gguf --select ", ["even", "newest", "heaviest"]),
        ("pylogquant info m.gguf --kv logquant-p", ["logquant-paper"]),
    ):
        environment = {
            **os.environ,
            "_PYLOGQUANT_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        command = [sys.executable, "-m", "pylogquant.cli"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=sys.prefix)
        assert done.stdout.split() == expected, done.stderr


# ---- what cannot be --------------------------------------------------------------------------------------------------

REFUSED: dict[str, list[str]] = {
    "--kv f17": ["f17", "f16", "logquant-hq"],
    "--kv f16 --kv-k 2": ["f16", "key widths", "no effect"],
    "--kv f16 --kv-v 2": ["f16", "value bits", "no effect"],
    "--kv q8_0 --window 128": ["q8_0", "window", "no effect"],
    "--kv q8_0 --sinks 0": ["q8_0", "sinks", "no effect"],
    "--kv f16 --overlay f16": ["f16", "overlay", "no effect"],
    "--kv f16 --select even": ["f16", "selection", "no effect"],
    "--kv-k 6": ["'6'", "1 to 5"],
    "--kv-k 4:1/2": ["4:1/2", "add up"],
    "--kv-k 2:1/2,4:1/2": ["fall"],
    "--kv-k four": ["four", "4:3/8,2:3/8,1:1/4"],
    "--kv-v 5": ["5 bits", "2, 3 and 4"],
    "--window 100": ["100", "multiple of 64"],
    "--sinks 65": ["65", "0 to 64"],
    "--overlay f32": ["f32", "q8_0"],
    "--select odd": ["odd", "heaviest"],
    "--window 18446744073709551616": ["window"],
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_cannot_be_is_one_line_with_the_reason(model: Path, options: str) -> None:
    words = REFUSED[options]
    one_error(call("run", model, "-p", "x", *options.split()), *words)
    one_error(call("chat", model, *options.split(), stdin="x\n"), *words)
    if options != "--kv f17":
        one_error(call("info", model, *options.split()), *words)


@pytest.mark.parametrize("options", ["--kv-v 0", "--window 0", "--sinks -1", "--window many"])
def test_what_is_no_number_for_it_is_a_usage_error(model: Path, options: str) -> None:
    for command in (["run", model, "-p", "x"], ["chat", model], ["info", model]):
        result = call(*command, *options.split())
        assert result.status == 2
        assert options.split()[0] in result.err


def test_a_head_size_that_pages_cannot_hold(tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "odd.gguf", n_embd=48)
    for command in (["run", path, "-p", "x"], ["chat", path]):
        one_error(call(*command), "multiple of 8", "12", "f16")
    assert call("run", path, "-p", "x", "-n", 2, "--kv", "f16").status == 0
    plans = {plan["kv"]: plan for plan in call("info", path, "--json").json()["plans"]}
    assert "multiple of 8" in plans["logquant"]["reason"]
    assert "total_bytes" not in plans["logquant"]
    assert plans["f16"]["reason"] is None
    assert plans["f16"]["total_bytes"] > 0
    text = call("info", path)
    assert text.status == 0
    assert re.search(r"\n  logquant +512 +no: .*multiple of 8", text.out)
    one_error(call("info", path, "--kv-k", 2), "multiple of 8")


# ---- what is told ----------------------------------------------------------------------------------------------------


def test_info_shows_every_type_and_what_is_asked_for(model: Path) -> None:
    plans = call("info", model, "--json", "--ctx", 512).json()["plans"]
    assert [plan["kv"] for plan in plans] == kv_names()
    with Model(model) as loaded:
        facts = loaded.info()
        for plan in plans:
            expected = loaded.plan(512, kv=plan["kv"])
            assert plan["kv_global_bytes"] == expected.kv_global_bytes
            assert plan["total_bytes"] == expected.total_bytes
            values = 2 * facts.n_global_layers * facts.n_kv_heads * facts.head_dim * 512
            assert plan["bits"] == pytest.approx(8 * expected.kv_global_bytes / values)
        asked = loaded.plan(512, kv=AS_OPTIONS)
    assert {plan["kv"]: plan["bits"] for plan in plans}["f16"] == 16
    *presets, extra = call("info", model, "--json", "--ctx", 512, *ARGUMENTS).json()["plans"]
    assert presets == plans
    assert KvOptions(**extra["options"]) == AS_OPTIONS
    assert extra["kv_global_bytes"] == asked.kv_global_bytes
    text = call("info", model, *ARGUMENTS).out
    assert "bits per value" in text
    for name in (*kv_names(), str(AS_OPTIONS)):
        assert f"\n  {name} " in text


def test_info_takes_a_type_only_with_a_setting(model: Path) -> None:
    result = call("info", model, "--kv", "q8_0")
    assert result.status == 2
    assert "--kv has an effect together with" in result.err


def test_json_and_stats_report_the_usage(model: Path) -> None:
    """2 layers of 2 KV heads of 16 channels: 128 keys and values a token."""
    prompt = "ab " * 130
    found = call("run", model, "--json", "-n", 1, "-p", prompt, "--kv", "logquant-small").json()
    n = found["kv"]["n_tokens"]
    assert n == found["prompt_tokens"] > 200
    kv, usage = found["kv"], found["kv"]["usage"]
    assert usage["n_tokens"] == n == usage["n_sinks"] + usage["n_full"] + usage["n_packed"]
    assert usage["n_sinks"] == 4
    assert 128 <= usage["n_full"] < 192
    assert usage["n_pages"] == (n - 4) // 64
    assert kv["used_bytes"] == sum(usage[key] for key in usage if key.endswith("_bytes"))
    assert kv["f16_bytes"] == n * 128 * 2
    assert kv["bits_now"] == pytest.approx(8 * kv["used_bytes"] / (n * 128))
    assert abs(kv["reserved_bytes"] - kv["bits_at_n_ctx"] * 512 * 128 / 8) < 1


def test_stats_in_a_conversation(model: Path) -> None:
    options = ["--temp", 0, "--max-tokens", 4, "--kv", "logquant-small", "--sinks", 3]
    stdin = f"/stats\n{'ab ' * 100}\n/stats\n/save talk.json\n"
    result = call("chat", model, *options, stdin=stdin)
    assert (result.status, result.err) == (0, "note: saved to talk.json\n")
    settings = (
        "logquant-small, keys 4:1/4,2:1/4,1:1/2, values 2 bits, window 64, sinks 3, overlay q8_0, select heaviest"
    )
    assert result.out.count(f"KV       {settings}\n") == 2
    found = re.findall(
        r"context  (\d+) of 512 tokens \(\d+ %\): (\d+) sinks, (\d+) in full precision, (\d+) packed", result.out
    )
    assert found[0] == ("0", "0", "0", "0")
    n, sinks, full, packed = map(int, found[1])
    assert (n, sinks) == (sinks + full + packed, 3)
    assert packed >= 64
    assert 128 <= full < 192
    last = result.out[result.out.rindex("KV  ") :]
    assert re.search(r" KiB of [0-9.]+ KiB in use, f16 would take [0-9.]+ KiB; [0-9.]+ bits per value now, ", last)
    assert re.search(
        r"codes [0-9.]+ KiB, scales [0-9.]+ KiB, masks [0-9.]+ KiB, full precision [0-9.]+ KiB,"
        r" indices [0-9.]+ KiB, rings 0.0 KiB\n",
        last,
    )
    assert f"f16 would take {n * 256 / 1024:.1f} KiB" in last


def test_turns_that_go_on_evaluate_only_what_is_new(model: Path) -> None:
    with Model(model) as loaded, loaded.chat(kv="logquant-small") as chat:
        for _ in range(6):
            chat.send("a b c d e f g h " * 2, max_tokens=12)
        stats = chat.stats()
        assert stats.kv_usage.n_packed > 0
        assert stats.last.prompt_tokens < 80
        assert stats.n_tokens == chat.session.n_tokens
        # Every token was evaluated once: the newest of an answer may still be missing.
        assert len(chat.ids) - stats.n_tokens <= 1
        assert stats.total.prompt_tokens + stats.total.answer_tokens < len(chat.ids) + 2 * stats.turns


def test_a_saved_conversation_goes_on_with_another_cache(model: Path) -> None:
    call("chat", model, "--temp", 0, "--max-tokens", 4, stdin="hello\n/save talk.json\n")
    result = call(
        "chat", model, "--temp", 0, "--max-tokens", 4, "--kv", "q8_0", stdin="/load talk.json\nhi\n/save b.json\n"
    )
    assert result.status == 0
    assert len(json.loads(Path("b.json").read_text())["messages"]) == 4


def test_the_docs_tell_what_is_planned(tmp_path: Path) -> None:
    """Their tables of KV cache types, of a model with the sizes of SmolLM2-135M's cache."""
    path = make_tiny(tmp_path / "m.gguf", n_layers=30, n_embd=96, n_heads=9, n_kv_heads=3, head_dim=64, n_ctx=32768)
    root = Path(__file__).resolve().parents[2]
    texts = [(root / name).read_text(encoding="utf-8") for name in ("docs/kv-cache.md", "README.md")]
    pattern = r"^\| `([a-z0-9_-]+)` \| ([0-9.]+) / ([0-9.]+) \| (\d+) MiB \|"
    rows, shown = (re.findall(pattern, text, re.MULTILINE) for text in texts)
    assert sorted(row[0] for row in rows) == sorted(kv_names())
    assert shown
    assert set(shown) <= set(rows)
    short, long = (call("info", path, "--json", "--ctx", n).json()["plans"] for n in (8192, 32768))
    planned = {
        at_8k["kv"]: (at_8k["bits"], at_32k["bits"], at_32k["kv_global_bytes"] / 2**20)
        for at_8k, at_32k in zip(short, long, strict=True)
    }
    for name, *figures in rows:
        for told, found in zip(figures, planned[name], strict=True):
            assert float(told) == pytest.approx(found, abs=0.5 if "." not in told else 0.006), (name, told, found)

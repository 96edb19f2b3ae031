"""tools/measure/bench_peers.py: what it times, keeps and shows. Peers themselves are compared with --oracle only."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import bench_peers
import pytest
from bench_peers import Row, ratio, table, take_turns
from make_tiny_gguf import make_tiny


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("peers") / "m.gguf", n_ctx=512, weight_type="Q8_0", n_embd=128)


@pytest.fixture
def run(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Calls the tool; returns what it prints."""

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["bench_peers.py", str(path), *map(str, arguments)])
        bench_peers.main()
        return capsys.readouterr().out

    return call


def test_ratios_are_those_of_rounds() -> None:
    ours = Row("decode", 0, "pylogquant", "f16", (10.0, 40.0, 30.0))
    peer = Row("decode", 0, "llama.cpp", "f16", (10.0, 10.0, 10.0))
    assert ratio(ours, peer) == 3.0
    assert ratio(Row("start", 32, "pylogquant", "run", (0.5,)), Row("start", 32, "llama.cpp", "Python", (2.0,))) == 4.0


def test_turns() -> None:
    """Round 0 and each that is kept have every side once, and begin with another one each time."""
    sides: Any = ["a", "b", "c"]
    turns = list(take_turns(sides, 3))
    assert [index for index, _ in turns] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    rounds = ["".join(str(side) for at, side in turns if at == index) for index in range(4)]
    assert rounds == ["abc", "bca", "cab", "abc"]


def test_the_better_peer_is_the_fastest_one() -> None:
    rows = [
        Row("decode", 0, "pylogquant", "logquant", (20.0,)),
        Row("decode", 0, "llama.cpp", "f16", (10.0,)),
        Row("decode", 0, "ik_llama.cpp", "q4_0", (16.0,)),
    ]
    marked = [line for line in table(rows) if "better peer" in line]
    assert len(marked) == 1
    assert "ik_llama.cpp" in marked[0]
    assert "1.25 x" in marked[0]


def test_a_run_without_peers(run: Any, tmp_path: Path) -> None:
    """Kept caches are taken again; rows of an earlier run are shown with those of a new one."""
    states = tmp_path / "states"
    states.mkdir()
    common = ("--kv", "f16", "logquant", "--rounds", 2, "--decode", 3, "--ctx", 256, "--states", states)
    first = json.loads(run("--pp", 40, "--depths", "30,0", *common, "--json"))
    assert [(row["work"], row["n"], row["kv"]) for row in first["rows"]] == [
        (work, n, kv) for work, n in (("prompt", 40), ("decode", 0), ("decode", 30)) for kv in ("f16", "logquant")
    ]
    assert all(len(row["rounds"]) == 2 and min(row["rounds"]) > 0 for row in first["rows"])
    kept = {file: file.stat().st_mtime_ns for file in states.iterdir()}
    assert len(kept) == 2  # depth 0 needs none
    (tmp_path / "first.json").write_text(json.dumps(first))
    shown = run("--depths", "30,60", *common, "--add", tmp_path / "first.json", "--plot", tmp_path / "s.png")
    for words in ("prompt of 40", "decode at 0", "decode at 30", "decode at 60"):
        assert words in shown
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert len(list(states.iterdir())) == 4
    with pytest.raises(SystemExit, match="1 threads"):
        run("--threads", 2, "--add", _with_threads(tmp_path / "first.json", 1))


def _with_threads(path: Path, n: int) -> Path:
    path.write_text(json.dumps({**json.loads(path.read_text()), "threads": n}))
    return path


def test_an_engine_s_error_ends_the_run(run: Any) -> None:
    with pytest.raises(SystemExit, match=r"pylogquant: .*q2_0"):
        run("--pp", 8, "--kv", "q2_0", "--rounds", 1)


@pytest.mark.oracle
def test_llama_cpp_beside_us(run: Any, tmp_path: Path) -> None:
    common = ("--kv", "f16", "--llama-kv", "f16", "--rounds", 1, "--decode", 3, "--ctx", 256, "--states", tmp_path)
    for _ in range(2):  # from a kept cache the second time
        found = json.loads(run("--llama", "--pp", 40, "--depths", "0,30", *common, "--json"))
        assert [(row["work"], row["n"], row["engine"]) for row in found["rows"]] == [
            (work, n, engine)
            for work, n in (("prompt", 40), ("decode", 0), ("decode", 30))
            for engine in ("pylogquant", "llama.cpp")
        ]
        assert all(min(row["rounds"]) > 0 for row in found["rows"])
        assert list(found["versions"]) == ["pylogquant", "llama.cpp"]

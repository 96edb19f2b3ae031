"""How fast a model runs: what is timed, the bounds beside it, and `pylogquant bench`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command_line import call, one_error
from make_tiny_gguf import make_tiny

from pylogquant import ArgumentError, KvOptions, Model, Session, Unsupported, _native
from pylogquant.bench import Cost, Machine, Rate, bench, measure_machine, random_ids, token_cost
from pylogquant.plots import SpeedLine, plot_speed


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("bench") / "m.gguf", n_ctx=512)


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return Model(path, threads=2)


def test_ids_are_ordinary_and_the_same(model: Model) -> None:
    ids = random_ids(model, 5000)
    assert ids == random_ids(model, 5000) != random_ids(model, 5000, seed=1)
    assert set(ids).isdisjoint(model.tokenizer.control_ids)
    assert len(set(ids)) > 0.9 * (model.tokenizer.n_vocab - len(model.tokenizer.control_ids))


def test_what_a_token_costs(tmp_path: Path) -> None:
    """By hand: two layers of 64 with 4 heads and 2 KV heads of 16, 128 wide; weights of four bytes."""
    for tied in (True, False):
        with Model(make_tiny(tmp_path / "m.gguf", n_layers=2, n_embd=64, n_ff=128, tied=tied)) as model:
            n_vocab = model.info().n_vocab
            layer = 64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 128
            cost = token_cost(model)
            assert cost.products == 2 * layer
            assert cost.head_products == 64 * n_vocab
            assert cost.weight_bytes == 4 * (2 * layer + 64 * n_vocab + 5 * 64)  # norms too; one matrix of two


def test_experts_that_are_not_used_cost_nothing(tmp_path: Path) -> None:
    """Two of eight are used; the router is asked about all."""
    with Model(make_tiny(tmp_path / "m.gguf", n_layers=1, n_embd=64, n_ff=128, n_experts=8)) as model:
        attention = 64 * (64 + 32 + 32) + 64 * 64
        assert token_cost(model).products == attention + 8 * 64 + 2 * 3 * 64 * 128


def test_bounds() -> None:
    machine = Machine(
        "cpu", "scalar", 1, 0, 100, read_per_s=1000.0, memory_bytes=0, memory_per_s=0.0, products_per_s=600.0
    )
    cost = Cost(weight_bytes=80, products=10, head_products=50)
    assert machine.bound(Rate("decode", "f16", 7, (1.0,), kv_bytes=30, kv_read_bytes=20), cost) == 10.0
    assert machine.bound(Rate("prompt", "f16", 10, (1.0,), kv_bytes=30, kv_read_bytes=20), cost) == 40.0


def test_the_machine_is_measured() -> None:
    machine = measure_machine(2, 4 * 2**20)
    assert machine.cpu
    assert machine.cpu_level in _native.ffi.string(_native.lib.lq_cpu_levels()).decode().split(",")
    assert machine.read_bytes == 4 * 2**20 < machine.memory_bytes
    assert min(machine.read_per_s, machine.memory_per_s, machine.products_per_s) > 1e6


def test_every_length_is_timed_with_every_type(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding begins at its depth in each round, prompts in an empty session."""
    appended: Counter[tuple[str, int]] = Counter()
    prompts: Counter[tuple[str, int, int]] = Counter()
    append, prefill = Session.append, Session.prefill

    def counted_append(session: Session, token: int) -> None:
        appended[session.info().kv, session.n_tokens] += 1
        append(session, token)

    def counted_prefill(session: Session, ids: Any) -> None:
        prompts[session.info().kv, session.n_tokens, len(ids)] += 1
        prefill(session, ids)

    monkeypatch.setattr(Session, "append", counted_append)
    monkeypatch.setattr(Session, "prefill", counted_prefill)
    seen: list[tuple[int, int]] = []
    rates = bench(
        model, ["f16", "logquant+window=64"], prompts=[300, 100], depths=[290, 0, 10], rounds=3, n_decode=5,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    works = [("prompt", 100), ("prompt", 300), ("decode", 0), ("decode", 10), ("decode", 290)]
    assert [(rate.work, rate.n, rate.kv) for rate in rates] == [
        (*work, kv) for work in works for kv in ("f16", "logquant+window=64")
    ]
    assert all(len(rate.rounds) == 3 and min(rate.rounds) > 0 for rate in rates)
    for kv in ("f16", "logquant"):
        assert [prompts[kv, 0, n] for n in (100, 300)] == [3, 3]
        assert prompts[kv, 0, 10] == prompts[kv, 10, 280] == 1  # each depth is reached once, from the one before
        for depth in (0, 10, 290):
            assert [appended[kv, depth + i] for i in range(7)] == [3] * 7
        assert appended[kv, 297] == appended[kv, 17] == 0
    assert seen[0][0] == 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_bytes_are_those_of_a_session_that_long(model: Model) -> None:
    found = {(rate.work, rate.kv, rate.n): rate.kv_bytes for rate in bench(
        model, ["f16", "logquant+window=64"], prompts=[400], depths=[0, 400], rounds=1, n_decode=1
    )}  # fmt: skip
    for kv in ("f16", "logquant+window=64"):
        with model.session(403, KvOptions.parse(kv)) as session:
            session.prefill(random_ids(model, 400))
            assert found["prompt", kv, 400] == found["decode", kv, 400] == session.info().kv_used_bytes
    assert found["decode", "f16", 0] == 0


def test_a_token_reads_what_is_there(model: Model, tmp_path: Path) -> None:
    """Nothing where there are no tokens, though cells are allocated; of sliding layers no more than their window."""
    read = {(rate.kv, rate.n): rate.kv_read_bytes for rate in bench(
        model, ["f16", "logquant+window=64"], prompts=[], depths=[0, 400], rounds=1, n_decode=1
    )}  # fmt: skip
    shape = model.info()
    per_token = 2 * 2 * shape.n_kv_heads * shape.head_dim
    assert read["f16", 0] == read["logquant+window=64", 0] == 0
    assert read["f16", 400] == 400 * per_token * shape.n_layers
    assert 0 < read["logquant+window=64", 400] < read["f16", 400]
    with Model(make_tiny(tmp_path / "m.gguf", arch="gemma3", n_layers=6, window=24, n_ctx=512), threads=2) as sliding:
        shape = sliding.info()
        per_token = 2 * 2 * shape.n_kv_heads * shape.head_dim
        [rate] = bench(sliding, ["f16"], prompts=[], depths=[100], rounds=1, n_decode=1)
        assert rate.kv_read_bytes == per_token * (100 * 1 + 24 * 5)


def test_a_batch_is_a_step_of_so_many_sessions(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: Counter[tuple[str, int, int]] = Counter()
    step = Model.step

    def counted(self: Model, sessions: Any, tokens: Any, *, copy: bool = True) -> Any:
        assert len(set(tokens)) == 1
        steps[sessions[0].info().kv, len(sessions), sessions[-1].n_tokens] += 1
        return step(self, sessions, tokens, copy=copy)

    monkeypatch.setattr(Model, "step", counted)
    rates = bench(model, ["f16", "logquant"], prompts=[], depths=[], batches=[3, 1], rounds=2, n_decode=4)
    assert [(rate.work, rate.n, rate.kv) for rate in rates] == [
        ("batch", n, kv) for n in (1, 3) for kv in ("f16", "logquant")
    ]
    for kv in ("f16", "logquant"):
        for n in (1, 3):
            assert [steps[kv, n, held] for held in range(7)] == [2] * 6 + [0]
    cost = token_cost(model)
    machine = Machine("x", "x", 2, 0, 0, 1e9, 0, 1e9, 1e12)
    bounds = [machine.bound(rate, cost) for rate in rates]
    assert bounds[2] == pytest.approx(3 * bounds[0])  # what is read is shared
    machine = Machine("x", "x", 2, 0, 0, 1e15, 0, 1e9, 1e9)
    assert machine.bound(rates[3], cost) == pytest.approx(1e9 / (cost.products + cost.head_products))


def test_what_cannot_be_measured(model: Model) -> None:
    wrong: Any
    for wrong in ({"prompts": [0]}, {"depths": [-1]}, {"rounds": 0}, {"n_decode": 0}, {"prompts": [], "depths": []},
                  {"batches": [0]}, {"batches": [1025]}):  # fmt: skip
        with pytest.raises(ArgumentError):
            bench(model, ["f16"], **wrong)
    with pytest.raises(ArgumentError):
        bench(model, [])
    with pytest.raises(Unsupported, match="q2_0"):
        bench(model, ["f16", "q2_0"], prompts=[10], depths=[])


def test_the_plot_shows_every_line_to_its_end() -> None:
    lines = [
        SpeedLine("logquant", [(0, [9.0, 10.0, 12.0]), (4096, [8.0, 8.5, 9.0])]),
        SpeedLine("a peer, f16", [(0, [7.0]), (2048, [5.0])], dashed=True),
    ]
    axes: Any = plot_speed(lines, "a title").axes[0]
    medians = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xydata()) and line.get_marker() == "o"]
    assert medians == [[[0, 10], [4096, 8.5]], [[0, 7], [2048, 5]]]
    bars = [bar.tolist() for collection in axes.collections for bar in collection.get_segments()]
    assert bars == [[[0, 9], [0, 12]], [[4096, 8], [4096, 9]], [[0, 7], [0, 7]], [[2048, 5], [2048, 5]]]
    placed = {text.get_text(): tuple(text.xy) for text in axes.texts}
    assert placed == {"a peer, f16": (2048, 5.0), "logquant": (1, 8.5)}  # at its last point; at the border
    assert axes.get_ylim()[0] == 0


def test_the_command(path: Path, tmp_path: Path) -> None:
    common = ("bench", path, "--kv", "f16", "--kv", "logquant", "--pp", "50", "--depths", "20,0", "--rounds", 2)
    shown = call(*common, "--decode", 4, "--threads", 2, "--plot", tmp_path / "s.png")
    assert shown.status == 0, shown.err
    head = next(line for line in shown.out.splitlines() if line.startswith("KV type"))
    assert head.split("  ")[0] == "KV type"
    for words in ("prompt of 50", "decode at 0", "decode at 20", "KV of 50"):
        assert words in head
    assert "of the bound" in shown.out
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    found = call(*common, "--json").json()
    assert [(row["work"], row["kv"], row["n"]) for row in found["rates"]] == [
        (work, kv, n) for work, n in (("prompt", 50), ("decode", 0), ("decode", 20)) for kv in ("f16", "logquant")
    ]
    assert all(len(row["rounds"]) == 2 and row["median"] > 0 and row["bound"] > 0 for row in found["rates"])
    shown = call("bench", path, "--kv", "f16", "--pp", "", "--depths", "", "--batch", "2,1", "--rounds", 1)
    assert "batch of 1" in shown.out
    assert "batch of 2" in shown.out
    assert "KV of" not in shown.out
    assert found["machine"]["n_threads"] >= 1
    assert found["cost"]["weight_bytes"] > 0


def test_what_the_command_refuses(path: Path, tmp_path: Path) -> None:
    one_error(call("bench", path, "--depths", "0,4k"), "--depths", "4k")
    one_error(call("bench", path, "--pp", "512;4096"), "--pp")
    one_error(call("bench", path, "--batch", "1,x"), "--batch", "1,x")
    one_error(call("bench", path, "--batch", "4000"), "1024 sessions")
    one_error(call("bench", path, "--depths", "64", "--plot", tmp_path / "s.png"), "--plot", "two --depths")
    one_error(call("bench", path, "--kv", "f16+none"), "f16+none")
    one_error(call("bench", path, "--depths", "", "--pp", ""), "nothing to measure")
    assert not (tmp_path / "s.png").exists()

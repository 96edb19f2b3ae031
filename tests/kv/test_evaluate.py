"""What KV cache types cost, measured: evaluate(), and `pylogquant eval`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import call
from make_tiny_gguf import make_tiny

from pylogquant import KvOptions, Model
from pylogquant.errors import ArgumentError, FileError, Unsupported
from pylogquant.evaluate import (
    GAP,
    PASSAGE,
    Score,
    evaluate,
    evaluate_copies,
    evaluate_keys,
    log_softmax,
    read_text,
    text_name,
)

PROSE = "stdlib:prose"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("eval") / "m.gguf", arch="llama", n_ctx=1024)


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return Model(path, threads=2)


def ids_for(model: Model, n: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(3).integers(0, model.info().n_vocab, n)]


def test_costs_are_ordered(model: Model) -> None:
    """f16 against itself costs nothing but the order of its sums; fewer bits cost more."""
    names = ["f16", "q8_0", "logquant-hq", "logquant", "logquant-paper"]
    scores = evaluate(model, "text", ids_for(model, 700), names, prompt=128, stride=4)
    assert [score.kv for score in scores] == ["f16", *names]
    reference, again, *others = scores
    assert reference.kl == again.kl == 0.0
    assert reference.top1 == again.top1 == 1.0
    assert reference.bits == 16.0
    kls = {score.kv: score.kl for score in others}
    assert 0 < kls["q8_0"] < kls["logquant"] < kls["logquant-paper"]
    assert kls["logquant-hq"] < kls["logquant"]
    for score in scores:
        assert score.n_scored == 143  # 128, 132 ... 696; the last token has no next one
        assert score.kl == pytest.approx(np.mean(score.kl_quarters), rel=0.1)
        assert score.tokens_per_s > 0


def test_perplexity_is_that_of_the_text(model: Model) -> None:
    ids = ids_for(model, 200)
    [score] = evaluate(model, "text", ids, [], prompt=50, stride=1)
    with model.session(200, "f16") as session:
        logits = session.eval(ids, "all")
    assert logits is not None
    rows = np.arange(50, 199)
    wide = logits[rows].astype(np.float64)
    nll = np.log(np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1)) + wide.max(axis=1)
    nll -= wide[np.arange(len(rows)), [ids[row + 1] for row in rows]]
    assert score.perplexity == pytest.approx(np.exp(nll.mean()), rel=1e-3)


def test_caches_are_those_of_a_decoding_session(model: Model) -> None:
    """Fed together with a type of another window, a type scores what it scores alone, and token by token."""
    ids = ids_for(model, 420)
    small = KvOptions("logquant-small", select="even")
    alone = evaluate(model, "text", ids, [small], prompt=100, stride=1)[1]
    together = evaluate(model, "text", ids, ["logquant", small, "q8_0"], prompt=100, stride=1)[2]
    assert together.kl == pytest.approx(alone.kl, rel=1e-3)
    with model.session(420, "f16") as exact, model.session(420, small) as session:
        kl = []
        for held in (exact, session):
            held.eval(ids[:100], "none")
        for token in ids[100:-1]:
            p, q = (np.asarray(held.eval([token]), dtype=np.float64) for held in (exact, session))
            p, q = (x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in (p, q))
            kl.append(float((np.exp(p) * (p - q)).sum()))
    assert alone.kl == pytest.approx(np.mean(kl), rel=1e-2)


def test_progress_and_limits(model: Model) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(model, "t", ids_for(model, 300), ["q8_0"], prompt=100, progress=lambda done, of: seen.append((done, of)))
    assert seen == sorted(seen)
    assert seen[-1] == (199, 199)
    for n, prompt, stride in ((100, 100, 8), (120, 100, 8), (300, 0, 8), (300, 100, 0)):
        with pytest.raises(ArgumentError, match="fewer than 4 positions"):
            evaluate(model, "t", ids_for(model, n), [], prompt=prompt, stride=stride)
    with pytest.raises((ArgumentError, Unsupported), match="q2_0"):
        evaluate(model, "t", ids_for(model, 300), ["q2_0"], prompt=100)


def test_copies_are_the_passages_of_the_text(model: Model) -> None:
    ids = ids_for(model, 1900)
    names = ["logquant-hq", "logquant-paper"]
    exact, fine, coarse = evaluate_copies(model, "text", ids, names, n_passages=2)
    assert exact.kl == exact.kl_interval == 0.0
    assert 0 < fine.kl < coarse.kl
    assert fine.kl_interval > 0
    parts = []
    for start in (0, 300):
        context = ids[start : start + PASSAGE + GAP]
        parts.append(evaluate(model, "text", [*context, *context[:PASSAGE]], names, prompt=1300, stride=1)[2])
    assert coarse.kl == pytest.approx(np.mean([part.kl for part in parts]))
    assert [part.n_scored for part in parts] == [399, 399]
    with pytest.raises(ArgumentError, match="1302 are needed"):
        evaluate_copies(model, "text", ids[:1300], names, n_passages=2)
    with pytest.raises(ArgumentError, match="at least 2"):
        evaluate_copies(model, "text", ids, names, n_passages=1)


def test_keys_are_hidden_and_asked_for(model: Model) -> None:
    """The prompts hold what they should, at all depths; only the answer's tokens are scored."""
    ids = ids_for(model, 600)
    exact, same, dropped = evaluate_keys(model, "text", ids, ["f16", "streaming+window=64"], n_keys=3, prompt=64)
    assert [score.kv for score in (exact, same, dropped)] == ["f16", "f16", "streaming+window=64"]
    assert exact.n_keys == 3
    assert exact.kl == same.kl == 0.0
    assert exact.logprob == same.logprob
    assert -40 < exact.logprob < 0
    assert dropped.kl > 0
    again = evaluate_keys(model, "text", ids, [], n_keys=3, prompt=64)
    assert again[0].logprob == pytest.approx(exact.logprob, rel=1e-5)
    other = evaluate_keys(model, "text", ids, [], n_keys=3, prompt=64, seed=1)
    assert other[0].logprob != pytest.approx(exact.logprob, rel=1e-5)
    with pytest.raises(ArgumentError, match="at least 1"):
        evaluate_keys(model, "text", ids, [], n_keys=0)
    with pytest.raises(ArgumentError, match="too few to hide"):
        evaluate_keys(model, "text", ids[:100], [], n_keys=1)


def test_only_the_digits_of_a_key_count(model: Model) -> None:
    """The space in front of the number, a token of its own here, is no secret."""
    ids = ids_for(model, 400)
    ids[-1] = model.tokenizer.encode("x", bos=False)[0]
    key = str(random.Random(0).randrange(10_000, 100_000))
    hidden = model.tokenizer.encode(f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n", bos=False)
    asked = model.tokenizer.encode(f"\n\nWhat is the pass key? The pass key is {key}", bos=False)
    assert [model.tokenizer.token_bytes(token) for token in asked[-6:]] == [b" ", *(char.encode() for char in key)]
    n_filler = 400 - len(hidden) - len(asked)
    whole = [*ids[: n_filler // 2], *hidden, *ids[n_filler // 2 : n_filler], *asked]
    with model.session(400, "f16") as session:
        logits = session.eval(whole, "all")
    assert logits is not None
    found = log_softmax(logits)[np.arange(394, 399), whole[-5:]]
    [score] = evaluate_keys(model, "text", ids, [], n_keys=1, prompt=64)
    assert score.logprob == pytest.approx(found.mean(), rel=1e-3)
    with pytest.raises(ArgumentError, match="0 tokens are too few"):
        evaluate_keys(model, "text", [], [], n_keys=1)


def test_a_key_that_the_model_knows_is_found(smollm2_path: Path) -> None:
    """SmolLM2 answers with f16 and with logquant what streaming has forgotten."""
    with Model(smollm2_path, threads=2) as real:
        ids = real.tokenizer.encode(read_text("stdlib:prose")[:20000])[:1500]
        streaming = KvOptions("streaming", window=64)
        exact, packed, dropped = evaluate_keys(real, "prose", ids, ["logquant", streaming], n_keys=2, prompt=256)
    assert exact.tokens_found > 0.7
    assert packed.tokens_found > 0.5
    assert packed.logprob > dropped.logprob + 0.5


def test_types_cost_what_the_docs_say(smollm2_path: Path) -> None:
    """Their parts of q4_0's divergence on a short text, with some room for other processors: 0.12, 0.24, 0.11, 0.11
    were measured. docs/accuracy.md has those of long ones, which take too long for a test."""
    limits = {"logquant": 0.2, "logquant-small": 0.4, "logquant-hq": 0.15, "q8_0": 0.15}
    text = (Path(__file__).parents[1] / "data" / "prose.txt").read_text(encoding="utf-8")
    with Model(smollm2_path, threads=2) as real:
        ids = real.tokenizer.encode(text)
        _, base, *others = evaluate(real, "prose", ids, ["q4_0", *limits], prompt=256, stride=4)
    assert 0.025 < base.kl < 0.06
    assert {score.kv for score in others if not 0 < score.kl < limits[score.kv] * base.kl} == set()


def test_options_as_they_are_written() -> None:
    for options in (
        KvOptions(),
        KvOptions("q8_0"),
        KvOptions("logquant", window=64, overlay="q8_0"),
        KvOptions("logquant-hq", "4:1/4,2:3/4", 2, 64, 0, "f16", "even"),
    ):
        assert KvOptions.parse(options.spec()) == options
    assert KvOptions("logquant", window=64, sinks=0).spec() == "logquant+window=64+sinks=0"
    bad_ones = ["", "+window=64", "logquant+", "logquant+window", "logquant+window=", "logquant+size=3", "a,b"]
    bad_ones += ["logquant+window=64+window=64", "logquant+window=-1", "logquant+sinks=x", "logquant+values=0"]
    for bad in bad_ones:
        with pytest.raises(ArgumentError, match="write a name alone or with settings") as caught:
            KvOptions.parse(bad)
        assert "\n" not in str(caught.value)


def test_texts(tmp_path: Path) -> None:
    rows = tmp_path / "maths.jsonl"
    rows.write_text('{"question": "1+1?", "answer": "2"}\n\n{"question": "2+2?", "answer": "4"}\n')
    assert read_text(str(rows)) == "1+1?\n2\n\n2+2?\n4"
    rows.write_bytes(b"\xef\xbb\xbf" + rows.read_bytes())  # a byte order mark
    assert read_text(str(rows)) == "1+1?\n2\n\n2+2?\n4"
    plain = tmp_path / "plain.txt"
    plain.write_bytes(b"\xef\xbb\xbfone")
    assert read_text(str(plain)) == "one"
    assert text_name(str(rows)) == "maths"
    assert "argument" in read_text("stdlib:code")
    assert len(read_text("stdlib:prose")) > 100_000
    rows.write_text('{"question": 1}')
    with pytest.raises(ArgumentError, match="question and answer"):
        read_text(str(rows))
    with pytest.raises(FileError, match="cannot read"):
        read_text(str(tmp_path / "none.txt"))
    (tmp_path / "latin.txt").write_bytes(b"\xe9\xff")
    with pytest.raises(ArgumentError, match="not UTF-8"):
        read_text(str(tmp_path / "latin.txt"))


# ---- the command -----------------------------------------------------------------------------------------------------


def run_eval(path: Path, *arguments: object) -> Any:
    return call("eval", path, "--ctx", 600, "--prompt", 128, "--json", *arguments).json()


def test_eval_tells_what_evaluate_finds(path: Path, tmp_path: Path) -> None:
    text = tmp_path / "story.txt"
    text.write_text("the cat sat on the mat and " * 200)
    found = run_eval(path, "--text", text, "--kv", "logquant", "--kv", "q8_0")
    assert [(row["text"], row["kv"]) for row in found["scores"]] == [
        ("story", "f16"),
        ("story", "logquant"),
        ("story", "q8_0"),
    ]
    assert found["model"] == str(path)
    assert found["scores"][1]["bits"] > 3
    assert set(found["scores"][0]) == set(Score.__dataclass_fields__)


def test_eval_measures_copies(path: Path) -> None:
    found = run_eval(path, "--text", "stdlib:code", "--kv", "logquant", "--copies", 2)
    assert [(row["kv"], row["n_passages"]) for row in found["copies"]] == [("f16", 2), ("logquant", 2)]
    text = call("eval", path, "--ctx", 300, "--prompt", 64, "--text", "stdlib:code", "--kv", "q8_0", "--copies", 2).out
    assert "copied from" in text


def test_eval_prints_a_table(path: Path) -> None:
    shown = call("eval", path, "--ctx", 400, "--prompt", 128, "--kv", "logquant", "--kv", "logquant-paper")
    assert shown.status == 0
    lines = shown.out.splitlines()
    assert lines[0].split()[:3] == ["KV", "type", "text"]
    assert sum("stdlib:prose" in line for line in lines) == 3
    assert sum("stdlib:code" in line for line in lines) == 3
    assert sum("all" in line.split() for line in lines) == 3


def test_eval_prints_means_over_texts(path: Path) -> None:
    """With the error of the mean: of two texts half of what their errors add up to, at right angles."""
    arguments = ("eval", path, "--ctx", 300, "--prompt", 64, "--kv", "logquant-paper", "--copies", 2)
    found, lines = call(*arguments, "--json").json(), call(*arguments).out.splitlines()
    plain, copied = (line.split() for line in lines if line.startswith("logquant-paper ") and " all " in line)
    for row, parts, error, at in ((plain, "scores", "kl_error", 3), (copied, "copies", "kl_interval", 3)):
        mine = [score for score in found[parts] if score["kv"] == "logquant-paper"]
        assert len(mine) == 2
        assert float(row[at]) == pytest.approx(np.mean([score["kl"] for score in mine]), abs=2e-4)
        mean_error = np.hypot(*(score[error] for score in mine)) / 2
        assert float(row[at + 1].removeprefix("+-")) == pytest.approx(mean_error, abs=2e-4)
    assert copied[2] == "4"


def test_eval_stopped_shows_the_texts_that_are_done(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second of two texts, and in the first."""

    def stop_at(text: str) -> Any:
        def until(model: Model, name: str, ids: list[int], kvs: list[str], **options: Any) -> list[Score]:
            if name == text:
                raise KeyboardInterrupt
            return evaluate(model, name, ids, kvs, **options)

        return until

    arguments = ("eval", path, "--ctx", 300, "--prompt", 64, "--kv", "q8_0", "--plot", tmp_path / "a.png")
    monkeypatch.setattr("pylogquant.evaluate.evaluate", stop_at("stdlib:code"))
    stopped = call(*arguments)
    assert stopped.status == 130
    assert [line.split()[:2] for line in stopped.out.splitlines()[1:]] == [["f16", PROSE], ["q8_0", PROSE]]
    assert stopped.err == "note: stopped; these are the texts that were done by then\n"
    assert (tmp_path / "a.png").stat().st_size > 10_000
    as_json = call(*arguments, "--json")
    assert as_json.status == 130
    assert {score["text"] for score in json.loads(as_json.out)["scores"]} == {PROSE}
    monkeypatch.setattr("pylogquant.evaluate.evaluate", stop_at(PROSE))
    at_once = call(*arguments)
    assert (at_once.status, at_once.out, at_once.err) == (130, "", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--text", "none.txt"), "cannot read none.txt"),
        (("--ctx", 100, "--prompt", 200), "fewer than 4 positions"),
        (("--kv", "q3"), "q3"),
        (("--ctx", 999999), "--ctx 999999 is more than the 1024 tokens"),
    ],
)
def test_eval_says_what_is_wrong(path: Path, arguments: tuple[object, ...], words: str) -> None:
    failed = call("eval", path, *arguments)
    assert failed.status != 0
    assert words in failed.err
    assert len(failed.err.strip().splitlines()) == 1


def test_eval_refuses_a_short_text(path: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("hello")
    failed = call("eval", path, "--text", text, "--ctx", 500)
    assert failed.status != 0
    assert "short has " in failed.err
    assert "tokens, 500 are asked for" in failed.err

"""The tools that measure what KV caches do to answers, and what those of llama.cpp cost."""

from __future__ import annotations

import itertools
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import answers
import greedy
import numpy as np
import peer_kv
import pytest
from make_tiny_gguf import make_tiny

from pylogquant import Model
from pylogquant.errors import ArgumentError, FileError
from pylogquant.evaluate import CopyScore, Score, evaluate


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 64, which llama.cpp rotates, and rows of a multiple of 32, which it can quantize."""
    return make_tiny(tmp_path_factory.mktemp("tools") / "m.gguf", n_embd=128, n_heads=2, head_dim=64, n_ctx=2048)


def score(kv: str, text: str, kl: float, error: float = 0.003) -> Score:
    return Score(text, kv, 9, 5.0, kl, error, 0.4, (kl, kl, kl, kl), 0.9, 4.5, 100, 20.0)


# ---- peer_kv ---------------------------------------------------------------------------------------------------------


def test_peer_rows_have_ratios_and_means() -> None:
    found = [
        ("llama.cpp", score("q4_0", "a", 0.02)),
        ("llama.cpp", score("q4_0", "b", 0.06, 0.004)),
        ("pylogquant", score("logquant", "a", 0.01)),
        ("pylogquant", score("q4_0", "b", 0.03)),
    ]
    rows = peer_kv.make_rows(found)
    assert [(row.runtime, row.kv, row.text) for row in rows] == [
        ("llama.cpp", "q4_0", "a"),
        ("llama.cpp", "q4_0", "b"),
        ("llama.cpp", "q4_0", "all"),
        ("pylogquant", "logquant", "a"),
        ("pylogquant", "q4_0", "b"),
    ]
    assert [row.ratio for row in rows] == pytest.approx([1, 1, 1, 0.5, 0.5])
    assert rows[2].kl == pytest.approx(0.04)
    assert rows[2].error == pytest.approx(0.0025)  # of independent texts: squares add up
    lines = list(peer_kv.table(rows))
    assert len(lines) == 6
    assert lines[4].split() == ["pylogquant", "logquant", "a", "4.50", "0.0100", "0.0030", "0.400", "90.0", "%", "0.50"]
    assert lines[3].split() == ["llama.cpp", "q4_0", "all", "0.0400", "0.0025", "90.0", "%", "1.00"]


def test_peer_rows_without_the_base_have_no_ratio() -> None:
    rows = peer_kv.make_rows([("llama.cpp", score("q8_0", "a", 0.02)), ("pylogquant", score("q4_0", "a", 0.02))])
    assert [row.ratio for row in rows] == [None, None]
    copied = peer_kv.make_rows([("llama.cpp", CopyScore("a", "q4_0", 3, 0.09, 0.01, 0.8, 1.5))])
    assert "passages" in next(iter(peer_kv.table(copied)))
    assert list(peer_kv.table(copied))[1].split()[3:] == ["3", "0.0900", "0.0100", "1.50", "80.0", "%", "1.00"]


def test_types_of_the_peer() -> None:
    assert [peer_kv.bits_of(name) for name in ("f16", "q8_0", "q4_0", "q5_1")] == [16, 8.5, 4.5, 6]
    with pytest.raises(ArgumentError, match="no KV type logquant"):
        peer_kv.bits_of("logquant")


@pytest.mark.oracle
def test_the_peer_refuses_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF of a kind")
    with pytest.raises(ArgumentError, match="cannot load"):
        peer_kv.Peer(tmp_path / "m.gguf")


def test_short_texts_are_refused(path: Path) -> None:
    with Model(path, threads=1) as model:
        assert len(peer_kv.cut_ids(model, "t", "the cat sat on the mat " * 9, 20)) == 20
        with pytest.raises(ArgumentError, match="t has 1 tokens, 20 are asked for"):
            peer_kv.cut_ids(model, "t", "a", 20)


def random_ids(n: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(3).integers(3, 250, n)]


@pytest.mark.oracle
def test_costs_of_the_peer_are_ordered(path: Path) -> None:
    ids = random_ids(300)
    with peer_kv.Peer(path) as peer:
        options: Any = {"prompt": 64, "stride": 2, "threads": 1}
        exact, fine, coarse = peer_kv.evaluate_peer(peer, "t", ids, ["q8_0", "q4_0"], batch=64, **options)
        assert peer.rotations == {"f16": "neither", "q8_0": "K and V", "q4_0": "K and V"}
        single = peer_kv.evaluate_peer(peer, "t", ids, ["q4_0"], batch=1, **options)[1]
    assert [s.kv for s in (exact, fine, coarse)] == ["f16", "q8_0", "q4_0"]
    assert exact.kl == 0.0
    assert 0 < fine.kl < coarse.kl
    assert exact.n_scored == coarse.n_scored == 118  # 64, 66 ... 298
    assert coarse.kv_bytes < fine.kv_bytes < exact.kv_bytes
    assert single.kl == pytest.approx(coarse.kl, rel=0.05)  # what is stored does not depend on the batch


@pytest.mark.oracle
def test_f16_of_the_peer_is_f16_of_ours(path: Path) -> None:
    """Both runtimes score the same positions of the same ids: their perplexities agree."""
    ids = random_ids(300)
    with peer_kv.Peer(path) as peer, Model(path, threads=1) as model:
        [theirs] = peer_kv.evaluate_peer(peer, "t", ids, [], prompt=100, stride=3, batch=7, threads=1)
        [ours] = evaluate(model, "t", ids, [], prompt=100, stride=3)
    assert theirs.n_scored == ours.n_scored == 67
    assert theirs.perplexity == pytest.approx(ours.perplexity, rel=5e-3)


@pytest.mark.oracle
def test_peer_kv_prints_both(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(path), "--text", "stdlib:code", "--ctx", "300", "--prompt", "64", "--types", "q4_0"]
    arguments += ["--ours", "logquant", "--copies", "2", "--threads", "1", "--json"]
    peer_kv.main(arguments)
    found = json.loads(capsys.readouterr().out)
    for part in ("scores", "copies"):
        names = [(row["runtime"], row["kv"]) for row in found[part]]
        assert names == [("llama.cpp", "f16"), ("llama.cpp", "q4_0"), ("pylogquant", "f16"), ("pylogquant", "logquant")]
        assert found[part][1]["ratio"] == 1.0
        assert found[part][3]["ratio"] == pytest.approx(found[part][3]["kl"] / found[part][1]["kl"])
    assert found["copies"][1]["score"]["n_passages"] == 2
    assert "rotated: f16 neither, q4_0 K and V" in found["heading"]
    with pytest.raises(SystemExit, match="no KV type q2"):
        peer_kv.main([str(path), "--ctx", "300", "--prompt", "64", "--types", "q2"])


# ---- greedy ----------------------------------------------------------------------------------------------------------


def test_courses_are_compared_token_by_token() -> None:
    course = greedy.compare([5, 6, 7, 8], [5, 6, 9, 8], [5, 6, 9, 1])
    assert course == greedy.Course(first=2, n_tokens=4, n_free=3, n_forced=2)
    assert greedy.compare([5, 6], [5, 6], [5, 6]).first == 2
    row = greedy.summarize("x", [course, greedy.Course(4, 4, 4, 4), greedy.Course(4, 4, 4, 3)])
    assert [row.first, row.never, row.free, row.forced] == pytest.approx([4, 2 / 3, 11 / 12, 0.75])
    assert row.forced_error == pytest.approx(0.25 / 3**0.5)
    assert list(greedy.table([row]))[1].split() == ["x", "4+", "66.7", "%", "91.7", "%", "75.0", "%", "14.4"]


def test_a_course_is_what_sessions_say(path: Path) -> None:
    """The fork at the first difference says what a session of its own would have said from the prompt on."""
    prompt, n = random_ids(600), 24
    with Model(path, threads=1) as model:
        rows = greedy.measure(model, [prompt], ["f16", "logquant-paper"], n)
        said: dict[str, list[int]] = {}
        for kv in ("f16", "logquant-paper"):
            with model.session(700, kv, chunk=600) as session:
                token = greedy.best(session, prompt)
                said[kv] = [token, *greedy.go_on(session, token, n - 1)]
        with model.session(700, "logquant-paper", chunk=600) as session:
            forced = [greedy.best(session, prompt), *(greedy.best(session, [token]) for token in said["f16"][:-1])]
    assert (rows[0].first, rows[0].never, rows[0].free, rows[0].forced) == (n, 1, 1, 1)
    expected = greedy.compare(said["f16"], said["logquant-paper"], forced)
    assert expected.first < n, "the case shows nothing: take one where the types differ"
    assert rows[1] == greedy.summarize("logquant-paper", [expected])


@pytest.mark.parametrize("fixture", ["tiny_llama_path", "tiny_gemma_path"])
def test_prompts_do_not_overlap(fixture: str, request: pytest.FixtureRequest) -> None:
    with Model(request.getfixturevalue(fixture), threads=1) as model:
        tokenizer = model.tokenizer
        text = " ".join(f"{i}" for i in range(400))
        ids = tokenizer.encode(text, bos=False)
        prompts = greedy.cut_prompts(tokenizer, "t", text, 5, 40)
        lead = [tokenizer.bos_id] if tokenizer.add_bos else []
        assert all(len(prompt) == 40 and prompt[: len(lead)] == lead for prompt in prompts)
        assert prompts[0][len(lead) :] == ids[: 40 - len(lead)]
        assert prompts[-1][len(lead) :] == ids[len(lead) - 40 :]
        tight = greedy.cut_prompts(tokenizer, "t", text, len(ids) // (40 - len(lead)), 40)
        numbers = [tokenizer.decode(prompt[len(lead) :]) for prompt in tight]
        assert all(text.index(later) >= text.index(cut) + len(cut) for cut, later in itertools.pairwise(numbers))
        with pytest.raises(ArgumentError, match="are needed; fewer or shorter"):
            greedy.cut_prompts(tokenizer, "t", text, len(ids), 40)
        with pytest.raises(ArgumentError, match="too few"):
            greedy.cut_prompts(tokenizer, "t", text, 0, 40)


def test_greedy_prints_what_it_found(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(path), "--text", "stdlib:code", "--n", "2", "--prompt", "100", "--tokens", "4", "--threads", "1"]
    greedy.main([*arguments, "--kv", "q8_0", "logquant", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [(row["kv"], row["n_prompts"], row["n_tokens"]) for row in found["rows"]] == [
        ("q8_0", 2, 4),
        ("logquant", 2, 4),
    ]
    greedy.main([*arguments, "--kv", "logquant"])
    assert len(capsys.readouterr().out.splitlines()) == 3
    with pytest.raises(SystemExit, match="q7"):
        greedy.main([*arguments, "--kv", "q7"])
    with pytest.raises(SystemExit, match="at least 1"):
        greedy.main([*arguments, "--tokens", "0"])


# ---- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 apples and 4 pears, so 7.", "7"),
        ("The total is $1,234.50.", "1234.5"),
        ("3 + 4 = 7\n#### 7", "7"),
        ("#### 12\n13 is wrong", "12"),
        ("it is 5, see ####", None),
        ("1,2,3", "3"),
        ("from 10-3", "3"),
        ("it fell to -3 degrees", "-3"),
        ("a loss of -$40", "-40"),
        ("a loss of $-40", "-40"),
        ("12,000,000 people", "12000000"),
        ("none", None),
        ("", None),
    ],
)
def test_final_numbers(text: str, number: str | None) -> None:
    assert answers.final_number(text) == (None if number is None else Decimal(number))


def test_intervals_are_wilsons() -> None:
    """Its ends are the shares from which what was found is 1.96 standard deviations away."""
    for correct, n in ((0, 10), (10, 10), (7, 10), (81, 263), (1, 1)):
        low, high = answers.wilson(correct, n)
        for bound, inside in ((low, correct / n), (high, correct / n)):
            if abs(bound - inside) > 1e-6:
                z = abs(bound - correct / n) / (bound * (1 - bound) / n) ** 0.5
                assert z == pytest.approx(1.96, abs=1e-3)
        assert 0 <= low <= correct / n <= high + 1e-12 <= 1 + 1e-12
    assert answers.wilson(0, 10)[1] == pytest.approx(0.2775, abs=1e-4)


def test_problems_are_read_with_their_numbers(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"question": "1+1?", "answer": "1+1=2\\n#### 2"}\n\n{"question": "b", "answer": "so $1,000."}\n')
    assert [(problem.question, problem.right) for problem in answers.read_problems(file)] == [
        ("1+1?", Decimal(2)),
        ("b", Decimal(1000)),
    ]
    for bad, words in (
        ('{"question": "a"}', "p.jsonl:2: not a JSON object"),
        ("[]", "p.jsonl:2: not"),
        ('{"question": "a", "answer": "none"}', "p.jsonl:2: the answer has no number"),
    ):
        file.write_text('{"question": "1+1?", "answer": "2"}\n' + bad)
        with pytest.raises(ArgumentError, match=words):
            answers.read_problems(file)
    with pytest.raises(FileError, match="cannot read"):
        answers.read_problems(tmp_path / "none.jsonl")


def test_made_up_problems_are_right(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        answers.main(["--make", str(tmp_path / name), "--n", "50", "--seed", str(seed)])
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() != (tmp_path / "c").read_text()
    problems = answers.read_problems(tmp_path / "a")
    assert len(problems) == 50
    for problem in problems:
        assert problem.right == sum(int(number) for number in re.findall(r"\d+", problem.question))


@pytest.mark.parametrize("fixture", ["tiny_llama_path", "tiny_gemma_path"])
def test_prompts_share_the_shots(fixture: str, request: pytest.FixtureRequest) -> None:
    problems = [answers.Problem(f"{i} and {i}?", f"#### {2 * i}", Decimal(2 * i)) for i in range(6)]
    with Model(request.getfixturevalue(fixture), threads=1) as model:
        common, ends = answers.make_prompts(model.tokenizer, problems[:3], problems[3:])
        for problem, end in zip(problems[3:], ends, strict=True):
            text = "".join(f"Question: {p.question}\nAnswer: {p.answer}\n\n" for p in problems[:3])
            assert [*common, *end] == model.tokenizer.encode(f"{text}Question: {problem.question}\nAnswer:")
        assert len(common) > len(model.tokenizer.encode(text)) - 2
        assert len(answers.make_prompts(model.tokenizer, [], problems[3:4])[1][0]) == 1


def test_scores_count_what_is_right_and_what_differs() -> None:
    right = [Decimal(1), Decimal(2), Decimal(3)]
    reference = answers.Answers("f16", [Decimal(1), None, Decimal(9)], 10, 2.0)
    other = answers.Answers("x", [Decimal("1.0"), Decimal(2), Decimal(8)], 30, 2.0)
    row = answers.score(other, reference, right)
    assert (row.correct, row.n, row.differ, row.lost, row.gained, row.tokens_per_s) == (2, 3, 2, 0, 1, 15)
    back = answers.score(reference, other, right)
    assert (back.correct, back.differ, back.lost, back.gained) == (1, 2, 1, 0)
    assert answers.score(reference, reference, right).differ == 0
    line = list(answers.table([row]))[1]
    assert " ".join(line.split()) == "x 2 of 3 66.7 % 20.8 to 93.9 % 2 0 1 15"


def test_answers_are_those_of_a_session_without_forks(path: Path) -> None:
    """A type that packs: the shots of all questions are packed once, and no answer disturbs the next."""
    with Model(path, threads=1) as model:
        common, ends = random_ids(900), [[7, 8, 9], [30], [7, 8, 9]]
        with model.session(1000, "logquant-paper") as session:
            session.eval(common, "none")
            assert session.kv.usage().n_packed > 0
            texts = []
            for end in ends:
                with session.fork() as fork:
                    texts.append(answers.ask(fork, model.tokenizer, end, 20)[:2])
        for end, found in zip(ends, texts, strict=True):
            with model.session(1000, "logquant-paper") as alone:
                alone.eval(common, "none")
                assert answers.ask(alone, model.tokenizer, end, 20)[:2] == found
        assert texts[0] == texts[2] != texts[1]
        assert answers.answer_all(model, "logquant-paper", common, ends, 20).n_tokens == sum(n for _, n in texts)


def test_answers_print_what_they_found(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sums.jsonl"
    answers.main(["--make", str(file), "--n", "7"])
    arguments = [str(path), str(file), "--shots", "3", "--max-tokens", "8", "--threads", "1"]
    answers.main([*arguments, "--kv", "q8_0", "f16", "--limit", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [(row["kv"], row["n"]) for row in found["rows"]] == [("f16", 2), ("q8_0", 2)]
    assert found["rows"][0]["differ"] == 0
    assert found["n_common"] > 100
    answers.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert "of 4" in lines[2]
    for wrong, words in ((["--shots", "7"], "nothing to score"), (["--kv", "q7"], "q7")):
        with pytest.raises(SystemExit, match=words):
            answers.main([*arguments, *wrong])
    with pytest.raises(SystemExit):
        answers.main([str(path)])

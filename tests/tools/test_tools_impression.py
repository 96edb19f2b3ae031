"""tools/measure/first_impression.py: what counts as right, and what its rows say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from first_impression import EASY, HELD_OUT, OPEN, Answer, Setting, is_right, main, summary
from make_tiny_gguf import make_tiny

FRANCE = "What is the capital of France?"
SETTING = Setting(0.3, 0.05, 0.95, 40, 1.05, None)


@pytest.mark.parametrize(
    ("text", "ended", "right"),
    [
        ("The capital of France is Paris.", True, True),
        ("The capital of France is Paris.", False, False),
        ("It is Lyon.", True, False),
        ("Le Grand Paris - la femme de la France", True, False),
        ("L\u2019\u00c9toile, Paris", True, False),
        ("I'd say that it's Paris.", True, True),
        ("Well, " * 40 + "Paris.", True, False),
    ],
)
def test_what_is_right(text: str, ended: bool, right: bool) -> None:
    assert is_right(Answer(FRANCE, 0, text, 9, ended, False), EASY[FRANCE]) is right


def test_shares_are_means_of_questions() -> None:
    other = "What is 2 + 2?"
    answers = [
        Answer(FRANCE, 0, "Paris.", 3, True, False),
        Answer(FRANCE, 1, "Rome.", 5, True, False),
        Answer(other, 0, "4", 7, True, False),
        Answer("Hello!", 0, "ha ha", 300, False, True),
    ]
    row = summary(SETTING, answers, EASY)
    assert (row.n, row.ended, row.cut, row.right) == (4, 0.75, 0.25, 0.75)
    assert (row.worst, row.worst_right, row.median_tokens) == (FRANCE, 0.5, 6)


def test_a_table_and_rows_that_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, rows, answers = make_tiny(tmp_path / "m.gguf"), tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    options = ["--seeds", "2", "--max-tokens", "4", "--threads", "1", "--held-out"]
    command = ["", str(model), "--temp", "0", "0.5", *options, "--rows", str(rows), "--answers", str(answers)]
    monkeypatch.setattr(sys, "argv", command)
    main()
    first = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in first.splitlines()[2:]] == ["| 0", "| 0.5"]
    n = len(HELD_OUT) + len(OPEN)
    said = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert len(said) == n + 2 * n  # one seed at temperature 0
    assert {answer["question"] for answer in said} == {*HELD_OUT, *OPEN}
    assert all(answer["n_tokens"] <= 4 for answer in said)
    main()  # all from the file
    assert capsys.readouterr().out == first
    assert len(answers.read_text(encoding="utf-8").splitlines()) == 3 * n

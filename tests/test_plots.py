"""Plots: where they may be written, and that they show what was measured. The pixels were looked at by people."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
from command_line import call
from make_tiny_gguf import make_tiny

from pylogquant.errors import ArgumentError, FileError
from pylogquant.evaluate import Score
from pylogquant.plots import check_plot_path, plot_scores, save_figure


def score(kv: str, text: str, bits: float, kl: float) -> Score:
    return Score(text, kv, 100, 9.0, kl, kl / 9, 5 * kl, (kl / 2, kl, kl, 3 * kl / 2), 0.9, bits, 1000, 50.0)


SCORES = [
    score("f16", "a", 16.0, 0.0),
    score("f16", "b", 16.0, 0.0),
    score("logquant", "a", 3.0, 0.01),
    score("logquant", "b", 3.2, 0.03),
    score("q4_0", "a", 4.5, 0.019),
    score("q4_0", "b", 4.5, 0.021),
]


def sides(axes: Any) -> dict[str, str]:
    """On which side of its point each name begins."""
    return {text.get_text(): text.get_horizontalalignment() for text in axes.texts}


def test_points_are_means_over_texts() -> None:
    left, right = (_any(axes) for axes in plot_scores(SCORES, "a title").axes)
    assert sides(left) == {"logquant": "left", "q4_0": "left"}
    points = sorted((float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in left.lines[::3])
    assert [x for x, _ in points] == pytest.approx([3.1, 4.5])
    assert [y for _, y in points] == pytest.approx([0.02, 0.02])
    assert left.get_yscale() == right.get_yscale() == "log"
    lines = {line.get_label(): [float(y) for y in line.get_ydata()] for line in right.lines}
    assert sorted(lines) == ["logquant", "q4_0"]
    for quarters in lines.values():
        assert quarters == pytest.approx([0.01, 0.02, 0.02, 0.03])


def _any(axes: Any) -> Any:
    return axes


def test_names_avoid_points() -> None:
    close = [score("logquant", "a", 3.0, 0.02), score("q4_0", "a", 3.5, 0.0201), score("q8_0", "a", 8.5, 0.001)]
    assert sides(plot_scores(close, "t").axes[0]) == {"logquant": "right", "q4_0": "left", "q8_0": "left"}
    assert len(plot_scores(close[:1], "one point").axes) == 2


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_files_are_written_whole(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    figure, path = plot_scores(SCORES, "t"), tmp_path / f"p{suffix}"
    save_figure(figure, path)
    before = path.read_bytes()
    assert len(before) > 5000

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(FileError, match="No space left"):
        save_figure(figure, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_where_no_plot_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.png").mkdir()
    for path, error, words in (
        ("p.gif", ArgumentError, r"\.png, \.svg, \.pdf"),
        ("p", ArgumentError, "name a file"),
        ("none/p.png", FileError, "no folder"),
        ("folder.png", FileError, "is a directory"),
    ):
        with pytest.raises(error, match=words):
            check_plot_path(tmp_path / path)
    assert check_plot_path(tmp_path / "p.PNG") == tmp_path / "p.PNG"
    whole = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "matplotlib":
            raise ImportError(name)
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ArgumentError, match=r"pip install 'pylogquant\[plot\]'"):
        check_plot_path(tmp_path / "p.png")


def test_eval_draws(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "m.gguf", n_ctx=512)
    common = ("eval", model, "--ctx", 300, "--prompt", 64, "--text", "stdlib:code", "--kv", "logquant+window=64")
    done = call(*common, "--plot", tmp_path / "p.png", "--by-position", "--passkeys", 2)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "KL from 64" in done.out
    assert "KL from 241" in done.out
    assert "logquant+window=64" in done.out
    assert "hidden in" in done.out
    failed = call(*common, "--plot", tmp_path / "none" / "p.png")
    assert failed.status != 0
    assert "no folder" in failed.err
    failed = call(*common[:-1], "logquant+window")
    assert failed.status != 0
    assert "sets nothing" in failed.err

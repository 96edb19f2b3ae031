"""Plots: where they may be written, and that they show what was measured. The pixels were looked at by people."""

from __future__ import annotations

import builtins
from itertools import pairwise
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


def panels(scores: list[Score], span: tuple[int, int] | None = None) -> list[Any]:
    return list(plot_scores(scores, "a title", span).axes)


def names(axes: Any) -> dict[str, Any]:
    """The names of types, each with the pixels that it covers."""
    axes.figure.draw_without_rendering()
    return {text.get_text(): text.get_window_extent() for text in axes.texts if text.get_text() != "better"}


def bars(axes: Any) -> list[Any]:
    """(2, 2) of each error bar: from (bits, lowest) to (bits, highest)."""
    return [bar for collection in axes.collections for bar in collection.get_segments()]


def test_points_are_means_over_texts() -> None:
    left, right = panels(SCORES, (512, 4096))
    points = sorted(left.lines[i].get_xydata()[0].tolist() for i in (0, 3))  # a point, then the two ends of its bar
    assert points == [pytest.approx([3.1, 0.02]), pytest.approx([4.5, 0.02])]
    assert [bar.tolist() for bar in bars(left)] == [
        [pytest.approx([3.1, 0.01]), pytest.approx([3.1, 0.03])],
        [pytest.approx([4.5, 0.019]), pytest.approx([4.5, 0.021])],
    ]
    assert left.get_yscale() == right.get_yscale() == "log"
    assert left.get_ylim() == right.get_ylim()
    assert list(names(left)) == ["logquant", "q4_0"]  # f16 has no place here
    assert sorted(names(right)) == ["logquant", "q4_0"]
    for line in right.lines:
        assert line.get_ydata() == pytest.approx([0.01, 0.02, 0.02, 0.03])
    ticks = [tick.get_text() for tick in right.get_xticklabels()]
    assert ticks == ["512 to 1,407", "1,408 to 2,303", "2,304 to 3,199", "3,200 to 4,095"]


def test_one_text_has_no_bars() -> None:
    left, right = panels(SCORES[::2])
    assert bars(left) == []
    assert "bars" not in left.get_title()
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["first", "second", "third", "last"]


def test_names_cover_nothing() -> None:
    """Neither points nor bars nor each other, where a dozen types lie close together and some names are long."""
    kvs = {f"logquant+window={64 * i}": (3 + 0.12 * i, 0.02 * 0.9**i) for i in range(1, 9)}
    kvs |= {"q4_0": (4.5, 0.02), "q8_0": (8.5, 0.004), "logquant+keys=4:1/4,2:3/4+values=2": (3.5, 0.03)}
    crowd = [
        score(kv, text, bits, kl * wide) for kv, (bits, kl) in kvs.items() for text, wide in (("a", 0.9), ("b", 1.1))
    ]
    left, right = panels(crowd)
    covered = names(left)
    assert set(kvs) == {name.replace("\n", "") for name in covered}
    for i, box in enumerate(covered.values()):
        assert not any(box.overlaps(other) for other in list(covered.values())[:i])
        assert left.bbox.x0 < box.x0 < box.x1 < left.bbox.x1
        for bits, kl in kvs.values():
            for y in (0.9 * kl, kl, 1.1 * kl):
                assert not box.contains(*left.transData.transform((bits, y)))
    ends = sorted(names(right).values(), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 for below, above in pairwise(ends))


def test_types_that_cost_nothing_are_left_out() -> None:
    nothing = score("logquant+window=4096", "a", 16.0, 0.0)
    left, right = panels([*SCORES, nothing])
    assert len(names(left)) == len(names(right)) == 2
    assert left.get_ylim()[0] > 0.001
    assert len(panels([SCORES[0], nothing])) == 2  # an empty plot is still one


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
    with pytest.raises(ArgumentError, match=r"pip install matplotlib$"):
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

"""Plots of what KV cache types cost. Needs matplotlib: pip install 'pylogquant[plot]'."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pylogquant.errors import ArgumentError, FileError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pylogquant.evaluate import Score

__all__ = ["check_plot_path", "plot_scores", "save_figure"]

_SUFFIXES = (".png", ".svg", ".pdf")


def check_plot_path(path: str | Path) -> Path:
    """The path, if a plot can be written there, as far as can be told without writing.

    Raises ArgumentError (a kind of file that cannot be drawn, or matplotlib is missing), FileError."""
    target = Path(path)
    if target.suffix.lower() not in _SUFFIXES:
        raise ArgumentError(f"{path}: a plot is one of {', '.join(_SUFFIXES)}; name a file that ends so")
    try:
        import matplotlib  # noqa: F401
    except ImportError as cause:
        raise ArgumentError("plots need matplotlib: pip install 'pylogquant[plot]'") from cause
    if target.is_dir():
        raise FileError(f"cannot write {path}: it is a directory")
    if not target.parent.is_dir():
        raise FileError(f"cannot write {path}: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise FileError(f"cannot write {path}: the folder may not be written to")
    return target


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure, whole or not at all; its kind follows from the name. Raises FileError."""
    target = Path(path)
    name = None
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem[:100]}.", suffix=target.suffix)
        os.close(handle)
        figure.savefig(name, dpi=150)
        os.chmod(name, 0o644)
        os.replace(name, target)
    except OSError as cause:
        raise FileError(f"cannot write {path}: {cause.strerror or cause}") from cause
    finally:
        if name is not None and os.path.exists(name):
            os.unlink(name)


def plot_scores(scores: Sequence[Score], title: str) -> Figure:
    """Two panels: quality against bits, one point a type (mean over texts, bars to the best and worst text), and KL
    over the quarters of the scored positions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), layout="constrained")
    FigureCanvasAgg(figure)  # so that it can be drawn without a display
    left, right = figure.subplots(1, 2)
    kinds = [kv for kv in dict.fromkeys(score.kv for score in scores) if kv != "f16"]
    by_kind = {kv: [score for score in scores if score.kv == kv] for kv in kinds}
    colours = {kv: f"C{i % 10}" for i, kv in enumerate(kinds)}
    _draw_trade(left, by_kind, colours)
    _draw_quarters(right, by_kind, colours)
    figure.suptitle(title)
    return figure


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _draw_trade(axes: Axes, by_kind: dict[str, list[Score]], colours: dict[str, str]) -> None:
    points: list[tuple[float, float, str]] = []
    for kv, mine in by_kind.items():
        kls = [max(score.kl, 1e-6) for score in mine]
        bits, kl = _mean([score.bits for score in mine]), _mean(kls)
        bars: Any = [[kl - min(kls)], [max(kls) - kl]]
        axes.errorbar([bits], [kl], yerr=bars, fmt="o", color=colours[kv], capsize=3, markersize=7)
        points.append((bits, kl, kv))
    axes.set_yscale("log")
    axes.margins(x=0.18, y=0.1)
    _label(axes, points, colours)
    axes.set_xlabel("bits per key or value, everything counted (fewer is better: left)")
    axes.set_ylabel("divergence from f16, mean KL in nats (less is better: down)")
    axes.set_title("what a bit buys")
    axes.grid(visible=True, which="major", alpha=0.3)


def _label(axes: Axes, points: list[tuple[float, float, str]], colours: dict[str, str]) -> None:
    """Names beside their points: to the right, or to the left where another point lies in the way."""
    spread = max(bits for bits, _, _ in points) - min(bits for bits, _, _ in points) or 1.0
    height = log(max(kl for _, kl, _ in points) / min(kl for _, kl, _ in points)) or 1.0
    for bits, kl, kv in points:
        blocked = any(0 < x - bits < 0.3 * spread and abs(log(y / kl)) < 0.04 * height for x, y, _ in points)
        axes.annotate(
            kv,
            (bits, kl),
            xytext=(-9 if blocked else 9, 0),
            textcoords="offset points",
            ha="right" if blocked else "left",
            va="center",
            color=colours[kv],
        )


def _draw_quarters(axes: Axes, by_kind: dict[str, list[Score]], colours: dict[str, str]) -> None:
    lines = {
        kv: [max(_mean([score.kl_quarters[i] for score in mine]), 1e-6) for i in range(4)]
        for kv, mine in by_kind.items()
    }
    for kv, quarters in sorted(lines.items(), key=lambda line: -line[1][-1]):  # the legend in the order of the ends
        axes.plot([1, 2, 3, 4], quarters, "o-", color=colours[kv], label=kv)
    axes.set_yscale("log")
    axes.set_xticks([1, 2, 3, 4], ["first", "second", "third", "last"])
    axes.set_xlabel("quarter of the text after the prompt")
    axes.set_ylabel("mean KL in nats")
    axes.set_title("as the text grows longer")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)

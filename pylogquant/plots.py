"""Plots: what KV cache types cost, where attention spikes. Needs matplotlib: pip install 'pylogquant[plot]'."""

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
    from pylogquant.spikes import Spikes

__all__ = ["check_plot_path", "plot_scores", "plot_spikes", "save_figure"]

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
    figure, left, right = _two_panels(title)
    kinds = [kv for kv in dict.fromkeys(score.kv for score in scores) if kv != "f16"]
    by_kind = {kv: [score for score in scores if score.kv == kv] for kv in kinds}
    colours = {kv: f"C{i % 10}" for i, kv in enumerate(kinds)}
    _draw_trade(left, by_kind, colours)
    _draw_quarters(right, by_kind, colours)
    return figure


def _two_panels(title: str) -> tuple[Figure, Axes, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), layout="constrained")
    FigureCanvasAgg(figure)  # so that it can be drawn without a display
    left, right = figure.subplots(1, 2)
    figure.suptitle(title)
    return figure, left, right


def plot_spikes(spikes: Sequence[Spikes], title: str) -> Figure:
    """Two panels, means over texts: how likely a token is to be a spike, by age; what selections cover, by budget."""
    figure, left, right = _two_panels(title)
    _draw_ages(left, spikes)
    _draw_coverage(right, spikes)
    return figure


def _draw_ages(axes: Axes, spikes: Sequence[Spikes]) -> None:
    ages = spikes[0].ages
    widths = [after - age for age, after in zip(ages, [*ages[1:], 2 * ages[-1]], strict=True)]
    middles = [max(age + (width - 1) / 2, 0.5) for age, width in zip(ages, widths, strict=True)]
    for name, label in (("top", "share of the 32 largest"), ("mass", "share of all attention")):
        each = [_mean([getattr(one, name)[i] for one in spikes]) / width for i, width in enumerate(widths)]
        axes.plot(middles, [max(x, 1e-7) for x in each], "o-", label=f"{label}, a token")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [4**i for i in range(12) if 4**i <= 2 * ages[-1]]
    axes.set_xticks([0.5, *ticks], ["0", *map(str, ticks)])
    axes.set_xlabel("age: tokens before the query's own (log scale)")
    axes.set_ylabel("share that one token of this age has")
    sinks = _mean([one.sink_mass for one in spikes])
    axes.set_title(f"attention thins out with age (first 4 tokens apart: {100 * sinks:.0f} %)")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(frameon=False)


def _draw_coverage(axes: Axes, spikes: Sequence[Spikes]) -> None:
    for i, select in enumerate(dict.fromkeys(one.select for one in spikes[0].coverage)):
        rows = [[row for row in one.coverage if row.select == select] for one in spikes]
        by_window = list(zip(*rows, strict=True))
        kept = [_mean([row.n_kept for row in same]) for same in by_window]
        axes.plot(kept, [_mean([row.top for row in same]) for same in by_window], "o-", color=f"C{i}", label=select)
        axes.plot(kept, [_mean([row.mass for row in same]) for same in by_window], "s--", color=f"C{i}", alpha=0.6)
    axes.set_xlabel("tokens kept in full precision, sinks included (fewer is better: left)")
    axes.set_ylabel("share that they cover (more is better: up)")
    axes.set_title("lines: the 32 largest of a query; dashes: all attention")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(title="which tokens stay", frameon=False, loc="lower right")


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

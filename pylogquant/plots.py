"""Draws plots of what KV cache types cost, where attention spikes, and how fast decoding is.

Needs matplotlib: pip install '.[plot]' in the checkout."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from math import cos, inf, radians, sin
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pylogquant._native import write_file
from pylogquant.errors import ArgumentError, FileError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

    from pylogquant.evaluate import Score
    from pylogquant.spikes import Spikes

__all__ = ["SpeedLine", "check_plot_path", "plot_scores", "plot_speed", "plot_spikes", "save_figure"]

_SUFFIXES = (".png", ".svg", ".pdf")
_NAME_CHARS = 24  # longest line of a name, unless it cannot be broken


def check_plot_path(path: str | Path) -> Path:
    """Returns the path if a plot can be written there, as far as can be told without writing.

    Raises ArgumentError (a kind of file that cannot be drawn, or matplotlib is missing), FileError."""
    target = Path(path)
    if target.suffix.lower() not in _SUFFIXES:
        raise ArgumentError(f"{path}: a plot is one of {', '.join(_SUFFIXES)}; name a file that ends so")
    try:
        import matplotlib  # noqa: F401
    except ImportError as cause:
        raise ArgumentError("plots need matplotlib: pip install matplotlib") from cause
    if os.path.isdir(target):
        raise FileError(f"cannot write {path}: it is a directory")
    if os.path.exists(target) and not os.path.isfile(target):
        raise FileError(f"cannot write {path}: it is no regular file")
    folder = Path(os.path.realpath(target)).parent
    if not os.path.isdir(folder):
        raise FileError(f"cannot write {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise FileError(f"cannot write {path}: the folder may not be written to")
    return target


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure, whole or not at all; its kind follows from the name. Raises FileError."""
    target = Path(path)
    is_new = not os.path.exists(target)
    drawn = BytesIO()
    try:
        figure.savefig(drawn, format=target.suffix[1:].lower(), dpi=150)
    except OSError as cause:  # fonts and their cache are files too
        raise FileError(f"cannot draw {path}: {cause.strerror or cause}") from cause
    write_file(target, drawn.getvalue())
    if is_new:  # write_file() lets only the owner read a new file, but a plot is no secret
        os.chmod(target, 0o644)


def plot_scores(scores: Sequence[Score], title: str, span: tuple[int, int] | None = None) -> Figure:
    """Draws two panels: quality against bits, one point per type (mean over texts, bars to the best and worst text),
    and KL over the quarters of the scored positions.

    span: first scored position and end of the scored positions, to label the axis with; None: no such labels.
    Types without any divergence, such as f16, cannot be drawn on a logarithmic axis and are left out."""
    from matplotlib.ticker import LogLocator

    figure, left, right = _two_panels(title)
    lines = [_line(scores, kv, i) for i, kv in enumerate(dict.fromkeys(score.kv for score in scores))]
    lines = [line for line in lines if line.kl > 0]
    right.sharey(left)
    left.set_yscale("log")
    left.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    for axis in (left.yaxis, right.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    _draw_trade(left, lines)
    _draw_quarters(right, lines, span)
    _name_ends(right, [(line.kv, line.quarters[3], line.colour) for line in lines if line.quarters[3] > 0])
    _name_points(left, lines)
    return figure


class _Line(NamedTuple):
    """The data drawn for one type: means over its texts."""

    kv: str
    bits: float
    kl: float
    lowest: float  # the best text's
    highest: float
    quarters: list[float]
    colour: str
    marker: str


def _line(scores: Sequence[Score], kv: str, place: int) -> _Line:
    mine = [score for score in scores if score.kv == kv]
    kls = [score.kl for score in mine]
    quarters = [_mean([score.kl_quarters[i] for score in mine]) for i in range(4)]
    bits = _mean([score.bits for score in mine])
    lowest = max(min(kls), _mean(kls) / 100)  # a bar down to zero would be endless on a logarithmic axis
    return _Line(kv, bits, _mean(kls), lowest, max(kls), quarters, f"C{place % 10}", "osD^v"[place // 10 % 5])


class SpeedLine(NamedTuple):
    """Tokens per second of one engine with one KV cache type."""

    name: str
    points: Sequence[tuple[int, Sequence[float]]]  # (tokens in the context, tokens per second of each round)
    dashed: bool = False  # for peers, to tell them from our engine


def plot_speed(lines: Sequence[SpeedLine], title: str) -> Figure:
    """Draws the median decoding speed against context length, with the range over rounds; each line has its name at its
    end."""
    from statistics import median

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    figure.suptitle(title)
    ends = []
    for i, line in enumerate(lines):
        depths = [depth for depth, _ in line.points]
        medians = [median(rounds) for _, rounds in line.points]
        colour = f"C{i % 10}"
        below = [middle - min(rounds) for middle, (_, rounds) in zip(medians, line.points, strict=True)]
        above = [max(rounds) - middle for middle, (_, rounds) in zip(medians, line.points, strict=True)]
        axes.errorbar(depths, medians, [below, above], fmt="o--" if line.dashed else "o-", color=colour, capsize=3)
        ends.append((line.name, depths[-1], medians[-1], colour))
    ticks = sorted({depth for line in lines for depth, _ in line.points})
    axes.set_xticks(ticks, [f"{depth:,}" for depth in ticks])
    axes.set_xlim(-0.02 * ticks[-1], 1.02 * ticks[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens in the context")
    axes.set_ylabel("tokens decoded per second (more is better: up)")
    axes.set_title("medians; bars: slowest to fastest round")
    axes.grid(visible=True, which="major", alpha=0.3)
    for name, depth, height, colour in ends:
        if depth < ticks[-1]:  # a name at the border would suggest that the line goes that far
            axes.annotate(name, (depth, height), (8, 0), textcoords="offset points", va="top", color=colour)
    _name_ends(axes, [(name, height, colour) for name, depth, height, colour in ends if depth == ticks[-1]])
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
    """Draws two panels, means over texts: how likely a token is a spike, by age; what selections cover, by budget."""
    figure, left, right = _two_panels(title)
    _draw_ages(left, spikes)
    _draw_coverage(right, spikes)
    return figure


def _draw_ages(axes: Axes, spikes: Sequence[Spikes]) -> None:
    ages = spikes[0].ages
    ends = [*ages[1:], 2 * ages[-1]]
    middles = [max((age + after - 1) / 2, 0.5) for age, after in zip(ages, ends, strict=True)]
    seen = [_mean([one.tokens[i] for one in spikes]) for i in range(len(ages))]  # early queries see no old tokens
    for name, label in (("top", "share of the 32 largest"), ("mass", "share of all attention")):
        each = [_mean([getattr(one, name)[i] for one in spikes]) / n if n else 0.0 for i, n in enumerate(seen)]
        axes.plot(middles, [x if x > 0 else float("nan") for x in each], "o-", label=f"{label}, a token")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [4**i for i in range(12) if 4**i <= 2 * ages[-1]]
    axes.set_xticks([0.5, *ticks], ["0", *map(str, ticks)])
    axes.set_xlabel("age: tokens before the query's own (log scale)")
    axes.set_ylabel("share that one token of this age has")
    sinks = _mean([one.sink_mass for one in spikes])
    axes.set_title(f"where attention goes by age (beside {100 * sinks:.0f} % on the first 4 tokens)")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(frameon=False)


def _draw_coverage(axes: Axes, spikes: Sequence[Spikes]) -> None:
    from matplotlib.ticker import PercentFormatter

    for i, select in enumerate(dict.fromkeys(one.select for one in spikes[0].coverage)):
        rows = [[row for row in one.coverage if row.select == select] for one in spikes]
        by_window = list(zip(*rows, strict=True))
        kept = [_mean([row.n_kept for row in same]) for same in by_window]
        axes.plot(kept, [_mean([row.top for row in same]) for same in by_window], "o-", color=f"C{i}", label=select)
        axes.plot(kept, [_mean([row.mass for row in same]) for same in by_window], "s--", color=f"C{i}", alpha=0.6)
    axes.set_xlabel("tokens kept in full precision, the first 4 included")
    axes.set_ylabel("share that they cover (more is better: up)")
    axes.set_title("what keeping them covers")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.plot([], [], "o-", color="0.4", label="of the 32 largest")
    axes.plot([], [], "s--", color="0.4", alpha=0.6, label="of all attention")
    axes.legend(title="which tokens stay", frameon=False, loc="lower right")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _in_lines(kv: str) -> str:
    """A type's name, with line breaks before settings where it is long."""
    lines = [""]
    for part in re.split(r"(?=\+)", kv):
        if lines[-1] and len(lines[-1] + part) > _NAME_CHARS:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _draw_trade(axes: Axes, lines: Sequence[_Line]) -> None:
    with_bars = any(line.lowest < line.highest for line in lines)
    for line in lines:
        bars: Any = [[line.kl - line.lowest], [line.highest - line.kl]] if with_bars else None
        axes.errorbar([line.bits], [line.kl], bars, fmt=line.marker, color=line.colour, capsize=3, markersize=7)
    axes.margins(x=0.22, y=0.1)
    axes.set_xlabel("bits per key or value, everything counted")
    axes.set_ylabel("divergence from f16: mean KL in nats (log scale)")
    axes.set_title("error against memory" + ("; bars: best to worst text" if with_bars else ""))
    axes.grid(visible=True, which="major", alpha=0.3)
    arrow = {"arrowstyle": "-|>", "color": "0.4"}
    at: Any = {"textcoords": "axes fraction", "xycoords": "axes fraction"}
    axes.annotate("better", (0.02, 0.02), (0.09, 0.09), arrowprops=arrow, color="0.4", **at)


def _draw_quarters(axes: Axes, lines: Sequence[_Line], span: tuple[int, int] | None) -> None:
    for line in lines:
        kls = [kl if kl > 0 else float("nan") for kl in line.quarters]
        axes.plot([1, 2, 3, 4], kls, f"{line.marker}-", color=line.colour)
    ticks = ["first", "second", "third", "last"]
    if span is not None:
        edges = [span[0] + round(i * (span[1] - span[0]) / 4) for i in range(5)]
        ticks = [f"{start:,} to {end - 1:,}" for start, end in pairwise(edges)]
    axes.set_xticks([1, 2, 3, 4], ticks)
    axes.set_xlabel("positions in the text, in quarters (tokens)" if span else "quarter of the text after the prompt")
    axes.set_title("error as the text grows longer; lower is better")
    axes.grid(visible=True, which="major", alpha=0.3)


def _name_ends(axes: Axes, ends: Sequence[tuple[str, float, str]]) -> None:
    """Writes names to the right of their lines' ends (name, height, colour), moved up where they would touch."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    names = [
        axes.annotate(
            _in_lines(name),
            (1, height),
            (14, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=colour,
        )
        for name, height, colour in sorted(ends, key=lambda end: end[1])
    ]
    figure.draw_without_rendering()
    top = -inf
    for name in names:
        box = name.get_window_extent()
        up = max(0.0, top + 1 - box.y0)
        name.set_position((14, up * 72 / figure.dpi))
        top = box.y1 + up


def _name_points(axes: Axes, lines: Sequence[_Line]) -> None:
    """Writes names near their points, where they cover no point, bar or other name."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # the layout must be final before distances are measured
    taken = [text.get_window_extent() for text in axes.texts]
    for line in lines:
        point = axes.transData.transform((line.bits, line.kl))
        ends = [axes.transData.transform((line.bits, kl)) for kl in (line.lowest, line.highest)]
        taken += [_box(6, point), _box(4, *ends)]
    for line in lines:
        name = axes.annotate(_in_lines(line.kv), (line.bits, line.kl), (0, 0), textcoords="offset points")
        name.set_color(line.colour)
        name.set_in_layout(False)
        taken.append(_find_room(axes, name, taken))


def _find_room(axes: Axes, name: Annotation, taken: Sequence[Bbox]) -> Bbox:
    """Moves a name to the nearest free position around its point, the right first; returns the box that it covers."""
    places = [
        (radius, angle) for radius in (10, 16, 24, 34, 46, 60, 80) for angle in (0, 180, 30, -30, 150, -150, 90, -90)
    ]
    for radius, angle in [*places, (10, 0)]:  # the fallback is the most legible one, though it covers something
        x, y = cos(radians(angle)), sin(radians(angle))
        name.set_position((radius * x, radius * y))
        name.set(ha="center" if abs(x) < 0.1 else "left" if x > 0 else "right")
        name.set(va="center" if abs(y) < 0.6 else "bottom" if y > 0 else "top")
        box = name.get_window_extent()
        inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and axes.bbox.y0 < box.y0 and box.y1 < axes.bbox.y1
        if inside and not any(box.overlaps(other) for other in taken):
            break
    return box


def _box(margin: float, *points: Any) -> Bbox:
    """The box around points (x, y), in pixels."""
    from matplotlib.transforms import Bbox

    xs, ys = zip(*points, strict=True)
    return Bbox.from_extents(min(xs) - margin, min(ys) - margin, max(xs) + margin, max(ys) + margin)

"""`spikes`: shows where attention spikes by age, and what each selection of tokens covers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from pylogquant.cli.engine import open_model
from pylogquant.cli.evaluate import progress_bar, text_tokens
from pylogquant.cli.output import aligned, shown

if TYPE_CHECKING:
    from pylogquant.cli.options import ModelSettings
    from pylogquant.spikes import Spikes


def spikes(
    settings: ModelSettings, texts: Sequence[str], *, prompt: int, stride: int, plot: str | None, as_json: bool
) -> None:
    """Prints, or draws, where the attention of each text's queries goes."""
    from pylogquant.evaluate import read_text, text_name
    from pylogquant.plots import check_plot_path, plot_spikes, save_figure
    from pylogquant.spikes import observe

    if plot is not None:
        check_plot_path(plot)
    sources = [(text_name(source), read_text(source)) for source in texts]
    found: list[Spikes] = []
    with open_model(settings) as model:
        n_ctx = settings.session.length.tokens(model.info().n_ctx_train)
        for name, text in sources:
            ids = text_tokens(model, name, text, n_ctx)
            with progress_bar(name) as progress:
                found.append(observe(model, name, ids, prompt=prompt, stride=stride, progress=progress))
    if as_json:
        print(json.dumps({"model": settings.model, "n_ctx": n_ctx, "texts": [asdict(one) for one in found]}))
    else:
        for one in found:
            print("\n".join(_ages(one)))
            print("\n".join(["", *_coverage(one), ""]))
    if plot is not None:  # after printing the figures, so that a full disk does not lose them
        n_texts = f"means over {len(sources)} texts" if len(sources) > 1 else sources[0][0]
        title = f"Where the attention of {text_name(settings.model)} goes: {n_ctx:,} tokens, {n_texts}"
        save_figure(plot_spikes(found, shown(title)), plot)


def _ages(one: Spikes) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [(f"{shown(one.text)}: age", "of the 32 largest", "of all attention")]
    rows.append(("first 4 tokens", f"{100 * one.sink_top:.1f} %", f"{100 * one.sink_mass:.1f} %"))
    for age, after, top, mass in zip(one.ages, [*one.ages[1:], None], one.top, one.mass, strict=True):
        until = "" if after is None else f" to {after - 1}"
        name = str(age) if after == age + 1 else f"{age}{until or ' on'}"
        rows.append((name, f"{100 * top:.1f} %", f"{100 * mass:.1f} %"))
    return aligned(rows, indent="")


def _coverage(one: Spikes) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("which tokens stay", "W", "kept", "of the 32 largest", "of all attention")]
    rows += [
        (row.select, str(row.window), f"{row.n_kept:.0f}", f"{100 * row.top:.1f} %", f"{100 * row.mass:.1f} %")
        for row in one.coverage
    ]
    return aligned(rows, indent="")

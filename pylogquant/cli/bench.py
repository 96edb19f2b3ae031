"""`bench`: tokens per second by KV cache type, and how near that is to what the machine can do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from pylogquant.cli.engine import open_model
from pylogquant.cli.evaluate import progress_bar
from pylogquant.cli.output import aligned, bytes_text, print_note, shown
from pylogquant.errors import ArgumentError

if TYPE_CHECKING:
    from pylogquant.bench import Cost, Machine, Rate
    from pylogquant.cli.options import ModelSettings

DEFAULT_KVS = ("logquant", "q4_0", "q8_0", "f16")
_WORTH_SAYING_MS = 20_000
_WORDS = {"prompt": "prompt of {:,}", "decode": "decode at {:,}", "batch": "batch of {:,}"}


@dataclass(frozen=True)
class Works:
    """The options of `bench`: what to measure, and how to show it."""

    prompts: Sequence[int]
    depths: Sequence[int]
    batches: Sequence[int]
    rounds: int
    n_decode: int
    plot: str | None = None
    as_json: bool = False


def numbers(option: str, text: str) -> list[int]:
    """Parses numbers of tokens or sessions, as in 0,4096; an empty text gives none. Raises ArgumentError."""
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    if not all(word.isdecimal() and word.isascii() for word in words):
        raise ArgumentError(f"{option} takes numbers with commas between them, as in 0,4096, not {text!r}")
    return [int(word) for word in words]


def bench(settings: ModelSettings, kvs: Sequence[str], works: Works) -> None:
    """Prints, or draws, the rates of each type."""
    from pylogquant.bench import bench as measure
    from pylogquant.bench import measure_machine, token_cost
    from pylogquant.kv import KvOptions
    from pylogquant.plots import SpeedLine, check_plot_path, plot_speed, save_figure

    if works.plot is not None:
        check_plot_path(works.plot)
        if len(set(works.depths)) < 2:
            raise ArgumentError("--plot draws speed against depth: give at least two --depths")
    for kv in kvs:
        KvOptions.parse(kv)  # refuses a wrong one before a model is loaded
    with open_model(settings) as model:
        cost, n_threads, name = token_cost(model), model.info().n_threads, model.path.name
        before = measure_machine(n_threads, cost.weight_bytes)
        with progress_bar("bench") as bar:

            def progress(done: int, total: int) -> None:
                if done == 0 and total > _WORTH_SAYING_MS:
                    print_note(f"this takes {total / 60_000:.1f} min or more: long contexts are slower")
                if bar is not None:
                    bar(done, total)

            rates = measure(
                model,
                kvs or DEFAULT_KVS,
                prompts=works.prompts,
                depths=works.depths,
                batches=works.batches,
                rounds=works.rounds,
                n_decode=works.n_decode,
                progress=progress,
            )
        machine = _best(before, measure_machine(n_threads, cost.weight_bytes))
    if works.as_json:
        rows = [{**asdict(rate), "median": rate.median, "bound": machine.bound(rate, cost)} for rate in rates]
        print(json.dumps({"model": name, "machine": asdict(machine), "cost": asdict(cost), "rates": rows}))
    else:
        print("\n".join(_text(name, rates, machine, cost)))
    if works.plot is not None:  # after printing the figures, so that a full disk does not lose them
        decode = [rate for rate in rates if rate.work == "decode"]
        lines = [
            SpeedLine(kv, [(rate.n, rate.rounds) for rate in decode if rate.kv == kv])
            for kv in dict.fromkeys(rate.kv for rate in decode)
        ]
        title = f"{name}: decoding as the context grows ({machine.n_threads} threads, {machine.cpu})"
        save_figure(plot_speed(lines, shown(title)), works.plot)


def _best(one: Machine, other: Machine) -> Machine:
    """Merges two measurements of one machine: its limits are the higher figures."""
    return replace(
        one,
        read_per_s=max(one.read_per_s, other.read_per_s),
        memory_per_s=max(one.memory_per_s, other.memory_per_s),
        products_per_s=max(one.products_per_s, other.products_per_s),
    )


def _text(name: str, rates: Sequence[Rate], machine: Machine, cost: Cost) -> Iterator[str]:
    n_rounds = len(rates[0].rounds)
    yield shown(f"{name} on {machine.cpu}, {machine.cpu_level}, {machine.n_threads} threads")
    yield f"tokens/s, medians of {n_rounds} (slowest to fastest)"
    yield ""
    by_kv = {kv: [rate for rate in rates if rate.kv == kv] for kv in dict.fromkeys(rate.kv for rate in rates)}
    works = list(dict.fromkeys(_WORDS[rate.work].format(rate.n) for rate in rates))
    longest = max((rate.n for rate in rates if rate.work != "batch"), default=0)
    rows: list[tuple[str, ...]] = [("KV type", *works, *([f"KV of {longest:,}"] if longest else []))]
    for kv, mine in by_kv.items():
        n_bytes = [rate.kv_bytes for rate in mine if rate.work != "batch" and rate.n == longest]
        rows.append((kv, *(_cell(rate) for rate in mine), *([bytes_text(n_bytes[0])] if longest else [])))
    yield from aligned(rows, indent="")
    yield ""
    rows = [("of the bound", *works)]
    rows += [
        (kv, *(f"{100 * rate.median / machine.bound(rate, cost):.0f} %" for rate in mine)) for kv, mine in by_kv.items()
    ]
    yield from aligned(rows, indent="")
    yield ""
    yield from _bounds(machine, cost)


def _bounds(machine: Machine, cost: Cost) -> Iterator[str]:
    cache = f", this CPU's L3 cache holds {bytes_text(machine.l3_bytes)}" if machine.l3_bytes else ""
    yield (
        f"A decoded token reads {bytes_text(cost.weight_bytes)} of weights and the KV cache. Measured with"
        f" {machine.n_threads} threads: {machine.read_per_s / 1e9:.1f} GB/s from as much again and again{cache};"
        f" {machine.memory_per_s / 1e9:.1f} GB/s from {bytes_text(machine.memory_bytes)}."
    )
    yield (
        f"A prompt's token takes {cost.products / 1e6:.0f} million products, its last one"
        f" {cost.head_products / 1e6:.0f} million more for the head. Measured: {machine.products_per_s / 1e9:.0f}"
        f" thousand million 8-bit products/s."
    )


def _cell(rate: Rate) -> str:
    return f"{rate.median:.1f} ({min(rate.rounds):.1f} to {max(rate.rounds):.1f})"

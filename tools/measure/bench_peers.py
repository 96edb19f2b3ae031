"""Measures tokens per second and start-up times of pylogquant, llama.cpp and ik_llama.cpp, alternating in one run.

    python tools/measure/bench_peers.py MODEL --llama [PYTHON] --ik [PYTHON] [--depths 0,2048,4096] [--pp 512]
        [--rounds 5] [--kv logquant f16] [--llama-kv f16 q8_0 q4_0] [--ik-kv f16 q8_0 q4_0] [--threads 2]
        [--states FOLDER] [--load] [--json] [--plot FILE]

Every engine is a process of its own, which sleeps while another one is timed. PYTHON is an interpreter that has
llama-cpp-python or ik-llama-cpp-python, by default the one that runs this. A prompt is evaluated from an empty context
to the logits of its last token, in chunks of 512; decoding evaluates tokens one by one, with logits, behind `depth`
others. All get the same random ids and as many threads, with flash attention, and nothing is sampled. A depth is
reached once; peers go back to it by removing later tokens, we by a checkpoint. Within a round engines and types take
turns, each round begins with another one, and a first round for warming up is not kept. Everything else is at each
engine's default; --ik-repack turns on ik_llama.cpp's rearranged weights (faster for Gemma's Q4_K, not for SmolLM2's
Q4_1; merge_qkv makes neither faster).

Medians over the rounds with the smallest and the largest; a ratio is ours divided by a peer's, the median of the
rounds' ratios. --states keeps filled caches (hundreds of MiB) for the next run. --add FILE... shows and draws the rows
of earlier runs, as --json printed them, together with this one's.

--load measures the time from the start of a fresh process to its first token of text after a prompt of 32 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pylogquant import Model, hub
from pylogquant.bench import random_ids
from pylogquant.plots import SpeedLine, check_plot_path, plot_speed, save_figure

_WORKER = Path(__file__).with_name("bench_worker.py")
_OURS = "pylogquant"
_PAUSE = 0.05  # seconds after which an engine's threads have stopped to spin
_WARM = 2  # tokens that a worker decodes before those it times

FIRST_PROMPT = 32
_SENTENCE = "The library keeps the newest tokens as they are. "
_LOAD = {
    "llama.cpp": """
import sys
import llama_cpp
n = int(sys.argv[2])
llama = llama_cpp.Llama(sys.argv[1], n_ctx=512, n_threads=n, n_threads_batch=n, verbose=False)
llama.eval(llama.tokenize(sys.argv[3].encode()))
print(llama.detokenize([llama.sample(temp=0.0)]).decode(errors="replace"), flush=True)
""",
    "ik_llama.cpp": """
import sys
import ik_llama_cpp
llama = ik_llama_cpp.IkLlama(sys.argv[1], n_ctx=512, n_threads=int(sys.argv[2]), verbose=False)
print(llama.detokenize(llama.generate(llama.tokenize(sys.argv[3]), max_tokens=1)), flush=True)
""",
    _OURS: """
import sys
import pylogquant
model = pylogquant.Model(sys.argv[1], threads=int(sys.argv[2]))
session = model.session(n_ctx=512)
session.prefill(model.tokenizer.encode(sys.argv[3]))
choice = session.sample(pylogquant.Sampler(pylogquant.SamplingOptions(temperature=0)))
print(model.tokenizer.decode([choice.token]), flush=True)
""",
}


@dataclass(frozen=True)
class Row:
    """One kind of work by one engine with one KV cache type."""

    work: str  # "prompt", "decode" or "start"
    n: int  # tokens of the prompt, or before the decoded ones
    engine: str
    kv: str
    rounds: tuple[float, ...]  # tokens per second; of "start", seconds

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def ratio(ours: Row, peer: Row) -> float:
    """How many times as fast we are: the median of the rounds' ratios."""
    if ours.work == "start":
        ours, peer = peer, ours
    return statistics.median(a / b for a, b in zip(ours.rounds, peer.rounds, strict=True))


class Engine:
    """A worker process."""

    def __init__(self, name: str, python: str, model: Path, n_ctx: int, options: argparse.Namespace) -> None:
        self.name = name.partition("+")[0]
        arguments = [name, str(model), str(options.threads), str(n_ctx), options.states or ""]
        self._process = subprocess.Popen(
            [python, str(_WORKER), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if options.verbose else subprocess.DEVNULL,
            text=True,
        )

    def ask(self, command: str, *arguments: Any) -> Any:
        """The worker's answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps([command, *arguments]), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SystemExit(f"bench_peers: {self.name} ended ({command} {arguments[:1]}); --verbose shows why")
        answer = json.loads(line)
        if "error" in answer:
            raise SystemExit(f"bench_peers: {self.name}: {answer['error']}")
        time.sleep(_PAUSE)
        return answer["value"]

    def close(self) -> None:
        self._process.communicate()  # closes its input, at which it ends


Side = tuple[Engine, str]  # and a KV cache type


def take_turns(sides: Sequence[Side], rounds: int) -> Iterator[tuple[int, Side]]:
    """(round, side), every side once a round; who begins changes. Round 0 is there to warm up."""
    for index in range(rounds + 1):
        first = index % len(sides)
        for side in [*sides[first:], *sides[:first]]:
            yield index, side


def measure(sides: Sequence[Side], work: str, n: int, options: argparse.Namespace) -> list[Row]:
    found: dict[Side, list[float]] = {side: [] for side in sides}
    if work == "decode":
        for engine, kv in sides:
            _say(f"filling {engine.name} {kv} to {n}")
            engine.ask("fill", kv, n)
        if options.fill:
            return []
        for index, (engine, kv) in take_turns(sides, options.rounds):
            seconds = engine.ask("decode", kv, options.decode)
            if index > 0:
                found[engine, kv].append(1 / seconds)
    else:
        for index, (engine, kv) in take_turns(sides, options.rounds):
            # A long prompt needs no second one to warm up: a short one does it.
            seconds = engine.ask("prompt", kv, min(n, 64) if index == 0 else n)
            if index > 0:
                found[engine, kv].append(n / seconds)
    return [Row(work, n, engine.name, kv, tuple(values)) for (engine, kv), values in found.items()]


def bench_speed(path: Path, peers: dict[str, str], options: argparse.Namespace) -> tuple[list[Row], dict[str, str]]:
    """Rows, and what each engine calls its version."""
    lengths = [*options.pp, *(depth + _WARM + options.decode for depth in options.depths)]
    n_ctx = max(options.ctx, (max(lengths) + 255) // 256 * 256)  # as llama.cpp would round it
    with Model(path, threads=1) as model:
        ids = random_ids(model, n_ctx)
    engines = [Engine(name, python, path, n_ctx, options) for name, python in {_OURS: sys.executable, **peers}.items()]
    try:
        versions = {engine.name: engine.ask("ids", ids) for engine in engines}
        kvs = {_OURS: options.kv, "llama.cpp": options.llama_kv, "ik_llama.cpp": options.ik_kv}
        sides = [(engine, kv) for engine in engines for kv in kvs[engine.name]]
        rows: list[Row] = []
        for work, n in [*(("prompt", n) for n in options.pp), *(("decode", n) for n in sorted(options.depths))]:
            _say(f"{work} {n}")
            rows += measure(sides, work, n, options)
        return rows, versions
    finally:
        for engine in engines:
            engine.close()


def time_start(command: Sequence[str], environment: dict[str, str]) -> float:
    """Seconds from the start of a process to the first byte of its text."""
    start = time.perf_counter()
    # In a folder of no Python files: `python -c` looks where it runs first.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd="/")
    assert process.stdout is not None
    first = process.stdout.read(1)
    seconds = time.perf_counter() - start
    _, errors = process.communicate()
    if process.returncode != 0 or not first:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise SystemExit(f"bench_peers: a start-up run failed: {' '.join(last)}")
    time.sleep(_PAUSE)
    return seconds


def bench_start(path: Path, peers: dict[str, str], options: argparse.Namespace) -> list[Row]:
    """Our command line and our Python interface, and the peers' Python interfaces."""
    threads = str(options.threads)
    with Model(path, threads=1) as model:
        text = (_SENTENCE * FIRST_PROMPT).strip()
        while len(model.tokenizer.encode(text)) > FIRST_PROMPT:
            text = text[:-1]
    script = Path(sys.executable).with_name("pylogquant")
    commands = {
        (_OURS, "run"): [str(script), "run", str(path), "-p", text, "-n", "1", "--temp", "0", "-t", threads],
        (_OURS, "Python"): [sys.executable, "-c", _LOAD[_OURS], str(path), threads, text],
    }
    for name, python in peers.items():
        name = name.partition("+")[0]
        commands[name, "Python"] = [python, "-c", _LOAD[name], str(path), threads, text]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    found: dict[tuple[str, str], list[float]] = {side: [] for side in commands}
    for index in range(options.rounds + 1):
        first = index % len(commands)
        order = list(commands)
        for side in [*order[first:], *order[:first]]:
            seconds = time_start(commands[side], environment)
            if index > 0:  # the first fills the page cache, and Python's of compiled modules
                found[side].append(seconds)
    return [Row("start", FIRST_PROMPT, engine, how, tuple(values)) for (engine, how), values in found.items()]


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A block for each work: every engine and type, and how many times as fast ours are."""
    for work, n in dict.fromkeys((row.work, row.n) for row in rows):
        mine = [row for row in rows if (row.work, row.n) == (work, n)]
        ours = [row for row in mine if row.engine == _OURS]
        names = {"prompt": f"prompt of {n:,}, tokens/s", "decode": f"decode at {n:,}, tokens/s"}
        head = names.get(work, f"start to first token, prompt of {n}, s")
        yield f"{head:<36}{'':>30}" + "".join(f"{row.kv + ' is':>16}" for row in ours)
        better = (min if work == "start" else max)(
            (row for row in mine if row.engine != _OURS), key=lambda row: row.median, default=None
        )
        for row in mine:
            digits = 3 if work == "start" else 1
            low, high = min(row.rounds), max(row.rounds)
            rate = f"{row.median:.{digits}f} ({low:.{digits}f} .. {high:.{digits}f})"
            ratios = "".join(f"{ratio(one, row):>14.2f} x" for one in ours) if row.engine != _OURS else ""
            yield f"  {row.engine:<14}{row.kv:<20}{rate:>30}{ratios}{'  <- the better peer' if row is better else ''}"
        yield ""


def draw(rows: Sequence[Row], title: str, path: str) -> None:
    decode = [row for row in rows if row.work == "decode"]
    lines = []
    for engine, kv in dict.fromkeys((row.engine, row.kv) for row in decode):
        points = sorted((row.n, row.rounds) for row in decode if (row.engine, row.kv) == (engine, kv))
        lines.append(SpeedLine(f"{engine} {kv}", points, dashed=engine != _OURS))
    save_figure(plot_speed(lines, title), path)


def _lengths(text: str) -> list[int]:
    return [int(word) for word in text.split(",")] if text else []


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="path of a GGUF file, or a name pylogquant knows")
    for name in ("llama", "ik"):
        parser.add_argument(f"--{name}", nargs="?", const=sys.executable, metavar="PYTHON")
    parser.add_argument("--depths", type=_lengths, default=[], metavar="TOKENS,...", help="decode behind so many")
    parser.add_argument("--pp", type=_lengths, default=[], metavar="TOKENS,...", help="prompts of so many")
    parser.add_argument("--kv", nargs="+", default=["logquant", "f16"], metavar="TYPE", help="ours")
    for name, peer in (("llama", "llama.cpp's"), ("ik", "ik_llama.cpp's")):
        types = ["f16", "q8_0", "q4_0"]
        parser.add_argument(f"--{name}-kv", nargs="+", default=types, choices=types, metavar="TYPE", help=peer)
    parser.add_argument("--decode", type=int, default=32, help="tokens at each depth (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of every engine (default: %(default)s)")
    parser.add_argument("--ctx", type=int, default=0, help="tokens that contexts can hold (default: as few as will do)")
    parser.add_argument("--ik-repack", action="store_true", help="ik_llama.cpp rearranges weights when it loads them")
    parser.add_argument("--states", metavar="FOLDER", help="keep filled caches there, and take them from there")
    parser.add_argument("--fill", action="store_true", help="only fill the caches that --states keeps")
    parser.add_argument("--load", action="store_true", help="start-up times instead of speed")
    parser.add_argument("--add", nargs="+", default=[], metavar="FILE", help="earlier runs, as --json printed them")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--plot", metavar="FILE", help="draw decoding against depth")
    parser.add_argument("--verbose", action="store_true", help="show what the engines print")
    return parser.parse_args()


def main() -> None:
    options = _options()
    if options.plot is not None:
        check_plot_path(options.plot)
    if options.states is not None:
        Path(options.states).mkdir(parents=True, exist_ok=True)
    path = hub.resolve(options.model).resolve()
    peers = {"llama.cpp": options.llama, "ik_llama.cpp+repack" if options.ik_repack else "ik_llama.cpp": options.ik}
    peers = {name: python for name, python in peers.items() if python}
    content: dict[str, Any] = {"model": path.name, "threads": options.threads, "versions": {}}
    rows: list[Row] = []
    for name in options.add:
        found = json.loads(Path(name).read_text(encoding="utf-8"))
        if (found["model"], found["threads"]) != (path.name, options.threads):
            raise SystemExit(f"bench_peers: {name} is about {found['model']} with {found['threads']} threads")
        rows += [Row(**{**row, "rounds": tuple(row["rounds"])}) for row in found["rows"]]
        content["versions"].update(found["versions"])
    if options.load:
        rows += bench_start(path, peers, options)
    elif options.pp or options.depths:
        measured, versions = bench_speed(path, peers, options)
        rows += measured
        content["versions"].update(versions)
    _say("")
    if options.json:
        print(json.dumps({**content, "rows": [asdict(row) for row in rows]}))
    else:
        print(f"{path.name}, {options.threads} threads; {', '.join(content['versions'].values())}")
        print("\n".join(table(rows)))
    if options.plot is not None:
        title = f"{path.name}: decoding as the context grows ({options.threads} threads)"
        draw(rows, title, options.plot)


if __name__ == "__main__":
    main()

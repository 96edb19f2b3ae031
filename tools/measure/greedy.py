"""Measures how long greedy continuations with a KV cache type equal those with f16 KV, and how often tokens agree.

    python tools/measure/greedy.py MODEL [--kv TYPE...] [--text FILE] [--n 8] [--prompt 1024] [--tokens 128]
                           [--threads 2] [--json]

--n prompts of --prompt tokens are cut from the text at evenly spaced places, with BOS in front where the model asks for
it. Each is one chunk, whose tokens see each other in full precision; then --tokens tokens follow, the most probable
ones, whether or not one of them ends the text. Per type:

    first       number of tokens before the continuation first differs from f16's, median over prompts; a continuation
                that never differs counts with all its tokens, and such a median is written "128+"
    never       share of prompts whose continuation is the same to the end
    free        share of positions with the same token, each going on from its own tokens
    forced      share of positions with the same most probable token, both going on from f16's tokens

One differing token changes all that follows, so `free` says more about the model than about the cache; `forced` is the
figure that compares caches. +- is its standard error, from how prompts differ. Where the two most probable tokens are
nearly alike any rounding decides: q8_0 shows how often that happens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from pylogquant import KvOptions, Model, Session, hub
from pylogquant.errors import ArgumentError, LogQuantError
from pylogquant.evaluate import read_text, text_name
from pylogquant.tokenizer import Tokenizer


@dataclass(frozen=True)
class Course:
    """What one cache type said after one prompt, beside f16."""

    first: int  # tokens before the first that differs; all of them where none does
    n_tokens: int
    n_free: int  # tokens that are the same, each side going on from its own
    n_forced: int  # most probable tokens that are the same, both going on from f16's


@dataclass(frozen=True)
class Row:
    """One cache type over all prompts."""

    kv: str
    n_prompts: int
    n_tokens: int  # of each continuation
    first: float  # median
    never: float  # share
    free: float  # share
    forced: float  # share
    forced_error: float  # standard error


def cut_prompts(tokenizer: Tokenizer, name: str, text: str, n: int, n_tokens: int) -> list[list[int]]:
    """n prompts of n_tokens each, which do not overlap. Raises ArgumentError for a text too short for that."""
    if n < 1 or n_tokens < 2:
        raise ArgumentError(f"{n} prompts of {n_tokens} tokens are too few; give at least 1 of at least 2")
    lead = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    n_cut = n_tokens - len(lead)
    ids = tokenizer.encode(text, bos=False)
    if len(ids) < n * n_cut:
        raise ArgumentError(f"{name} has {len(ids)} tokens, {n * n_cut} are needed; fewer or shorter prompts would do")
    starts = [(len(ids) - n_cut) * i // max(n - 1, 1) for i in range(n)]
    return [[*lead, *ids[start : start + n_cut]] for start in starts]


def go_on(session: Session, token: int, n: int) -> list[int]:
    """n greedy tokens after `token`, which is evaluated first."""
    said = []
    for _ in range(n):
        token = best(session, [token])
        said.append(token)
    return said


def best(session: Session, ids: Sequence[int]) -> int:
    """Appends ids; the most probable token after them."""
    logits = session.eval(ids)
    assert logits is not None
    return int(logits.argmax())


def follow(session: Session, prompt: Sequence[int], reference: Sequence[int]) -> Course:
    """Reads the prompt, then the reference token after token; where the session would say something else for the first
    time, a fork of it goes on with that."""
    guess = best(session, prompt)
    forced = [guess]
    free: list[int] = []
    for i, token in enumerate(reference[:-1]):
        if guess != token and not free:
            with session.fork() as own:
                free = [*reference[:i], guess, *go_on(own, guess, len(reference) - i - 1)]
        guess = best(session, [token])
        forced.append(guess)
    return compare(reference, free or [*reference[:-1], guess], forced)


def compare(reference: Sequence[int], free: Sequence[int], forced: Sequence[int]) -> Course:
    """The three as long as each other."""
    same = [a == b for a, b in zip(reference, free, strict=True)]
    first = same.index(False) if False in same else len(same)
    return Course(first, len(same), sum(same), sum(a == b for a, b in zip(reference, forced, strict=True)))


def summarize(kv: str, courses: Sequence[Course]) -> Row:
    n_tokens = courses[0].n_tokens
    forced = [course.n_forced / n_tokens for course in courses]
    return Row(
        kv=kv,
        n_prompts=len(courses),
        n_tokens=n_tokens,
        first=statistics.median(course.first for course in courses),
        never=statistics.mean(course.first == n_tokens for course in courses),
        free=statistics.mean(course.n_free / n_tokens for course in courses),
        forced=statistics.mean(forced),
        forced_error=statistics.stdev(forced) / len(forced) ** 0.5 if len(forced) > 1 else 0.0,
    )


def measure(model: Model, prompts: Sequence[Sequence[int]], kvs: Sequence[str], n_tokens: int) -> list[Row]:
    """A row for each type. Raises ArgumentError (no tokens), and what Model.session() raises."""
    if n_tokens < 1:
        raise ArgumentError(f"a continuation of {n_tokens} tokens says nothing; give at least 1")
    courses: dict[str, list[Course]] = {kv: [] for kv in kvs}
    for prompt in prompts:
        n_ctx = len(prompt) + n_tokens
        with model.session(n_ctx, "f16", chunk=len(prompt), allow_long=True) as session:
            token = best(session, prompt)
            reference = [token, *go_on(session, token, n_tokens - 1)]
        for kv, found in courses.items():
            with model.session(n_ctx, KvOptions.parse(kv), chunk=len(prompt), allow_long=True) as session:
                found.append(follow(session, prompt, reference))
    return [summarize(kv, found) for kv, found in courses.items()]


def table(rows: Sequence[Row]) -> Iterator[str]:
    line = "{:<16}{:>8}{:>9}{:>10}{:>10}{:>8}".format
    yield line("KV type", "first", "never", "free", "forced", "+-")
    for row in rows:
        first = f"{row.first:g}" + ("+" if row.first == row.n_tokens else "")
        shares = [f"{100 * share:.1f} %" for share in (row.never, row.free, row.forced)]
        yield line(row.kv, first, *shares, f"{100 * row.forced_error:.1f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file, or a name that pylogquant knows")
    parser.add_argument("--kv", nargs="+", default=["logquant", "q8_0"], metavar="TYPE", help="(default: %(default)s)")
    parser.add_argument("--text", default="stdlib:prose", metavar="FILE", help="(default: %(default)s)")
    parser.add_argument("--n", type=int, default=8, help="prompts (default: %(default)s)")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of each (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="that follow (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    name = text_name(options.text)
    try:
        path = hub.resolve(options.model)
        with Model(path, threads=options.threads) as model:
            prompts = cut_prompts(model.tokenizer, name, read_text(options.text), options.n, options.prompt)
            rows = measure(model, prompts, options.kv, options.tokens)
    except LogQuantError as error:
        sys.exit(f"greedy: {error}")
    if options.json:
        setup = {"model": path.name, "text": name, "prompt": options.prompt}
        print(json.dumps({**setup, "rows": [asdict(row) for row in rows]}))
        return
    print(f"{path.name}, {name}: {options.n} prompts of {options.prompt} tokens, {options.tokens} tokens after each")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()

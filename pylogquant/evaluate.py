"""Measures what a KV cache type costs: perplexity, and the divergence of next-token distributions from f16 KV.

A text is fed to one session per type, side by side with one that has f16 KV. Its first `prompt` tokens are one chunk,
in which tokens see each other in full precision. The others come in blocks that end where a cache gives tokens up, so
that each cache holds the same as in a session that decodes token by token. Every `stride`-th position after the prompt
is scored.

Copying is a harder question: a passage comes again long after it ended, when its tokens have been packed, and the
model has to find it. A pass key is the same with a single number in a long text, asked for at the end. Caches that drop
tokens look fine on plain text and fail here.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pylogquant.errors import ArgumentError, FileError
from pylogquant.kv import KvOptions, bits_per_value

if TYPE_CHECKING:
    from pylogquant.kv import KvUsage
    from pylogquant.model import Model
    from pylogquant.session import Session

__all__ = [
    "SAMPLE_TEXTS",
    "CopyScore",
    "KeyScore",
    "Score",
    "Tally",
    "check_positions",
    "copy_score",
    "evaluate",
    "evaluate_copies",
    "evaluate_keys",
    "log_softmax",
    "passages",
    "read_text",
    "text_name",
]

_BLOCK = 64  # tokens evaluated at once, at most; bounds the memory for their logits
SAMPLE_TEXTS = ("stdlib:prose", "stdlib:code")
"""Texts that come with Python: the help topics of pydoc, and argparse's source."""
Progress = Callable[[int, int], None]
"""Called as progress(tokens_done, tokens_in_all)."""


@dataclass(frozen=True)
class Score:
    """The score of one cache type on one text."""

    text: str
    kv: str
    n_scored: int  # positions
    perplexity: float  # over the scored positions
    kl: float  # mean of KL(f16 || this), nats
    kl_error: float  # standard error of that mean
    kl_p99: float
    kl_quarters: tuple[float, float, float, float]  # means over the quarters of the scored positions, in order
    top1: float  # share of positions with the same most likely token
    bits: float  # at the end, per key or value of layers that see the whole context; 0 for a model without such layers
    kv_bytes: int  # bytes in use at the end, sliding layers included
    tokens_per_s: float  # speed after the prompt, with logits of all positions


PASSAGE = 400  # tokens of a passage
GAP = 900  # tokens between a passage's end and its return


@dataclass(frozen=True)
class CopyScore:
    """The score of one cache type on repeated passages of a text."""

    text: str
    kv: str
    n_passages: int
    kl: float  # mean of KL(f16 || this) over the returning tokens, nats
    kl_interval: float  # half the width of the 95 % interval of that mean, from how passages differ
    top1: float  # share of positions with the same most likely token
    perplexity: float  # over the returning tokens


@dataclass(frozen=True)
class KeyScore:
    """The score of one cache type on pass keys hidden in a text, one at a time, at evenly spaced depths."""

    text: str
    kv: str
    n_keys: int
    found: float  # share of keys of which every token is the most likely one
    tokens_found: float  # share of the keys' tokens that are the most likely one
    logprob: float  # mean natural log probability of the keys' tokens
    kl: float  # mean of KL(f16 || this) over the keys' tokens, nats


def read_text(source: str) -> str:
    """A file's text (of .jsonl files the question and answer fields, joined), or one of SAMPLE_TEXTS.

    Raises FileError and ArgumentError."""
    if source == "stdlib:prose":
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics))
    if source == "stdlib:code":
        import argparse

        return Path(argparse.__file__).read_text(encoding="utf-8")
    try:
        text = Path(source).read_text(encoding="utf-8-sig")  # a byte order mark is no part of a text
    except OSError as cause:
        raise FileError(f"cannot read {source}: {cause.strerror or cause}") from cause
    except UnicodeDecodeError as cause:
        raise ArgumentError(f"{source} is not UTF-8 text") from cause
    if not source.endswith(".jsonl"):
        return text
    try:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        return "\n\n".join(f"{row['question']}\n{row['answer']}" for row in rows)
    except (ValueError, TypeError, KeyError) as cause:
        raise ArgumentError(f"{source}: every line must be a JSON object with question and answer") from cause


def text_name(source: str) -> str:
    """The name of a text in tables; a file's stem."""
    return source if source in SAMPLE_TEXTS else Path(source).stem


def log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(n, n_vocab) natural logarithms of probabilities."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


class Tally:
    """The figures of one cache at each position scored so far."""

    def __init__(self) -> None:
        self.kl: list[float] = []
        self.same: list[bool] = []
        self.hits: list[bool] = []  # the text's next token was the most likely one
        self.nll: list[float] = []

    def add(self, p: npt.NDArray[np.float64], q: npt.NDArray[np.float64], following: Sequence[int]) -> None:
        """p, q: log-probabilities of the reference and of this cache (n, n_vocab), n of 0 or more; following: the
        text's next token of each row."""
        self.kl += (np.exp(p) * (p - q)).sum(axis=-1).tolist()
        self.same += (p.argmax(axis=-1) == q.argmax(axis=-1)).tolist()
        self.hits += (q.argmax(axis=-1) == list(following)).tolist()
        self.nll += (-q[np.arange(len(following)), list(following)]).tolist()

    def score(self, text: str, kv: str, *, bits: float, kv_bytes: int, tokens_per_s: float) -> Score:
        """The score of four or more positions. The arguments are the fields of Score that the tally does not know."""
        kl = np.array(self.kl)
        quarters = [float(part.mean()) for part in np.array_split(kl, 4)]
        return Score(
            text=text,
            kv=kv,
            n_scored=len(kl),
            perplexity=float(np.exp(np.mean(self.nll))),
            kl=float(kl.mean()),
            kl_error=float(kl.std() / len(kl) ** 0.5),
            kl_p99=float(np.quantile(kl, 0.99)),
            kl_quarters=(quarters[0], quarters[1], quarters[2], quarters[3]),
            top1=float(np.mean(self.same)),
            bits=bits,
            kv_bytes=kv_bytes,
            tokens_per_s=tokens_per_s,
        )


class _Candidate:
    """A session that reads the text, and the figures so far."""

    def __init__(self, session: Session, kv: KvOptions) -> None:
        self.session = session
        self.kv = kv
        self.window = session.kv.options().window
        self.seconds = 0.0
        self.tally = Tally()
        self.usage: KvUsage | None = None  # set at the end of the text

    def room(self) -> int:
        """How many tokens fit before tokens are given up."""
        return 3 * self.window - self.session.kv.usage().n_full if self.window else _BLOCK

    def feed(self, ids: Sequence[int], rows: Sequence[int]) -> npt.NDArray[np.float64]:
        """Evaluates a block; returns the log-probabilities of its scored rows, (n_rows, n_vocab)."""
        start = time.perf_counter()
        logits = self.session.eval(ids, "all" if rows else "none")
        self.seconds += time.perf_counter() - start
        if logits is None:
            return np.empty((0, self.session.n_vocab))
        return log_softmax(logits[list(rows)])


def _run(
    model: Model,
    ids: Sequence[int],
    kvs: Sequence[KvOptions | str],
    prompt: int,
    scored: Callable[[int], bool],
    progress: Progress | None,
) -> list[_Candidate]:
    """Feeds f16 and each type in kvs side by side; scored(position) says which positions after the prompt count."""
    with ExitStack() as sessions:
        candidates = []
        for kv in (KvOptions("f16"), *kvs):
            options = KvOptions.parse(kv) if isinstance(kv, str) else kv
            session = sessions.enter_context(model.session(len(ids), options, chunk=prompt, allow_long=True))
            candidates.append(_Candidate(session, options))
        for candidate in candidates:
            candidate.session.eval(ids[:prompt], "none")
        start = prompt
        while start < len(ids) - 1:
            n = min(_BLOCK, len(ids) - 1 - start, *(candidate.room() for candidate in candidates))
            rows = [i for i in range(n) if scored(start + i)]
            following = [ids[start + i + 1] for i in rows]
            reference = candidates[0].feed(ids[start : start + n], rows)
            candidates[0].tally.add(reference, reference, following)
            for candidate in candidates[1:]:
                candidate.tally.add(reference, candidate.feed(ids[start : start + n], rows), following)
            start += n
            if progress is not None:
                progress(start - prompt, len(ids) - 1 - prompt)
        for candidate in candidates:
            candidate.usage = candidate.session.kv.usage()
    return candidates


def check_positions(text: str, n_ids: int, prompt: int, stride: int) -> None:
    """Raises ArgumentError if n_ids tokens leave fewer than four positions to score."""
    n_scored = -(-(n_ids - 1 - prompt) // stride) if stride > 0 else 0
    if prompt < 1 or n_scored < 4:
        raise ArgumentError(
            f"{text}: {n_ids} tokens leave fewer than 4 positions to score after a prompt of {prompt}, every"
            f" {stride} tokens; take a longer text, or a shorter prompt or stride"
        )


def _result(candidate: _Candidate, text: str, values_per_token: int, n_fed: int) -> Score:
    usage = candidate.usage
    assert usage is not None
    return candidate.tally.score(
        text,
        candidate.kv.spec(),
        bits=bits_per_value(usage.global_bytes, values_per_token * usage.n_tokens),
        kv_bytes=usage.total_bytes,
        tokens_per_s=n_fed / candidate.seconds if candidate.seconds else 0.0,
    )


def evaluate(
    model: Model,
    text: str,
    ids: Sequence[int],
    kvs: Sequence[KvOptions | str],
    *,
    prompt: int = 512,
    stride: int = 8,
    progress: Progress | None = None,
) -> list[Score]:
    """Scores of f16 and of each type in kvs (KvOptions, or what KvOptions.parse() reads), on a text called `text` that
    is tokenized as ids.

    Raises ArgumentError (fewer than four positions to score), and what Model.session() raises."""
    check_positions(text, len(ids), prompt, stride)
    values_per_token = model.info().kv_values
    candidates = _run(model, ids, kvs, prompt, lambda position: (position - prompt) % stride == 0, progress)
    return [_result(candidate, text, values_per_token, len(ids) - 1 - prompt) for candidate in candidates]


def evaluate_keys(
    model: Model,
    text: str,
    ids: Sequence[int],
    kvs: Sequence[KvOptions | str],
    *,
    n_keys: int = 8,
    prompt: int = 512,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[KeyScore]:
    """Pass key scores of f16 and of each type in kvs.

    n_keys prompts of len(ids) tokens each: the text with a sentence that names a number of five digits at one of n_keys
    evenly spaced depths, and at the end the question for it and the answer. The number's tokens are scored, everything
    before them is cached as by evaluate(). The same seed gives the same numbers.

    Raises ArgumentError (no keys, or a text too short for the sentences), and what Model.session() raises."""
    if n_keys < 1:
        raise ArgumentError(f"{n_keys} pass keys measure nothing; at least 1 is needed")
    numbers = random.Random(seed)
    parts: list[list[_Candidate]] = []
    for i in range(n_keys):
        key = str(numbers.randrange(10_000, 100_000))
        # Tokenized as the continuation of a text, so that no space is added where vocabularies begin texts with one.
        hidden, asked = (
            model.tokenizer.encode_segments([(words.format(key), True)], after=ids[-1] if ids else None)
            for words in (_HIDDEN, _ASKED)
        )
        n_filler = len(ids) - len(hidden) - len(asked)
        if n_filler < n_keys + prompt // 2:
            raise ArgumentError(f"{text}: {len(ids)} tokens are too few to hide a pass key in")
        depth = n_filler * (2 * i + 1) // (2 * n_keys)
        whole = [*ids[:depth], *hidden, *ids[depth:n_filler], *asked]
        first = len(whole) - _n_digit_tokens(model, asked) - 1  # the position whose next token is the number's first
        parts.append(_run(model, whole, kvs, min(prompt, first), range(first, len(whole)).__contains__, None))
        if progress is not None:
            progress(i + 1, n_keys)
    return [_key_result(text, same_type) for same_type in zip(*parts, strict=True)]


_HIDDEN = "\nThe pass key is {0}. Remember it. {0} is the pass key.\n"
_ASKED = "\n\nWhat is the pass key? The pass key is {0}"


def _n_digit_tokens(model: Model, ids: Sequence[int]) -> int:
    """How many tokens at the end spell digits. A token that is only the space before them, which is no secret, does not
    count."""
    spelled = [model.tokenizer.token_bytes(token).strip().isdigit() for token in reversed(ids)]
    return spelled.index(False)


def _key_result(text: str, parts: Sequence[_Candidate]) -> KeyScore:
    tallies = [part.tally for part in parts]
    return KeyScore(
        text=text,
        kv=parts[0].kv.spec(),
        n_keys=len(parts),
        found=float(np.mean([all(tally.hits) for tally in tallies])),
        tokens_found=float(np.mean([hit for tally in tallies for hit in tally.hits])),
        logprob=-float(np.mean([nll for tally in tallies for nll in tally.nll])),
        kl=float(np.mean([kl for tally in tallies for kl in tally.kl])),
    )


def passages(text: str, ids: Sequence[int], n_passages: int) -> list[list[int]]:
    """n_passages contexts of PASSAGE + GAP tokens, cut from the text at evenly spaced places.

    Raises ArgumentError (fewer than two passages, or a text too short for one)."""
    if n_passages < 2:
        raise ArgumentError(f"{n_passages} passages give no interval; at least 2 are needed")
    room = len(ids) - PASSAGE - GAP
    if room < n_passages:
        raise ArgumentError(f"{text}: {len(ids)} tokens are too few; {PASSAGE + GAP + n_passages} are needed")
    starts = [room * i // n_passages for i in range(n_passages)]
    return [list(ids[start : start + PASSAGE + GAP]) for start in starts]


def copy_score(scores: Sequence[Score]) -> CopyScore:
    """Summarizes one cache type's scores on two or more passages."""
    kl = np.array([score.kl for score in scores])
    return CopyScore(
        text=scores[0].text,
        kv=scores[0].kv,
        n_passages=len(scores),
        kl=float(kl.mean()),
        kl_interval=float(1.96 * kl.std(ddof=1) / len(scores) ** 0.5),
        top1=float(np.mean([score.top1 for score in scores])),
        perplexity=float(np.exp(np.mean(np.log([score.perplexity for score in scores])))),
    )


def evaluate_copies(
    model: Model,
    text: str,
    ids: Sequence[int],
    kvs: Sequence[KvOptions | str],
    *,
    n_passages: int = 8,
    progress: Progress | None = None,
) -> list[CopyScore]:
    """Copy scores of f16 and of each type in kvs.

    The text is cut at n_passages evenly spaced places: PASSAGE tokens from there, the GAP tokens that follow, and the
    passage again, of which every token but the last is scored. Everything before the repetition is one chunk, in which
    tokens see each other in full precision.

    Raises ArgumentError (fewer than two passages, or a text too short for one), and what Model.session() raises."""
    by_passage: list[list[Score]] = []
    for context in passages(text, ids, n_passages):
        by_passage.append(evaluate(model, text, context + context[:PASSAGE], kvs, prompt=len(context), stride=1))
        if progress is not None:
            progress(len(by_passage), n_passages)
    return [copy_score(scores) for scores in zip(*by_passage, strict=True)]

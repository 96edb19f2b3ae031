"""Measures exact answers by KV cache type, in the style of GSM8K: a greedy answer's last number must be the right one.

    python tools/measure/answers.py MODEL FILE.jsonl [--kv TYPE...] [--limit N] [--shots 8] [--max-tokens 256]
                            [--threads 2] [--json]
    python tools/measure/answers.py --make FILE.jsonl [--n 100] [--seed 0]

FILE has one JSON object per line, with `question` and `answer`. The right number is the one after `####`, or without
that the last one of the answer. The first --shots rows stand in front of every question, with their answers, and are
not scored; --limit of the others are (default: all). The model continues

    Question: ...
    Answer: ...

    Question: ...
    Answer:

with the most probable tokens, until it ends, writes a blank line or "Question:", or has written --max-tokens tokens. In
its answer, too, the number after `####` counts, or else the last one; commas of thousands, currency signs and a period
at the end do not matter. The shots are read once per type, as a chat would (in chunks of 512 tokens), and every
question goes on from a fork of that session: it sees the shots as the cache holds them. f16 is always measured, first.
The interval is Wilson's, 95 %. As all types answer the same questions, other columns say more: `differ` counts answers
that are not f16's, `lost` wrong ones that are right with f16, `gained` right ones that are wrong with f16.

--make writes sums of two or three numbers in words, which SmolLM2-135M gets right more often than not.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path

from pylogquant import KvOptions, Model, Sampler, SamplingOptions, Session, hub
from pylogquant.errors import ArgumentError, FileError, LogQuantError
from pylogquant.generation import generate
from pylogquant.tokenizer import Tokenizer

STOP = ("\n\n", "Question:")
MARK = "####"
NAMES = ("Ann", "Ben", "Cara", "Dan", "Ella", "Finn", "Gina", "Hugo", "Iris", "Jack", "Kate", "Liam", "Mia", "Noah")
THINGS = ("apples", "books", "coins", "pens", "shells", "stamps", "cards", "cups", "eggs", "keys")
_NUMBER = re.compile(r"(?:((?<![\w)])-)?[$€£¥]?|[$€£¥](-))(\d{1,3}(?:,\d{3})+(?!\d)|\d+)(\.\d+)?")


@dataclass(frozen=True)
class Problem:
    """A row of the file. right: the number that an answer must end with."""

    question: str
    answer: str
    right: Decimal


@dataclass(frozen=True)
class Answers:
    """What one cache type answered, in order; None where there was no number."""

    kv: str
    numbers: list[Decimal | None]
    n_tokens: int  # sampled
    seconds: float  # of sampling and evaluating them


@dataclass(frozen=True)
class Row:
    """One cache type's result."""

    kv: str
    n: int
    correct: int
    share: float
    low: float  # of the 95 % interval of the share
    high: float
    differ: int  # answers that are not f16's
    lost: int  # of those, right with f16 and wrong here
    gained: int  # wrong with f16 and right here
    tokens_per_s: float


# ---- numbers ---------------------------------------------------------------------------------------------------------


def final_number(text: str) -> Decimal | None:
    """The first number after the mark where there is one, else the last number; None where there is none."""
    before, mark, after = text.partition(MARK)
    found = list(_NUMBER.finditer(after if mark else before))
    if not found:
        return None
    minus, late_minus, digits, fraction = (found[0] if mark else found[-1]).groups()
    value = Decimal(digits.replace(",", "") + (fraction or ""))
    return -value if minus or late_minus else value


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, n of 1 or more (Wilson 1927, without correction for continuity)."""
    z = 1.959964
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(centre - half, 0.0), min(centre + half, 1.0)


# ---- problems --------------------------------------------------------------------------------------------------------


def read_problems(path: Path) -> list[Problem]:
    """Raises FileError, and ArgumentError for a row without question, answer or a number in it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as cause:
        raise FileError(f"cannot read {path}: {cause.strerror or cause}") from cause
    except UnicodeDecodeError as cause:
        raise ArgumentError(f"{path} is not UTF-8 text") from cause
    problems = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, answer = str(row["question"]), str(row["answer"])
        except (ValueError, TypeError, KeyError) as cause:
            raise ArgumentError(f"{path}:{number}: not a JSON object with question and answer") from cause
        right = final_number(answer)
        if right is None:
            raise ArgumentError(f"{path}:{number}: the answer has no number")
        problems.append(Problem(question, answer, right))
    return problems


def make_problem(draw: random.Random) -> dict[str, str]:
    """A sum of two numbers, one of them up to 49, or of three up to 9, with its steps."""
    name, things = draw.choice(NAMES), draw.choice(THINGS)
    asks = f"How many {things} does {name} have now?"
    if draw.random() < 0.5:
        a, b = draw.randint(10, 49), draw.randint(1, 9)
        story, steps, total = f"{name} has {a} {things} and gets {b} more.", f"{a} + {b} = {a + b}", a + b
    else:
        a, b, c = (draw.randint(1, 9) for _ in range(3))
        total = a + b + c
        story = f"{name} has {a} {things}, gets {b} more and then finds {c}."
        steps = f"{a} + {b} = {a + b}. {a + b} + {c} = {total}."
    return {"question": f"{story} {asks}", "answer": f"{steps}\n{MARK} {total}"}


def write_problems(path: Path, n: int, seed: int) -> None:
    """The same n and seed give the same file."""
    draw = random.Random(seed)
    path.write_text("".join(json.dumps(make_problem(draw)) + "\n" for _ in range(n)), encoding="utf-8")


# ---- answers ---------------------------------------------------------------------------------------------------------


def make_prompts(
    tokenizer: Tokenizer, shots: Sequence[Problem], asked: Sequence[Problem]
) -> tuple[list[int], list[list[int]]]:
    """The ids that all prompts begin with, and for each what follows, one token at least."""
    front = "".join(f"Question: {shot.question}\nAnswer: {shot.answer}\n\n" for shot in shots)
    prompts = [tokenizer.encode(f"{front}Question: {problem.question}\nAnswer:") for problem in asked]
    n_common = min(len(prompt) for prompt in prompts) - 1
    while any(prompt[:n_common] != prompts[0][:n_common] for prompt in prompts):
        n_common -= 1
    return prompts[0][:n_common], [prompt[n_common:] for prompt in prompts]


def ask(session: Session, tokenizer: Tokenizer, ids: Sequence[int], max_tokens: int) -> tuple[str, int, float]:
    """What the session says after ids, how many tokens that took, and the seconds after the ids were read."""
    session.prefill(ids)
    start = time.perf_counter()
    greedy = Sampler(SamplingOptions(temperature=0))
    pieces = list(generate(session, tokenizer, greedy, max_tokens=max_tokens, stop=STOP))
    return "".join(piece.text for piece in pieces), len(pieces), time.perf_counter() - start


def answer_all(model: Model, kv: str, common: Sequence[int], ends: Sequence[Sequence[int]], max_tokens: int) -> Answers:
    """Raises what Model.session() raises: the longest prompt and its answer must fit."""
    numbers: list[Decimal | None] = []
    n_tokens, seconds = 0, 0.0
    n_ctx = len(common) + max(len(end) for end in ends) + max_tokens
    with model.session(n_ctx, KvOptions.parse(kv)) as session:
        if common:
            session.eval(common, "none")
        for end in ends:
            with session.fork() as fork:
                text, n, took = ask(fork, model.tokenizer, end, max_tokens)
            numbers.append(final_number(text))
            n_tokens, seconds = n_tokens + n, seconds + took
    return Answers(kv, numbers, n_tokens, seconds)


def score(answers: Answers, reference: Answers, right: Sequence[Decimal]) -> Row:
    good = [a == b for a, b in zip(answers.numbers, right, strict=True)]
    was_good = [a == b for a, b in zip(reference.numbers, right, strict=True)]
    low, high = wilson(sum(good), len(right))
    return Row(
        kv=answers.kv,
        n=len(right),
        correct=sum(good),
        share=sum(good) / len(right),
        low=low,
        high=high,
        differ=sum(a != b for a, b in zip(answers.numbers, reference.numbers, strict=True)),
        lost=sum(was and not now for was, now in zip(was_good, good, strict=True)),
        gained=sum(now and not was for was, now in zip(was_good, good, strict=True)),
        tokens_per_s=answers.n_tokens / answers.seconds if answers.seconds else 0.0,
    )


def measure(
    model: Model, problems: Sequence[Problem], kvs: Sequence[str], *, shots: int, limit: int | None, max_tokens: int
) -> tuple[int, list[Row]]:
    """How many tokens stand before every question, and a row for f16 and each type.

    Raises ArgumentError (no problems to score), and what Model.session() raises."""
    asked = problems[shots:] if limit is None else problems[shots : shots + limit]
    if shots < 0 or max_tokens < 1 or not asked:
        raise ArgumentError(f"{len(problems)} problems, {shots} shots, limit {limit}: nothing to score")
    common, ends = make_prompts(model.tokenizer, problems[:shots], asked)
    names = ["f16", *(kv for kv in dict.fromkeys(kvs) if kv != "f16")]
    found = [answer_all(model, kv, common, ends, max_tokens) for kv in names]
    return len(common), [score(answers, found[0], [problem.right for problem in asked]) for answers in found]


# ---- the command -----------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> Iterator[str]:
    line = "{:<16}{:>12}{:>9}{:>18}{:>9}{:>7}{:>9}{:>11}".format
    yield line("KV type", "correct", "share", "95 %", "differ", "lost", "gained", "tokens/s")
    for row in rows:
        interval = f"{100 * row.low:.1f} to {100 * row.high:.1f} %"
        correct, share = f"{row.correct} of {row.n}", f"{100 * row.share:.1f} %"
        yield line(row.kv, correct, share, interval, row.differ, row.lost, row.gained, f"{row.tokens_per_s:.0f}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a GGUF file, or a name that pylogquant knows")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--kv", nargs="+", default=["logquant"], metavar="TYPE", help="(default: %(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="questions to score (default: all)")
    parser.add_argument("--shots", type=int, default=8, metavar="K", help="(default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=256, help="of an answer (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--make", type=Path, metavar="FILE.jsonl", help="write made-up problems and stop")
    parser.add_argument("--n", type=int, default=100, help="problems to make (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of --make (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.make is None and options.file is None:
        parser.error("give a model and a file of problems, or --make FILE")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.make is not None:
        write_problems(options.make, options.n, options.seed)
        return
    limits = {"shots": options.shots, "limit": options.limit, "max_tokens": options.max_tokens}
    try:
        problems = read_problems(options.file)
        path = hub.resolve(options.model)
        with Model(path, threads=options.threads) as model:
            n_common, rows = measure(model, problems, options.kv, **limits)
    except LogQuantError as error:
        sys.exit(f"answers: {error}")
    if options.json:
        setup = {"model": path.name, "file": options.file.name, "n_common": n_common, **limits}
        print(json.dumps({**setup, "rows": [asdict(row) for row in rows]}))
        return
    print(f"{path.name}, {options.file.name}: {options.shots} shots, {n_common} tokens before each question")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()

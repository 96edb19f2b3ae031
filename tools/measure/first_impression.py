"""Measures how often a chat model ends its answers to everyday questions, and how often it is right on easy ones.

    python tools/measure/first_impression.py MODEL [--temp 0 0.3 0.8] [--min-p 0.05] [--top-p 0.95] [--top-k 40]
                                     [--repeat-penalty 1] [--system TEXT...] [--seeds 25] [--max-tokens 300]
                                     [--threads 2] [--held-out] [--rows FILE.jsonl] [--answers FILE.jsonl]

Every combination of the values given is a row of the table. Each of the 20 questions below is the first message of a
conversation and is answered with --seeds seeds (with one at temperature 0). An answer *ends* where the model ends it
within --max-tokens; it is *cut* where it repeats itself until `chat` would end it (never within 300 tokens). An easy
question is answered *right* where the answer ends, has what is asked for within its first 200 characters, and has no
French or Italian article: asked for a capital, small models fall into the country's language. "worst" is the question
that is right least often.

--system may be given several times: TEXT, or "-" for no system message given (a template may insert its own).
--held-out asks twelve other easy questions instead of the first twelve. --rows keeps finished rows (a file for each
kind of questions and --max-tokens): those in it are not measured again. --answers writes every answer, to read.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pylogquant import Model, Sampler, SamplingOptions, Session
from pylogquant.loops import LoopGuard
from pylogquant.templates import ChatTemplate, Message

EASY = {
    "What is the capital of France?": r"\bParis\b",
    "What is the capital of Italy?": r"\bRome\b",
    "What color is the sky on a clear day?": r"\bblue\b",
    "How many days are in a week?": r"\b(7|seven)\b",
    "What is 2 + 2?": r"\b(4|four)\b",
    "What is the opposite of hot?": r"\b(cold|cool)\b",
    "Which planet do we live on?": r"\bEarth\b",
    "What is the largest ocean on Earth?": r"\bPacific\b",
    "Who wrote Romeo and Juliet?": r"\bShakespeare\b",
    "What is the chemical formula of water?": r"H(2|₂|_2|_\{2\})O",
    "Which animal says meow?": r"\b(cat|kitten)s?\b",
    "What is frozen water called?": r"\bice\b",
}
# Asked with --held-out: what was chosen by the questions above may suit them alone.
HELD_OUT = {
    "What is the capital of Spain?": r"\bMadrid\b",
    "What is the capital of Japan?": r"\bTokyo\b",
    "What is 3 + 5?": r"\b(8|eight)\b",
    "What is the opposite of big?": r"\b(small|little|tiny)\b",
    "How many legs does a dog have?": r"\b(4|four)\b",
    "What color is grass?": r"\bgreen\b",
    "What is the largest planet in our solar system?": r"\bJupiter\b",
    "Which month comes after January?": r"\bFebruary\b",
    "What do bees make?": r"\bhoney\b",
    "Who painted the Mona Lisa?": r"\b(Leonardo|da Vinci)\b",
    "How many hours are in a day?": r"\b(24|twenty-four)\b",
    "Which language is spoken in Germany?": r"\bGerman\b",
}
OPEN = (
    "Hello!",
    "Who are you?",
    "What can you help me with?",
    "Tell me a joke.",
    "Write a short poem about the sea.",
    "Give me three tips for sleeping better.",
    "How do I make a cup of tea?",
    "Explain in one sentence why the sky is blue.",
)
FOREIGN = re.compile(r"\b(la|le|les|des|il|della|del)\b|\b[LlDd]['\u2019][A-ZÉa-zé]")
SHOWN_FIRST = 200
TOGETHER = 64


@dataclass(frozen=True)
class Setting:
    """What a row of the table was measured with."""

    temperature: float
    min_p: float
    top_p: float
    top_k: int
    repeat_penalty: float
    system: str | None


@dataclass(frozen=True)
class Answer:
    """One answer to one question."""

    question: str
    seed: int
    text: str
    n_tokens: int
    ended: bool
    cut: bool


@dataclass(frozen=True)
class Row:
    """A setting's result. Shares of 1."""

    setting: Setting
    n: int
    ended: float
    cut: float
    right: float
    worst: str
    worst_right: float
    median_tokens: float


@dataclass
class _Talk:
    """An answer that is being generated."""

    question: str
    seed: int
    session: Session
    sampler: Sampler
    ids: list[int]
    max_tokens: int
    guard: LoopGuard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--temp", type=float, nargs="+", default=[0.8])
    parser.add_argument("--min-p", type=float, nargs="+", default=[0.05])
    parser.add_argument("--top-p", type=float, nargs="+", default=[0.95])
    parser.add_argument("--top-k", type=int, nargs="+", default=[40])
    parser.add_argument("--repeat-penalty", type=float, nargs="+", default=[1.0])
    parser.add_argument("--system", action="append")
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--seeds", type=int, default=25)
    parser.add_argument("--max-tokens", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--answers", type=Path)
    args = parser.parse_args()
    systems = [None if text == "-" else text for text in args.system or ["-"]]
    easy = HELD_OUT if args.held_out else EASY
    wanted = itertools.product(args.temp, args.min_p, args.top_p, args.top_k, args.repeat_penalty, systems)
    held = _read_rows(args.rows)
    rows = []
    with Model(args.model, threads=args.threads) as model:
        for setting in itertools.starmap(Setting, wanted):
            n_seeds = 1 if setting.temperature == 0 else args.seeds
            row = next((r for r in held if r.setting == setting and r.n == n_seeds * (len(easy) + len(OPEN))), None)
            if row is None:
                answers = list(ask(model, setting, [*easy, *OPEN], n_seeds, args.max_tokens))
                row = summary(setting, answers, easy)
                _append(args.rows, [asdict(row)])
                _append(args.answers, [{**asdict(setting), **asdict(answer)} for answer in answers])
            rows.append(row)
            print(_line(row), file=sys.stderr, flush=True)
    print("\n".join(table(rows)))


def ask(model: Model, setting: Setting, questions: Sequence[str], n_seeds: int, max_tokens: int) -> Iterator[Answer]:
    """Every question with every seed, up to TOGETHER answers at a time."""
    waiting = _talks(model, setting, questions, n_seeds, max_tokens)
    talks = list(itertools.islice(waiting, TOGETHER))
    while talks:
        going = []
        for talk in talks:
            answer = _sample(model, talk)
            if answer is None:
                going.append(talk)
            else:
                talk.session.close()
                yield answer
        if going:
            model.step([talk.session for talk in going], [talk.ids[-1] for talk in going], copy=False)
        talks = [*going, *itertools.islice(waiting, TOGETHER - len(going))]


def _talks(model: Model, setting: Setting, questions: Sequence[str], n_seeds: int, max_tokens: int) -> Iterator[_Talk]:
    template = ChatTemplate.from_gguf(model.gguf, model.tokenizer)
    values = {name: value for name, value in asdict(setting).items() if name != "system"}
    for question in questions:
        messages: list[Message] = [{"role": "user", "content": question}]
        if setting.system is not None:
            messages.insert(0, {"role": "system", "content": setting.system})
        prompt = model.tokenizer.encode_segments(template.render(messages), eos=False)
        with model.session(n_ctx=len(prompt) + max_tokens + 1) as base:
            base.prefill(prompt)
            for seed in range(n_seeds):
                sampler = Sampler(SamplingOptions(seed=seed, **values))
                yield _Talk(question, seed, base.fork(), sampler, [], max_tokens, LoopGuard())


def _sample(model: Model, talk: _Talk) -> Answer | None:
    """Draws a token; the answer, where it is the last one."""
    token = talk.session.sample(talk.sampler).token
    ended = token in model.tokenizer.eog_ids
    if not ended:
        talk.ids.append(token)
    cut = not ended and talk.guard.push(token)
    if not ended and not cut and len(talk.ids) < talk.max_tokens:
        return None
    return Answer(talk.question, talk.seed, model.tokenizer.decode(talk.ids), len(talk.ids), ended, cut)


def is_right(answer: Answer, wanted: str) -> bool:
    named = re.search(wanted, answer.text[:SHOWN_FIRST], re.IGNORECASE) is not None
    return answer.ended and named and FOREIGN.search(answer.text) is None


def summary(setting: Setting, answers: list[Answer], easy: Mapping[str, str]) -> Row:
    right: dict[str, list[bool]] = {}
    for answer in answers:
        if answer.question in easy:
            right.setdefault(answer.question, []).append(is_right(answer, easy[answer.question]))
    shares = {question: statistics.fmean(values) for question, values in right.items()}
    worst = min(shares, key=lambda question: shares[question])
    return Row(
        setting,
        len(answers),
        statistics.fmean(answer.ended for answer in answers),
        statistics.fmean(answer.cut for answer in answers),
        statistics.fmean(shares.values()),
        worst,
        shares[worst],
        statistics.median(answer.n_tokens for answer in answers),
    )


def table(rows: list[Row]) -> Iterator[str]:
    """Markdown."""
    yield (
        "| temperature | min-p | top-p | top-k | repeat penalty | system message | end | cut | right | worst |"
        " tokens, median |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    yield from map(_line, rows)


def _line(row: Row) -> str:
    s = row.setting
    system = "the template's" if s.system is None else s.system or "empty"
    return (
        f"| {s.temperature:g} | {s.min_p:g} | {s.top_p:g} | {s.top_k} | {s.repeat_penalty:g} | {system}"
        f" | {row.ended:.1%} | {row.cut:.1%} | {row.right:.1%} | {row.worst} {row.worst_right:.0%}"
        f" | {row.median_tokens:g} |"
    )


def _read_rows(path: Path | None) -> list[Row]:
    if path is None or not path.exists():
        return []
    values = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Row(**{**value, "setting": Setting(**value["setting"])}) for value in values]


def _append(path: Path | None, values: list[dict[str, object]]) -> None:
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


if __name__ == "__main__":
    main()

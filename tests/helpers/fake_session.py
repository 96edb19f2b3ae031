"""A session without a model, for tests of what chats and generation make of one, and what these tests share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tiny_vocab as tiny

from pylogquant import Chat, ContextFull, GGUFFile, SamplingOptions, Tokenizer
from pylogquant.kv import KvOptions, KvUsage
from pylogquant.session import Choice, Sampler, SessionInfo, TokenProb
from pylogquant.templates import BUILTIN_TEMPLATES, ChatTemplate

Item = TypeVar("Item")


class FakeSession:
    """A session that says what it was told to: each prompt is followed by the next of its answers, then by EOS."""

    def __init__(self, answers: Sequence[Sequence[int]], *, n_ctx: int = 1000, eos: int = 2) -> None:
        self.answers = [list(answer) for answer in answers]
        self.n_ctx = self.n_limit = n_ctx
        self.eos = eos
        self.tokens: list[int] = []
        self.prefills: list[list[int]] = []
        self.has_logits = False
        self.said = 0
        self.closed = False
        self.on_append: Callable[[], None] = lambda: None
        self.on_prefill: Callable[[], None] = lambda: None
        self.cancelled = threading.Event()
        self.taken: list[int] = []  # checkpoints
        self.rewound: list[int] = []

    def checkpoint(self) -> None:
        self.taken.append(len(self.tokens))

    @property
    def checkpoints(self) -> list[int]:
        return [n for n in self.taken if n <= len(self.tokens)]

    def rewind(self, n: int) -> int:
        self.on_prefill()
        self.tokens, self.has_logits = self.tokens[:n], True
        self.prefills.append([])
        self.said = 0
        self.rewound.append(n)
        return 0

    def fork(self) -> FakeSession:
        other = FakeSession(self.answers, n_ctx=self.n_ctx, eos=self.eos)
        other.tokens, other.prefills, other.has_logits = list(self.tokens), list(self.prefills), self.has_logits
        return other

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    def keep_prefix(self, ids: Sequence[int]) -> int:
        n = 0
        while n < min(len(ids) - 1, len(self.tokens)) and ids[n] == self.tokens[n]:
            n += 1
        self.tokens = self.tokens[:n]
        self.has_logits = False
        return n

    def _add(self, ids: Sequence[int]) -> None:
        if len(self.tokens) + len(ids) > self.n_ctx:
            raise ContextFull("the session is full")
        assert all(isinstance(token_id, int) for token_id in ids)
        self.tokens += ids
        self.has_logits = True

    def prefill(self, ids: Sequence[int]) -> None:
        self.on_prefill()
        self._add(ids)
        self.prefills.append(list(ids))
        self.said = 0

    def append(self, token: int) -> None:
        self.on_append()
        self._add([token])

    def sample(self, sampler: Sampler, top: int = 0) -> Choice:
        assert self.has_logits
        answer = self.answers[min(len(self.prefills), len(self.answers)) - 1]
        token = answer[self.said] if self.said < len(answer) else self.eos
        self.said += 1
        return Choice(token, -0.5, [TokenProb(token, -0.5)] * top)

    def cancel(self) -> None:
        self.cancelled.set()

    def reset(self) -> None:
        self.tokens, self.has_logits = [], False

    def close(self) -> None:
        self.closed = True

    def info(self) -> SessionInfo:
        n = len(self.tokens)
        return SessionInfo(
            kv="tiers",
            kv_bits=2.5,
            n_ctx=self.n_ctx,
            n_chunk=512,
            n_tokens=n,
            backend="cpu",
            cpu_level="avx2",
            kv_global_bytes=2**20,
            kv_sliding_bytes=0,
            kv_used_bytes=2**19,
            scratch_bytes=0,
            total_bytes=2**20,
            kv_options=KvOptions("tiers", keys="3", window=64),
            kv_usage=KvUsage(n, 1, n - 1, 0, 0, 0, 1024, 512, 256, 2**21, 64, 128),
            kv_values_per_token=1024,
        )


def make_tokenizer(folder: Path) -> Tokenizer:
    """Of a small BPE vocabulary, whose file is written to the folder."""
    with GGUFFile(tiny.write_bpe(folder / "bpe.gguf")) as file:
        return Tokenizer.from_gguf(file)


def make_chat(
    tokenizer: Tokenizer,
    session: FakeSession,
    source: str = BUILTIN_TEMPLATES["chatml"],
    system: str | None = None,
) -> Chat:
    template = ChatTemplate(
        source, bos_token="<|im_start|>", eos_token="<|im_end|>", control_tokens=tokenizer.control_tokens
    )
    fake: Any = session
    model: Any = None
    return Chat(model, fake, tokenizer, template, SamplingOptions(), system)


def spelled(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token per byte: not how the tokenizer would write it."""
    shown = tiny.byte_characters()
    return [tokenizer.id(shown[byte]) or 0 for byte in text.encode()]


def collect(pieces: Iterable[Item], into: list[Item]) -> None:
    """What came before an error is in the list."""
    for piece in pieces:
        into.append(piece)


def check_agreement(chat: Chat) -> None:
    """The session holds the conversation's ids, all but perhaps the newest."""
    held = chat.session.tokens
    assert held == chat.ids[: len(held)]
    assert len(chat.ids) - len(held) <= 1

"""`run`: answers one prompt, as text or as one JSON object."""

from __future__ import annotations

import math
import os
import select
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pylogquant.cli.engine import open_model
from pylogquant.cli.options import AnswerSettings, ModelSettings
from pylogquant.cli.output import is_input_closed, print_note, shown
from pylogquant.cli.reader import decode
from pylogquant.errors import ContextFull

if TYPE_CHECKING:
    from pylogquant.generation import Piece
    from pylogquant.model import Model
    from pylogquant.templates import Message
    from pylogquant.tokenizer import Tokenizer

_PATIENCE_S = 2.0


def read_prompt(given: str | None) -> str | None:
    """The prompt: as given; from standard input for "-"; both, with a blank line between, if something is piped in;
    None without either.

    A line end at the end of standard input, as `echo` and editors write it, is removed.
    """
    if given != "-" and not _is_piped(waits=given is not None):
        return given
    text = decode(sys.stdin.buffer.read()).removesuffix("\n").removesuffix("\r")
    if given is None or given == "-":
        return text
    return f"{given}\n\n{text}" if text else given


def _is_piped(*, waits: bool) -> bool:
    """Whether standard input is a pipe, a file or a socket. The program that started this one may have left it a pipe
    that never ends: with waits=True a note tells the user if nothing comes for a while."""
    if sys.stdin is None or sys.stdin.isatty() or (waits and is_input_closed()):
        return False
    try:
        number = sys.stdin.fileno()
        if stat.S_ISCHR(os.fstat(number).st_mode):  # /dev/null
            return not waits
        ready = not waits or os.name != "posix" or bool(select.select([number], [], [], _PATIENCE_S)[0])
    except OSError:  # not a file of the system, so nothing to wait for
        return True
    if not ready:
        print_note("waiting for standard input, which is no terminal: </dev/null leaves it out")
    return True


def run(
    settings: ModelSettings,
    answers: AnswerSettings,
    text: str,
    *,
    use_chat: bool,
    as_json: bool,
    top: int | None,
) -> None:
    """The whole command. top: how many alternatives the JSON lists per token; None = no log-probabilities at all."""
    from pylogquant.generation import generate  # not through chat, which loads the template engine
    from pylogquant.session import Sampler

    started = time.perf_counter()
    with open_model(settings) as model:
        loaded = time.perf_counter()
        if not (use_chat or answers.special or as_json) and sys.stderr.isatty():  # a hint for people, not for programs
            _hint_at_chat(model)
        defaults = model.answer_defaults()
        if defaults.note:
            print_note(defaults.note)
        if use_chat:
            system = defaults.system if answers.asked.system is None else answers.asked.system
            ids = _chat_ids(model, text, system, answers)
        else:
            ids = model.tokenizer.encode(text, special=answers.special, eos=False)
        options = settings.session.options(model.info().n_ctx_train)
        sampler = Sampler(replace(answers.sampling.over(defaults.options), logprobs=top is not None))
        with model.session(options) as session:
            ready = time.perf_counter()
            pieces = generate(
                session,
                model.tokenizer,
                sampler,
                ids,
                max_tokens=answers.asked.max_tokens,
                stop=answers.stop,
                top=top or 0,
                skip_special=not answers.special,
                loop_guard=answers.loop_guard,
            )
            prompt_end = time.perf_counter()
            with closing(pieces):
                if not as_json:
                    _print(pieces)
                    return
                found = _collect(pieces)
            answer_end = time.perf_counter()
            running = session.info()
        result = _as_json(found, model.tokenizer, top)
        result["prompt_tokens"] = len(ids)
        result["timings"] = {
            "load_s": loaded - started,
            "prompt_s": prompt_end - ready,
            "prompt_tokens_per_s": len(ids) / (prompt_end - ready),
            "answer_s": answer_end - prompt_end,
            "answer_tokens_per_s": len(result["tokens"]) / (answer_end - prompt_end),
        }
        result["setup"] = {
            "model": str(model.path),
            "kv": running.kv,
            "n_ctx": running.n_ctx,
            "chunk": running.n_chunk,
            "device": model.info().device,
            "device_name": model.info().device_name,
            "gpu_layers": model.info().n_gpu_layers,
            "threads": model.info().n_threads,
            "cpu_level": running.cpu_level,
            "seed": sampler.seed,
        }
        result["kv"] = {
            "options": asdict(running.kv_options),
            "n_tokens": running.n_tokens,
            "usage": asdict(running.kv_usage),
            "used_bytes": running.kv_used_bytes,
            "reserved_bytes": running.kv_reserved_bytes,
            "f16_bytes": running.kv_f16_bytes,
            "bits_now": running.kv_bits_now,
            "bits_at_n_ctx": running.kv_bits,
        }
        import json  # here, because plain text needs none

        print(json.dumps(result, ensure_ascii=False))


def _hint_at_chat(model: Model) -> None:
    """Prints a hint for newcomers, who ask a question and get a continuation of it instead of an answer."""
    if "tokenizer.chat_template" in model.gguf.metadata:
        print_note("this goes on from your text; to have a message answered, which this model can: run --chat")


def _chat_ids(model: Model, text: str, system: str, answers: AnswerSettings) -> list[int]:
    """The prompt as a conversation's first message, ready to be answered."""
    from pylogquant.templates import ChatTemplate

    asked = answers.asked
    template = ChatTemplate.from_gguf(model.gguf, model.tokenizer, asked.template, asked.template_vars())
    messages: list[Message] = [{"role": "user", "content": text}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return model.tokenizer.encode_segments(template.render(messages), eos=False)


def _print(pieces: Iterator[Piece]) -> None:
    """Streams the text. A full context ends it without an error, but with a note for the reader."""
    is_terminal = sys.stdout.isatty()
    note = ""
    started = False
    try:
        for piece in pieces:
            if piece.text:
                started = True
                print(shown(piece.text) if is_terminal else piece.text, end="", flush=True)
            if piece.finish == "loop":
                note = "the text went round in circles and was ended here"
    except ContextFull as full:
        note = f"{full} A larger --ctx gives more room"
    except KeyboardInterrupt:
        if started:
            print(flush=True)
        raise
    print(flush=True)
    if note:
        print_note(note)


def _collect(pieces: Iterator[Piece]) -> list[Piece]:
    found = []
    try:
        for piece in pieces:
            found.append(piece)
    except ContextFull:
        pass  # the last piece has said so
    return found


def _as_json(pieces: list[Piece], tokenizer: Tokenizer, top: int | None) -> dict[str, Any]:
    """The result as JSON: text, tokens, reason of the end. tokens: all sampled ones, with the one that ended the
    text."""
    result: dict[str, Any] = {
        "text": "".join(piece.text for piece in pieces),
        "finish_reason": pieces[-1].finish,
        "tokens": [piece.token for piece in pieces if piece.token is not None],
    }
    if top is not None:
        result["logprobs"] = [
            {
                **_prob(tokenizer, piece.token, piece.logprob),
                "top": [_prob(tokenizer, other.token, other.logprob) for other in piece.top],
            }
            for piece in pieces
            if piece.token is not None
        ]
    return result


def _prob(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    """A token's probability as JSON. logprob is null for an impossible token, as JSON has no infinity. bytes: the
    token's bytes; they may be a part of a character, and text then has U+FFFD instead."""
    spelled = tokenizer.token_bytes(token)
    return {
        "token": token,
        "text": spelled.decode("utf-8", errors="replace"),
        "bytes": list(spelled),
        "logprob": logprob if math.isfinite(logprob) else None,
    }

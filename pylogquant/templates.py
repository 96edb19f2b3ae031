"""Chat templates: Jinja text from a model file or a user, rendered in a sandbox with limits.

Text of a message must never become a control token, whatever the template does with it; text that the template itself
writes must. So render() returns segments that say which is which. It tells them apart as follows:

  1. The messages are rendered as they are. This is the text, whatever follows.
  2. They are rendered again with every visible character of the contents replaced by one stand-in of its own from the
     private-use planes 15 and 16. Stand-ins keep their number and place, so trimming, slicing, joining and length
     tests do what they did. Where the second text differs from the first by nothing but stand-ins, these are exactly
     the characters that came from contents.
  3. A template that looks into contents ('</think>' in content, content | upper) may take another way in step 2, and
     the texts do not match. It is tried again with fewer stand-ins: without those for strings the template itself
     mentions (control tokens keep theirs), then without those for letters and digits.
  4. If no try matches, the messages are refused: better no answer than a forged control token.

The template comes from a file, so it is treated as hostile: it runs in the sandbox of sandbox.py, with no loader and a
budget of work that everything it does draws on. A template that exceeds its limits raises TemplateError; there is no
way to switch this off.
"""

from __future__ import annotations

import errno
import json
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import jinja2
import jinja2.meta as meta
import jinja2.nodes as nodes

from pylogquant import sandbox_budget as limits
from pylogquant._copying import Uncopyable
from pylogquant.errors import ArgumentError, TemplateError
from pylogquant.sandbox import LimitError, Sandbox
from pylogquant.sandbox_budget import Budget

if TYPE_CHECKING:
    from pylogquant.gguf import GGUFFile
    from pylogquant.tokenizer import Tokenizer

__all__ = ["BUILTIN_TEMPLATES", "ChatTemplate", "Message", "Segment", "find_template"]

MAX_SOURCE_BYTES = 64 * 1024  # compiling takes 20 us for each, and cannot be interrupted
MAX_OUTPUT = 4 * 1024 * 1024  # characters, beside four times the contents

_MIN_SEARCH = 8  # work of looking for a string in a short text

_OWN_VARIABLES = frozenset({"messages", "add_generation_prompt", "bos_token", "eos_token"})
_UNASKED_VARIABLES = frozenset({"tools", "documents"})  # most templates read them, but chats here have neither


class Message(TypedDict):
    """One message of a conversation."""

    role: str  # "system", "user", "assistant", ...
    content: str


class Segment(NamedTuple):
    """A run of a rendered conversation."""

    text: str
    plain: bool  # True: from a message, so that control tokens in it are ordinary text; False: the template's own


BUILTIN_TEMPLATES: Mapping[str, str] = {
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
        "{{ message.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    # Gemma has two roles, so the system message goes in front of the first user message.
    "gemma": (
        "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
        "{% if message.role == 'system' %}{% set ns.system = message.content | trim %}{% else %}"
        "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
        "{% if ns.system %}{{ ns.system }}\n\n{% set ns.system = '' %}{% endif %}"
        "{{ message.content | trim }}<end_of_turn>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "zephyr": (
        "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
}

# Control tokens that the vocabulary must have, else a built-in template's markers would be plain text.
_NEEDED_TOKENS: Mapping[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "zephyr": (),
}


def find_template(metadata: Mapping[str, object], override: str | None = None) -> str:
    """The template to use: a built-in name or a file (override, --template), else the model file's own.

    Errors: TemplateError (there is none, or the file cannot be read)."""
    if override is None:
        found = metadata.get("tokenizer.chat_template")
        if isinstance(found, str) and found.strip():
            return found
        names = ", ".join(sorted(BUILTIN_TEMPLATES))
        raise TemplateError(
            "this model file has no chat template: it is likely a base model, which completes text ('pylogquant run"
            f" MODEL -p TEXT') and was not trained to chat; for one that was, give --template FILE or NAME ({names})"
        )
    if override in BUILTIN_TEMPLATES:
        return BUILTIN_TEMPLATES[override]
    try:
        if not override:
            raise FileNotFoundError(errno.ENOENT, "it has no name")
        with open(override, "rb") as file:  # may be a pipe, even an endless one: reads no more than is accepted
            data = file.read(MAX_SOURCE_BYTES + 1)
    except (OSError, ValueError) as cause:
        names = ", ".join(sorted(BUILTIN_TEMPLATES))
        reason = getattr(cause, "strerror", None) or str(cause)
        raise TemplateError(f"cannot read the template {override!r}: {reason}; built-in names are: {names}") from cause
    if len(data) > MAX_SOURCE_BYTES:
        raise TemplateError(f"the template {override!r} has more than the {MAX_SOURCE_BYTES} bytes that are accepted")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise TemplateError(f"the template {override!r} is not UTF-8 text") from cause


class ChatTemplate(Uncopyable):
    """A compiled chat template. May be used from several threads; they render one after another."""

    _instead = "make another one of its source: ChatTemplate(template.source, ...)"

    def __init__(
        self,
        source: str,
        *,
        bos_token: str,
        eos_token: str,
        control_tokens: Collection[str] = (),
        variables: Mapping[str, object] | None = None,
    ) -> None:
        """source: the Jinja text. bos_token, eos_token: the values of the template's variables of these names.
        control_tokens: the vocabulary's; they allow templates that search contents for strings (step 3 above).
        variables: other variables of the template, as {"enable_thinking": False}; any values that JSON can hold. Their
        text counts as the template's own.

        Errors: TemplateError (too large, does not compile), ArgumentError (a variable that the template does not read,
        that is not the caller's to set, or that JSON cannot hold)."""
        self.source = source
        self._control_tokens = [token for token in control_tokens if token.strip()]
        self._environment = Sandbox()
        self._lock = threading.Lock()
        n_bytes = len(source.encode("utf-8", errors="replace"))
        if n_bytes > MAX_SOURCE_BYTES:
            raise TemplateError(f"the chat template has {n_bytes} bytes; at most {MAX_SOURCE_BYTES} are accepted")
        try:
            with self._lock:
                self._environment.budget.start(0, time.thread_time() + limits.MAX_SECONDS)
                tree = self._environment.parse(source)
                self._constants = _string_constants(tree)
                self._template = self._environment.guarded(tree)
        except Exception as cause:
            raise TemplateError(f"the chat template does not compile: {_one_line(cause)}") from cause
        self._variables: dict[str, object] = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "tools": None,
            "documents": None,
        }
        self._variables.update(self._checked({} if variables is None else variables))

    @classmethod
    def from_gguf(
        cls,
        gguf: GGUFFile,
        tokenizer: Tokenizer,
        override: str | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> ChatTemplate:
        """The template of a model file, or the override (a built-in name or a path) in its place.

        Errors: TemplateError (none found; a built-in one whose control tokens the vocabulary lacks), and as for the
        class."""
        source = find_template(gguf.metadata, override)
        missing = [token for token in _NEEDED_TOKENS.get(override or "", ()) if tokenizer.id(token) is None]
        if missing:
            raise TemplateError(
                f"the template {override} needs the tokens {', '.join(missing)}, which this model does not have;"
                " choose the one it was trained with"
            )
        bos, eos = (
            "" if token_id is None else tokenizer.token(token_id) for token_id in (tokenizer.bos_id, tokenizer.eos_id)
        )
        return cls(source, bos_token=bos, eos_token=eos, control_tokens=tokenizer.control_tokens, variables=variables)

    @cached_property
    def _reads(self) -> tuple[frozenset[str], frozenset[str]]:
        """Names that the template reads from outside, and which of them it treats as optional or never sets."""
        with self._lock:
            tree = self._environment.parse(self.source)
            found = frozenset(meta.find_undeclared_variables(tree)) - _OWN_VARIABLES
        optional = {
            node.node.name
            for node in tree.find_all((nodes.Test, nodes.Filter))
            if isinstance(node.node, nodes.Name) and node.name in ("defined", "undefined", "default", "d")
        }
        own = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "store"}
        return found, found - (own - optional)

    @property
    def open_variables(self) -> list[str]:
        """Variables that the template asks for and that have no value yet; the caller may set them (variables=)."""
        return sorted(self._reads[1] - _UNASKED_VARIABLES - self._variables.keys())

    def _checked(self, variables: Mapping[str, object]) -> dict[str, object]:
        if not isinstance(variables, Mapping):
            raise ArgumentError(f"the template's variables must be a mapping of names to values, not {variables!r}")
        for name in variables:
            if name in _OWN_VARIABLES:
                raise ArgumentError(f"the template variable {name} comes from the conversation and cannot be set")
            if name not in self._reads[0]:
                known = ", ".join(sorted(self._reads[0])) or "none besides the conversation"
                raise ArgumentError(f"the chat template does not read a variable {name!r}; it reads: {known}")
        try:
            # Also makes a copy, so that a caller who changes a list later changes no prompt.
            found: dict[str, object] = json.loads(json.dumps(dict(variables)))
            self._environment.budget.start(0, time.thread_time() + limits.MAX_SECONDS)
            self._environment.budget.made(found)
        except (TypeError, ValueError, RecursionError) as cause:
            raise ArgumentError(f"a template variable is nothing that JSON can hold: {_one_line(cause)}") from cause
        except LimitError as cause:
            raise ArgumentError(f"a template variable is too large or too deep: {_one_line(cause)}") from cause
        return found

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[Segment]:
        """The conversation as text, in segments.

        Errors: ArgumentError (a message without role or content), TemplateError (the template refuses the messages,
        fails, exceeds a limit, or changes contents in a way that cannot be followed)."""
        _check_messages(messages)
        n_content = sum(len(message["content"]) for message in messages)
        deadline = time.thread_time() + limits.MAX_SECONDS + n_content * 1e-6
        plain = self._run(messages, add_generation_prompt, n_content, deadline)
        marking = Budget()
        marking.start(n_content, deadline)
        try:
            for mark in self._markings([message["content"] for message in messages], plain, marking):
                marked: list[Message] = [{**message, "content": mark(message["content"])} for message in messages]
                try:
                    text = self._run(marked, add_generation_prompt, n_content, deadline)
                except TemplateError:
                    if time.thread_time() > deadline:
                        raise
                    continue
                segments = _compare(plain, text)
                if segments is not None:
                    return segments
        except LimitError as cause:
            raise TemplateError(
                f"the chat template looks into what messages say, and following it was stopped: {cause}"
            ) from cause
        raise TemplateError(
            "the chat template changes what messages say in a way that cannot be followed, so control tokens in them"
            " could not be told from its own; use another template with --template"
        )

    def _run(self, messages: Sequence[Message], add_generation_prompt: bool, n_content: int, deadline: float) -> str:
        limit = MAX_OUTPUT + 4 * n_content
        copies = [dict(message) for message in messages]
        pieces: list[str] = []
        try:
            with self._lock:
                self._environment.budget.start(n_content, deadline)
                for piece in self._template.generate(
                    messages=copies, add_generation_prompt=add_generation_prompt, **self._variables
                ):
                    pieces.append(piece)
                    limit -= len(piece)
                    if limit < 0:
                        raise LimitError("it writes too much text")
        except TemplateError:
            raise
        except LimitError as cause:
            raise TemplateError(f"the chat template was stopped: {cause}") from cause
        except Exception as cause:
            raise TemplateError(f"the chat template fails: {_one_line(cause)}") from cause
        return "".join(pieces)

    def _markings(self, contents: list[str], plain: str, budget: Budget) -> Iterator[Callable[[str], str]]:
        """Yields functions that put stand-ins into a content: everywhere, then in fewer and fewer positions. All of
        them charge the budget."""
        yield _mark_all
        if not self._control_tokens:
            return  # without the control tokens it is unknown which characters have to be marked
        if self._constants:
            controls = _present(self._control_tokens, "\n".join(contents).casefold(), budget)
            yield lambda content: self._mark_but_constants(content, controls, budget)
        # Forging a control token takes all of its characters, so marking its symbols is enough, if it has any.
        for token in self._control_tokens:
            budget.spend(_MIN_SEARCH + len(plain) // 256)
            if token in plain and _mark_symbols(token) == token:
                return
        yield _mark_symbols

    def _mark_but_constants(self, content: str, controls: list[str], budget: Budget) -> str:
        # Casefolded, because the template may change the case before it compares.
        folded = content.casefold()
        constants = _present(self._constants, folded, budget)

        def mark(text: str) -> str:
            return _split_map(text, constants, lambda constant: constant, _mark_all, budget)

        return _split_map(content, _present(controls, folded, budget), _mark_all, mark, budget)


# ---- stand-ins ------------------------------------------------------------------------------------------------------


class _StandIns(dict[int, int]):
    """Maps code points to their stand-ins, for str.translate(). White space stands for itself."""

    def __missing__(self, code: int) -> int:
        if chr(code).isspace() or code >= 0xF0000:
            stand_in = code
        elif code <= 0xFFFF:
            stand_in = 0xF0000 + code
        else:
            stand_in = 0x100000 + (code & 0xFFFF)
        self[code] = stand_in
        return stand_in


_STAND_INS = _StandIns()
_STAND_IN_RUN = re.compile("[\U000f0000-\U0010ffff]+(?:\\s+[\U000f0000-\U0010ffff]+)*")


def _mark_all(text: str) -> str:
    return text.translate(_STAND_INS)


def _mark_symbols(text: str) -> str:
    # Quotes and backslashes stay unmarked because tojson rewrites them.
    return "".join(char if char.isalnum() or char in "\"'\\" else char.translate(_STAND_INS) for char in text)


def _present(needles: Iterable[str], folded: str, budget: Budget) -> list[str]:
    """The needles that occur in a casefolded text, regardless of case. Raises LimitError."""
    found = []
    for needle in needles:
        budget.spend(_MIN_SEARCH + len(folded) // 256)
        if needle.casefold() in folded:
            found.append(needle)
    return found


def _split_map(
    text: str, needles: list[str], found: Callable[[str], str], rest: Callable[[str], str], budget: Budget
) -> str:
    """Applies found() to every needle in text (regardless of case, longer ones first), rest() to the text between.
    Raises LimitError."""
    if not needles:
        return rest(text)
    budget.spend(len(text) * (1 + len(needles)))
    pattern = "|".join(re.escape(needle) for needle in sorted(needles, key=len, reverse=True))
    parts = re.split(f"({pattern})", text, flags=re.IGNORECASE)
    return "".join((found if i % 2 else rest)(part) for i, part in enumerate(parts))


def _compare(plain: str, marked: str) -> list[Segment] | None:
    """The segments of plain, or None where marked differs from it by more than stand-ins."""
    if len(plain) != len(marked):
        return None
    all_marked = _mark_all(plain)
    segments: list[Segment] = []
    at = 0
    for run in _STAND_IN_RUN.finditer(marked):
        start, end = run.span()
        if marked[at:start] != plain[at:start] or run.group() != all_marked[start:end]:
            return None
        if start > at:
            segments.append(Segment(plain[at:start], False))
        segments.append(Segment(plain[start:end], True))
        at = end
    if marked[at:] != plain[at:]:
        return None
    if at < len(plain):
        segments.append(Segment(plain[at:], False))
    return segments


def _string_constants(tree: nodes.Template) -> list[str]:
    """Strings that the template could compare contents with."""
    found = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str) and node.value.strip()}
    return sorted(found)


_ROLE = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _check_messages(messages: Sequence[Message]) -> None:
    if not messages:
        raise ArgumentError("there are no messages to render")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise ArgumentError(f"message {i} must have exactly the keys role and content")
        if not isinstance(message["content"], str):
            raise ArgumentError(f"the content of message {i} is not a string")
        # Templates write the role as their own text, so it must not hold a control token.
        if not isinstance(message["role"], str) or not _ROLE.fullmatch(message["role"]):
            raise ArgumentError(f"the role of message {i} must be 1 to 64 letters, digits, _ or -")


def _one_line(cause: BaseException) -> str:
    text = " ".join(str(cause).split()) or type(cause).__name__
    if isinstance(cause, jinja2.TemplateSyntaxError):
        text = f"line {cause.lineno}: {text}" if cause.lineno else text
    return text if len(text) <= 300 else text[:300] + "..."

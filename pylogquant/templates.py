"""Chat templates: Jinja text from a model file or a user, rendered in a sandbox with limits.

What a message says must never become a control token, whatever the template does with it; what the template itself
writes must. So render() returns segments that tell one from the other. How they are told apart:

  1. The messages are rendered as they are. This is the text, whatever follows.
  2. They are rendered again with every visible character of the contents replaced by one stand-in of its own from the
     private-use planes 15 and 16. Stand-ins keep their number and place, so trimming, slicing, joining and length
     tests do what they did. Where the second text differs from the first by nothing but stand-ins, these are exactly
     the characters that came from contents.
  3. A template that looks into contents ('</think>' in content, content | upper) may take another way in step 2, and
     the texts do not match. It is tried again with fewer stand-ins: without those for strings the template itself
     mentions (control tokens keep theirs), then without those for letters and digits.
  4. If no try matches, the messages are refused: better no answer than a forged control token.

The template comes from a file, so it is treated as hostile: jinja2's immutable sandbox, no loader, a list of filters
and methods that cannot blow up, and a budget of work that every loop, call and joined string draws on. A template that
exceeds its limits raises TemplateError; there is no way to switch this off.
"""

from __future__ import annotations

import datetime
import json
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.filters
import jinja2.nodes as nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.visitor

from pylogquant.errors import ArgumentError, TemplateError

if TYPE_CHECKING:
    from pylogquant.gguf import GGUFFile
    from pylogquant.tokenizer import Tokenizer

__all__ = ["BUILTIN_TEMPLATES", "ChatTemplate", "Message", "Segment", "find_template"]

MAX_SOURCE_BYTES = 256 * 1024
MAX_OUTPUT = 4 * 1024 * 1024  # characters, beside four times the contents
MAX_WORK = 32 * 1024 * 1024  # characters and items handled, beside 64 times the contents
MAX_SECONDS = 10.0
MAX_RANGE = 100_000
_STEP = 64  # work of one turn of a loop or one call


class Message(TypedDict):
    """One message of a conversation."""

    role: str  # "system", "user", "assistant", ...
    content: str


class Segment(NamedTuple):
    """A run of a rendered conversation."""

    text: str
    plain: bool  # from a message: control tokens in it are ordinary text; otherwise the template's own


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
    # Gemma knows two roles; a system message goes in front of the first user message.
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

# Without these control tokens a built-in template would be read as plain text.
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
        data = Path(override).read_bytes()
    except OSError as cause:
        names = ", ".join(sorted(BUILTIN_TEMPLATES))
        reason = cause.strerror or type(cause).__name__
        raise TemplateError(f"cannot read the template {override!r}: {reason}; built-in names are: {names}") from cause
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise TemplateError(f"the template {override!r} is not UTF-8 text") from cause


class ChatTemplate:
    """A compiled chat template. May be used from several threads; they render one after another."""

    def __init__(self, source: str, *, bos_token: str, eos_token: str, control_tokens: Collection[str] = ()) -> None:
        """source: the Jinja text. bos_token, eos_token: what the template's variables of these names stand for.
        control_tokens: the vocabulary's; they allow templates that search contents for strings (step 3 above).

        Errors: TemplateError (too large, does not compile)."""
        self._variables = {"bos_token": bos_token, "eos_token": eos_token, "tools": None, "documents": None}
        self._control_tokens = [token for token in control_tokens if token.strip()]
        self._environment = _Environment()
        self._lock = threading.Lock()
        n_bytes = len(source.encode("utf-8", errors="replace"))
        if n_bytes > MAX_SOURCE_BYTES:
            raise TemplateError(f"the chat template has {n_bytes} bytes; at most {MAX_SOURCE_BYTES} are accepted")
        try:
            with self._lock:
                self._environment.start(0, time.monotonic() + MAX_SECONDS)
                tree = self._environment.parse(source)
                self._constants = _string_constants(tree)
                code = self._environment.compile(_Guard().visit(tree))
                self._template = jinja2.Template.from_code(
                    self._environment, code, self._environment.make_globals(None)
                )
        except Exception as cause:
            raise TemplateError(f"the chat template does not compile: {_one_line(cause)}") from cause

    @classmethod
    def from_gguf(cls, gguf: GGUFFile, tokenizer: Tokenizer, override: str | None = None) -> ChatTemplate:
        """The template of a model file, or the override (a built-in name or a path) in its place.

        Errors: TemplateError (none found; a built-in one whose control tokens the vocabulary lacks)."""
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
        return cls(source, bos_token=bos, eos_token=eos, control_tokens=tokenizer.control_tokens)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[Segment]:
        """The conversation as text, in segments.

        Errors: ArgumentError (a message without role or content), TemplateError (the template refuses the messages,
        fails, exceeds a limit, or changes contents in a way that cannot be followed)."""
        _check_messages(messages)
        deadline = time.monotonic() + MAX_SECONDS
        plain = self._run(messages, add_generation_prompt, deadline)
        for mark in self._markings(plain):
            marked: list[Message] = [{**message, "content": mark(message["content"])} for message in messages]
            try:
                text = self._run(marked, add_generation_prompt, deadline)
            except TemplateError:
                continue
            segments = _compare(plain, text)
            if segments is not None:
                return segments
        raise TemplateError(
            "the chat template changes what messages say in a way that cannot be followed, so control tokens in them"
            " could not be told from its own; use another template with --template"
        )

    def _run(self, messages: Sequence[Message], add_generation_prompt: bool, deadline: float) -> str:
        n_content = sum(len(message["content"]) for message in messages)
        limit = MAX_OUTPUT + 4 * n_content
        copies = [dict(message) for message in messages]
        pieces: list[str] = []
        try:
            with self._lock:
                self._environment.start(n_content, deadline)
                for piece in self._template.generate(
                    messages=copies, add_generation_prompt=add_generation_prompt, **self._variables
                ):
                    pieces.append(piece)
                    limit -= len(piece)
                    if limit < 0:
                        raise _LimitError("it writes too much text")
        except TemplateError:
            raise
        except _LimitError as cause:
            raise TemplateError(f"the chat template was stopped: {cause}") from cause
        except Exception as cause:
            raise TemplateError(f"the chat template fails: {_one_line(cause)}") from cause
        return "".join(pieces)

    def _markings(self, plain: str) -> Iterator[Callable[[str], str]]:
        """Ways to put stand-ins into a content: everywhere, then in fewer and fewer places."""
        yield _mark_all
        if not self._control_tokens:
            return  # without the vocabulary nobody knows which places matter
        if self._constants:
            yield self._mark_but_constants
        # A control token is forged only if all of it is, so it is enough to mark its symbols, if it has any.
        if not any(token in plain for token in self._control_tokens if _mark_symbols(token) == token):
            yield _mark_symbols

    def _mark_but_constants(self, content: str) -> str:
        def mark(text: str) -> str:
            return _split_map(text, self._constants, lambda constant: constant, _mark_all)

        # Whatever case it is in: the template may change it.
        folded = content.casefold()
        return _split_map(content, [t for t in self._control_tokens if t.casefold() in folded], _mark_all, mark)


# ---- stand-ins ------------------------------------------------------------------------------------------------------


class _StandIns(dict[int, int]):
    """Code point -> the code point that stands for it, for str.translate(). White space stands for itself."""

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
    # Quotes and backslashes are left because tojson rewrites them.
    return "".join(char if char.isalnum() or char in "\"'\\" else char.translate(_STAND_INS) for char in text)


def _split_map(text: str, needles: list[str], found: Callable[[str], str], rest: Callable[[str], str]) -> str:
    """text with found() applied to every needle in it, the longer first, in any case; rest() to what lies between."""
    if not needles:
        return rest(text)
    pattern = "|".join(re.escape(needle) for needle in sorted(needles, key=len, reverse=True))
    parts = re.split(f"({pattern})", text, flags=re.IGNORECASE)
    return "".join((found if i % 2 else rest)(part) for i, part in enumerate(parts))


def _compare(plain: str, marked: str) -> list[Segment] | None:
    """Segments of plain, or None where marked is not plain with some stand-ins."""
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
        # The role is written as part of the scaffolding, so it must not hold a control token.
        if not isinstance(message["role"], str) or not _ROLE.fullmatch(message["role"]):
            raise ArgumentError(f"the role of message {i} must be 1 to 64 letters, digits, _ or -")


def _one_line(cause: BaseException) -> str:
    text = " ".join(str(cause).split()) or type(cause).__name__
    if isinstance(cause, jinja2.TemplateSyntaxError):
        text = f"line {cause.lineno}: {text}" if cause.lineno else text
    return text if len(text) <= 300 else text[:300] + "..."


# ---- the sandbox ----------------------------------------------------------------------------------------------------


class _LimitError(Exception):
    """A limit of this file was exceeded."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What a template may call on values. Left out: whatever makes text of a size given by a number.
_METHODS: Mapping[type, frozenset[str]] = {
    str: _words(
        "capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal isdigit isidentifier"
        " islower isnumeric isprintable isspace istitle isupper join lower lstrip partition removeprefix removesuffix"
        " replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper"
    ),
    dict: _words("copy get items keys values"),
    list: _words("copy count index"),
    tuple: _words("count index"),
}
_DATA = (str, dict, list, tuple, int, float, complex, bytes, bytearray, set, frozenset, range)

_FILTERS = _words(
    "abs capitalize count d default dictsort e escape first float groupby int items last length list lower map max min"
    " reject rejectattr reverse round safe select selectattr sort string sum title trim truncate unique upper wordcount"
)

_TEXT_FORMAT = re.compile(r"%[^a-zA-Z%]*(?:\*|[0-9]{4})")
_DATE_FORMAT = re.compile(r"(?:[^%]|%[-]?[A-Za-z%])*")


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox. start() before each use refills the budget; one thread at a time."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _GenerationBlock])
        self._left = 0
        self._deadline = 0.0
        self._own = frozenset({self.step, self.charged, self.joined, self.emitted})
        for name in ("lipsum",):
            del self.globals[name]
        self.globals.update(range=_range, raise_exception=_raise_exception, strftime_now=_strftime_now)
        self.filters = {name: jinja2.filters.FILTERS[name] for name in _FILTERS}
        self.filters.update(join=self._join, replace=self._replace, indent=self._indent, tojson=self._tojson)

    def start(self, n_content: int, deadline: float) -> None:
        self._left = MAX_WORK + 64 * n_content
        self._deadline = deadline

    def spend(self, work: int) -> None:
        self._left -= work
        if self._left < 0:
            raise _LimitError("it does too much work")
        if time.monotonic() > self._deadline:
            raise _LimitError(f"it takes more than {MAX_SECONDS:g} seconds")

    # -- called by the compiled template, put there by _Guard

    def step(self) -> bool:
        self.spend(_STEP)
        return True

    def charged(self, value: Any) -> Any:
        self.spend(len(value) if isinstance(value, (str, list, tuple, dict)) else 1)
        return value

    def joined(self, *values: Any) -> str:
        texts = [str(value) for value in values]
        self.spend(sum(map(len, texts)))
        return "".join(texts)

    def emitted(self, value: Any) -> str:
        text = str(value)
        self.spend(1 + len(text))
        return text

    # -- called by jinja2 for every call and operator of the template

    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        self = __self
        # jinja2 wraps str.format into a function of its own.
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if owner is self and __obj in self._own:
            return __obj(*args)
        if isinstance(owner, _DATA):
            name = str(__obj.__name__)
            if not any(isinstance(owner, kind) and name in names for kind, names in _METHODS.items()):
                raise jinja2.exceptions.SecurityError(f"{type(owner).__name__}.{name} is not available here")
            if isinstance(owner, str) and name == "join" and len(args) == 1:
                return self._join(args[0], owner)
            if isinstance(owner, str) and name == "replace" and len(args) >= 2:
                self._reserve_replace(owner, args[0], args[1])
            if isinstance(owner, str) and name == "format":
                self._reserve_format(owner, [*args, *kwargs.values()])
        self.spend(_STEP)
        return self.charged(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        sized = (str, list, tuple)
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, sized) and isinstance(other, int):
                    self.spend(len(one) * max(other, 0))
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > 4096:
                raise _LimitError("it computes with numbers that are too large")
        if operator == "+" and isinstance(left, sized) and isinstance(right, sized):
            self.spend(len(left) + len(right))
        if operator == "%" and isinstance(left, str):
            if _TEXT_FORMAT.search(left):
                raise _LimitError("it formats text to a width that is too large")
            self.spend(len(left) + left.count("%") * _length(right))
        return self.charged(super().call_binop(context, operator, left, right))

    # -- filters and methods whose result can be much larger than what goes in

    def _reserve_replace(self, text: str, old: Any, new: Any) -> None:
        n_found = text.count(str(old))
        self.spend(len(text) + n_found * len(str(new)))

    def _reserve_format(self, text: str, values: list[Any]) -> None:
        # A width can hide in a nested field, so no format specification at all.
        if any(":" in field or "!" in field for field in re.findall(r"\{([^{}]*)", text)):
            raise _LimitError("it uses str.format() with more than plain fields")
        self.spend(len(text) + text.count("{") * max(map(_length, values), default=0))

    def _join(self, value: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
        items = list(value)
        if attribute is not None:
            get = jinja2.filters.make_attrgetter(self, attribute)
            items = [get(item) for item in items]
        texts = [str(item) for item in items]
        separator = str(d)
        self.spend(sum(map(len, texts)) + len(separator) * len(texts))
        return separator.join(texts)

    def _replace(self, s: Any, old: str, new: str, count: int | None = None) -> str:
        text = str(s)
        self._reserve_replace(text, old, new)
        return text.replace(str(old), str(new), -1 if count is None else count)

    def _indent(self, s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        text = str(s)
        if not isinstance(width, str) and not 0 <= width <= 256:
            raise _LimitError("it indents too far")
        self.spend(len(text) + (text.count("\n") + 1) * (len(width) if isinstance(width, str) else width))
        return jinja2.filters.do_indent(text, width, first, blank)

    def _tojson(
        self,
        x: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as it is, without the escapes for HTML that jinja2's own filter adds."""
        if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
            raise _LimitError("it indents JSON too far")
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _length(value: Any) -> int:
    """Characters that a value may put into a format, at most about."""
    if isinstance(value, (tuple, list)):
        return max(map(_length, value), default=0)
    return len(str(value))


def _range(*limits: int) -> range:
    found = range(*limits)
    if len(found) > MAX_RANGE:
        raise _LimitError(f"it asks for a range of {len(found)} numbers; at most {MAX_RANGE} are allowed")
    return found


def _raise_exception(message: object = "") -> None:
    raise TemplateError(f"the chat template refuses these messages: {' '.join(str(message).split())[:300]}")


def _strftime_now(form: str) -> str:
    if len(form) > 100 or not _DATE_FORMAT.fullmatch(form):
        raise _LimitError("it formats the date in an unusual way")
    return datetime.datetime.now().strftime(form)


class _GenerationBlock(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %}: marks the assistant's words for training; here just its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's type)

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Guard(jinja2.visitor.NodeTransformer):
    """Puts calls of _Environment.step, charged, joined and emitted into a parsed template."""

    @staticmethod
    def _call(name: str, *arguments: nodes.Expr) -> nodes.Call:
        # EnvironmentAttribute cannot be written in a template, so no variable can take its place.
        return nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)

    def _stepping(self, node: Any) -> Any:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._call("step")))
        return node

    visit_Macro = visit_CallBlock = _stepping

    def visit_For(self, node: nodes.For) -> nodes.For:
        self._stepping(node)
        if node.test is not None:
            # A filtered loop may pass over many items without ever running its body.
            node.test = nodes.And(self._call("step"), node.test)
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Expr:
        self.generic_visit(node)
        return self._call("charged", node)

    def _keep_filter(self, node: Any) -> Any:
        # jinja2 compiles the filter of a block in its own way: only the body may change.
        node.body = [self.visit(child) for child in node.body]
        return node

    visit_FilterBlock = visit_AssignBlock = _keep_filter

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return self._call("charged", node) if isinstance(node.arg, nodes.Slice) and node.ctx == "load" else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return self._call("joined", *node.nodes)

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        node.nodes = [self._call("emitted", child) for child in node.nodes]
        return node

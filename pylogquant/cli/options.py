"""The options that commands share, in groups (groups.py): help texts, checks, conversion to the library's options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from pylogquant.errors import ArgumentError

if TYPE_CHECKING:
    from pylogquant.kv import KvOptions, Overlay, Select
    from pylogquant.options import ChatOptions, OnFull, SamplingOptions, SessionOptions

DEFAULT_CTX = 4096
DEFAULT_KV = "logquant"  # the library's default, repeated so that --help need not load it


def complete_model(incomplete: str) -> list[str]:
    """Completions for the shell: built-in and pulled models, GGUF files and folders."""
    from pathlib import Path

    from pylogquant import hub

    names = [model.name for model in hub.list_models()]
    folder = Path(incomplete if incomplete.endswith("/") else Path(incomplete).parent)
    try:
        paths = [f"{path}/" if path.is_dir() else str(path) for path in folder.iterdir()]
    except OSError:
        paths = []
    names += [path for path in paths if path.endswith((".gguf", "/"))]
    return [name for name in names if name.startswith(incomplete)]


def complete_kv(incomplete: str) -> list[str]:
    """KV cache types of the installed library."""
    from pylogquant.kv import kv_names

    return [name for name in kv_names() if name.startswith(incomplete)]


def complete_overlay(incomplete: str) -> list[str]:
    """Storage of full-precision tokens."""
    from pylogquant.kv import Overlay

    return [name for name in get_args(Overlay) if name.startswith(incomplete)]


def complete_device(incomplete: str) -> list[str]:
    """Names of devices."""
    return [name for name in ("auto", "cpu", "cuda", "cuda:0") if name.startswith(incomplete)]


def complete_on_full(incomplete: str) -> list[str]:
    """What happens when the context is full."""
    return [name for name in ("stop", "drop") if name.startswith(incomplete)]


def complete_select(incomplete: str) -> list[str]:
    """Rules for which tokens stay in full precision."""
    from pylogquant.kv import Select

    return [name for name in get_args(Select) if name.startswith(incomplete)]


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A GGUF file, a built-in name (smollm2-135m, gemma3-270m; fetched on first use), or a pulled name.",
        autocompletion=complete_model,
    ),
]
KvOption = Annotated[
    str,
    typer.Option(
        "--kv",
        metavar="TYPE",
        help="KV cache type; an unknown one is refused with a list of what exists.",
        autocompletion=complete_kv,
    ),
]
KvKeysOption = Annotated[
    str | None,
    typer.Option(
        "--kv-k",
        metavar="WIDTHS",
        help="Bits of key codes: a width, 1 to 5, or tiers of channels, widest range first, as 4:3/8,2:3/8,1:1/4 (bits,"
        " part of the channels).  [default: the type's]",
        show_default=False,
    ),
]
KvValuesOption = Annotated[
    int | None,
    typer.Option(
        "--kv-v",
        min=1,
        metavar="BITS",
        help="Bits of value codes: 2, 3 or 4.  [default: the type's]",
        show_default=False,
    ),
]
WindowOption = Annotated[
    int | None,
    typer.Option(
        "--window",
        min=1,
        metavar="TOKENS",
        help="W, a multiple of 64: up to three times as many tokens stay in full precision.  [default: the type's]",
        show_default=False,
    ),
]
SinksOption = Annotated[
    int | None,
    typer.Option(
        "--sinks",
        min=0,
        metavar="TOKENS",
        help="First tokens that stay in full precision for ever, 0 to 64.  [default: the type's]",
        show_default=False,
    ),
]
OverlayOption = Annotated[
    str | None,
    typer.Option(
        "--overlay",
        metavar="f16|q8_0",
        help="How tokens in full precision are stored.  [default: the type's]",
        autocompletion=complete_overlay,
        show_default=False,
    ),
]
SelectOption = Annotated[
    str | None,
    typer.Option(
        "--select",
        metavar="even|newest|heaviest",
        help="Which tokens stay in full precision: of two neighbours the older one, the newest, or the heaviest by"
        " accumulated attention.  [default: the type's]",
        autocompletion=complete_select,
        show_default=False,
    ),
]
CtxOption = Annotated[
    int | None,
    typer.Option(
        "--ctx",
        min=0,
        help=f"Context in tokens; 0 = what the model was trained for.  [default: {DEFAULT_CTX}, or that if it is less]",
        show_default=False,
    ),
]
ThreadsOption = Annotated[int, typer.Option("--threads", "-t", min=0, help="CPU threads; 0 = physical cores.")]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="auto|cpu|cuda|cuda:N",
        help="What computes; auto = the first GPU, where 'pylogquant build --cuda' was run and enough of the model"
        " fits.",
        autocompletion=complete_device,
    ),
]
GpuLayersOption = Annotated[
    int | None,
    typer.Option(
        "--gpu-layers",
        min=0,
        metavar="LAYERS",
        help="How many of the model's last layers are on the GPU; the others are on the CPU. 0 = none; more than there"
        " are = all.  [default: as many as fit]",
        show_default=False,
    ),
]
ChunkOption = Annotated[int, typer.Option("--chunk", min=1, help="Prompt tokens evaluated at once.")]
LongOption = Annotated[
    bool, typer.Option("--allow-long-context", help="Allow a --ctx longer than the model was trained for.")
]
OnFullOption = Annotated[
    str,
    typer.Option(
        "--on-full",
        metavar="stop|drop",
        help="When the context is full: stop, or drop the oldest tokens and go on, as far as the model was trained.",
        autocompletion=complete_on_full,
    ),
]
PreOption = Annotated[
    str | None,
    typer.Option("--pre", help="Pre-tokenizer to use instead of the one the file names.", show_default=False),
]
# The defaults of these depend on the model: they come from its file or record, then from SamplingOptions.
TempOption = Annotated[
    float | None,
    typer.Option(
        "--temp",
        min=0.0,
        help="Temperature; 0 = always the most probable token.  [default: the model's, else 0.8]",
        show_default=False,
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        min=0,
        help="Draw from the K most probable tokens; 0 = off.  [default: the model's, else 40]",
        show_default=False,
    ),
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        help="Draw from the best tokens that add up to this, above 0; 1 = off.  [default: the model's, else 0.95]",
        show_default=False,
    ),
]
MinPOption = Annotated[
    float | None,
    typer.Option(
        "--min-p",
        help="Drop tokens less probable than this part of the best, below 1; 0 = off."
        "  [default: the model's, else 0.05]",
        show_default=False,
    ),
]
RepeatOption = Annotated[
    float | None,
    typer.Option(
        "--repeat-penalty",
        min=0.01,
        help="Divides the logits of recent tokens, the prompt's included; 1 = off.  [default: the model's, else 1.0]",
        show_default=False,
    ),
]
FrequencyOption = Annotated[
    float,
    typer.Option(
        "--frequency-penalty", help="Lowers a token's logit by this for each time it came in the answer; 0 = off."
    ),
]
PresenceOption = Annotated[
    float, typer.Option("--presence-penalty", help="Lowers a token's logit by this if it came in the answer; 0 = off.")
]
LastNOption = Annotated[
    int | None,
    typer.Option(
        "--penalty-last-n",
        min=0,
        metavar="TOKENS",
        help="How many of the newest tokens penalties look at; 0 = all.  [default: the model's, else 64]",
        show_default=False,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="Same seed, same tokens.  [default: another one each time]", show_default=False),
]
TemplateOption = Annotated[
    str | None,
    typer.Option(
        "--template",
        metavar="FILE|NAME",
        help="Chat template to use instead of the model's: a Jinja file, or chatml, gemma, llama3, zephyr.",
        show_default=False,
    ),
]
TemplateVarOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template-var",
        metavar="NAME=VALUE",
        help="Set a variable that the chat template reads, as in enable_thinking=false; the value is JSON, or else a"
        " text; may be given several times.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value, for programs.")]
SystemOption = Annotated[
    str | None,
    typer.Option(
        "--system",
        metavar="TEXT",
        help="System message for the chat; '' = none.  [default: a built-in model's own, else none]",
        show_default=False,
    ),
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", "-n", min=1, help="Tokens per answer, at most.  [default: until the context is full]",
        show_default=False,
    ),
]  # fmt: skip
StopOption = Annotated[
    list[str] | None,
    typer.Option(
        "--stop", metavar="TEXT", help="End an answer before this text, or control token; may be given several times."
    ),
]
LoopGuardOption = Annotated[
    bool,
    typer.Option(
        "--loop-guard/--no-loop-guard", help="End an answer that repeats the same words again and again, and say so."
    ),
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Use no network.")]


@dataclass(frozen=True)
class KvGroup:
    """Changes of a KV cache type's settings."""

    kv_k: KvKeysOption = None
    kv_v: KvValuesOption = None
    window: WindowOption = None
    sinks: SinksOption = None
    overlay: OverlayOption = None
    select: SelectOption = None

    @property
    def is_empty(self) -> bool:
        return all(setting is None for setting in vars(self).values())

    def of(self, name: str) -> KvOptions:
        """The options of the type with this name and these changes; the core checks them later."""
        from pylogquant.kv import KvOptions

        return KvOptions(
            name=name,
            keys=self.kv_k,
            value_bits=self.kv_v or 0,
            window=self.window or 0,
            sinks=self.sinks,
            overlay=cast("Overlay | None", self.overlay),
            select=cast("Select | None", self.select),
        )


@dataclass(frozen=True)
class LengthGroup:
    """How long a session is."""

    ctx: CtxOption = None  # tokens; 0 = what the model was trained for, None = the default
    allow_long_context: LongOption = False

    def tokens(self, n_ctx_train: int) -> int:
        """Tokens of the context. The default is modest, to save memory. Raises ArgumentError for a context longer than
        the model was trained for, unless it was allowed."""
        if self.ctx is None:
            return min(n_ctx_train, DEFAULT_CTX)
        if self.ctx > n_ctx_train and not self.allow_long_context:
            raise ArgumentError(
                f"--ctx {self.ctx} is more than the {n_ctx_train} tokens this model was trained for, beyond which"
                " answers tend to fall apart; ask for fewer, or add --allow-long-context"
            )
        return self.ctx or n_ctx_train


@dataclass(frozen=True)
class SessionGroup:
    """How a session is made."""

    kv: KvOption = DEFAULT_KV
    changes: KvGroup = KvGroup()
    length: LengthGroup = LengthGroup()
    on_full: OnFullOption = "stop"
    chunk: ChunkOption = 512

    @property
    def kv_options(self) -> KvOptions:
        """The KV cache type with its changes."""
        return self.changes.of(self.kv)

    def options(self, n_ctx_train: int) -> SessionOptions:
        """The options of a session for a model that was trained for n_ctx_train tokens. Raises ArgumentError."""
        from pylogquant.options import SessionOptions

        return SessionOptions(
            self.length.tokens(n_ctx_train),
            self.kv_options,
            chunk=self.chunk,
            allow_long=self.length.allow_long_context,
            on_full=cast("OnFull", self.on_full),
        )


@dataclass(frozen=True)
class MachineGroup:
    """The device and threads that compute, and how a model is opened."""

    device: DeviceOption = "auto"
    gpu_layers: GpuLayersOption = None  # None = as many as fit
    threads: ThreadsOption = 0
    pre: PreOption = None
    offline: OfflineOption = False


@dataclass(frozen=True)
class SamplingGroup:
    """The sampling options that were given; None where the model's default applies."""

    temp: TempOption = None
    top_k: TopKOption = None
    top_p: TopPOption = None
    min_p: MinPOption = None
    repeat_penalty: RepeatOption = None
    frequency_penalty: FrequencyOption = 0.0
    presence_penalty: PresenceOption = 0.0
    penalty_last_n: LastNOption = None
    seed: SeedOption = None

    def over(self, defaults: SamplingOptions) -> SamplingOptions:
        """The model's defaults, replaced by the options that were given."""
        said = {name: value for name, value in vars(self).items() if value is not None}
        return replace(defaults, **({"temperature": said.pop("temp")} if "temp" in said else {}), **said)


@dataclass(frozen=True)
class AnswerGroup:
    """Options of prompts, and of where answers end."""

    system: SystemOption = None
    template: TemplateOption = None
    template_var: TemplateVarOption = None
    max_tokens: MaxTokensOption = None
    stop: StopOption = None

    def template_vars(self) -> dict[str, object]:
        """The variables that --template-var options set. Raises ArgumentError."""
        import json

        found: dict[str, object] = {}
        for text in self.template_var or ():
            name, equals, value = text.partition("=")
            if not equals or not name.isidentifier():
                raise ArgumentError(f"--template-var is NAME=VALUE, as in enable_thinking=false, not {text}")
            if name in found:
                raise ArgumentError(f"--template-var {name} is given twice")
            try:
                found[name] = json.loads(value)
            except (ValueError, RecursionError):
                found[name] = value
        return found


@dataclass(frozen=True)
class ModelSettings:
    """The model, the machine's options, and the session's. Raises ArgumentError."""

    model: str
    machine: MachineGroup
    session: SessionGroup = SessionGroup()

    def __post_init__(self) -> None:
        """Checks what can be checked before the model is loaded."""
        if self.session.on_full not in ("stop", "drop"):
            raise ArgumentError(f"--on-full is stop or drop, not {self.session.on_full}")


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are made and where they end. Raises ArgumentError."""

    asked: AnswerGroup
    sampling: SamplingGroup
    special: bool  # control tokens that the model writes are shown
    loop_guard: bool

    def __post_init__(self) -> None:
        """Checks what can be checked before the model is loaded."""
        self.asked.template_vars()

    @property
    def stop(self) -> tuple[str, ...]:
        return tuple(self.asked.stop or ())

    def chat_options(self, session: SessionOptions, defaults: SamplingOptions) -> ChatOptions:
        """The options of a chat with such a session. defaults: the model's sampling options."""
        from pylogquant.options import ChatOptions

        return ChatOptions(
            **vars(session),
            system=self.asked.system,
            sampling=self.sampling.over(defaults),
            template=self.asked.template,
            template_vars=self.asked.template_vars(),
            skip_special=not self.special,
            loop_guard=self.loop_guard,
        )

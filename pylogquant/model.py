"""Model: a GGUF file ready to run; ties tokenizer, sessions and chat together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

from pylogquant._copying import Uncopyable
from pylogquant._fields import fields_of
from pylogquant._native import check, check_process, ffi, lib, path_bytes, whole_number
from pylogquant._running import run_cancellable
from pylogquant._stepping import Stepper, per_session
from pylogquant.devices import cuda_library, valid_device
from pylogquant.errors import ArgumentError, ClosedError
from pylogquant.gguf import GGUFFile
from pylogquant.kv import kv_names
from pylogquant.options import ChatOptions, SessionOptions, fill_session_options
from pylogquant.session import LogitsMode, MemoryPlan, Session, as_ids
from pylogquant.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pylogquant.chat import Chat
    from pylogquant.defaults import AnswerDefaults

__all__ = ["Model", "ModelInfo", "kv_names"]


@dataclass(frozen=True)
class ModelInfo:
    """Shape and devices of a loaded model. window: tokens that sliding layers see, 0 = no limit within the trained
    context. n_recurrent_layers: layers without keys. n_heads, n_kv_heads, head_dim: of the first layer with attention.
    kv_values, kv_values_sliding: K and V elements of a token in all layers that see the whole context, and in all
    sliding ones. n_ctx_train: trained context. n_threads: 0 where all is on a GPU. device: "cpu", or "cuda:0" with the
    last n_gpu_layers on it; plan: which layers are where, in words; device_name: the GPU's name, from its driver;
    device_note: why device="auto" took the CPU."""

    arch: str
    device: str
    device_name: str
    device_note: str
    plan: str
    n_layers: int
    n_global_layers: int
    n_recurrent_layers: int
    n_vocab: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    kv_values: int
    kv_values_sliding: int
    window: int
    n_ctx_train: int
    n_threads: int
    n_gpu_layers: int
    n_params: int
    weight_bytes: int


class Model(Uncopyable):
    """A loaded model: its weights (mapped read-only, or on a GPU) and its tokenizer. Any number of sessions share it.

    path: a GGUF file, or a name that `pylogquant list` shows (a built-in name is downloaded when first used).
    threads: CPU threads, 0 = physical cores. pre: overrides the file's `tokenizer.ggml.pre`. device: "cpu"; "cuda",
    "cuda:0" and so on, an error where that GPU cannot be used; "auto" = cuda:0 if `pylogquant build --cuda` made its
    library, a device exists and enough of the weights fit to be worth it, else the CPU; info() tells which, and why.
    gpu_layers: how many of the last layers are on the GPU, the others being on the CPU; None = as many as fit beside a
    session of up to 4096 tokens, 0 = none, more than the model has = all; with a number "auto" raises an error where
    the GPU cannot be used.

    Usable from several threads. A process forked later can only close it; all else raises ForkedError there.

    Raises FileError, ModelFormatError, Unsupported, OutOfMemory, TokenizerError, DownloadError, ArgumentError.
    """

    _instead = "any number of sessions share one; another process opens the file itself: Model(model.path)"

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int = 0,
        pre: str | None = None,
        device: str = "auto",
        gpu_layers: int | None = None,
    ) -> None:
        if not hasattr(threads, "__index__") or not 0 <= threads <= 1024:
            raise ArgumentError(f"threads must be 1 to 1024, or 0 for all physical cores, not {threads!r}")
        if gpu_layers is not None and (not hasattr(gpu_layers, "__index__") or not 0 <= gpu_layers < 2**31):
            raise ArgumentError(f"gpu_layers must be 0 or more layers, or None for as many as fit, not {gpu_layers!r}")
        asked = ffi.new("char[]", valid_device(device).encode())
        library = cuda_library() if device != "cpu" and gpu_layers != 0 else None
        self.path = Path(path)
        if not os.path.isfile(self.path):
            from pylogquant import hub

            self.path = hub.resolve(str(path))
        options = ffi.new("lq_model_options *")
        lib.lq_model_options_init(options)
        options.n_threads = threads
        options.device = asked
        options.gpu_layers = -1 if gpu_layers is None else gpu_layers
        library_path = ffi.new("char[]", path_bytes(library)) if library is not None else ffi.NULL
        options.cuda_library = library_path
        out = ffi.new("lq_model **")
        check(lib.lq_model_open(path_bytes(self.path), options, out))
        self._handle: Any = ffi.gc(out[0], _close_model)
        self._process = os.getpid()
        self._info = _read_info(self._handle)
        self._steps = Stepper(self._info.n_vocab)
        self.gguf = GGUFFile._borrowed(lib.lq_model_gguf(self._handle), owner=self._handle)
        self._pre = pre
        self._tokenizer: Tokenizer | None = Tokenizer.from_gguf(self.gguf, pre=pre)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, built from the file's metadata."""
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise ClosedError("this model is closed; open it again")
        return tokenizer

    def info(self) -> ModelInfo:
        return self._info

    def answer_defaults(self) -> AnswerDefaults:
        """Sampling options and system message for callers that give none: from the file (`general.sampling.*`), or a
        built-in model's record. To change one: dataclasses.replace(model.answer_defaults().options, temperature=0)."""
        from pylogquant.defaults import answer_defaults

        self._open_handle()
        return answer_defaults(self.gguf.metadata, self.path)

    @fields_of(SessionOptions)
    def plan(self, options: SessionOptions) -> MemoryPlan:
        """The memory that a session with these options would reserve; allocates nothing. Takes the same arguments as
        session() and raises the same errors, except OutOfMemory: it does not look whether the memory is there."""
        memory = ffi.new("lq_memory *")
        raw, _keep = fill_session_options(options)
        check(lib.lq_session_plan(self._open_handle(), raw, memory))
        return MemoryPlan(
            int(memory.kv_global_bytes),
            int(memory.kv_sliding_bytes),
            int(memory.recurrent_bytes),
            int(memory.scratch_bytes),
            int(memory.workspace_bytes),
            int(memory.total_bytes),
        )

    @fields_of(SessionOptions)
    def session(self, options: SessionOptions) -> Session:
        """A new, empty session. Takes the fields of SessionOptions, model.session(n_ctx=4096, kv="f16"), or such an
        object, model.session(options).

        Raises OutOfMemory (with what would fit), Unsupported (KV type), ArgumentError (also for a setting that the KV
        type does not have).
        """
        raw, _keep = fill_session_options(options)
        out = ffi.new("lq_session **")
        check(lib.lq_session_create(self._open_handle(), raw, out))
        return Session(self, out[0])

    @overload
    def step(
        self, sessions: Sequence[Session], tokens: Sequence[int], *, copy: Literal[True] = True
    ) -> npt.NDArray[np.float32]: ...
    @overload
    def step(
        self,
        sessions: Sequence[Session],
        tokens: Sequence[Sequence[int]],
        *,
        logits: LogitsMode | Sequence[LogitsMode] = "last",
        tentative: bool | Sequence[bool] = False,
        copy: bool = True,
    ) -> list[npt.NDArray[np.float32] | None]: ...
    @overload
    def step(self, sessions: Sequence[Session], tokens: Sequence[int], *, copy: Literal[False]) -> None: ...
    def step(
        self,
        sessions: Sequence[Session],
        tokens: Sequence[int] | Sequence[Sequence[int]],
        *,
        logits: LogitsMode | Sequence[LogitsMode] = "last",
        tentative: bool | Sequence[bool] = False,
        copy: bool = True,
    ) -> npt.NDArray[np.float32] | list[npt.NDArray[np.float32] | None] | None:
        """Appends tokens to several sessions of this model and evaluates them together: weights are read once for all,
        so that many conversations cost little more than one.

        tokens: one id per session, or a sequence of up to a chunk of ids per session, so that a long prompt is read in
        slices while other sessions decode. The sessions may differ in length, context and KV cache type; sessions not
        named are not affected. logits and tentative: one value for all, or one per session. logits: "last" keeps those
        of the last token for sample(); "all"; "none". Returns float32 (n_sessions, n_vocab) for one id per session; for
        sequences a list with (n_vocab,), (n_tokens, n_vocab) or None per session. With copy=False it returns None, and
        logits stay in the sessions.

        tentative: the session holds none of the tokens until Session.commit() says how many of them stay. It must have
        been made with max_tentative of at least as many tokens.

        The same step gives the same bits, and tentative tokens get the same bits whatever other sessions take part.
        Otherwise a session's logits depend on the other sessions up to rounding: in the mean .003 nats, .05 with q4_0
        keys and values (docs/benchmarks.md, by KV cache type). The first step, and one of more sessions or tokens than
        any before, reserves memory, which the model keeps.

        Raises ArgumentError (another model's session, a session twice, an id outside the vocabulary, more than 1024
        sessions, more tokens than a session's chunk, uncommitted tentative tokens), ContextFull, SessionBusy,
        OutOfMemory, Cancelled (in the middle of a session's tokens only where they can be taken back). All sessions
        then hold what they held before."""
        check_process(self._process)
        n = len(sessions)
        nested = len(tokens) > 0 and hasattr(tokens[0], "__len__")
        parts = [as_ids(some) for some in tokens] if nested else [[token] for token in as_ids(tokens)]  # type: ignore[arg-type]
        if len(parts) != n:
            raise ArgumentError(f"{n} sessions need as many tokens, not {len(parts)}")
        modes, flags = per_session(logits, n, "logits"), per_session(tentative, n, "tentative")
        rows = self._steps.step(self._open_handle, sessions, parts, modes, flags, copy)
        if nested:
            return rows
        if not copy:
            return None
        import numpy as np

        copied = [row for row in rows if row is not None]
        return np.stack(copied) if copied else np.empty((0, self._info.n_vocab), dtype=np.float32)

    def load_session(self, path: str | os.PathLike[str], *, budget: int = 0) -> Session:
        """Loads a session that Session.save() wrote, with all its options. It goes on as the saved one would have, bit
        for bit (on the same CPU level, with as many threads).

        Raises FileError; ModelFormatError (damaged, cut short, or no session at all); Unsupported (another version of
        the format); ArgumentError (saved with another model); OutOfMemory. Ctrl-C takes effect at once; a thread then
        reads the file to its end and drops the result."""
        whole_number("budget", budget, 64, " bytes")
        name = path_bytes(path)

        def load() -> Session:
            out = ffi.new("lq_session **")
            check(lib.lq_session_load(self._open_handle(), name, budget, out))
            return Session(self, out[0])

        return run_cancellable(load, None)

    @fields_of(ChatOptions)
    def chat(self, options: ChatOptions) -> Chat:
        """A conversation with its own session. Takes the fields of ChatOptions, model.chat("Be brief.", kv="f16"), or
        such an object, model.chat(options).

        Raises TemplateError if there is no template, ArgumentError for a variable that it does not read, and as
        session().
        """
        from pylogquant.chat import Chat
        from pylogquant.templates import ChatTemplate

        template = ChatTemplate.from_gguf(self.gguf, self.tokenizer, options.template, options.template_vars)
        session = self.session(options)
        defaults = self.answer_defaults()
        return Chat(
            self,
            session,
            self.tokenizer,
            template,
            defaults.options if options.sampling is None else options.sampling,
            defaults.system if options.system is None else options.system,
            skip_special=options.skip_special,
            loop_guard=options.loop_guard,
        )

    def _open_handle(self) -> Any:
        handle = self._handle
        if handle is None:
            raise ClosedError("this model is closed; open it again")
        return handle

    def close(self) -> None:
        """Closes the model; may be called twice, from any thread at any time. Open sessions keep working, and keep the
        weights, until they close; calls that other threads are inside are finished."""
        self._handle = self._tokenizer = None
        self._steps.close()
        self.gguf.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read_info(handle: Any) -> ModelInfo:
    raw = ffi.new("lq_model_info *")
    raw.struct_size = ffi.sizeof("lq_model_info")
    check(lib.lq_model_get_info(handle, raw))
    texts = ("arch", "device", "device_name", "device_note", "plan")
    values: dict[str, Any] = {name: ffi.string(getattr(raw, name)).decode(errors="replace") for name in texts}
    for name in ModelInfo.__dataclass_fields__:
        if name not in texts:
            values[name] = int(getattr(raw, name))
    return ModelInfo(**values)


def _close_model(handle: Any) -> None:
    lib.lq_model_close(ffi.new("lq_model **", handle))

"""`info`: shows what a model file holds and how much memory it needs. Works for files that this build cannot run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pylogquant.cli.options import LengthGroup
from pylogquant.cli.output import aligned, bytes_text, shown
from pylogquant.errors import LogQuantError, TokenizerError, Unsupported

if TYPE_CHECKING:
    from pylogquant.defaults import AnswerDefaults
    from pylogquant.gguf import GGUFFile
    from pylogquant.kv import KvOptions
    from pylogquant.model import Model, ModelInfo
    from pylogquant.session import MemoryPlan

_NO_BUDGET = 2**63  # so that plans are shown even if they do not fit
_SHOWN_CHARS = 100


@dataclass(frozen=True)
class Plan:
    """The memory for one KV type (perhaps with changed settings) and context."""

    kv: KvOptions
    n_ctx: int
    memory: MemoryPlan | None
    reason: str | None  # why the type cannot hold this model's keys and values
    bits: float  # per K or V element of layers that see the whole context


@dataclass(frozen=True)
class Facts:
    """Everything `info` shows."""

    path: Path
    n_bytes: int
    gguf_version: int
    metadata: dict[str, Any]  # scalars and strings as they are; an array as its description
    tensor_types: dict[str, tuple[int, int]]  # name -> number of tensors, bytes
    n_weights: int
    model: ModelInfo | None
    reason: str | None  # why the model cannot run here
    plans: list[Plan]
    memory_available: int
    defaults: AnswerDefaults
    notes: list[str]  # what is ignored in the file
    ctx_note: str  # a remark on the context that was asked for, or ""


def info(path: Path, *, length: LengthGroup, chunk: int, as_json: bool, extra: KvOptions | None = None) -> None:
    """Prints the facts about a file. extra: a KV cache whose plan is shown beside those of the types.

    Raises FileError and ModelFormatError for what is no GGUF file, ArgumentError and Unsupported for extra."""
    facts = _gather(path, length, chunk, extra)
    if as_json:
        print(json.dumps(_as_json(facts), indent=2, ensure_ascii=False))
        return
    for line in _as_text(facts):
        print(shown(line))


def print_template(path: Path) -> None:
    """Prints the file's chat template, unchanged so that --template takes a copy of it, but harmless on a terminal.

    Raises FileError, ModelFormatError, TemplateError (there is none)."""
    from pylogquant.gguf import GGUFFile
    from pylogquant.templates import find_template

    with GGUFFile(path) as gguf:
        text = find_template(gguf.metadata)
    print(shown(text) if sys.stdout.isatty() else text)


def _gather(path: Path, length: LengthGroup, chunk: int, extra: KvOptions | None) -> Facts:
    from pylogquant._native import lib
    from pylogquant.defaults import answer_defaults
    from pylogquant.gguf import GGUFFile
    from pylogquant.model import Model

    ctx_note = ""
    with GGUFFile(path) as gguf:
        types: dict[str, tuple[int, int]] = {}
        n_weights = 0
        for tensor in gguf.tensors:
            count, n_bytes = types.get(tensor.type_name, (0, 0))
            types[tensor.type_name] = (count + 1, n_bytes + tensor.n_bytes)
            n_tensor = 1
            for size in tensor.shape:
                n_tensor *= size
            n_weights += n_tensor
        model, reason, plans = None, None, []
        notes: list[str] = []
        try:
            loaded = Model(path, device="cpu")  # plans show what the CPU reserves
        except (Unsupported, TokenizerError) as error:
            reason = str(error)
        else:
            with loaded:
                model, notes = loaded.info(), loaded.tokenizer.notes
                sizes = [replace(length, allow_long_context=True).tokens(model.n_ctx_train)]
                ctx_note = "" if length.allow_long_context else _note(sizes[0], model.n_ctx_train)
                if length.ctx is None and sizes[0] != model.n_ctx_train:
                    sizes.append(model.n_ctx_train)
                plans = _plans(loaded, sizes, chunk, extra)
        return Facts(
            path=path,
            n_bytes=gguf.file_bytes,
            gguf_version=gguf.version,
            metadata=_metadata(gguf),
            tensor_types=dict(sorted(types.items(), key=lambda item: -item[1][1])),
            n_weights=n_weights,
            model=model,
            reason=reason,
            plans=plans,
            memory_available=int(lib.lq_memory_available()),
            defaults=answer_defaults(gguf.metadata, path),
            notes=notes,
            ctx_note=ctx_note,
        )


def _plans(model: Model, sizes: list[int], chunk: int, extra: KvOptions | None) -> list[Plan]:
    """Plans every KV cache type with every size. If a type does not suit the model, its plan has the reason; for extra,
    which was asked for, that is an error."""
    from pylogquant.kv import KvOptions, bits_per_value, kv_names

    shape = model.info()
    n_values = shape.kv_values
    plans = []
    for kv in [*map(KvOptions, kv_names()), *([extra] if extra is not None else [])]:
        for n in sizes:
            try:
                memory = model.plan(n, kv=kv, chunk=chunk, allow_long=True, budget=_NO_BUDGET)
            except Unsupported as error:
                if kv is extra:
                    raise
                plans.append(Plan(kv, n, None, str(error), 0.0))
                continue
            plans.append(Plan(kv, n, memory, None, bits_per_value(memory.kv_global_bytes, n_values * n)))
    return plans


def _note(n_ctx: int, n_ctx_train: int) -> str:
    if n_ctx <= n_ctx_train:
        return ""
    return (
        f"{n_ctx:,} tokens are more than the {n_ctx_train:,} this model was trained for, beyond which answers tend to"
        " fall apart; chat and run want --allow-long-context for that"
    )


def _metadata(gguf: GGUFFile) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in gguf.metadata:
        try:
            value = gguf.metadata[key]
        except LogQuantError as error:
            found[key] = f"({error})"
            continue
        if isinstance(value, (str, int, float, bool)):
            found[key] = value
        else:
            kind = "strings" if isinstance(value, list) else str(value.dtype)
            found[key] = f"[{len(value):,} {kind}]"
    return found


def _as_json(facts: Facts) -> dict[str, Any]:
    return {
        "path": str(facts.path),
        "bytes": facts.n_bytes,
        "gguf_version": facts.gguf_version,
        "runs_here": facts.reason is None,
        "reason": facts.reason,
        "model": None if facts.model is None else asdict(facts.model),
        "n_weights": facts.n_weights,
        "tensor_types": {
            name: {"tensors": count, "bytes": n_bytes} for name, (count, n_bytes) in facts.tensor_types.items()
        },
        "memory_available": facts.memory_available,
        "sampling": {
            "options": asdict(facts.defaults.options),
            "source": facts.defaults.source,
            "not_followed": facts.defaults.not_followed,
        },
        "system": facts.defaults.system or None,
        "notes": [*facts.notes, *([facts.ctx_note] if facts.ctx_note else [])],
        "plans": [_plan_json(plan, facts) for plan in facts.plans],
        "metadata": facts.metadata,
    }


def _plan_json(plan: Plan, facts: Facts) -> dict[str, Any]:
    """A plan as JSON. total_bytes is the session's memory."""
    common = {"kv": plan.kv.name, "options": asdict(plan.kv), "n_ctx": plan.n_ctx, "reason": plan.reason}
    if plan.memory is None:
        return common
    with_weights = {"with_weights_bytes": _with_weights(plan.memory, facts)}
    return {**common, "bits": plan.bits, **asdict(plan.memory), **with_weights}


def _with_weights(memory: MemoryPlan, facts: Facts) -> int:
    """Bytes of a session together with the weights, which all sessions of a model share."""
    return memory.total_bytes + (facts.model.weight_bytes if facts.model is not None else 0)


def _as_text(facts: Facts) -> Iterable[str]:
    yield f"{facts.path}: {bytes_text(facts.n_bytes)}, GGUF version {facts.gguf_version}"
    yield from _model_text(facts)
    yield ""
    yield "Weights"
    rows = [
        (name, f"{count} tensors", bytes_text(n_bytes) if n_bytes else "size unknown")
        for name, (count, n_bytes) in facts.tensor_types.items()
    ]
    yield from aligned(rows)
    if facts.plans:
        yield ""
        yield from _plan_text(facts)
    yield ""
    yield "Metadata"
    yield from aligned([(key, _short(value)) for key, value in facts.metadata.items()])


def _model_text(facts: Facts) -> Iterable[str]:
    metadata, model = facts.metadata, facts.model
    rows = [("name", _short(metadata.get("general.name", "?")))]
    rows.append(("architecture", _short(metadata.get("general.architecture", "?"))))
    rows.append(("weights", f"{facts.n_weights / 1e6:,.1f} million"))
    if model is not None:
        layers = f"{model.n_layers}"
        if model.window:
            sliding = model.n_layers - model.n_global_layers - model.n_recurrent_layers
            layers += f", {sliding} of them see a sliding window of {model.window:,} tokens"
        if model.n_recurrent_layers:
            layers += f", {model.n_recurrent_layers} of them have a state of a fixed size and no keys"
        rows += [
            ("layers", layers),
            ("width", f"{model.n_embd}, {model.n_heads} heads and {model.n_kv_heads} KV heads of {model.head_dim}"),
            ("vocabulary", f"{model.n_vocab:,} tokens"),
            ("trained context", f"{model.n_ctx_train:,} tokens"),
        ]
    template = (
        "yes (--template prints it)"
        if "tokenizer.chat_template" in metadata
        else "none (chat needs --template; run completes text)"
    )
    rows.append(("chat template", template))
    rows.append(("answers", facts.defaults.describe(facts.defaults.options)))
    if facts.defaults.system:
        rows.append(("system message", facts.defaults.system))
    if facts.defaults.note:
        rows.append(("", facts.defaults.note))
    rows += [("note", note) for note in facts.notes]
    rows.append(("runs here", "yes" if facts.reason is None else f"no: {facts.reason}"))
    yield from aligned(rows)


def _plan_text(facts: Facts) -> Iterable[str]:
    available = bytes_text(facts.memory_available) if facts.memory_available else "unknown"
    weights = bytes_text(facts.model.weight_bytes if facts.model is not None else 0)
    yield f"Memory of one session; the total counts the weights, {weights}, too (available now: {available})"
    rows = [("KV type", "context", "bits per value", "KV", "scratch", "total", "")]
    for plan in facts.plans:
        memory, name, n_ctx = plan.memory, str(plan.kv), f"{plan.n_ctx:,}"
        if memory is None:
            rows.append((name, n_ctx, "", "", "", "", f"no: {plan.reason}"))
            continue
        total = _with_weights(memory, facts)
        fits = not facts.memory_available or total <= facts.memory_available
        rows.append(
            (
                name,
                n_ctx,
                f"{plan.bits:.2f}",
                bytes_text(memory.kv_global_bytes + memory.kv_sliding_bytes + memory.recurrent_bytes),
                bytes_text(memory.scratch_bytes + memory.workspace_bytes),
                bytes_text(total),
                "" if fits else "does not fit",
            )
        )
    yield from aligned(rows)
    if facts.ctx_note:
        yield f"  note: {facts.ctx_note}"


def _short(value: object) -> str:
    text = f"{value:.8g}" if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}... ({len(str(value)):,} characters)"

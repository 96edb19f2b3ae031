"""From settings to an open model: what `chat`, `run` and `info` do first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pylogquant.cli.options import DEFAULT_CTX, ModelSettings
from pylogquant.cli.output import fetching, print_note
from pylogquant.errors import ArgumentError

if TYPE_CHECKING:
    from pylogquant.kv import KvOptions, Overlay, Select
    from pylogquant.model import Model


def find(name_or_path: str, *, offline: bool) -> Path:
    """The file that a name or path stands for, fetched if it is a built-in model's."""
    if os.path.isfile(name_or_path):  # as hub.resolve() would say, without loading what downloads need
        return Path(name_or_path)
    from pylogquant import hub

    with fetching() as progress:
        return hub.resolve(name_or_path, progress=progress, note=print_note, offline=offline)


def open_model(settings: ModelSettings) -> Model:
    """Loads the model, and tells where it is if that is a GPU, or could have been. Raises as Model() and hub.resolve()
    do."""
    path = find(settings.model, offline=settings.offline)
    from pylogquant.devices import cuda_library
    from pylogquant.model import Model

    model = Model(
        path, threads=settings.threads, pre=settings.pre, device=settings.device, gpu_layers=settings.gpu_layers
    )
    for note in model.tokenizer.notes:
        print_note(note)
    info = model.info()
    if info.device != "cpu":
        print_note(f"on {info.device}, {info.device_name}: {info.plan}")
    elif info.device_note and cuda_library() is not None:
        print_note(f"on the CPU: {info.device_note}")
    return model


def kv_options(
    name: str,
    keys: str | None,
    value_bits: int | None,
    window: int | None,
    sinks: int | None,
    overlay: str | None,
    select: str | None,
) -> KvOptions:
    """What --kv, --kv-k, --kv-v, --window, --sinks, --overlay and --select say; whether it can be, the core decides."""
    from pylogquant.kv import KvOptions

    return KvOptions(
        name=name,
        keys=keys,
        value_bits=value_bits or 0,
        window=window or 0,
        sinks=sinks,
        overlay=cast("Overlay | None", overlay),
        select=cast("Select | None", select),
    )


def context_tokens(asked: int | None, n_ctx_train: int, *, allow_long: bool) -> int:
    """Tokens of context for --ctx; the default is modest, so that memory use is too.

    Raises ArgumentError for a context longer than trained for that was not allowed.
    """
    if asked is None:
        return min(n_ctx_train, DEFAULT_CTX)
    if asked > n_ctx_train and not allow_long:
        raise ArgumentError(
            f"--ctx {asked} is more than the {n_ctx_train} tokens this model was trained for, beyond which answers tend"
            " to fall apart; ask for fewer, or add --allow-long-context"
        )
    return asked or n_ctx_train

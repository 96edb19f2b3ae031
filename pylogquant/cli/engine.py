"""Finds and opens the model that settings name, as most commands do first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pylogquant.cli.options import ModelSettings
from pylogquant.cli.output import fetching, print_note

if TYPE_CHECKING:
    from pylogquant.model import Model


def find(name_or_path: str, *, offline: bool) -> Path:
    """The file that a name or path stands for; a built-in model is fetched if it is missing."""
    if os.path.isfile(name_or_path):  # hub.resolve() would return the same, but takes time to import
        return Path(name_or_path)
    from pylogquant import hub

    with fetching() as progress:
        return hub.resolve(name_or_path, progress=progress, note=print_note, offline=offline)


def open_model(settings: ModelSettings) -> Model:
    """Loads the model; prints a note if it is on a GPU, or why it is not although the CUDA library is there. Raises as
    Model() and hub.resolve() do."""
    machine = settings.machine
    path = find(settings.model, offline=machine.offline)
    from pylogquant.devices import cuda_library
    from pylogquant.model import Model

    model = Model(path, threads=machine.threads, pre=machine.pre, device=machine.device, gpu_layers=machine.gpu_layers)
    for note in model.tokenizer.notes:
        print_note(note)
    info = model.info()
    if info.device != "cpu":
        print_note(f"on {info.device}, {info.device_name}: {info.plan}")
    elif info.device_note and cuda_library() is not None:
        print_note(f"on the CPU: {info.device_note}")
    return model

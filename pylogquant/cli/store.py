"""`pull`, `list` and `rm`: the models in the cache."""

from __future__ import annotations

import json
import sys

from pylogquant import hub
from pylogquant.cli.output import bytes_text, fetching, print_note


def pull(name: str, *, offline: bool) -> None:
    """Fetches a model; its path is the only thing on stdout."""
    licence = hub.BUILTINS[name].licence if name in hub.BUILTINS else None
    with fetching() as progress:
        path = hub.pull(name, progress=progress, note=print_note, offline=offline)
    if licence is not None and sys.stderr.isatty():
        print_note(f"{name} is under this licence: {licence}")
    print(path)


def list_models(*, as_json: bool) -> None:
    """Prints one line per model: name, size, and path, or a title for models that are not fetched."""
    models = hub.list_models()
    if as_json:
        rows = [
            {
                "name": model.name,
                "path": None if model.path is None else str(model.path),
                "bytes": model.n_bytes,
                "builtin": model.builtin,
                "title": model.title,
            }
            for model in models
        ]
        print(json.dumps(rows, indent=2))
        return
    width = max(len(model.name) for model in models)
    for model in models:
        where = str(model.path) if model.path is not None else f"not fetched - {model.title}"
        print(f"{model.name:<{width}}  {bytes_text(model.n_bytes):>10}  {where}")


def remove(name: str) -> None:
    """Deletes a model from the cache."""
    print(f"{name}: {bytes_text(hub.remove(name))} freed")

"""Error texts for names that stand for no model: one line that says what to do. Looks at folders, not the network."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Collection, Iterable
from pathlib import Path

from pylogquant._names import Reference, is_address, whole_models

__all__ = ["no_gguf", "no_such_model", "not_pulled", "not_to_pull"]

_OTHER_KINDS = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".ggml")
_CONVERT = (
    "only GGUF files are read: look on the Hub for a repository of this model whose name ends in -GGUF, or convert it"
    " with convert_hf_to_gguf.py of llama.cpp"
)
_N_SHOWN = 5


def no_such_model(text: str, builtins: Collection[str]) -> str:
    """The error text for a MODEL that is neither a file, nor a known name, nor one of the Hub."""
    try:
        os.stat(text)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        pass
    except OSError as cause:  # no permission, a name too long
        return f"{text}: {cause.strerror or cause}"
    if os.path.isdir(text):
        return _folder(Path(text))
    if os.path.exists(text):
        return f"{text} is not a regular file: give the path of a .gguf file"
    if os.path.islink(text):
        return f"{text} is a link to {os.readlink(text)!r}, where there is nothing"
    if text.lower().endswith(_OTHER_KINDS):
        return f"no model {text!r}: there is no such file; and {_CONVERT}"
    if is_address(text):
        return f"no model {text!r}: {_address()}"
    return (
        f"no model {text!r}: there is no such file, and it is not a known name (built-in: {', '.join(builtins)};"
        f" 'pylogquant list' shows all, 'pylogquant pull owner/repo:TAG' fetches more){_did_you_mean(text, builtins)}"
    )


def not_to_pull(text: str, builtins: Collection[str]) -> str:
    """The error text for a NAME that pull() cannot fetch."""
    if text.lower().endswith(_OTHER_KINDS):
        return f"{text!r} is not something to pull: {_CONVERT}"
    if is_address(text):
        return f"{text!r} is not something to pull: {_address()}"
    if os.path.exists(os.path.expanduser(text)):
        return f"{text!r} is not something to pull: it is here already; use its path"
    return (
        f"{text!r} is not something to pull: give one of {', '.join(builtins)}, owner/repo:FILE.gguf or"
        f" owner/repo:TAG{_did_you_mean(text, builtins)}"
    )


def not_pulled(reference: Reference, pulled: Iterable[str]) -> str:
    """The error text for a name of the Hub that the cache does not hold. pulled: names of what it holds."""
    if reference.what.lower().endswith(_OTHER_KINDS):
        return f"{reference}: {_CONVERT}"
    name = str(reference)
    same = [other for other in pulled if other.casefold().startswith(name.casefold())]
    hint = f"; did you mean {same[0]}?" if same and not same[0].startswith(name) else ""
    return f"{name}: not in the cache; fetch it with: pylogquant pull {shlex.quote(name)}{hint}"


def no_gguf(reference: Reference, files: Collection[str]) -> str:
    """The error text for a repository without a GGUF model. files: all files in it."""
    helpers = sorted(file for file in files if file.lower().endswith(".gguf"))
    if helpers:
        return (
            f"{reference.name} holds no GGUF model, only parts of one or what helps another model,"
            f" {_some(helpers)}; name a file to fetch it all the same"
        )
    if any(file.lower().endswith(_OTHER_KINDS) for file in files):
        return f"{reference.name} holds no GGUF model, but one of another kind; {_CONVERT}"
    return f"{reference.name} holds no GGUF model"


def _address() -> str:
    return (
        "of addresses only those of a model's page or file on huggingface.co are understood; download the file,"
        " and give its path"
    )


def _folder(folder: Path) -> str:
    names = _list(folder)
    models = whole_models(name for name in names if name.lower().endswith(".gguf"))
    if models:
        which = "it is" if len(models) == 1 else "give one of"
        return f"{folder} is a folder, not a model; {which} {_some([str(folder / name) for name in models])}"
    if any(name.lower().endswith(_OTHER_KINDS) for name in names):
        return f"{folder} is a folder with a model of another kind; {_CONVERT}"
    return f"{folder} is a folder, not a model: give the path of a .gguf file"


def _list(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _N_SHOWN} more" if len(names) > _N_SHOWN else ""
    return ", ".join(names[:_N_SHOWN]) + more


def _did_you_mean(text: str, builtins: Collection[str]) -> str:
    """Suggests a file of the same folder, or a built-in name, whose spelling is close; "" where none is."""
    folder, name = os.path.split(text)
    if "\0" not in text and name:
        files = [file for file in _list(Path(folder or ".")) if file.lower().endswith(".gguf")]
        close = difflib.get_close_matches(name.lower(), [file.lower() for file in files], n=1, cutoff=0.8)
        found = next((file for file in files if close and file.lower() == close[0]), None)
        if found is not None and found != name:
            return f"; did you mean {os.path.join(folder, found)}?"
    spelled = text.lower().replace(":", "-")
    close = difflib.get_close_matches(spelled, builtins, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""

"""Default sampling options and system message of a model: from its file, or from the record of a built-in model.

A GGUF file may carry its maker's advice under `general.sampling.*`. Keys that have an option here are followed; every
other key is named in a note, because dropping one silently gives other answers than the maker promised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pylogquant import hub
from pylogquant.options import SamplingOptions

__all__ = ["AnswerDefaults", "answer_defaults"]

_PREFIX = "general.sampling."
# The order in which our samplers run, named as in llama.cpp's `sequence`, and samplers that are off there by default.
_ORDER = ("penalties", "top_k", "top_p", "min_p", "temperature")
_OFF_BY_DEFAULT = frozenset({"dry", "top_n_sigma", "typ_p", "typical_p", "xtc"})


@dataclass(frozen=True)
class AnswerDefaults:
    """The options and the system message for a model where the caller gives none."""

    options: SamplingOptions
    source: str
    """Where `named` comes from: "the file", "the built-in record", or "" if all options are SamplingOptions' own."""
    named: tuple[str, ...]
    """The fields of options that the source gives."""
    not_followed: tuple[str, ...]
    """The file's keys that have no effect here, with their values: "general.sampling.mirostat = 2"."""
    system: str
    """The system message of a chat, from the built-in record; "" where there is none."""

    @property
    def note(self) -> str:
        """A line about the keys that have no effect, "" where there are none."""
        return f"the file asks for what is not done here: {', '.join(self.not_followed)}" if self.not_followed else ""

    def describe(self, options: SamplingOptions) -> str:
        """Options in words, and which of their values come from the source."""
        mine = [name for name in self.named if getattr(options, name) == getattr(self.options, name)]
        origin = f" ({', '.join(_SPELLED[name] for name in mine)}: from {self.source})" if mine else ""
        return _in_words(options) + origin


def _in_words(options: SamplingOptions) -> str:
    """Options in words, without those that are off."""
    if options.temperature == 0:
        parts = ["temperature 0: always the most probable token"]
    else:
        parts = [f"temperature {options.temperature:.6g}"]
        parts += [f"top-k {options.top_k}"] if options.top_k else []
        parts += [f"top-p {options.top_p:.6g}"] if options.top_p < 1 else []
        parts += [f"min-p {options.min_p:.6g}"] if options.min_p > 0 else []
    for name, off in (("repeat_penalty", 1.0), ("frequency_penalty", 0.0), ("presence_penalty", 0.0)):
        value = getattr(options, name)
        parts += [f"{_SPELLED[name]} {value:.6g}"] if value != off else []
    return ", ".join(parts)


_SPELLED = {
    "temperature": "temperature",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "repeat_penalty": "repeat penalty",
    "frequency_penalty": "frequency penalty",
    "presence_penalty": "presence penalty",
    "penalty_last_n": "tokens that penalties see",
}


def answer_defaults(metadata: Mapping[str, object], path: Path) -> AnswerDefaults:
    """The defaults from a file's metadata, or, if it has none and the file is a built-in model's, from its record."""
    found, not_followed = _from_file(metadata)
    source, system = "the file", ""
    record = None if found else hub.builtin_at(path)
    if record is not None:
        found, source, system = dict(record.sampling), "the built-in record", record.system
    options = replace(SamplingOptions(), **found)  # type: ignore[arg-type]
    return AnswerDefaults(options, source if found else "", tuple(found), tuple(not_followed), system)


def _from_file(metadata: Mapping[str, object]) -> tuple[dict[str, float], list[str]]:
    """Fields of SamplingOptions that the file gives, and its keys that have no effect here."""
    found: dict[str, float] = {}
    in_vain = []
    for key in metadata:
        if not key.startswith(_PREFIX):
            continue
        name, value = key.removeprefix(_PREFIX), metadata[key]
        field, wanted = _read(name, value)
        if wanted is not None:
            found[field] = wanted
        elif not _is_harmless(name, metadata):
            in_vain.append(f"{key} = {_short(value)}")
    if found.get("penalty_last_n") == _PENALTIES_SEE_NOTHING:
        del found["penalty_last_n"]
        found["repeat_penalty"] = 1.0
    return found, in_vain


def _read(name: str, value: object) -> tuple[str, float | None]:
    """The field of SamplingOptions that a key sets, and its value; None where no field fits or the value is invalid."""
    field, read = _FIELDS.get(name, ("", None))
    if read is None or not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return field, None
    return field, read(value)


def _is_harmless(name: str, metadata: Mapping[str, object]) -> bool:
    """Whether ignoring this key changes nothing, because it asks for what is done anyway."""
    if name == "sequence":
        names = str(metadata[_PREFIX + name]).split(";")
        return [each for each in names if each not in _OFF_BY_DEFAULT] == list(_ORDER)
    return name in _SWITCHES and metadata.get(_PREFIX + _SWITCHES[name]) == 0


def _short(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."


_PENALTIES_SEE_NOTHING = -1.0


def _temperature(value: float) -> float | None:
    return max(value, 0.0) if value <= 1000 else None  # below 0 is greedy, as 0 is


def _top_k(value: float) -> float | None:
    return max(int(value), 0) if value < 2**32 else None  # below 0 is off, as 0 is


def _top_p(value: float) -> float | None:
    return min(value, 1.0) if value > 0 else None


def _min_p(value: float) -> float | None:
    return max(value, 0.0) if value < 1 else None


def _repeat_penalty(value: float) -> float | None:
    return value if 0 < value <= 1000 else None


def _last_n(value: float) -> float | None:
    """In a file -1 means the whole context and 0 nothing; here 0 means the whole context."""
    if value == 0:
        return _PENALTIES_SEE_NOTHING
    return int(max(value, 0)) if value < 2**32 else None


_FIELDS: dict[str, tuple[str, Callable[[float], float | None]]] = {
    "temp": ("temperature", _temperature),
    "top_k": ("top_k", _top_k),
    "top_p": ("top_p", _top_p),
    "min_p": ("min_p", _min_p),
    "penalty_repeat": ("repeat_penalty", _repeat_penalty),
    "penalty_last_n": ("penalty_last_n", _last_n),
}
# Keys that have no effect while the key on the right (perhaps themselves) is 0.
_SWITCHES = {
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat",
    "mirostat_eta": "mirostat",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_probability",
}

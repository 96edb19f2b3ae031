"""Every exception this package raises on purpose.

LogQuantError                    one line of text: what, where, what to do
├── ArgumentError                a value out of range; also a ValueError
├── OutOfMemory                  not enough memory, or over the stated budget; also a MemoryError
├── FileError                    a file cannot be opened, read or written; also an OSError
├── ModelFormatError             a model or session file is damaged, truncated, or not what it should be
├── Unsupported                  well-formed, but this build cannot run it
├── ContextFull                  the session has no room for the tokens; nothing was lost
├── Cancelled                    Session.cancel() was called, and the session stays usable; or the session was closed
├── SessionBusy                  another thread is inside this session, or KV layer, or sampler
├── ClosedError                  a model, session or file was used after close()
├── ForkedError                  the object was made before this process was forked; make it after the fork
├── CopyError                    the object cannot be copied or pickled; also a TypeError
├── TokenizerError               the tokenizer in a model file is missing, unknown or inconsistent
├── TemplateError                a chat template is missing, fails, or exceeds its limits
├── DownloadError                a model cannot be fetched or does not verify; partial files are not kept as models
├── NativeLibraryError           the compiled core is missing or stale; also an ImportError
└── InternalError                an invariant of our own failed: a defect, please report
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "Cancelled",
    "ClosedError",
    "ContextFull",
    "CopyError",
    "DownloadError",
    "FileError",
    "ForkedError",
    "InternalError",
    "LogQuantError",
    "ModelFormatError",
    "NativeLibraryError",
    "OutOfMemory",
    "SessionBusy",
    "TemplateError",
    "TokenizerError",
    "Unsupported",
]


class LogQuantError(Exception):
    """Base of all errors raised by this package; str() is one line meant for people."""


class ArgumentError(LogQuantError, ValueError):
    """An argument is out of range or of the wrong kind; the call had no effect."""


class OutOfMemory(LogQuantError, MemoryError):
    """Not enough memory, or a plan above the stated budget; nothing stays allocated."""


class FileError(LogQuantError, OSError):
    """A file cannot be opened, read or written."""


class ModelFormatError(LogQuantError):
    """A model or session file is damaged, truncated, or not what it should be."""


class Unsupported(LogQuantError):
    """Well-formed input that this build cannot run: an architecture, a tensor type, a KV type, a CPU level."""


class ContextFull(LogQuantError):
    """The session's context has no room for the tokens; the session is as it was before the call."""


class Cancelled(LogQuantError):
    """The evaluation was cancelled. Chunks that were evaluated completely stay, and the session can go on, unless it
    was closed."""


class SessionBusy(LogQuantError):
    """Another thread is inside this session, KV layer or sampler; use one per thread."""


class ClosedError(LogQuantError):
    """A model, session or file was used after its close()."""


class ForkedError(LogQuantError):
    """A model, or an object made with it, was used in a forked child, but its threads stayed in the parent. It can only
    be closed there; open the model after the fork."""


class CopyError(LogQuantError, TypeError):
    """The object to be copied or pickled holds memory of the core's; the text says what to do instead."""


class TokenizerError(LogQuantError):
    """The tokenizer described in a model file is missing, unknown or inconsistent."""


class TemplateError(LogQuantError):
    """A chat template is missing, fails, or exceeds its limits of size, output or time."""


class DownloadError(LogQuantError):
    """A model cannot be fetched, or what was fetched does not match its checksum."""


class NativeLibraryError(LogQuantError, ImportError):
    """The compiled core is missing, cannot be loaded, or belongs to another version of this package."""


class InternalError(LogQuantError):
    """An invariant of the library itself failed: a defect, please report it."""

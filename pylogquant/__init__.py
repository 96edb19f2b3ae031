"""pylogquant: an embedded LLM runtime for GGUF models.

    from pylogquant import Model

    with Model("model.gguf") as model:
        chat = model.chat(system="Be brief.")
        for piece in chat.stream("Hello"):
            print(piece, end="", flush=True)

The public names, in the order in which most programs need them:

    Model                               a loaded model file; makes all that follows
    Chat, ChatOptions                   a conversation with its session: send a message, stream the answer
    SamplingOptions, Sampler            how tokens are picked from logits
    Session, SessionOptions, KvOptions  a token history with its KV cache: evaluate, go back, fork, save
    Tokenizer, TextStream               text to ids; generated ids to text and where it ends
    Conversation, Batch                 many conversations at once: messages to ids, and sessions that step together
    GGUFFile, KvLayer                   a file's metadata and tensors; one attention layer without a model
    LogQuantError                       the base of all errors; pylogquant/errors.py shows the tree

Public names are loaded on first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pylogquant.errors import (
    ArgumentError,
    Cancelled,
    ClosedError,
    ContextFull,
    CopyError,
    DownloadError,
    FileError,
    ForkedError,
    InternalError,
    LogQuantError,
    ModelFormatError,
    NativeLibraryError,
    OutOfMemory,
    SessionBusy,
    TemplateError,
    TokenizerError,
    Unsupported,
)

if TYPE_CHECKING:
    from pylogquant.batch import Batch
    from pylogquant.chat import Chat
    from pylogquant.conversation import Conversation
    from pylogquant.gguf import GGUFFile
    from pylogquant.kv import KvLayer, KvOptions
    from pylogquant.model import Model
    from pylogquant.options import ChatOptions, SamplingOptions, SessionOptions
    from pylogquant.session import Sampler, Session
    from pylogquant.text_stream import TextStream
    from pylogquant.tokenizer import Tokenizer

    __version__: str

__all__ = [
    "ArgumentError",
    "Batch",
    "Cancelled",
    "Chat",
    "ChatOptions",
    "ClosedError",
    "ContextFull",
    "Conversation",
    "CopyError",
    "DownloadError",
    "FileError",
    "ForkedError",
    "GGUFFile",
    "InternalError",
    "KvLayer",
    "KvOptions",
    "LogQuantError",
    "Model",
    "ModelFormatError",
    "NativeLibraryError",
    "OutOfMemory",
    "Sampler",
    "SamplingOptions",
    "Session",
    "SessionBusy",
    "SessionOptions",
    "TemplateError",
    "TextStream",
    "Tokenizer",
    "TokenizerError",
    "Unsupported",
    "__version__",
]

_LAZY = {
    "Batch": "pylogquant.batch",
    "Chat": "pylogquant.chat",
    "ChatOptions": "pylogquant.options",
    "Conversation": "pylogquant.conversation",
    "GGUFFile": "pylogquant.gguf",
    "KvLayer": "pylogquant.kv",
    "KvOptions": "pylogquant.kv",
    "Model": "pylogquant.model",
    "Sampler": "pylogquant.session",
    "SamplingOptions": "pylogquant.options",
    "Session": "pylogquant.session",
    "SessionOptions": "pylogquant.options",
    "TextStream": "pylogquant.text_stream",
    "Tokenizer": "pylogquant.tokenizer",
}


if not TYPE_CHECKING:  # a type checker that saw this function would take every name for a public one

    def __getattr__(name: str) -> object:
        value: object
        if name == "__version__":
            from importlib.metadata import version

            value = version("pylogquant")
        elif name in _LAZY:
            from importlib import import_module

            value = getattr(import_module(_LAZY[name]), name)
        else:
            raise AttributeError(f"module 'pylogquant' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

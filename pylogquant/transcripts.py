"""Reads and writes conversations as JSON files, and checks messages that were saved with a session."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pylogquant._native import write_file
from pylogquant.errors import FileError

if TYPE_CHECKING:
    from pylogquant.templates import Message

__all__ = ["check_messages", "is_session_file", "read_transcript", "write_transcript"]

_FORMAT, _VERSION = "pylogquant-chat", 1
_MAX_FILE_BYTES = 64 * 1024 * 1024
_SESSION_MAGIC = b"LQSESS\r\n"


def is_session_file(path: Path) -> bool:
    """Whether a file begins like a saved session; False also for one that cannot be read."""
    try:
        if not os.path.isfile(path):  # opening a FIFO waits for a writer
            return False
        with path.open("rb") as file:
            return file.read(len(_SESSION_MAGIC)) == _SESSION_MAGIC
    except (OSError, ValueError):
        return False


def write_transcript(path: Path, messages: Sequence[Message]) -> None:
    """Writes messages as JSON, whole or not at all. Raises FileError."""
    data = {"format": _FORMAT, "version": _VERSION, "messages": list(messages)}
    write_file(path, json.dumps(data, ensure_ascii=False, indent=1).encode() + b"\n")


def read_transcript(path: Path) -> list[Message]:
    """The messages of a file that write_transcript() wrote. Raises FileError."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise FileError(f"cannot read {path}: it is no regular file")
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as cause:
        reason = getattr(cause, "strerror", None) or str(cause)
        raise FileError(f"cannot read {path}: {reason}") from cause
    if len(data) > _MAX_FILE_BYTES:
        raise FileError(f"{path} is larger than {_MAX_FILE_BYTES // 2**20} MiB; a saved conversation is not")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as cause:
        raise FileError(f"{path} is not a saved conversation: it is not JSON") from cause
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise FileError(f"{path} is not a saved conversation: it has no format {_FORMAT!r}")
    if found.get("version") != _VERSION:
        raise FileError(f"{path} has version {found.get('version')!r}; this release reads version {_VERSION}")
    return check_messages(path, found.get("messages"))


def check_messages(path: Path, found: object) -> list[Message]:
    """Returns messages from a file if they are complete turns of a conversation. Raises FileError."""
    if not isinstance(found, list):
        raise FileError(f"{path} is damaged: it has no list of messages")
    messages: list[Message] = []
    for i, item in enumerate(found):
        n_turns = len(messages) - (bool(messages) and messages[0]["role"] == "system")
        expected = ["system", "user"] if i == 0 else ["assistant" if n_turns % 2 else "user"]
        if not isinstance(item, dict) or set(item) != {"role", "content"} or not isinstance(item["content"], str):
            raise FileError(f"{path} is damaged: message {i} must have a role and a content, both text")
        if item["role"] not in expected:
            raise FileError(f"{path} is damaged: message {i} must be of role {' or '.join(expected)}")
        try:
            item["content"].encode()
        except UnicodeEncodeError as cause:
            raise FileError(f"{path} is damaged: message {i} holds a lone surrogate") from cause
        messages.append({"role": item["role"], "content": item["content"]})
    if messages and messages[-1]["role"] == "user":
        raise FileError(f"{path} is damaged: its last message has no answer")
    return messages

"""Reads turns: with a line editor on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from pylogquant.cli.interrupts import Interrupts
from pylogquant.cli.output import print_note
from pylogquant.errors import ArgumentError

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

_FENCE = '"""'


class Reader(Protocol):
    """Gives one turn at a time. Raises EOFError at the end, KeyboardInterrupt for Ctrl-C."""

    def read(self) -> str: ...


class LineReader:
    """One line, one turn; a turn of several lines stands between two fences of three double quotes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._at_start = True

    def read(self) -> str:
        line = self._stream.readline()
        if not line:
            raise EOFError
        text = decode(line, at_start=self._at_start).rstrip("\r\n")
        self._at_start = False
        while _fence_is_open(text):
            line = self._stream.readline()
            if not line:
                break  # the end of the input closes the fence
            text += "\n" + decode(line, at_start=False).rstrip("\r\n")
        return _without_fences(text)


class _CtrlC(Exception):
    """Raised by a prompt for Ctrl-C. An event loop lets a KeyboardInterrupt through before it has cleaned up."""


class TerminalReader:
    """A line editor with history; Alt+Enter, or Enter inside a fence, starts a new line."""

    def __init__(self, commands: Sequence[str], interrupts: Interrupts) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter

        self._session: PromptSession[str] = PromptSession(
            "> ",
            history=_history(),
            key_bindings=_keys(),
            multiline=True,
            prompt_continuation=". ",
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            interrupt_exception=_CtrlC,
        )
        self._interrupts = interrupts

    def read(self) -> str:
        while True:
            self._interrupts.elsewhere = self._on_signal
            try:
                return _without_fences(self._session.prompt(handle_sigint=False))
            except _CtrlC:
                if not self._session.default_buffer.text:
                    raise KeyboardInterrupt from None
                # If something was typed, Ctrl-C only discards it.
            finally:
                self._interrupts.elsewhere = None
                self._interrupts.forget()

    def _on_signal(self) -> None:
        """Handles SIGINT during a prompt. A terminal does not send it then: it passes Ctrl-C on as a key."""
        loop = self._session.app.loop
        if loop is not None and self._session.app.is_running:
            loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        app = self._session.app
        if app.is_running and not app.is_done:
            app.exit(exception=_CtrlC(), style="class:aborting")


def decode(data: bytes, *, at_start: bool = True) -> str:
    """Decodes standard input as UTF-8, whatever the locale; drops a byte order mark at its start."""
    try:
        return data.decode("utf-8-sig" if at_start else "utf-8")
    except UnicodeDecodeError as cause:
        raise ArgumentError(f"standard input is not UTF-8 text (byte {cause.start}); convert it first") from None


def _keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.keys import Keys

    keys = KeyBindings()

    @keys.add("enter")
    def _accept(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if _fence_is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add(Keys.Vt100MouseEvent)
    def _no_mouse(event: KeyPressEvent) -> None:
        """Pasted colours (ESC [ 31 m) look like the mouse to prompt_toolkit 3.0.53, which then fails to read them."""

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _history() -> History:
    """History in the user's state folder, readable by the user only: conversations are private."""
    import platformdirs
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = Path(platformdirs.user_state_dir("pylogquant", appauthor=False)) / "history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    except OSError as cause:
        print_note(f"no history between sessions: cannot write {path} ({cause.strerror or cause})")
        return InMemoryHistory()
    return FileHistory(str(path))


def _fence_is_open(text: str) -> bool:
    return text.lstrip().startswith(_FENCE) and text.count(_FENCE) % 2 == 1


def _without_fences(text: str) -> str:
    stripped = text.strip()
    if not stripped.startswith(_FENCE):
        return text
    return stripped.removeprefix(_FENCE).removesuffix(_FENCE).strip("\n")

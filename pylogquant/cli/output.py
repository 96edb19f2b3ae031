"""Output that all commands share: errors as one line, exit statuses, quiet progress, units.

Answers go to stdout; banners, progress, notes and errors go to stderr, and decoration only to a terminal.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pylogquant.errors import ContextFull, FileError, LogQuantError

if TYPE_CHECKING:
    from rich.console import Console

# Carriage returns are removed, because they would let a line overwrite itself.
_NO_CONTROLS: dict[int, str | None] = dict.fromkeys((*range(32), *range(127, 160)), "�")
_NO_CONTROLS.update({ord("\n"): "\n", ord("\t"): "\t", ord("\r"): None})

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

# Errors of writing to a full or broken disk, by Python's names; Windows has no EDQUOT.
_OUTPUT_ERRORS = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO") if hasattr(errno, name)}


class _ClosedInput(io.RawIOBase):
    """Stands for a standard input that was closed before we began: reading it is an error, closing it is not."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        raise FileError("standard input is closed: there is nothing to read a prompt from")


def is_input_closed() -> bool:
    """Whether standard input was closed before we began."""
    return isinstance(getattr(getattr(sys.stdin, "buffer", None), "raw", None), _ClosedInput)


def open_streams() -> None:
    """Opens standard streams that were closed (`pylogquant list >&-`), which are None in Python and whose numbers the
    next opened files would get. Reading or writing them fails; notes on stderr are lost."""
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is not None:
            continue
        # /dev/null opened for reading only: writing to it fails as writing to a closed file does.
        null = os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
        if null != number:
            os.dup2(null, number)
            os.close(null)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(_ClosedInput()))
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
        _OUTPUT_ERRORS.add(errno.EBADF)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def print_version() -> None:
    from importlib.metadata import version

    print(f"pylogquant {version('pylogquant')}")


def print_error(text: str) -> None:
    """One line on stderr, whatever the text holds."""
    with suppress(OSError):  # guard_output() reports it at the end of the command
        sys.stdout.flush()
    _print_to_stderr(f"error: {shown(' '.join(text.split()))}")


def print_note(text: str) -> None:
    """One line on stderr that is no error."""
    with suppress(OSError):
        sys.stdout.flush()
    _print_to_stderr(f"note: {shown(' '.join(text.split()))}")


def _print_to_stderr(line: str) -> None:
    """Prints a line to stderr. An error in that is ignored: nobody could be told."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


@contextmanager
def guard() -> Iterator[None]:
    """Turns the exceptions that a command may raise into one line and an exit status; defects keep their traceback."""
    try:
        with guard_output():
            yield
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except LogQuantError as error:
        print_error(f"{error} A larger --ctx gives more room" if isinstance(error, ContextFull) else str(error))
        sys.exit(EXIT_ERROR)


@contextmanager
def guard_output() -> Iterator[None]:
    """Turns errors of writing stdout into one line and an exit status. Also flushes stdout at the end, because Python's
    own flush at exit would report an error in its own way."""
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except LogQuantError:  # some are OSErrors, too
        raise
    except BrokenPipeError:  # the reader is gone (`| head`)
        _drop_output()
        sys.exit(EXIT_BROKEN_PIPE)
    except OSError as error:
        if error.errno not in _OUTPUT_ERRORS:
            raise
        _drop_output()
        reason = "standard output is closed" if error.errno == errno.EBADF else error.strerror
        print_error(f"cannot write the output: {reason}")
        sys.exit(EXIT_ERROR)


def _drop_output() -> None:
    """Sends the rest of stdout to /dev/null, so that Python's flush at exit does not report the same error again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console(*, stderr: bool = False) -> Console:
    """A rich console: colours and width of the terminal; plain and unwrapped elsewhere; NO_COLOR is respected."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 1000, highlight=False, soft_wrap=True)


def shown(text: str) -> str:
    """text for a terminal: control characters (from a file, or made by a model) become visible and have no effect."""
    return text.translate(_NO_CONTROLS)


def bytes_text(n_bytes: int) -> str:
    """A size with its unit: 123 -> "123 B", 98362432 -> "93.8 MiB"."""
    if n_bytes < 1024:
        return f"{n_bytes} B"
    value = float(n_bytes)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024 or unit == "GiB":
            break
    return f"{value:,.1f} {unit}"


def aligned(rows: Iterable[tuple[str, ...]], indent: str = "  ") -> Iterator[str]:
    """Rows with aligned columns. Ignores the terminal's width, because programs read this, too."""
    rows = [tuple(row) for row in rows]
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield indent + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


@contextmanager
def fetching() -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress callback for hub.pull() and hub.resolve() that draws on a terminal; None elsewhere."""
    # Silences the Hub's library, which warns about matters of its own (tokens, resumed downloads).
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
    )
    tasks: dict[str, int] = {}

    def update(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total or None)
            bar.start()  # nothing is drawn for a model that is in the cache already
        bar.update(tasks[what], completed=done)  # type: ignore[arg-type]

    try:
        yield update
    finally:
        bar.stop()

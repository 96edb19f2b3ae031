"""What all commands share on the way out: errors as one line, exit statuses, quiet progress, units.

Answers go to stdout; banners, progress, notes and errors go to stderr, and decoration only to a terminal.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pylogquant.errors import ContextFull, LogQuantError

if TYPE_CHECKING:
    from rich.console import Console

# Carriage returns vanish: they would let a line overwrite itself.
_NO_CONTROLS: dict[int, str | None] = dict.fromkeys((*range(32), *range(127, 160)), "�")
_NO_CONTROLS.update({ord("\n"): "\n", ord("\t"): "\t", ord("\r"): None})

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

# What writing to a full or broken disk gives, by Python's names; Windows has no EDQUOT.
_OUTPUT_ERRORS = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO") if hasattr(errno, name)}


def print_version() -> None:
    from importlib.metadata import version

    print(f"pylogquant {version('pylogquant')}")


def print_error(text: str) -> None:
    """One line on stderr, whatever the text holds."""
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    print(f"error: {shown(' '.join(text.split()))}", file=sys.stderr, flush=True)


def print_note(text: str) -> None:
    """One line on stderr that is no error."""
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    print(f"note: {shown(' '.join(text.split()))}", file=sys.stderr, flush=True)


@contextmanager
def guard() -> Iterator[None]:
    """Turns what a command may raise on purpose into one line and an exit status; defects keep their traceback."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except LogQuantError as error:
        print_error(f"{error} A larger --ctx gives more room" if isinstance(error, ContextFull) else str(error))
        sys.exit(EXIT_ERROR)
    except BrokenPipeError:  # the reader is gone (`| head`)
        _drop_output()
        sys.exit(EXIT_BROKEN_PIPE)
    except OSError as error:
        if error.errno not in _OUTPUT_ERRORS:
            raise
        _drop_output()
        print_error(f"cannot write the output: {error.strerror}")
        sys.exit(EXIT_ERROR)


def _drop_output() -> None:
    """Python would complain again when it flushes stdout at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console(*, stderr: bool = False) -> Console:
    """A rich console: colours and width of the terminal; plain and unwrapped elsewhere; NO_COLOR is respected."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 1000, highlight=False, soft_wrap=True)


def shown(text: str) -> str:
    """text for a terminal: characters that would command it (from a file, or made by a model) become visible."""
    return text.translate(_NO_CONTROLS)


def bytes_text(n_bytes: int) -> str:
    """123 -> "123 B", 98362432 -> "93.8 MiB"."""
    if n_bytes < 1024:
        return f"{n_bytes} B"
    value = float(n_bytes)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024 or unit == "GiB":
            break
    return f"{value:,.1f} {unit}"


def aligned(rows: Iterable[tuple[str, ...]], indent: str = "  ") -> Iterator[str]:
    """Rows with aligned columns; a terminal's width does not matter to the programs that read this."""
    rows = [tuple(row) for row in rows]
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield indent + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


@contextmanager
def fetching() -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress callback for hub.pull() and hub.resolve() that draws on a terminal; None, so silence, elsewhere."""
    # The Hub's library warns about matters of its own (tokens, resumed downloads); ours are the only messages.
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

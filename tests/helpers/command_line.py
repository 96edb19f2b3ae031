"""Calls the command line inside the test's process, without a terminal."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

from pylogquant.cli.app import app


class Result:
    """Exit status and output of one call."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    def json(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)


def call(*arguments: object, stdin: str | bytes = b"") -> Result:
    """The command line in this process."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    found = CliRunner().invoke(app, [str(argument) for argument in arguments], input=data, prog_name="pylogquant")
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return Result(found.exit_code, found.stdout, found.stderr)


def one_error(result: Result, *words: str, status: int = 1) -> None:
    """Nothing on stdout, one `error:` line on stderr with these words."""
    assert result.status == status, result.err
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert result.err.endswith("\n")
    for word in words:
        assert word in result.err

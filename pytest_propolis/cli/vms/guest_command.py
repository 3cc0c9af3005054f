"""What commands that use a guest share: their command line for it, their logs, and their exit statuses."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from ...errors import PropolisError

__all__ = ["FAILED", "INTERRUPTED", "command_line", "log_directory", "own_statuses"]

FAILED: Final = 125
"""The command did not run; programs seldom have this status, and `docker run` uses it, too."""

INTERRUPTED: Final = 130
"""As a shell's after SIGINT."""


@contextlib.contextmanager
def own_statuses() -> Iterator[None]:
    """Exit with a status of our own on our errors and on Ctrl-C, distinct from the other program's."""
    try:
        yield
    except PropolisError as error:
        click.echo(f"propolis: {error}", err=True)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def command_line(arguments: tuple[str, ...]) -> str:
    """One word is a line for the guest's shell; several are a program and its arguments.

    A ``--`` before them is left out: the parser leaves one that comes after another argument.
    """
    arguments = arguments[1:] if arguments[0] == "--" else arguments
    return arguments[0] if len(arguments) == 1 else shlex.join(arguments)


@contextlib.contextmanager
def log_directory(command: str) -> Iterator[Path]:
    """Make a temporary directory for logs. After an error, which names one of them, it stays with what it has."""
    directory = Path(tempfile.mkdtemp(prefix=f"propolis-{command}-"))
    try:
        yield directory
    except PropolisError:
        with contextlib.suppress(OSError):
            directory.rmdir()  # fails where there is a log
        raise
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    shutil.rmtree(directory, ignore_errors=True)

"""Exit statuses of commands that exit with another program's status."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Final

import click

from ...errors import PropolisError

__all__ = ["FAILED", "INTERRUPTED", "own_statuses"]

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

"""Progress lines, shown while a test waits."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import pytest

from .internals import is_worker, terminal_reporter, without_capture, worker_name

__all__ = ["line_printer", "progress_printer"]


def line_printer(config: pytest.Config) -> Callable[[str], None]:
    """Return a function that shows a line on the terminal while nothing is captured."""

    def show(text: str) -> None:
        if (reporter := terminal_reporter(config)) and not is_worker(config):
            reporter.ensure_newline()
            reporter.write_line(text)

    return show


def progress_printer(config: pytest.Config) -> Callable[[str], None]:
    """Return a function that shows a line on the terminal, bypassing pytest's capturing.

    An xdist worker writes it to its standard error, which is the controller's, because the controller shows its
    workers' reports only when a test has ended.
    """
    write = _writer(config)

    def show(text: str) -> None:
        with without_capture(config):
            write(text)

    return show


def _writer(config: pytest.Config) -> Callable[[str], None]:
    if name := worker_name(config):
        # In one piece, so that it does not mix with other workers' lines; the controller's may not have ended.
        return lambda text: _write_raw(f"\npropolis [{name}]: {text}\n")
    reporter = terminal_reporter(config)
    if reporter is None:
        return lambda text: None

    def write(text: str) -> None:
        reporter.ensure_newline()
        reporter.write_line(f"propolis: {text}")

    return write


def _write_raw(text: str) -> None:
    with contextlib.suppress(OSError):  # its reader has exited
        os.write(2, text.encode(errors="replace"))

"""Lines that say what a run is doing while a test waits for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

__all__ = ["line_printer", "progress_printer"]


def line_printer(config: pytest.Config) -> Callable[[str], None]:
    """A function that shows a line to the person at the terminal while nothing is captured."""

    def show(text: str) -> None:
        if (reporter := config.pluginmanager.get_plugin("terminalreporter")) and not hasattr(config, "workerinput"):
            reporter.ensure_newline()
            reporter.write_line(text)

    return show


def progress_printer(config: pytest.Config) -> Callable[[str], None]:
    """A function that shows a line to the person at the terminal, past pytest's capturing. An xdist worker has none."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None or hasattr(config, "workerinput"):
        return lambda text: None

    def show(text: str) -> None:
        if capture is None:
            reporter.write_line(f"propolis: {text}")
            return
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(f"propolis: {text}")

    return show

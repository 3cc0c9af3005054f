"""Fixtures for all tests.

Signals end this process, and those that it starts, as they do at a terminal. A shell starts its background jobs with
Ctrl-C ignored, and so does `nohup` with SIGHUP; children inherit that.

In continuous integration, as root, a test that is skipped for want of a program fails: `./run tests` installs it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Generator
from typing import Final

import pytest

with contextlib.suppress(ModuleNotFoundError):  # `./run examples` reads this, and installs no extra
    from hypothesis import settings

    # How long an example takes depends on what else the machine does.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")

WANT_OF_A_PROGRAM: Final = re.compile(r"not installed|\bpackage\b|\bsshd\b")

for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get("CI") and os.geteuid() == 0 and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if WANT_OF_A_PROGRAM.search(reason):
            report.outcome = "failed"
            report.longrepr = f"{reason}\nIn continuous integration what tests need is installed: see ./run"
    return report

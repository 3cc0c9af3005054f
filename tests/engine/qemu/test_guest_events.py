"""How the end of QEMU is described."""

from __future__ import annotations

import signal

import pytest

from pytest_propolis.engine.qemu.guest_events import exit_reason


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (0, "QEMU ended by itself with status 0"),
        (1, "QEMU ended by itself with status 1"),
        (-signal.SIGKILL, "QEMU was killed by SIGKILL; is the host or its container out of memory?"),
        (-signal.SIGSEGV, "QEMU was ended by signal SIGSEGV"),
        (-signal.SIGSYS, "QEMU was ended by signal SIGSYS"),
        (-35, "QEMU was ended by signal 35"),
    ],
)
def test_a_signal_is_named_and_a_status_shown(status: int, reason: str) -> None:
    assert exit_reason(status) == reason


def test_what_qemu_has_printed_last_follows_unless_it_was_killed() -> None:
    assert exit_reason(-signal.SIGABRT, "Assertion failed.") == "QEMU was ended by signal SIGABRT: Assertion failed."
    assert exit_reason(1, "no memory") == "QEMU ended by itself with status 1: no memory"
    assert exit_reason(-signal.SIGKILL, "no memory") == exit_reason(-signal.SIGKILL)


def test_every_reason_fits_into_a_close_frame() -> None:
    assert max(len(exit_reason(status).encode()) for status in range(-64, 256)) <= 123

"""A child process that cannot be recorded is not started, or not left running."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_rig import FAKE_QEMU
from full_journal import FullJournal

from pytest_propolis.engine.qemu.machine import Machine
from pytest_propolis.errors import ResourceExhausted


def machine(directory: Path, journal: FullJournal) -> Machine:
    return Machine(
        program=FAKE_QEMU.system,
        arguments=[],
        log_path=directory / "qemu.log",
        journal=journal,
        on_event=lambda _event: None,
    )


async def test_nothing_is_started_that_was_not_written_down(tmp_path: Path) -> None:
    journal = FullJournal(fails="intend")
    with pytest.raises(ResourceExhausted, match="the ledger is full"):
        await machine(tmp_path, journal).start()
    assert journal.process is None


async def test_a_process_whose_pid_cannot_be_written_down_is_ended(tmp_path: Path) -> None:
    journal = FullJournal(fails="live")
    with pytest.raises(ResourceExhausted, match="the ledger is full"):
        await machine(tmp_path, journal).start()
    assert journal.process is not None
    assert not journal.process.is_alive()
    assert journal.is_gone

"""What a guest's shell makes of the commands that wake it."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from pytest_propolis.guests.awakening import PROGRAM, RECORD_BYTES, install_command, wake_command

SHELLS = [shell for shell in ("sh", "bash", "dash", "busybox") if shutil.which(shell)]


def run(shell: str, command: str) -> bytes:
    argv = ["busybox", "sh", "-c", command] if shell == "busybox" else [shell, "-c", command]
    return subprocess.run(argv, check=True, capture_output=True, timeout=10).stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_the_program_arrives_to_the_octet(shell: str, tmp_path: Path) -> None:
    place = tmp_path / "run" / "program"
    run(shell, install_command(str(place)))
    assert place.read_bytes() == PROGRAM
    assert place.stat().st_mode & 0o111


@pytest.mark.parametrize("shell", SHELLS)
def test_every_record_has_its_length_and_the_time(shell: str) -> None:
    records = {run(shell, wake_command("cat", name="vm").partition(" && ")[0]) for _ in range(50)}
    assert {len(record) for record in records} == {RECORD_BYTES}
    assert len({record[24:] for record in records}) == 50
    assert all(abs(int.from_bytes(record[:8], "little") - time.time()) < 60 for record in records)


def test_a_wake_command_is_short() -> None:
    """The guest reads it octet by octet."""
    assert max(len(wake_command("/run/.propolis-wake", name="vm")) for _ in range(50)) < 240

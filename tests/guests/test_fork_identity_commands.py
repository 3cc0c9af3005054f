"""Identity commands in the shells of guests."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import as_root, mounted, tmpfs

from pytest_propolis.guests.fork_identity import (
    NOT_EXECUTABLE,
    PLACES,
    PROGRAM,
    RECORD_BYTES,
    await_identity_command,
    identity_command,
    install_command,
)

SHELLS = [shell for shell in ("sh", "bash", "dash", "busybox") if shutil.which(shell)]


def run(shell: str, command: str) -> bytes:
    return subprocess.run(_argv(shell, command), check=True, capture_output=True, timeout=10).stdout


def _argv(shell: str, command: str) -> list[str]:
    return ["busybox", "sh", "-c", command] if shell == "busybox" else [shell, "-c", command]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_program_arrives_to_the_octet(shell: str, tmp_path: Path) -> None:
    place = tmp_path / "run" / "program"
    run(shell, install_command(str(place)))
    assert place.read_bytes() == PROGRAM
    assert place.stat().st_mode & 0o111


@pytest.fixture
def noexec(tmp_path: Path) -> Iterator[Path]:
    """A directory that programs may not be run from."""
    with mounted(tmp_path / "noexec", *tmpfs("noexec")) as place:
        yield place


@as_root
@pytest.mark.parametrize("shell", SHELLS)
def test_the_program_runs_also_where_its_place_is_mounted_noexec(shell: str, noexec: Path, tmp_path: Path) -> None:
    path, home = noexec / "program", tmp_path / "home"
    home.mkdir()
    # The other places are out of reach, so that the machine's own are left alone.
    command = install_command(str(path)).replace(" ".join(PLACES[:-1]), "/missing")
    subprocess.run(_argv(shell, command), check=True, env={**os.environ, "HOME": str(home)}, timeout=10)
    assert path.resolve() == home / ".propolis-program"
    assert path.read_bytes() == PROGRAM


@as_root
@pytest.mark.parametrize("shell", SHELLS)
def test_a_guest_that_lets_no_program_be_run_is_told_apart(shell: str, noexec: Path) -> None:
    command = install_command(str(noexec / "program")).replace(" ".join(PLACES), f"/missing {noexec}")
    done = subprocess.run(_argv(shell, command), check=False, capture_output=True, timeout=10)
    assert done.returncode == NOT_EXECUTABLE


@pytest.mark.parametrize("shell", SHELLS)
def test_every_record_has_its_length_the_time_and_the_name(shell: str, tmp_path: Path) -> None:
    path = tmp_path / "program"
    (tmp_path / "program.out").write_text("0\n")
    records = set()
    for _ in range(50):
        run(shell, identity_command(str(path), name="of-its-own"))
        records.add((tmp_path / "program.in").read_bytes())
    assert {record[RECORD_BYTES:] for record in records} == {b"of-its-own\n"}
    assert len({record[24:] for record in records}) == 50
    assert all(abs(int.from_bytes(record[:8], "little") - time.time()) < 60 for record in records)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_program_that_failed_fails_the_command(shell: str, tmp_path: Path) -> None:
    (tmp_path / "program.out").write_text("1\n")
    with pytest.raises(subprocess.CalledProcessError):
        run(shell, identity_command(str(tmp_path / "program"), name="vm"))


@pytest.mark.parametrize("shell", SHELLS)
def test_a_program_that_waits_is_there_when_the_command_ends(shell: str, tmp_path: Path) -> None:
    path = tmp_path / "program"
    run(shell, install_command(str(path)))
    (tmp_path / "program").write_text("#!/bin/sh\necho r; read -r record; echo 1\n")
    run(shell, await_identity_command(str(path)))
    with pytest.raises(subprocess.CalledProcessError):
        run(shell, identity_command(str(path), name="vm"))


def test_a_wake_command_is_short() -> None:
    """The guest reads it octet by octet."""
    assert max(len(identity_command("/run/.propolis-wake", name="vm")) for _ in range(50)) < 250

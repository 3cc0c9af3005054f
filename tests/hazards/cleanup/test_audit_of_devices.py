"""The audit finds NBD devices and ZFS datasets that carry a run's id.

It reads a directory that is laid out as /sys/block, and runs a program that answers as `zfs list` does: real ones need
kernel modules that few machines have. The process that an NBD device belongs to is real.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_propolis.ledger.audit import audit
from pytest_propolis.ledger.entry import Owner
from pytest_propolis.ledger.identity import ProcessIdentity
from pytest_propolis.ledger.ledger import LEDGER_NAME, Ledger

Found = Callable[[str], list[str]]
WORD = secrets.token_hex(8)


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """Block devices as Linux shows them: a disk, and a loop device and an NBD device that are not in use."""
    directory = tmp_path / "block"
    (directory / "vda").mkdir(parents=True)
    (directory / "loop0").mkdir()
    (directory / "nbd0").mkdir()
    return directory


@pytest.fixture
def found(tmp_path: Path, devices: Path) -> Found:
    """What the audit finds of a run."""
    return lambda word: [str(leak) for leak in audit(tmp_path / "base", word, block_devices=devices)]


def test_devices_that_are_not_in_use_are_no_leaks(found: Found) -> None:
    assert found(WORD) == []


def test_an_nbd_device_is_found_by_what_its_client_called_the_backend(devices: Path, found: Found) -> None:
    (devices / "nbd0" / "backend").write_text(f"{WORD}-target-1\n")
    assert found(WORD) == [f"NBD device /dev/nbd0 on {WORD}-target-1"]
    assert found(secrets.token_hex(8)) == []


def test_an_nbd_device_is_found_by_the_process_that_serves_it(devices: Path, found: Found, tmp_path: Path) -> None:
    image = tmp_path / f"{WORD}-disk.img"
    waiting = [sys.executable, "-c", "import sys; sys.stdin.read()", "--connect=/dev/nbd0", str(image)]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE) as process:
        (devices / "nbd0" / "pid").write_text(f"{process.pid}\n")
        (leak,) = found(WORD)
        assert leak.startswith("NBD device /dev/nbd0 of ")
        assert "--connect=/dev/nbd0" in leak
        assert found(secrets.token_hex(8)) == []
    assert found(WORD) == [], "the process has gone, and the device is nobody's"


def test_a_dataset_and_its_snapshot_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Found) -> None:
    ours = [f"tank/forks/{WORD}-disk", f"tank/images/alpine@{WORD}"]
    answer_as_zfs(tmp_path, monkeypatch, f"printf '%s\\n' tank tank/images/alpine {' '.join(ours)}")
    assert found(WORD) == [f"ZFS dataset {name}" for name in ours]
    assert found(secrets.token_hex(8)) == []
    asked = (tmp_path / "asked").read_text().splitlines()
    assert set(asked) == {"list -H -o name -t all"}


@pytest.mark.parametrize("listed", [True, False])
def test_a_clone_that_a_ledger_lists_is_judged_as_its_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Found, listed: bool
) -> None:
    clone = f"tank/propolis-{WORD}-agent-fork"
    answer_as_zfs(tmp_path, monkeypatch, f"printf '%s\\n' {clone} {clone}@propolis-one")
    directory = tmp_path / "base" / f"{WORD}-agent"
    directory.mkdir(mode=0o700, parents=True)
    ledger = Ledger.open(directory / LEDGER_NAME, run=WORD)
    owner = Owner("other-run.gw0", ProcessIdentity.current())
    ledger.live(ledger.intend("zfs-clone", {"dataset": clone if listed else "tank/other"}, owner))
    datasets = [leak for leak in found(WORD) if leak.startswith("ZFS")]
    assert datasets == ([] if listed else [f"ZFS dataset {clone}", f"ZFS dataset {clone}@propolis-one"])


def test_a_machine_without_zfs_in_its_kernel_has_no_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Found
) -> None:
    answer_as_zfs(tmp_path, monkeypatch, f"echo 'the ZFS modules are not loaded: {WORD}' >&2; exit 1")
    assert found(WORD) == []


def answer_as_zfs(place: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program called zfs first on the path; it writes down what it was asked."""
    program = place / "bin" / "zfs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {place}/asked\n{script}\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")

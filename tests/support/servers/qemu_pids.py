"""The processes of QEMU that run a VM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pytest_propolis.vm.vm import TestVm

__all__ = ["pids_of_qemu"]


def pids_of_qemu(vm: TestVm) -> Iterator[int]:
    """Yield the ids of those processes on this machine."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if vm.id.encode() in command and b"qemu" in command.split(b"\0")[0]:
            yield int(process.name)

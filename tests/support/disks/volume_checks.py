"""Inspect a replicated disk from outside, and drive a guest that writes to it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crucible_downstairs import extent_files

from pytest_propolis.propolis_api import DownstairsActive, UpstairsInfo
from pytest_propolis.vm.disks.crucible_disk import CrucibleDisk
from pytest_propolis.vm.vm import TestVm

__all__ = [
    "ACTIVE",
    "DRIVER",
    "MICRO",
    "SLOTS",
    "WRITE",
    "all_active",
    "begin_to_write",
    "contents",
    "end_of_writing",
    "replicas",
    "require_equal",
    "stop_writing",
    "wait_for_status",
    "writes_more",
]

MICRO: dict[str, Any] = {"guest": "micro", "cpus": 1, "memory_mib": 128}
ACTIVE = DownstairsActive()
LIMIT_S = 60.0
SLOTS = 512
"""The guest writes to so many blocks of 4 KiB, in turn."""

DRIVER = "modprobe virtio_blk; until [ -b /dev/vda ]; do usleep 20000; done"
WRITE = f"{DRIVER}; dd if=/dev/urandom of=/dev/vda bs=64k count=64 conv=fsync 2>/dev/null; sha256sum </dev/vda"

# Each round is acknowledged before the next begins, and is read back: what the guest has counted must be there.
_WRITER = """
rm -f /tmp/stop /tmp/stopped; n=$(cat /tmp/count 2>/dev/null || echo 0); while [ ! -e /tmp/stop ]; do
  n=$((n+1)); at=$((n % SLOTS)); echo $n >/tmp/block
  dd if=/tmp/block of=/dev/vda bs=4k count=1 seek=$at conv=sync,fsync,notrunc 2>/dev/null || echo write $n >>/tmp/errors
  echo 3 >/proc/sys/vm/drop_caches
  [ "$(dd if=/dev/vda bs=4k count=1 skip=$at 2>/dev/null | head -n 1)" = $n ] || echo read $n >>/tmp/errors
  echo $n >/tmp/count
done; touch /tmp/stopped
""".replace("SLOTS", str(SLOTS))


async def replicas(disk: CrucibleDisk) -> list[str]:
    """Return the hash of each replica. No VM may be writing."""
    return [hashlib.sha256(await contents(disk, index)).hexdigest() for index in range(len(disk.targets))]


async def contents(disk: CrucibleDisk, index: int) -> bytes:
    """Return what a replica holds: its file, or the files of its extents, if it is a directory."""
    (path,) = [Path(item.path) for item in (await disk.facts()).downstairs if item.address == disk.targets[index]]
    return b"".join(file.read_bytes() for file in (extent_files(path) if path.is_dir() else [path]))


async def wait_for_status(disk: CrucibleDisk, wanted: Callable[[UpstairsInfo], bool]) -> UpstairsInfo:
    """Wait until the volume's status meets a condition."""
    async with asyncio.timeout(LIMIT_S):
        while not wanted(status := await disk.status()):
            await asyncio.sleep(0.02)
    return status


def all_active(status: UpstairsInfo) -> bool:
    return all(target.state == ACTIVE for target in status.targets)


async def begin_to_write(vm: TestVm) -> None:
    """Make the guest write and verify data until `end_of_writing`."""
    await vm.run(
        f"{DRIVER}; cat >/tmp/writer <<'EOF'\n{_WRITER}\nEOF\nrm -f /tmp/stopped; sh /tmp/writer >/dev/null 2>&1 &"
    )
    await writes_more(vm)


async def writes_more(vm: TestVm, rounds: int = 3) -> None:
    """Wait until the guest has done some more rounds."""
    count = "cat /tmp/count 2>/dev/null || echo 0"
    await vm.run(f"was=$({count}); until [ $({count}) -ge $((was + {rounds})) ]; do usleep 20000; done")


async def stop_writing(vm: TestVm) -> int:
    """Stop the guest's writing; return the number of acknowledged writes, all of which it has verified."""
    await vm.run("touch /tmp/stop; until [ -e /tmp/stopped ]; do usleep 20000; done; sync")
    assert await vm.run("cat /tmp/errors 2>/dev/null", check=False) == ""
    return int(await vm.run("cat /tmp/count"))


async def end_of_writing(vm: TestVm) -> str:
    """Stop the guest's writing; return the hash of the whole disk as the guest sees it."""
    await stop_writing(vm)
    return (await vm.run("echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/vda")).split()[0]


async def require_equal(vm: TestVm, disk: CrucibleDisk) -> None:
    """Assert that all three replicas hold the data that the guest has written, and that it has seen no error."""
    written = await end_of_writing(vm)
    await wait_for_status(disk, all_active)
    await vm.stop()
    assert await replicas(disk) == [written] * 3

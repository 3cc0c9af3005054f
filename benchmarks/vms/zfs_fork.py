"""A fork on ZFS, against ``zfs snapshot`` and ``zfs clone`` by hand, in a guest with ZFS where that was built."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from pytest_propolis.storage.forks.fork import ForkRequest
from pytest_propolis.storage.forks.zfs import ZfsProvider
from pytest_propolis.storage.user_directories import default_artifact_dir
from pytest_propolis.vm.vm import TestVm

from ..common.figure import Figure
from ..common.harness import Harness
from ..common.options import Options, say
from ..common.samples import ratio_of_medians, spread

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from zfs_guest import BUILD, DebianZfs, GuestExecutor, make_pool

__all__ = ["measure"]

REPEATS = 9
BOUND = 1.2
IMAGE = Path("/tank/images/disk.raw")


def measure(options: Options) -> list[Figure]:
    if not (default_artifact_dir() / "derived" / BUILD.key / BUILD.disk).exists():
        say("zfs_fork: the guest with ZFS is not built: python tests/support/zfs_guest.py")
        return []
    return [asyncio.run(_measure(options.repeated(REPEATS), options))]


async def _measure(repeats: int, options: Options) -> Figure:
    async with Harness.open(options, boot="cold", guests=(DebianZfs(),)) as harness:
        vm = await harness.factory.start("zfs", guest="debian-zfs", memory_mib=1536)
        await make_pool(vm, "tank")
        await vm.run("truncate -s 30G /tank/images/disk.raw")
        provider = ZfsProvider(GuestExecutor(vm))
        ours, by_hand = [], []
        for number in range(repeats + 1):
            began = time.perf_counter()
            await provider.fork(ForkRequest(image=IMAGE, image_format="raw", target=Path(f"/x/{number}")))
            ours.append(time.perf_counter() - began)
            by_hand.append(await _by_hand(vm, number))
    # The first fork takes the snapshot that the others share.
    ratio = ratio_of_medians(ours[1:], by_hand[1:])
    return Figure(
        name=f"fork of a file of 30 GiB on ZFS, against zfs snapshot and zfs clone, n={repeats}",
        measured=f"{spread(ours[1:])}, the first {ours[0]:.3f} s",
        floor=spread(by_hand[1:]),
        ratio=f"{ratio:.2f}",
        bound=f"<= {BOUND} x",
        met=ratio <= BOUND,
    )


async def _by_hand(vm: TestVm, number: int) -> float:
    began = time.perf_counter()
    await vm.run(f"zfs snapshot tank/images@by-hand-{number}")
    await vm.run(f"zfs clone tank/images@by-hand-{number} tank/images/by-hand-{number}")
    return time.perf_counter() - began

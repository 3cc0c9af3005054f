"""Transfers whose guest is reset, migrates or is killed in the middle, over each channel."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
from qemu_pids import pids_of_qemu

from pytest_propolis import ConsoleClosed, Progress, ShellLost
from pytest_propolis.settings import ChannelKind
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.vm import TestVm

pytestmark = [
    pytest.mark.requires(server="engine"),
    pytest.mark.parametrize("channel", ["console", "port"]),
    pytest.mark.parametrize("way", ["put", "get"]),
]

SIZES: Final = {
    ("console", "put"): 600_000,
    ("console", "get"): 1_200_000,
    ("port", "put"): 40_000_000,
    ("port", "get"): 40_000_000,
}
"""Enough that a transfer is still in progress when something happens to the guest."""
BEGUN: Final = {"console": 0, "port": 8_000_000}
"""More than this is transferred only while the guest reads or writes: no part of the command is still on its way."""


@contextlib.asynccontextmanager
async def transfer(vm: TestVm, way: str, local: Path) -> AsyncIterator[asyncio.Task[None]]:
    """Transfer a file of random bytes between `local` and ``/tmp/file``; yield the task when it has done a part."""
    begun = asyncio.Event()
    channel = "port" if vm.has_ports else "console"
    size = SIZES[channel, way]

    def see(progress: Progress) -> None:
        if progress.done_bytes > BEGUN[channel]:
            begun.set()

    if way == "put":
        local.write_bytes(os.urandom(size))
        transferring = vm.put(local, "/tmp/file", on_progress=see)
    else:
        await vm.run(f"head -c {size} /dev/urandom >/tmp/file")
        transferring = vm.get("/tmp/file", local, on_progress=see)
    task = asyncio.create_task(transferring)
    try:
        await begun.wait()
        assert not task.done()
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def started(factory: VmFactory, channel: ChannelKind) -> TestVm:
    return await factory.start(guest="micro", cpus=1, memory_mib=256, channel=channel)


async def test_a_reset_in_the_middle_of_a_transfer_ends_it(
    vm_factory: VmFactory, tmp_path: Path, channel: ChannelKind, way: str
) -> None:
    vm = await started(vm_factory, channel)
    async with transfer(vm, way, tmp_path / "file") as task:
        await vm.reset()
        with pytest.raises(ShellLost, match="reset"):
            await task
    assert [path.name for path in tmp_path.iterdir()] == ["file"] * (way == "put")
    await vm.wait_to_boot()
    await vm.put(b"again", "/tmp/file")
    assert await vm.get_bytes("/tmp/file") == b"again"


async def test_a_transfer_goes_on_while_the_guest_migrates(
    vm_factory: VmFactory, tmp_path: Path, channel: ChannelKind, way: str
) -> None:
    vm = await started(vm_factory, channel)
    target = await vm_factory.successor(vm)
    async with transfer(vm, way, tmp_path / "file") as task:
        await target.migrate_from(vm)
        await task
    here = hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    assert (await target.run("sha256sum /tmp/file")).split()[0] == here
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert await target.run("ls -A /tmp | grep propolis", check=False) == ""


async def test_a_qemu_that_is_killed_in_the_middle_of_a_transfer_ends_it(
    vm_factory: VmFactory, tmp_path: Path, channel: ChannelKind, way: str
) -> None:
    vm = await started(vm_factory, channel)
    async with transfer(vm, way, tmp_path / "file") as task:
        (pid,) = pids_of_qemu(vm)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ConsoleClosed, match="QEMU was killed by SIGKILL"):
            await task
    assert [path.name for path in tmp_path.iterdir()] == ["file"] * (way == "put")

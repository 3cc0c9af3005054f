"""Migrations between servers that share no files: all data goes through websockets to the source, each of which may be
disconnected."""

from __future__ import annotations

import dataclasses
import random
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from cut_off import cut_off
from migration_rig import MigrationRig, Node, migrate, migrated, migration_rig, spec_of

from pytest_propolis import ApiError
from pytest_propolis.agent_api.boot_source import DirectKernel
from pytest_propolis.agent_api.migration_report import DiskTransfer, MemoryTransfer
from pytest_propolis.engine.migration import target as migration_target
from pytest_propolis.engine.migration.between_hosts.private_memory import PrivateMemory
from pytest_propolis.engine.migration.failure import MigrationFailed
from pytest_propolis.engine.migration.protocol import HandedOver, Message, MigrationChannel
from pytest_propolis.engine.qemu.memory import GuestMemory
from pytest_propolis.propolis_api import (
    Component,
    FileStorageBackend,
    FileStorageBackendComponent,
    InstanceSpec,
    InstanceState,
    MigrationState,
    PciPath,
    VirtioDisk,
    VirtioDiskComponent,
)

MIB = 1 << 20


@pytest_asyncio.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MigrationRig]:
    """Servers each of which takes every other one's host for another one."""
    monkeypatch.setattr(migration_target, "this_host", lambda: "elsewhere")
    async with migration_rig(tmp_path) as rig:
        yield rig


def two_disks(directory: Path) -> InstanceSpec:
    """A VM with two disks, of which one has 24 MiB of data."""
    components: dict[str, Component] = {}
    for slot, key in enumerate(("full", "empty"), start=4):
        path = directory / f"{key}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "32M"], check=True)
        device = VirtioDisk(backend_id=key, pci_path=PciPath(bus=0, device=slot, function=0))
        backend = FileStorageBackend(path=str(path), readonly=False, block_size=512)
        components |= {f"{key}-disk": VirtioDiskComponent(device), key: FileStorageBackendComponent(backend)}
    written = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 2M 24M", str(directory / "full.qcow2")]
    subprocess.run(written, check=True, capture_output=True)
    return spec_of(memory_mib=64, **components)


async def disk_path(node: Node, key: str) -> Path:
    spec = (await node.client.instance_spec_get()).spec.value  # type: ignore[union-attr]
    backend = spec.components[key].component
    assert isinstance(backend, FileStorageBackend)
    return Path(backend.path)


def same(one: Path, other: Path) -> bool:
    return subprocess.run(["qemu-img", "compare", "-q", "-U", str(one), str(other)], check=False).returncode == 0


async def test_memory_and_disks_are_copied_and_migrate_back(rig: MigrationRig, tmp_path: Path) -> None:
    first, second, third = [await rig.node(name, copy_disks=True) for name in ("first", "second", "third")]
    await first.run(two_disks(tmp_path))
    await migrate(first, second)
    came = second.server.migration_report().migration_in
    assert came
    assert came.memory_transfer is not MemoryTransfer.SHARED_MEMORY
    assert came.disks == {"full": DiskTransfer.COPIED, "empty": DiskTransfer.COPIED}
    assert came.pause_s > 0
    assert came.carried_bytes > 24 * MIB
    assert list(came.phases_s) == ["RamPush", "Pause", "RamPushDirty", "Device", "RamPull", "Server", "Finish"]
    await migrate(second, third)
    for key in ("full", "empty"):
        assert same(tmp_path / f"{key}.qcow2", await disk_path(third, key))


@pytest.fixture
def private(tmp_path: Path) -> GuestMemory:
    """The memory of a template with 8 MiB of data, as a fork has it."""
    with (tmp_path / "ram").open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(20 * MIB)
        file.write(random.Random(1).randbytes(8 * MIB))
    return GuestMemory(path=str(tmp_path / "ram"), shared=False)


async def test_the_memory_of_a_fork_is_copied_ahead_and_not_sent_once_more(
    rig: MigrationRig, private: GuestMemory
) -> None:
    source, target, second = (
        await rig.node("source", memory=private),
        await rig.node("target"),
        await rig.node("second"),
    )
    await source.run(spec_of(memory_mib=64))
    await migrate(source, target)
    assert target.server.pid
    came = target.server.migration_report().migration_in
    assert came
    if came.memory_transfer is MemoryTransfer.LIVE:
        pytest.skip("this QEMU copies the memory of a guest that runs")
    assert came.memory_transfer is MemoryTransfer.COPIED_AHEAD
    assert 8 * MIB < came.carried_bytes < 12 * MIB
    assert list(came.phases_s) == ["RamPush", "Pause", "RamPushDirty", "Device", "RamPull", "Server", "Finish"]
    await migrate(target, second)  # in a file, now
    came = second.server.migration_report().migration_in
    assert came
    assert came.memory_transfer is MemoryTransfer.COPIED_IN_PASSES
    assert 8 * MIB < came.carried_bytes < 12 * MIB


async def test_the_memory_of_a_fork_that_cannot_be_read_in_its_process_is_sent_by_qemu(
    rig: MigrationRig, private: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PrivateMemory, "of", lambda pid, size: None)
    source, target = await rig.node("source", memory=private), await rig.node("target")
    await source.run(spec_of(memory_mib=64))
    await migrate(source, target)
    came = target.server.migration_report().migration_in
    assert came
    assert came.memory_transfer in (MemoryTransfer.LIVE, MemoryTransfer.STOP_AND_COPY)


@pytest.mark.parametrize("after_bytes", [2 * MIB, 8 * MIB + 200_000], ids="{0} bytes".format)
async def test_a_fork_whose_path_is_cut_runs_on_and_can_migrate_again(
    rig: MigrationRig, private: GuestMemory, after_bytes: int
) -> None:
    source, target, second = (
        await rig.node("source", memory=private),
        await rig.node("target"),
        await rig.node("second"),
    )
    await source.run(spec_of(memory_mib=64))
    path = rig.socket.with_name("cut.sock")
    async with cut_off(rig.socket, path, after_bytes=after_bytes) as way:
        await target.migrate_from(dataclasses.replace(source.client.endpoint, uds=path).address)
        await target.wait_for(InstanceState.FAILED)
        await source.wait_out(MigrationState.ERROR)
        assert way.left_bytes == 0
    await source.wait_for(InstanceState.RUNNING)
    await migrate(source, second)


# The disk has 24 MiB of data; the memory of a machine without a guest less than 1 MiB.
@pytest.mark.parametrize("after_bytes", [100, 1500, 4 * MIB, 24 * MIB + 64 * 1024], ids="{0} bytes".format)
async def test_a_path_that_is_cut_leaves_the_guest_at_the_source_and_nothing_at_the_target(
    rig: MigrationRig, tmp_path: Path, after_bytes: int
) -> None:
    source, target, second = [await rig.node(name, copy_disks=True) for name in ("source", "target", "second")]
    await source.run(two_disks(tmp_path))
    path = rig.socket.with_name("cut.sock")
    async with cut_off(rig.socket, path, after_bytes=after_bytes) as way:
        address = dataclasses.replace(source.client.endpoint, uds=path).address
        try:
            await target.migrate_from(address)
        except ApiError:
            pass  # it was cut before the target knew what is to come
        else:
            await target.wait_for(InstanceState.FAILED)
            await source.wait_out(MigrationState.ERROR)
        assert way.left_bytes == 0
    await source.wait_for(InstanceState.RUNNING)
    assert not list((tmp_path / "target").glob("disk*"))
    assert not list((tmp_path / "source").glob("copy*"))
    await migrate(source, second)
    assert same(tmp_path / "full.qcow2", await disk_path(second, "full"))


async def test_kernels_are_compared_by_their_contents(rig: MigrationRig, tmp_path: Path) -> None:
    kernels = {}
    for name, text in {"ours": b"this", "copy": b"this", "other": b"other"}.items():
        # What QEMU takes for a kernel: the magic number and version 2.3 of the boot protocol are where they belong.
        (tmp_path / f"{name}.kernel").write_bytes(bytes(0x202) + b"HdrS\x03\x02" + text.ljust(4096))
        kernels[name] = DirectKernel(kernel=str(tmp_path / f"{name}.kernel"))
    source, target, other = [await rig.node(name, boot=kernels[name]) for name in kernels]
    await source.run(spec_of())
    await other.migrate_from(source.address)
    await other.wait_for(InstanceState.FAILED)
    await source.wait_for(InstanceState.RUNNING)
    left = source.server.migration_report().migration_out
    assert left
    assert left.failure == "kernel: the target's has other contents than the source's"
    await migrate(source, target)


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "not sent"])
async def test_a_guest_is_on_one_side_when_the_path_is_cut_in_the_moment_of_the_hand_over(
    rig: MigrationRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """The source's last message is lost, or the source notices the cut before sending it."""
    source, target = [await rig.node(name, copy_disks=True) for name in ("source", "target")]
    await source.run(spec_of())
    path = rig.socket.with_name("cut.sock")
    async with cut_off(rig.socket, path) as way:
        send = MigrationChannel.send

        async def send_into_the_cut(channel: MigrationChannel, message: Message) -> None:
            if isinstance(message, HandedOver):
                way.cut_connections()
                if not lost:
                    raise MigrationFailed("the target has left")
            await send(channel, message)

        monkeypatch.setattr(MigrationChannel, "send", send_into_the_cut)
        await target.migrate_from(dataclasses.replace(source.client.endpoint, uds=path).address)
        if lost:
            await migrated(source, target)
        else:
            await target.wait_for(InstanceState.FAILED)
            await source.wait_for(InstanceState.RUNNING)

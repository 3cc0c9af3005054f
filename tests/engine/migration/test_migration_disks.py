"""Disks of a migrating VM that no guest uses: their transfer to the target, and failures."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from boot_sectors import writing_disk
from migration_rig import MigrationRig, Node, injector, migrate, migration_rig, spec_of

from pytest_propolis.agent_api.migration_report import DiskTransfer
from pytest_propolis.engine.migration import disk_mirror
from pytest_propolis.engine.migration.transfer import select_copy_transfer
from pytest_propolis.engine.qemu.binary import find_qemu
from pytest_propolis.engine.qemu.memory import GuestMemory
from pytest_propolis.propolis_api import (
    BlobStorageBackend,
    BlobStorageBackendComponent,
    BootOrderEntry,
    BootSettings,
    BootSettingsComponent,
    Component,
    FileStorageBackend,
    FileStorageBackendComponent,
    InstanceSpec,
    InstanceState,
    InstanceStateRequested,
    MigrationFailureInjector,
    MigrationFailureInjectorReplacement,
    MigrationState,
    PciPath,
    VirtioDisk,
    VirtioDiskComponent,
)

MIB = 1 << 20


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[MigrationRig]:
    async with migration_rig(tmp_path) as rig:
        yield rig


def disk(**backends: Component) -> dict[str, Any]:
    """A disk for each backend."""
    found: dict[str, Any] = {}
    for slot, (key, backend) in enumerate(backends.items(), start=4):
        device = VirtioDisk(backend_id=key, pci_path=PciPath(bus=0, device=slot, function=0))
        found |= {f"{key}-disk": VirtioDiskComponent(device), key: backend}
    return found


def file(path: Path, *, readonly: bool = False) -> FileStorageBackendComponent:
    return FileStorageBackendComponent(FileStorageBackend(path=str(path), readonly=readonly, block_size=512))


def blob(contents: bytes, *, readonly: bool = False) -> BlobStorageBackendComponent:
    encoded = base64.b64encode(contents).decode()
    return BlobStorageBackendComponent(BlobStorageBackend(base64=encoded, readonly=readonly))


def image(path: Path, *arguments: str) -> Path:
    command = ["qemu-img", "create", "-q", "-f", "qcow2", *arguments[:-1], str(path), arguments[-1]]
    subprocess.run(command, check=True)
    return path


def fill(path: Path, byte: int, at_mib: int, mib: int) -> None:
    command = f"write -P {byte} {at_mib}M {mib}M"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, str(path)], check=True, capture_output=True)


def same(one: Path, other: Path) -> bool:
    """Whether two disks have the same contents."""
    return subprocess.run(["qemu-img", "compare", "-q", "-U", str(one), str(other)], check=False).returncode == 0


async def failed(source: Node, target: Node) -> str:
    """Both have noticed that their migration failed; the reason that the source gives."""
    await source.wait_out(MigrationState.ERROR)
    await source.wait_for(InstanceState.RUNNING)
    await target.wait_for(InstanceState.FAILED)
    left = source.server.migration_report().migration_out
    assert left
    return str(left.failure)


async def disk_path(node: Node, key: str = "data") -> Path:
    spec = (await node.client.instance_spec_get()).spec.value  # type: ignore[union-attr]
    return Path(spec.components[key].component.path)  # type: ignore[union-attr]


def ways(node: Node) -> dict[str, DiskTransfer]:
    came = node.server.migration_report().migration_in
    assert came
    return dict(came.disks)


async def nodes_of(node: Node) -> set[str]:
    """The names of QEMU's block nodes that are not its own; jobs count, too."""
    machine = node.server._vm.objects.machine  # type: ignore[union-attr]
    assert machine
    jobs = await machine.execute("query-jobs")
    nodes = await machine.execute("query-named-block-nodes", flat=True)
    return {job["id"] for job in jobs} | {node["node-name"] for node in nodes if "copy" in node["node-name"]}


async def test_a_file_that_both_can_open_is_shared(rig: MigrationRig, tmp_path: Path) -> None:
    source, target = await rig.node("source"), await rig.node("target")
    path = image(tmp_path / "data.qcow2", "8M")
    await source.run(spec_of(**disk(data=file(path))))
    await migrate(source, target)
    assert ways(target) == {"data": DiskTransfer.SHARED}
    assert await disk_path(target) == path
    left = source.server.migration_report().migration_out
    assert left
    assert left.disks == {"data": DiskTransfer.SHARED}


async def test_a_target_that_is_to_copy_has_the_contents_in_a_disk_of_its_own(
    rig: MigrationRig, tmp_path: Path
) -> None:
    source, target = await rig.node("source"), await rig.node("target", copy_disks=True)
    path = image(tmp_path / "data.qcow2", "64M")
    fill(path, 7, 3, 40)
    await source.run(spec_of(**disk(data=file(path))))
    await migrate(source, target)
    assert ways(target) == {"data": DiskTransfer.COPIED}
    own = await disk_path(target)
    assert own.parent == tmp_path / "target"
    assert same(path, own)
    assert not (tmp_path / "target" / "disks.sock").exists()
    await target.server.close()
    assert not own.exists()


async def test_only_what_is_above_a_common_image_is_copied(rig: MigrationRig, tmp_path: Path) -> None:
    source, target = await rig.node("source"), await rig.node("target", copy_disks=True)
    base = image(tmp_path / "base.qcow2", "64M")
    fill(base, 1, 0, 32)
    path = image(tmp_path / "data.qcow2", "-F", "qcow2", "-b", str(base), "64M")
    fill(path, 2, 31, 2)
    await source.run(spec_of(**disk(data=file(path))))
    await migrate(source, target)
    assert ways(target) == {"data": DiskTransfer.COPIED_OVERLAY}
    own = await disk_path(target)
    assert same(path, own)
    assert own.stat().st_blocks * 512 < 8 * MIB


async def test_a_file_that_the_target_cannot_find_is_copied(rig: MigrationRig, tmp_path: Path) -> None:
    source, target = await rig.node("source"), await rig.node("target")
    path = tmp_path / "data.raw"
    path.write_bytes(os.urandom(4 * MIB))
    await source.run(spec_of(**disk(data=file(path))))
    path.rename(tmp_path / "elsewhere.raw")
    path.write_bytes(bytes(4 * MIB))  # what is there now is not the disk
    await migrate(source, target)
    assert ways(target) == {"data": DiskTransfer.COPIED}
    assert same(tmp_path / "elsewhere.raw", await disk_path(target))


async def test_a_disk_in_a_file_migrates_there_and_back_again_in_each_way(rig: MigrationRig, tmp_path: Path) -> None:
    first, second = await rig.node("first"), await rig.node("second", copy_disks=True)
    path = image(tmp_path / "data.qcow2", "16M")
    fill(path, 9, 1, 4)
    await first.run(spec_of(**disk(data=file(path))))
    await migrate(first, second)
    await migrate(second, first)
    assert ways(first) == {"data": DiskTransfer.SHARED}
    await migrate(first, second)
    assert ways(second) == {"data": DiskTransfer.COPIED}
    assert same(path, await disk_path(second))


async def test_several_disks_go_each_its_own_way(rig: MigrationRig, tmp_path: Path) -> None:
    source, target = await rig.node("source"), await rig.node("target", copy_disks=True)
    one, two = image(tmp_path / "one.qcow2", "16M"), tmp_path / "two.raw"
    fill(one, 5, 0, 16)
    two.write_bytes(os.urandom(MIB))
    fixed = image(tmp_path / "fixed.qcow2", "1M")
    disks = disk(
        one=file(one),
        two=file(two),
        fixed=file(fixed, readonly=True),
        memory=blob(bytes(MIB)),
        table=blob(b"table".ljust(512), readonly=True),
    )
    await source.run(spec_of(**disks))
    await migrate(source, target)
    assert ways(target) == {
        "one": DiskTransfer.COPIED,
        "two": DiskTransfer.COPIED,
        "fixed": DiskTransfer.SHARED,
        "memory": DiskTransfer.COPIED,
        "table": DiskTransfer.FROM_SPEC,
    }
    assert same(one, await disk_path(target, "one"))
    assert same(two, await disk_path(target, "two"))
    assert await disk_path(target, "fixed") == fixed


@pytest.mark.parametrize("copy", [False, True])
async def test_the_contents_of_a_blob_arrive_as_they_are_and_not_as_they_were(rig: MigrationRig, copy: bool) -> None:
    source, target = await rig.node("source"), await rig.node("target", copy_disks=copy)
    spec = spec_of(**disk(memory=blob(bytes(MIB))))
    await source.run(spec)
    assert write_blob(source, b"written") == bytes(7)
    await migrate(source, target)
    assert ways(target) == {"memory": DiskTransfer.COPIED if copy else DiskTransfer.SHARED}
    assert write_blob(target, b"again") == b"writt"
    assert (await target.client.instance_spec_get()).spec.value == spec  # type: ignore[union-attr]


def write_blob(node: Node, contents: bytes) -> bytes:
    """Write to the disk as a guest would; return the previous contents."""
    [fd] = node.server._vm.objects.blobs.fds.values()  # type: ignore[union-attr]
    before = os.pread(fd, len(contents), 0)
    os.pwrite(fd, contents, 0)
    return before


async def test_a_read_only_file_that_is_not_here_is_named(rig: MigrationRig, tmp_path: Path) -> None:
    source, target = await rig.node("source"), await rig.node("target")
    path = image(tmp_path / "data.qcow2", "1M")
    await source.run(spec_of(**disk(data=file(path, readonly=True))))
    path.unlink()
    with pytest.raises(Exception, match=r"disk backend 'data' is read-only, and its file .*data.qcow2 cannot be read"):
        await target.migrate_from(source.address)
    await source.wait_for(InstanceState.RUNNING)


async def test_disks_and_memory_are_copied_in_one_migration(rig: MigrationRig, tmp_path: Path) -> None:
    memory = GuestMemory(path=str(tmp_path / "ram"), shared=False)
    source, target = await rig.node("source", memory=memory), await rig.node("target", copy_disks=True)
    await source.run(big(tmp_path))
    await migrate(source, target)
    came = target.server.migration_report().migration_in
    assert came
    assert came.memory_transfer is select_copy_transfer("tcg", (await find_qemu(None)).version)
    assert same(tmp_path / "data.qcow2", await disk_path(target))


def big(tmp_path: Path) -> InstanceSpec:
    """A disk that takes a while."""
    path = image(tmp_path / "data.qcow2", "64M")
    fill(path, 3, 0, 64)
    return spec_of(failure=injector(), **disk(data=file(path)))


async def copying(source: Node) -> None:
    """Wait until a copy is under way."""
    async with asyncio.timeout(30):
        while "copy0" not in await nodes_of(source):
            await asyncio.sleep(0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
@pytest.mark.parametrize("step", ["start", "_mirror", "finish"])
async def test_a_target_that_is_lost_leaves_no_copy_and_can_be_followed_by_another(
    rig: MigrationRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: signal.Signals
) -> None:
    """Lost before the two QEMUs have spoken to each other, before the copying, before its end."""
    source = await rig.node("source")
    target, second = await rig.node("target", copy_disks=True), await rig.node("second", copy_disks=True)
    await source.run(big(tmp_path))
    with monkeypatch.context() as losing:
        losing.setattr(disk_mirror, "STALL_TIMEOUT_S", 3.0)
        _lose_at(losing, step, target, number)
        await target.migrate_from(source.address)
        reason = await failed(source, target)
    if number is signal.SIGSTOP:
        assert "taken nothing" in reason
    assert await nodes_of(source) == set()
    assert not list((tmp_path / "target").glob("disk*"))
    assert not list((tmp_path / "source").glob("copy*"))
    await migrate(source, second)
    assert same(tmp_path / "data.qcow2", await disk_path(second))


def _lose_at(monkeypatch: pytest.MonkeyPatch, step: str, target: Node, number: signal.Signals) -> None:
    """Send the target's QEMU a signal when the copying gets to a step."""
    undisturbed = getattr(disk_mirror.DiskMirror, step)

    async def disturbed(*args: object, **kwargs: object) -> None:
        assert target.server.pid
        os.kill(target.server.pid, number)
        await undisturbed(*args, **kwargs)

    monkeypatch.setattr(disk_mirror.DiskMirror, step, disturbed)


async def test_a_source_that_is_lost_in_the_middle_leaves_nothing_at_the_target(
    rig: MigrationRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = await rig.node("source"), await rig.node("target", copy_disks=True)
    await source.run(big(tmp_path))
    monkeypatch.setattr(disk_mirror, "BYTES_PER_S", 4 * MIB)
    await target.migrate_from(source.address)
    await copying(source)
    assert source.server.pid
    os.kill(source.server.pid, signal.SIGKILL)
    await target.wait_for(InstanceState.FAILED)
    await source.wait_for(InstanceState.FAILED)
    assert not list((tmp_path / "target").glob("disk*"))


@pytest.mark.parametrize("politely", [True, False], ids=["stopped", "closed"])
async def test_a_target_that_is_ended_in_the_middle_leaves_the_guest_at_the_source(
    rig: MigrationRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, politely: bool
) -> None:
    source, target = await rig.node("source"), await rig.node("target", copy_disks=True)
    await source.run(big(tmp_path))
    with monkeypatch.context() as slow:
        slow.setattr(disk_mirror, "BYTES_PER_S", 4 * MIB)
        await target.migrate_from(source.address)
        await copying(source)
        if politely:
            await target.client.instance_state_put(InstanceStateRequested.STOP)
            await target.wait_for(InstanceState.DESTROYED)
        else:
            await target.server.close()
        await source.wait_out(MigrationState.ERROR)
        await source.wait_for(InstanceState.RUNNING)
    assert await nodes_of(source) == set()
    assert not list((tmp_path / "target").glob("disk*"))
    second = await rig.node("second", copy_disks=True)
    await migrate(source, second)


async def test_a_failure_after_the_copying_leaves_nothing_and_can_be_tried_again(
    rig: MigrationRig, tmp_path: Path
) -> None:
    source = await rig.node("source")
    target, second = await rig.node("target", copy_disks=True), await rig.node("second", copy_disks=True)
    await source.run(big(tmp_path))
    failing = MigrationFailureInjectorReplacement(MigrationFailureInjector(fail_exports=0, fail_imports=1))
    await target.migrate_from(source.address, replace={"failure": failing})
    assert "import" in await failed(source, target)
    assert await nodes_of(source) == set()
    assert not list((tmp_path / "target").glob("disk*"))
    await migrate(source, second)
    assert same(tmp_path / "data.qcow2", await disk_path(second))


async def test_a_guest_that_writes_faster_than_it_is_copied_is_slowed_down(
    rig: MigrationRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = await rig.node("source"), await rig.node("target", copy_disks=True)
    path = tmp_path / "data.raw"
    path.write_bytes(writing_disk(4 * MIB))
    with path.open("r+b") as disk_file:
        disk_file.seek(MIB)
        disk_file.write(b"\xff" * MIB)  # until the guest has been there
    order = BootSettingsComponent(BootSettings(order=(BootOrderEntry(id="data-disk"),)))
    await source.run(spec_of(boot=order, **disk(data=file(path))))
    async with asyncio.timeout(60):
        while path.read_bytes()[MIB : 2 * MIB] != bytes(MIB):
            await asyncio.sleep(0)
    monkeypatch.setattr(disk_mirror, "BYTES_PER_S", 4 * MIB)
    with caplog.at_level(logging.INFO, disk_mirror.__name__):
        await migrate(source, target)
    assert "the guest writes faster than it is copied" in caplog.text
    await target.client.instance_state_put(InstanceStateRequested.STOP)
    await target.wait_for(InstanceState.DESTROYED)
    assert same(path, await disk_path(target))


async def test_a_source_that_is_closed_in_the_middle_ends_at_once(
    rig: MigrationRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = await rig.node("source"), await rig.node("target", copy_disks=True)
    await source.run(big(tmp_path))
    monkeypatch.setattr(disk_mirror, "BYTES_PER_S", 4 * MIB)
    await target.migrate_from(source.address)
    await copying(source)
    await source.server.close()
    await target.wait_for(InstanceState.FAILED)
    assert not [task for task in asyncio.all_tasks() if "_carry" in repr(task.get_coro())]

"""Migrations that a server refuses, and requests that it refuses during one. No guest comes up."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from migration_rig import MigrationRig, RemoteNode, injector, migrate, migration_rig, spec_of
from msgspec.structs import replace
from program_rig import ProgramRig, program_rig

from pytest_propolis.agent_api.boot_source import BootSource, DirectKernel, Firmware
from pytest_propolis.errors import ApiError
from pytest_propolis.propolis_api import (
    CrucibleStorageBackend,
    CrucibleStorageBackendReplacement,
    InstanceState,
    InstanceStateRequested,
    MigrationFailureInjector,
    MigrationFailureInjectorReplacement,
    MigrationState,
    NvmeDisk,
    PciPath,
    WaitingForMigrationSource,
    nvme_serial_number,
)
from pytest_propolis.propolis_api.backends import FileStorageBackend
from pytest_propolis.propolis_api.component import FileStorageBackendComponent, NvmeDiskComponent

Servers = MigrationRig | ProgramRig


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[MigrationRig]:
    async with migration_rig(tmp_path) as rig:
        yield rig


@pytest_asyncio.fixture(params=["in one process", "programs"])
async def servers(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Servers]:
    async with migration_rig(tmp_path) if request.param == "in one process" else program_rig() as rig:
        yield rig


async def refused(source: RemoteNode, target: RemoteNode, **options: object) -> str:
    with pytest.raises(ApiError) as caught:
        await target.migrate_from(source.address, **options)  # type: ignore[arg-type]
    assert caught.value.status == 500
    await target.wait_for(InstanceState.FAILED)
    return caught.value.message


async def test_a_replacement_for_what_the_source_has_not_is_refused(servers: Servers) -> None:
    source, target = await servers.node("source"), await servers.node("target")
    await source.run(spec_of())
    replacement = MigrationFailureInjectorReplacement(MigrationFailureInjector(fail_exports=0, fail_imports=0))
    assert "'absent' is not in the source's spec" in await refused(source, target, replace={"absent": replacement})
    await source.wait_for(InstanceState.RUNNING)


async def test_a_replacement_of_another_type_is_refused(servers: Servers) -> None:
    source, target = await servers.node("source"), await servers.node("target")
    await source.run(spec_of(failure=injector()))
    replacement = CrucibleStorageBackendReplacement(CrucibleStorageBackend(readonly=False, request_json="{}"))
    message = await refused(source, target, replace={"failure": replacement})
    assert "is a CrucibleStorageBackend, and the source's is a MigrationFailureInjector" in message
    await source.wait_for(InstanceState.RUNNING)
    await migrate(source, target)


async def test_an_nvme_disk_is_refused_by_name_and_the_source_runs_on(servers: Servers, tmp_path: Path) -> None:
    source, target = await servers.node("source"), await servers.node("target")
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(1 << 20))
    disk = NvmeDisk(
        backend_id="backend",
        pci_path=PciPath(bus=0, device=4, function=0),
        serial_number=nvme_serial_number("disk"),
    )
    backend = FileStorageBackend(path=str(image), readonly=False, block_size=512)
    await source.run(spec_of(disk=NvmeDiskComponent(disk), backend=FileStorageBackendComponent(backend)))
    assert "disk 'disk' is an NVMe disk" in await refused(source, target)
    await source.wait_for(InstanceState.RUNNING)
    await source.wait_out(MigrationState.ERROR)


KERNEL = DirectKernel(kernel="kernel", initrd="initrd", command_line="quiet")


@pytest.mark.parametrize(
    ("here", "message"),
    [
        (Firmware(uefi=True), "boot source: a kernel of the host's at the source, UEFI here"),
        (replace(KERNEL, kernel="other"), "kernel: kernel at the source, other here"),
        (replace(KERNEL, initrd=None), "initial RAM disk: initrd at the source, none here"),
        (replace(KERNEL, command_line="loud"), "kernel's parameters: 'quiet' at the source, 'loud' here"),
    ],
)
async def test_a_target_that_boots_from_something_else_says_from_what(
    rig: MigrationRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: BootSource, message: str
) -> None:
    """After a reset, the guest would boot another system."""
    monkeypatch.chdir(tmp_path)
    for name in ("kernel", "initrd", "other", "copy"):
        (tmp_path / name).write_bytes(_linux(b"other" if name == "other" else b"this"))
    source, target = await rig.node("source", boot=KERNEL), await rig.node("target", boot=here)
    same = await rig.node("same", boot=replace(KERNEL, kernel="copy"))
    await source.run(spec_of())
    assert message in await refused(source, target)
    await source.wait_for(InstanceState.RUNNING)
    await migrate(source, same)


def _linux(content: bytes) -> bytes:
    """Return an image that QEMU accepts as a kernel: with the magic number and version 2.3 of the boot protocol."""
    return bytes(0x202) + b"HdrS\x03\x02" + content.ljust(4096)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http+unix://%2Fnowhere/vms/x"])
async def test_a_source_that_cannot_be_reached_is_named(servers: Servers, address: str) -> None:
    target = await servers.node("target")
    with pytest.raises(ApiError) as caught:
        await target.migrate_from(address)
    assert caught.value.status == 500
    assert f"the source {address} cannot be reached" in caught.value.message


async def test_a_server_without_a_running_vm_drops_the_migration(servers: Servers) -> None:
    source, target = await servers.node("source"), await servers.node("target")
    await refused(source, target)
    await source.create(spec_of())
    assert "active instance" in await refused(source, target)
    await source.client.instance_state_put(InstanceStateRequested.RUN)
    await source.wait_for(InstanceState.RUNNING)
    await migrate(source, target)


async def test_a_negotiation_that_fails_leaves_nothing_pending_at_the_source(
    servers: Servers,
) -> None:
    """Upstream's queue goes on waiting for a migration whose negotiation failed, and refuses reboots."""
    source, target = await servers.node("source"), await servers.node("target")
    await source.run(spec_of())
    async with source.client.instance_migrate_start(uuid.uuid4()) as connection:
        await connection.send("propolis-migrate-ron/0")
        await source.wait_out(MigrationState.ERROR)
    await source.wait_for(InstanceState.RUNNING)
    await source.client.instance_state_put(InstanceStateRequested.REBOOT)
    await source.wait_for(InstanceState.RUNNING)
    await migrate(source, target)


async def test_a_target_that_leaves_at_once_leaves_nothing_pending_at_the_source(
    servers: Servers,
) -> None:
    source, target = await servers.node("source"), await servers.node("target")
    await source.run(spec_of())
    async with source.client.instance_migrate_start(uuid.uuid4()):
        pass
    await source.wait_out(MigrationState.ERROR)
    await source.wait_for(InstanceState.RUNNING)
    await migrate(source, target)


async def test_a_second_migration_out_is_denied_while_one_is_under_way(servers: Servers) -> None:
    source, target = await servers.node("source"), await servers.node("target")
    await source.run(spec_of())
    async with source.client.instance_migrate_start(uuid.uuid4()):
        await source.wait_for(InstanceState.MIGRATING)
        assert "already a migration source" in await refused(source, target)
        with pytest.raises(ApiError) as caught:
            await source.client.instance_state_put(InstanceStateRequested.REBOOT)
        assert caught.value.status == 403
    await source.wait_for(InstanceState.RUNNING)


@contextlib.asynccontextmanager
async def silent_server(path: Path) -> AsyncIterator[None]:
    """A server that answers nothing; it ends its connections, for which Python 3.12 waits when a server is closed."""
    writers: list[asyncio.StreamWriter] = []
    async with await asyncio.start_unix_server(lambda reader, writer: writers.append(writer), path):
        yield
        for writer in writers:
            writer.close()


async def test_a_target_that_waits_for_its_source_knows_no_spec_and_is_not_active(rig: MigrationRig) -> None:
    target = await rig.node("target")
    async with silent_server(rig.directory / "s"):
        address = f"http+unix://{str(rig.directory / 's').replace('/', '%2F')}/vms/x"
        asking = asyncio.create_task(target.migrate_from(address))
        while target.server.state_name is None:
            await asyncio.sleep(0)
        assert await target.state() is InstanceState.MIGRATING
        assert isinstance((await target.client.instance_spec_get()).spec, WaitingForMigrationSource)
        status = await target.client.instance_migrate_status()
        assert status.migration_in
        assert status.migration_in.state is MigrationState.SYNC
        with pytest.raises(ApiError) as caught:
            await target.client.instance_state_put(InstanceStateRequested.STOP)
        assert caught.value.status == 424
        await target.server.close()
        with pytest.raises(ApiError):
            await asking

"""Events during a migration: of the guest, and requests of clients to either side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from boot_sectors import obedient_disk
from engine_rig import BACKEND, DEADLINE_S, FAKE_QEMU, BlockingBackend, vcr_json
from migration_rig import MigrationRig, Node, migrated, migration_rig, spec_of

from pytest_propolis.engine.migration import source as migration_source
from pytest_propolis.engine.migration.stream import connect_stream
from pytest_propolis.engine.qemu.machine import Machine
from pytest_propolis.engine.qemu.memory import GuestMemory
from pytest_propolis.errors import ApiError
from pytest_propolis.propolis_api import (
    CrucibleStorageBackend,
    CrucibleStorageBackendComponent,
    InstanceSpec,
    InstanceState,
    InstanceStateRequested,
    MigrationState,
    PciPath,
    QemuPvpanic,
    QemuPvpanicComponent,
    SerialPort,
    SerialPortComponent,
    SerialPortNumber,
    VirtioDisk,
    VirtioDiskComponent,
)
from pytest_propolis.propolis_api.backends import FileStorageBackend
from pytest_propolis.propolis_api.component import FileStorageBackendComponent

RUN, STOP, REBOOT = (InstanceStateRequested(name) for name in ("Run", "Stop", "Reboot"))


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[MigrationRig]:
    async with migration_rig(tmp_path) as rig:
        yield rig


class Gate:
    """Holds a migration where its source has a plan, and its guest still runs."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    @contextlib.asynccontextmanager
    async def closed_for(self, source: Node, target: Node) -> AsyncIterator[None]:
        """A migration that has got there; it goes on after the block."""
        await target.migrate_from(source.address)
        async with asyncio.timeout(DEADLINE_S):
            await self.reached.wait()
        try:
            yield
        finally:
            self.opened.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    connect = connect_stream

    async def connect_when_opened(path: Path) -> object:
        gate.reached.set()
        await gate.opened.wait()
        return await connect(path)

    monkeypatch.setattr(migration_source, "connect_stream", connect_when_opened)
    return gate


def guest_spec(directory: Path) -> InstanceSpec:
    """Return a spec whose guest executes typed commands."""
    image = directory / "disk.raw"
    image.write_bytes(obedient_disk("<booted>"))
    disk = VirtioDisk(backend_id="backend", pci_path=PciPath(bus=0, device=4, function=0))
    return spec_of(
        com1=SerialPortComponent(SerialPort(num=SerialPortNumber.COM1)),
        disk=VirtioDiskComponent(disk),
        backend=FileStorageBackendComponent(FileStorageBackend(path=str(image), readonly=True, block_size=512)),
        pvpanic=QemuPvpanicComponent(QemuPvpanic(enable_isa=True)),
    )


async def shown(node: Node, text: bytes, *, times: int = 1) -> None:
    """Wait until the guest has shown this so often."""
    history = node.server.serial().history
    async with asyncio.timeout(DEADLINE_S):
        while history.read(0, 1 << 16).count(text) < times:
            await history.wait_beyond(history.end)


async def run_guest(rig: MigrationRig, directory: Path, *, memory: GuestMemory | None = None) -> tuple[Node, Node]:
    """A source whose guest is up, and a target."""
    source, target = await rig.node("source", memory=memory), await rig.node("target")
    await source.run(guest_spec(directory))
    await shown(source, b"<booted>")
    return source, target


def machine_of(node: Node) -> Machine:
    assert node.server._vm
    assert node.server._vm.objects
    return node.server._vm.objects.machine


async def ends(node: Node, what: str) -> None:
    """Have the guest end or reset itself, and wait for QEMU's event."""
    machine = machine_of(node)
    with machine.events("SHUTDOWN") as events:
        await machine.serial.write(what.encode())
        async with asyncio.timeout(DEADLINE_S):
            await machine.next_event(events)


async def until(condition: Callable[[], bool]) -> None:
    """Poll a condition that has no notification."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0)


async def require_alive(node: Node) -> None:
    await node.server.serial().write(b"x")
    await shown(node, b"x")


def why(node: Node) -> str:
    report = node.server.migration_report()
    sides = [side for side in (report.migration_in, report.migration_out) if side]
    return str(sides[-1].failure)


# The guest


@pytest.fixture(params=["shared", "copied"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> GuestMemory | None:
    """The source's; None for memory that the target maps, too."""
    return GuestMemory(path=str(tmp_path / "ram"), shared=False) if request.param == "copied" else None


async def test_a_guest_that_shuts_itself_down_before_it_is_stopped_ends_at_the_source(
    rig: MigrationRig, gate: Gate, tmp_path: Path, memory: GuestMemory | None
) -> None:
    source, target = await run_guest(rig, tmp_path, memory=memory)
    async with gate.closed_for(source, target):
        await ends(source, "s")
    await target.wait_for(InstanceState.FAILED)
    await source.wait_for(InstanceState.DESTROYED)
    assert "the guest has stopped by itself (shutdown)" in why(target)


async def test_a_guest_that_resets_itself_before_it_is_stopped_migrates_as_it_is_then(
    rig: MigrationRig, gate: Gate, tmp_path: Path, memory: GuestMemory | None
) -> None:
    source, target = await run_guest(rig, tmp_path, memory=memory)
    async with gate.closed_for(source, target):
        await source.server.serial().write(b"r")
        await shown(source, b"<booted>", times=2)
    await migrated(source, target)
    await require_alive(target)


async def test_a_guest_that_panics_before_it_is_stopped_migrates_all_the_same(
    rig: MigrationRig, gate: Gate, tmp_path: Path
) -> None:
    source, target = await run_guest(rig, tmp_path)
    async with gate.closed_for(source, target):
        await source.server.serial().write(b"p")
        await until(lambda: source.server.panics == 1)
    await migrated(source, target)
    await require_alive(target)


@pytest.mark.parametrize("what", ["r", "s"])
async def test_a_guest_that_ends_in_the_moment_of_its_stop_does_not_migrate(
    rig: MigrationRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    source, target = await run_guest(rig, tmp_path)
    pause = machine_of(source).pause

    async def end_and_pause() -> None:
        await ends(source, what)
        await pause()

    monkeypatch.setattr(machine_of(source), "pause", end_and_pause)
    await target.migrate_from(source.address)
    await target.wait_for(InstanceState.FAILED)
    assert "the guest has stopped by itself" in why(target)
    if what == "s":
        await source.wait_for(InstanceState.DESTROYED)
    else:
        monkeypatch.undo()
        await shown(source, b"<booted>", times=2)
        await source.wait_for(InstanceState.RUNNING)
        await target.migrate_from(source.address)
        await migrated(source, target)
        await require_alive(target)


@pytest.mark.parametrize("what", ["reset", "shutdown"])
async def test_what_the_guest_did_last_before_its_stop_is_heard_when_it_is_stopped(
    rig: MigrationRig, what: str
) -> None:
    """QEMU is stopped before it has looked at what the guest asked for. So it says that it is paused, and of the reset
    or shutdown after that."""
    source, target = [await rig.node(name, qemu=FAKE_QEMU) for name in ("source", "target")]
    await source.run(spec_of())
    await source.server.serial().write(f"late {what}\n".encode())
    await shown(source, f"late {what}".encode())
    machine = machine_of(source)
    with machine.events("RESET") as resets:
        await target.migrate_from(source.address)
        await target.wait_for(InstanceState.FAILED)
        assert f"the guest has stopped by itself (guest-{what})" in why(target)
        if what == "shutdown":
            await source.wait_for(InstanceState.DESTROYED)
        else:
            await machine.next_event(resets)
            await source.wait_for(InstanceState.RUNNING)
            assert (await machine.execute("query-status"))["status"] == "running"


# Clients


async def test_a_stop_of_the_target_during_the_import_leaves_the_guest_at_the_source(
    rig: MigrationRig, gate: Gate, tmp_path: Path
) -> None:
    source, target = await run_guest(rig, tmp_path)
    async with gate.closed_for(source, target):
        await target.client.instance_state_put(RUN)  # it starts by itself
        with pytest.raises(ApiError, match="starting") as api_error:
            await target.client.instance_state_put(REBOOT)
        assert api_error.value.status == 403
        assert await target.state() is InstanceState.MIGRATING
        await target.client.instance_state_put(STOP)
        await target.wait_for(InstanceState.DESTROYED)
    await source.wait_out(MigrationState.ERROR)
    await source.wait_for(InstanceState.RUNNING)
    await require_alive(source)


async def test_a_migration_out_of_the_target_during_the_import_waits_until_it_runs(
    rig: MigrationRig, gate: Gate, tmp_path: Path
) -> None:
    source, target = await run_guest(rig, tmp_path)
    third = await rig.node("third")
    async with gate.closed_for(source, target):
        onwards = await ask(target, third)
    await onwards
    await migrated(target, third)
    await source.wait_for(InstanceState.DESTROYED)
    await require_alive(third)


@pytest.mark.parametrize("succeeds", [True, False])
async def test_a_stop_of_the_source_during_the_export_counts_only_if_the_migration_fails(
    rig: MigrationRig, gate: Gate, tmp_path: Path, succeeds: bool
) -> None:
    source, target = await run_guest(rig, tmp_path)
    async with gate.closed_for(source, target):
        await source.client.instance_state_put(RUN)  # without effect
        with pytest.raises(ApiError, match="migration source") as api_error:
            await source.client.instance_state_put(REBOOT)
        assert api_error.value.status == 403
        await source.client.instance_state_put(STOP)
        with pytest.raises(ApiError, match="migration source"):
            await source.client.instance_state_put(REBOOT)
        if not succeeds:
            await target.server.close()
    await source.wait_for(InstanceState.DESTROYED)
    if succeeds:
        await target.wait_for(InstanceState.RUNNING)
        await require_alive(target)


# A source that waits for its disk


async def blocked_source(rig: MigrationRig) -> tuple[Node, Node]:
    """Return a source that is starting and waits for an unreachable volume, and a target."""
    backend = CrucibleStorageBackend(readonly=False, request_json=vcr_json("black hole", 1))
    disk = VirtioDisk(backend_id=BACKEND, pci_path=PciPath(bus=0, device=4, function=0))
    backends = {CrucibleStorageBackend: BlockingBackend}
    source, target = [await rig.node(name, backends=backends) for name in ("source", "target")]
    await source.create(
        spec_of(disk=VirtioDiskComponent(disk), **{BACKEND: CrucibleStorageBackendComponent(backend)})  # type: ignore[arg-type]
    )
    await source.client.instance_state_put(RUN)
    await source.wait_for(InstanceState.STARTING)
    return source, target


async def ask(source: Node, target: Node) -> asyncio.Task[None]:
    """Request a migration, and wait until it is queued at the source."""
    asked = asyncio.create_task(target.migrate_from(source.address))
    reason = ""
    async with asyncio.timeout(DEADLINE_S):
        while "migration source" not in reason:
            with pytest.raises(ApiError) as api_error:
                await source.client.instance_state_put(REBOOT)
            reason = str(api_error.value)
    return asked


async def unblock(source: Node) -> None:
    await source.client.issue_crucible_vcr(BACKEND, vcr_json("here", 2))


async def test_a_migration_that_is_asked_for_while_the_disk_blocks_takes_place_when_the_guest_runs(
    rig: MigrationRig,
) -> None:
    source, target = await blocked_source(rig)
    asked = await ask(source, target)
    assert await source.state() is InstanceState.STARTING
    await unblock(source)
    await asked
    await migrated(source, target)


async def test_a_stop_while_the_disk_blocks_drops_the_migration(rig: MigrationRig) -> None:
    source, target = await blocked_source(rig)
    asked = await ask(source, target)
    await source.client.instance_state_put(STOP)
    await source.wait_for(InstanceState.DESTROYED)
    with pytest.raises(ApiError, match="the source has left"):
        await asked
    await target.wait_for(InstanceState.FAILED)


async def test_a_target_that_does_not_wait_for_the_disk_does_not_keep_the_source_from_running(
    rig: MigrationRig,
) -> None:
    source, target = await blocked_source(rig)
    asked = await ask(source, target)
    await target.server.close()
    with pytest.raises(ApiError):
        await asked
    await unblock(source)
    await source.wait_out(MigrationState.ERROR)
    await source.wait_for(InstanceState.RUNNING)
    second = await rig.node("second", backends={CrucibleStorageBackend: BlockingBackend})
    await second.migrate_from(source.address)
    await migrated(source, second)

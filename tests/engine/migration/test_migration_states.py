"""A migration as both servers publish it: phases, transfers, failures. No guest boots."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from migration_rig import MigrationRig, Node, injector, migrate, migration_rig, spec_of

from pytest_propolis.agent_api.migration_report import MemoryTransfer
from pytest_propolis.engine.migration import source as migration_source
from pytest_propolis.engine.migration.stream import connect_stream
from pytest_propolis.engine.migration.transfer import LIVE_UNDER_TCG
from pytest_propolis.engine.qemu.binary import find_qemu
from pytest_propolis.engine.qemu.memory import GuestMemory
from pytest_propolis.engine.server import vm_maker
from pytest_propolis.engine.server.publisher import StatePublisher
from pytest_propolis.propolis_api import (
    InstanceState,
    InstanceStateRequested,
    MigrationFailureInjector,
    MigrationFailureInjectorReplacement,
    MigrationState,
    SerialPort,
    SerialPortComponent,
    SerialPortNumber,
)

SYNC, PUSH, PAUSE, DIRTY = (MigrationState(name) for name in ("Sync", "RamPush", "Pause", "RamPushDirty"))
DEVICE, PULL, SERVER, FINISH = (MigrationState(name) for name in ("Device", "RamPull", "Server", "Finish"))
OUT = [SYNC, SYNC, PUSH, PAUSE, PAUSE, DIRTY, PAUSE, DEVICE, PUSH, PAUSE, DIRTY, SERVER, FINISH]
IN = [SYNC, PUSH, PAUSE, DIRTY, PAUSE, DEVICE, PULL, SERVER, FINISH]


class Recorder(StatePublisher):
    """Keeps all that was published: a long poll may skip some of it."""

    made: list[Recorder]

    def __init__(self, initial: InstanceState, *, migration_in: uuid.UUID | None = None) -> None:
        super().__init__(initial, migration_in=migration_in)
        self.states = [initial]
        self.phases = [MigrationState.SYNC] if migration_in else []
        Recorder.made.append(self)

    def publish(self, state: InstanceState) -> None:
        self.states.append(state)
        super().publish(state)

    def publish_migration_in(self, migration_id: uuid.UUID, phase: MigrationState) -> None:
        self.phases.append(phase)
        super().publish_migration_in(migration_id, phase)

    def publish_migration_out(self, migration_id: uuid.UUID, phase: MigrationState) -> None:
        self.phases.append(phase)
        super().publish_migration_out(migration_id, phase)


@pytest_asyncio.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MigrationRig]:
    Recorder.made = []
    monkeypatch.setattr(vm_maker, "StatePublisher", Recorder)
    async with migration_rig(tmp_path) as rig:
        yield rig


async def failed(source: Node, target: Node) -> None:
    """Both have noticed that their migration failed."""
    await target.wait_for(InstanceState.FAILED)
    await source.wait_out(MigrationState.ERROR)
    await source.wait_for(InstanceState.RUNNING)


def copied_memory(path: Path) -> GuestMemory:
    """Memory that no other QEMU can map."""
    return GuestMemory(path=str(path), shared=False)


async def test_both_sides_publish_upstreams_phases_and_states(rig: MigrationRig) -> None:
    source, target = await rig.node("source"), await rig.node("target")
    await source.run(spec_of())
    await migrate(source, target)
    left, came = Recorder.made
    assert (left.phases, came.phases) == (OUT, IN)
    assert [state.value for state in left.states] == [
        *("Creating", "Starting", "Running"),
        *("Migrating", "Stopping", "Destroyed"),
    ]
    assert [state.value for state in came.states] == ["Migrating", "Running"]


async def test_the_target_names_the_migration_and_has_the_sources_spec(rig: MigrationRig) -> None:
    source, target = await rig.node("source"), await rig.node("target")
    spec = spec_of(com3=SerialPortComponent(SerialPort(num=SerialPortNumber.COM3)))
    await source.run(spec)
    migration_id = uuid.uuid4()
    await target.migrate_from(source.address, migration_id=migration_id)
    await target.wait_for(InstanceState.RUNNING)
    status = await target.client.instance_migrate_status()
    assert status.migration_in
    assert status.migration_in.id == migration_id
    assert (await target.client.instance_spec_get()).spec.value == spec  # type: ignore[union-attr]


async def test_memory_of_the_same_host_is_shared(rig: MigrationRig) -> None:
    source, target = await rig.node("source"), await rig.node("target")
    await source.run(spec_of())
    await migrate(source, target)
    for side in (source.server.migration_report().migration_out, target.server.migration_report().migration_in):
        assert side
        assert (side.memory_transfer, side.failure) == (MemoryTransfer.SHARED_MEMORY, None)


async def test_the_pause_is_reported(rig: MigrationRig) -> None:
    source, target = await rig.node("source"), await rig.node("target")
    await source.run(spec_of())
    assert source.server.migration_report().stopped_s == 0
    ran_s = source.server.migration_report().resumed_s
    await migrate(source, target)
    left, came = source.server.migration_report(), target.server.migration_report()
    assert 0 < ran_s == left.resumed_s < left.stopped_s < came.resumed_s


async def copying_way(rig: MigrationRig, tmp_path: Path) -> MemoryTransfer | None:
    """How memory that cannot be shared came to the target."""
    source = await rig.node("source", memory=copied_memory(tmp_path / "ram"))
    target = await rig.node("target")
    await source.run(spec_of())
    await migrate(source, target)
    assert (Recorder.made[0].phases, Recorder.made[1].phases) == (OUT, IN)
    side = target.server.migration_report().migration_in
    assert side
    return side.memory_transfer


async def test_an_old_qemu_copies_the_memory_of_a_guest_that_is_stopped(rig: MigrationRig, tmp_path: Path) -> None:
    if (version := (await find_qemu(None)).version) >= LIVE_UNDER_TCG:
        pytest.skip(f"QEMU {version} copies the memory of a guest that runs")
    assert await copying_way(rig, tmp_path) is MemoryTransfer.STOP_AND_COPY


async def test_a_newer_qemu_copies_the_memory_of_a_guest_that_runs(rig: MigrationRig, tmp_path: Path) -> None:
    if (version := (await find_qemu(None)).version) < LIVE_UNDER_TCG:
        pytest.skip(f"QEMU {version} loses pages of a guest that runs while its memory is copied")
    assert await copying_way(rig, tmp_path) is MemoryTransfer.LIVE


async def test_a_chain_of_migrations_goes_there_and_back_again(rig: MigrationRig) -> None:
    first, second = await rig.node("first"), await rig.node("second")
    await first.run(spec_of())
    await migrate(first, second)
    await migrate(second, first)
    await migrate(first, second)


async def test_a_failed_export_leaves_a_source_that_can_be_migrated_again(rig: MigrationRig) -> None:
    source, first, second = [await rig.node(name) for name in ("source", "first", "second")]
    await source.run(spec_of(failure=injector(exports=1)))
    open_before = _open_files(source)
    await first.migrate_from(source.address)
    await failed(source, first)
    assert _open_files(source) == open_before
    assert Recorder.made[0].phases[-1] is MigrationState.ERROR
    assert [state.value for state in Recorder.made[0].states[-2:]] == ["Migrating", "Running"]
    assert [state.value for state in Recorder.made[1].states] == ["Migrating", "Failed"]
    await migrate(source, second)


def _open_files(node: Node) -> set[str]:
    """Return the files that the server's QEMU has open."""
    return {str(fd.readlink()) for fd in Path(f"/proc/{node.server.pid}/fd").iterdir()}


async def test_a_failed_import_leaves_a_source_that_can_be_migrated_again(rig: MigrationRig) -> None:
    source, first, second = [await rig.node(name) for name in ("source", "first", "second")]
    await source.run(spec_of(failure=injector()))
    failing = MigrationFailureInjectorReplacement(MigrationFailureInjector(fail_exports=0, fail_imports=1))
    await first.migrate_from(source.address, replace={"failure": failing})
    await failed(source, first)
    assert Recorder.made[1].phases[-1] is MigrationState.ERROR
    report = source.server.migration_report().migration_out
    assert report
    assert "import" in str(report.failure)
    await migrate(source, second)


@pytest.mark.parametrize("way", ["shared", "copied"])
async def test_a_target_that_is_killed_leaves_the_guest_at_the_source(
    rig: MigrationRig, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = await rig.node("source", memory=None if way == "shared" else copied_memory(tmp_path / "ram"))
    target, second = await rig.node("target"), await rig.node("second")
    await source.run(spec_of())
    _on_push(monkeypatch, target, signal.SIGKILL)
    await target.migrate_from(source.address)
    await failed(source, target)
    monkeypatch.undo()
    await migrate(source, second)


async def test_a_target_that_hangs_does_not_hang_the_source(
    rig: MigrationRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = await rig.node("source", memory=copied_memory(tmp_path / "ram"))
    target, second = await rig.node("target"), await rig.node("second")
    await source.run(spec_of())
    monkeypatch.setattr(migration_source, "transfer_timeout_s", lambda memory_mib: 1.0)
    _on_push(monkeypatch, target, signal.SIGSTOP)
    await target.migrate_from(source.address)
    await source.wait_out(MigrationState.ERROR)
    await source.wait_for(InstanceState.RUNNING)
    report = source.server.migration_report().migration_out
    assert report
    assert "for 1 s" in str(report.failure)
    monkeypatch.undo()
    await migrate(source, second)


def _on_push(monkeypatch: pytest.MonkeyPatch, target: Node, number: signal.Signals) -> None:
    """Send the target's QEMU a signal when the source is about to send it its state."""
    connect = connect_stream

    async def connect_and_signal(path: Path) -> object:
        stream = await connect(path)
        assert target.server.pid
        os.kill(target.server.pid, number)
        return stream

    monkeypatch.setattr(migration_source, "connect_stream", connect_and_signal)


async def test_a_source_that_is_killed_fails_on_both_sides(rig: MigrationRig, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = await rig.node("source"), await rig.node("target")
    await source.run(spec_of())
    _on_push(monkeypatch, source, signal.SIGKILL)
    await target.migrate_from(source.address)
    await target.wait_for(InstanceState.FAILED)
    await source.wait_for(InstanceState.FAILED)


async def test_a_stop_behind_a_migration_that_fails_stops_the_source(rig: MigrationRig) -> None:
    source = await rig.node("source")
    await source.run(spec_of())
    async with source.client.instance_migrate_start(uuid.uuid4()):
        await source.wait_for(InstanceState.MIGRATING)
        await source.client.instance_state_put(InstanceStateRequested.STOP)
    await source.wait_for(InstanceState.DESTROYED)
    assert [state.value for state in Recorder.made[0].states[-5:]] == [
        *("Migrating", "Running", "Stopping", "Stopped", "Destroyed"),
    ]

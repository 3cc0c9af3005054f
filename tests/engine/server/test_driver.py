"""The state driver with a machine whose QEMU is a substitute: sources and targets of guests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from engine_rig import BACKEND, DEADLINE_S, FAKE_QEMU, BlockingBackend, vcr_json

from pytest_propolis.engine.qemu.machine import Machine
from pytest_propolis.engine.qemu.monitor import MachineError
from pytest_propolis.engine.request_queue import (
    DenyReason,
    MigrateAsSource,
    MigrationOut,
    QueueState,
    Reboot,
    ReplaceVolume,
    Request,
    RequestDenied,
    RequestQueue,
    Run,
    Stop,
)
from pytest_propolis.engine.server.driver import Arrive, MigrateOut, Outcome, StateDriver
from pytest_propolis.engine.server.publisher import StatePublisher
from pytest_propolis.engine.volumes.block_backend import BlockBackends, Reply, VolumeGone
from pytest_propolis.operating_system.child import NoJournal
from pytest_propolis.propolis_api import CrucibleStorageBackend, InstanceState, ReplaceResult


class Recorder(StatePublisher):
    """A publisher that keeps all that it published: a long poll may skip states, here each one counts."""

    def __init__(self, initial: InstanceState) -> None:
        super().__init__(initial)
        self.published = [initial]

    def publish(self, state: InstanceState) -> None:
        self.published.append(state)
        super().publish(state)


class Life:
    """One VM being driven."""

    def __init__(self, machine: Machine, address: str, arrive: Arrive | None, migrate_out: MigrateOut | None) -> None:
        initial = InstanceState.CREATING if arrive is None else InstanceState.MIGRATING
        self.discarded: list[Request] = []
        self.publisher = Recorder(initial)
        self.queue = RequestQueue(discard=self.discarded.append, migrating_in=arrive is not None)
        component = CrucibleStorageBackend(readonly=False, request_json=vcr_json(address, 1))
        self.backend = BlockingBackend(key=BACKEND, component=component, node_name="volume0")
        self.driver = StateDriver(
            queue=self.queue,
            publisher=self.publisher,
            backends=BlockBackends(by_key={BACKEND: self.backend}, on_replaced=lambda key, vcr: None),
            arrive=arrive,
            migrate_out=migrate_out,
        )
        self.machine = machine

    @property
    def published(self) -> list[InstanceState]:
        return self.publisher.published

    async def wait_for(self, state: InstanceState) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while self.publisher.state is not state:
                await self.publisher.wait_for(self.publisher.snapshot().gen + 1)

    def replace(self, address: str, generation: int) -> Reply:
        reply: Reply = asyncio.get_running_loop().create_future()
        self.driver.request(ReplaceVolume(BACKEND, vcr_json(address, generation), reply))
        return reply


@contextlib.asynccontextmanager
async def life(
    directory: Path,
    *,
    address: str = "here",
    arrive: Arrive | None = None,
    migrate_out: MigrateOut | None = None,
) -> AsyncIterator[tuple[Life, asyncio.Task[Outcome]]]:
    machine = Machine(
        program=FAKE_QEMU.system,
        arguments=[],
        log_path=directory / "qemu.log",
        journal=NoJournal(),
        on_event=lambda event: this.driver.guest_did(event),
    )
    this = Life(machine, address, arrive, migrate_out)
    try:
        await machine.start()
        driving = asyncio.create_task(this.driver.run(machine))
        yield this, driving
        async with asyncio.timeout(DEADLINE_S):
            await driving
    finally:
        await machine.close()


class Migration:
    """A migration out whose end the test decides."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.hands_over = False
        self.error: Exception | None = None

    async def __call__(self, machine: Machine, request: MigrateAsSource, migration: MigrationOut) -> None:
        self.begun.set()
        await self.may_end.wait()
        if self.error is not None:
            raise self.error
        migration.handed_over = self.hands_over


CREATING, STARTING, RUNNING = InstanceState.CREATING, InstanceState.STARTING, InstanceState.RUNNING
STOPPING, STOPPED, MIGRATING = InstanceState.STOPPING, InstanceState.STOPPED, InstanceState.MIGRATING


async def test_a_migration_asked_for_while_a_start_is_blocked_is_served_when_the_vm_runs(tmp_path: Path) -> None:
    migration = Migration()
    async with life(tmp_path, address="black hole", migrate_out=migration) as (vm, driving):
        vm.driver.request(Run())
        await vm.backend.reached("start")
        vm.driver.request(MigrateAsSource("migration"))
        with pytest.raises(RequestDenied) as denied:
            vm.driver.request(MigrateAsSource("another"))
        assert denied.value.reason is DenyReason.AlreadyMigrationSource
        assert await vm.replace("here", 2) is ReplaceResult.STARTED
        async with asyncio.timeout(DEADLINE_S):
            await migration.begun.wait()
        migration.hands_over = True
        migration.may_end.set()
        assert await driving is Outcome.DESTROYED
    assert vm.published == [CREATING, STARTING, RUNNING, MIGRATING, STOPPING]
    assert vm.queue.state is QueueState.MigratedOut


async def test_a_migration_asked_for_while_a_start_is_blocked_does_not_outlive_a_stop(tmp_path: Path) -> None:
    async with life(tmp_path, address="black hole", migrate_out=Migration()) as (vm, driving):
        vm.driver.request(Run())
        await vm.backend.reached("start")
        request = MigrateAsSource("migration")
        vm.driver.request(request)
        vm.driver.request(Stop())
        assert await driving is Outcome.DESTROYED
    assert vm.published == [CREATING, STARTING, STOPPED]
    assert vm.discarded == [request]


async def test_a_vm_whose_migration_failed_runs_on_and_can_migrate_again(tmp_path: Path) -> None:
    migration = Migration()
    migration.may_end.set()
    async with life(tmp_path, migrate_out=migration) as (vm, driving):
        vm.driver.request(Run())
        await vm.wait_for(RUNNING)
        for _ in range(2):
            migration.begun.clear()
            vm.driver.request(MigrateAsSource("fails"))
            async with asyncio.timeout(DEADLINE_S):
                await migration.begun.wait()
            await vm.wait_for(RUNNING)
        migration.hands_over = True
        vm.driver.request(MigrateAsSource("succeeds"))
        assert await driving is Outcome.DESTROYED
    assert vm.published == [CREATING, STARTING, RUNNING, *(MIGRATING, RUNNING) * 2, MIGRATING, STOPPING]


@pytest.mark.parametrize("hands_over", [False, True])
async def test_a_stop_behind_a_migration_counts_only_if_that_fails(tmp_path: Path, hands_over: bool) -> None:
    migration = Migration()
    migration.hands_over = hands_over
    async with life(tmp_path, migrate_out=migration) as (vm, driving):
        vm.driver.request(Run())
        await vm.wait_for(RUNNING)
        vm.driver.request(MigrateAsSource("migration"))
        await vm.wait_for(MIGRATING)
        stop = Stop()
        vm.driver.request(stop)
        with pytest.raises(RequestDenied) as denied:
            vm.driver.request(Reboot())
        assert denied.value.reason is DenyReason.InvalidForMigrationSource
        replacement = vm.replace("elsewhere", 2)
        migration.may_end.set()
        assert await driving is Outcome.DESTROYED
    end = [STOPPING] if hands_over else [RUNNING, STOPPING, STOPPED]
    assert vm.published == [CREATING, STARTING, RUNNING, MIGRATING, *end]
    # A volume is not replaced before a migration has ended, nor after a stop.
    assert stop in vm.discarded if hands_over else stop not in vm.discarded
    assert not replacement.done()
    assert vm.backend.vcr["address"] == "here"


async def test_a_migration_that_breaks_the_machine_fails_the_vm(tmp_path: Path) -> None:
    migration = Migration()
    migration.error = MachineError("it does not run on")
    migration.may_end.set()
    async with life(tmp_path, migrate_out=migration) as (vm, driving):
        vm.driver.request(Run())
        vm.driver.request(MigrateAsSource("migration"))
        assert await driving is Outcome.FAILED
    assert vm.queue.state is QueueState.Failed


async def test_a_vm_that_arrives_goes_from_migrating_to_running(tmp_path: Path) -> None:
    may_arrive = asyncio.Event()

    async def arrive(machine: Machine) -> None:
        await may_arrive.wait()

    async with life(tmp_path, arrive=arrive) as (vm, _):
        vm.driver.request(Run())  # it starts by itself
        with pytest.raises(RequestDenied) as denied:
            vm.driver.request(Reboot())
        assert denied.value.reason is DenyReason.StartInProgress
        assert vm.backend.events == []
        may_arrive.set()
        await vm.wait_for(RUNNING)
        assert vm.backend.events == ["start", "started"]
        vm.driver.request(Stop())
    assert vm.published == [MIGRATING, RUNNING, STOPPING, STOPPED]


async def test_a_vm_that_arrives_waits_for_its_volume_which_can_be_replaced(tmp_path: Path) -> None:
    async def arrive(machine: Machine) -> None:
        pass

    async with life(tmp_path, address="black hole", arrive=arrive) as (vm, _):
        await vm.backend.reached("start")
        assert vm.publisher.state is MIGRATING
        assert await vm.replace("here", 2) is ReplaceResult.STARTED
        await vm.wait_for(RUNNING)
        vm.driver.request(Stop())


async def test_a_stop_ends_an_arrival(tmp_path: Path) -> None:
    cancelled = asyncio.Event()

    async def arrive(machine: Machine) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with life(tmp_path, arrive=arrive) as (vm, driving):
        vm.driver.request(Stop())
        assert await driving is Outcome.DESTROYED
    assert cancelled.is_set()
    assert vm.published == [MIGRATING, STOPPED]


@pytest.mark.parametrize("error", [MachineError("no state"), OSError("the source is gone"), ValueError("unexpected")])
async def test_an_arrival_that_fails_fails_the_vm(tmp_path: Path, error: Exception) -> None:
    async def arrive(machine: Machine) -> None:
        raise error

    async with life(tmp_path, arrive=arrive) as (vm, driving):
        assert await driving is Outcome.FAILED
    assert vm.published == [MIGRATING]
    assert vm.queue.state is QueueState.Failed


async def test_after_a_failed_start_the_queue_has_ended_too(tmp_path: Path) -> None:
    async with life(tmp_path, address="broken") as (vm, driving):
        run = Run()
        vm.driver.request(run)
        assert await driving is Outcome.FAILED
        assert vm.queue.state is QueueState.Failed
        vm.driver.request(Stop())  # ignored
        with pytest.raises(RequestDenied) as denied:
            vm.driver.request(Run())
        assert denied.value.reason is DenyReason.InstanceFailed


async def test_a_driver_that_is_cancelled_answers_who_waits_for_a_replacement(tmp_path: Path) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        async with life(tmp_path) as (vm, driving):
            replacement = vm.replace("silence", 2)
            await vm.backend.reached("silent")
            driving.cancel()
            with pytest.raises(VolumeGone):
                await replacement
    assert vm.queue.state is QueueState.Failed

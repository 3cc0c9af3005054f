"""The source of a migration: hands its guest over to the target that requested it, or resumes it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec
from qemu.qmp import EventListener

from ...agent_api.boot_source import BootSource, boot_contents
from ...agent_api.migration_report import DiskTransfer, MemoryTransfer, MigrationSide
from ...propolis_api import InstanceSpec, MigrationState
from ..qemu.accelerator.probe import AcceleratorName
from ..qemu.devices.disks import backend_nodes
from ..qemu.devices.host_file import HostFile, this_host
from ..qemu.machine import Machine
from ..qemu.monitor import MachineError
from ..request_queue import MigrateAsSource, MigrationOut
from ..templates.state_stream import cancel_transfer, save_state
from ..volumes.block_backend import BlockBackends
from .between_hosts.departing_memory import DepartingMemory
from .between_hosts.remote_streams import STATE_STREAM, StreamExchange, disk_stream
from .departing_disks import describe_disks
from .disk_mirror import DiskMirror, MirroredDisk
from .disks import DiskFacts, copy_timeout_s
from .failure import FailureInjector, MigrationFailed
from .protocol import (
    ANSWER_TIMEOUT_S,
    Connection,
    DisksReady,
    HandedOver,
    MigrationChannel,
    Plan,
    Preamble,
    Proceed,
    Ready,
    ServerState,
    StreamLoaded,
    StreamSent,
    transfer_timeout_s,
)
from .spec import require_migratable
from .stream import connect_stream
from .transfer import transfer_and_confirm

__all__ = ["MigrationSource", "SourceFacts"]

logger = logging.getLogger(__name__)

PLAN_TIMEOUT_S: Final = 60.0
"""How long the target may take to start its QEMU. The guest runs meanwhile."""


class SourceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about a VM that the target requires.

    :param memory: where its memory is, if another QEMU may map it.
    :param blobs: where the contents of its blob backends are.
    """

    spec: InstanceSpec
    boot: BootSource
    qemu_version: tuple[int, int, int]
    accelerator: AcceleratorName
    memory: HostFile | None
    blobs: Mapping[str, HostFile]


class MigrationSource:
    """Serves the migrations out of one VM, as the state driver's `MigrateOut`.

    :param directory: a private directory for sockets.
    :param facts: called for each migration; returns the VM's current facts.
    :param publish: publishes a phase of the migration of that id.
    :param backends: the VM's volumes, which the target activates itself once it has the guest.
    :param on_change: called with the state of a migration whenever it changes.
    """

    def __init__(
        self,
        *,
        directory: Path,
        facts: Callable[[], SourceFacts],
        injector: FailureInjector,
        publish: Callable[[UUID, MigrationState], None],
        on_change: Callable[[MigrationSide], None],
        backends: BlockBackends,
    ) -> None:
        self._directory = directory
        self._facts = facts
        self._injector = injector
        self._publish = publish
        self._on_change = on_change
        self._backends = backends
        self._streams: StreamExchange | None = None

    def take_stream(self, migration_id: UUID, name: str, connection: Connection) -> None:
        """Accept a websocket for a stream of a migration; abandon it if that migration is not in progress."""
        if self._streams is None or self._streams.id != migration_id:
            connection.abandon()
        else:
            self._streams.accept(name, connection)

    async def __call__(self, machine: Machine, request: MigrateAsSource, outcome: MigrationOut) -> None:
        """Hand the guest over. If that fails, it runs here again when this returns.

        :raises MachineError: when the guest cannot be resumed.
        """
        channel = request.payload
        assert isinstance(channel, MigrationChannel)
        migration = _Departure(self, UUID(request.migration_id), machine, channel)
        self._streams = migration.streams
        try:
            await migration.run()
        except (MigrationFailed, MachineError) as error:
            logger.warning("migration %s out failed: %s", request.migration_id, error)
            self._on_change(migration.side(failure=str(error)))
            migration.reach(MigrationState.ERROR)
            await channel.fail(str(error))
            await migration.run_on()
        except BaseException:
            await migration.mirror.cut()
            await channel.close("the source's server ends")
            raise
        else:
            outcome.handed_over = True
            await channel.close()
        finally:
            self._streams = None
            await migration.streams.close()


class _Departure:
    """One migration out.

    The phases are published in propolis-server's order, including those that require no work here.
    """

    def __init__(
        self, source: MigrationSource, migration_id: UUID, machine: Machine, channel: MigrationChannel
    ) -> None:
        self._source = source
        self.id = migration_id
        self._machine = machine
        self._channel = channel
        self._paused = False
        self._ends: EventListener | None = None
        self.mirror = DiskMirror(machine, directory=source._directory)
        self.streams = StreamExchange(migration_id)
        self._described: dict[str, DiskFacts] = {}
        self.memory_transfer: MemoryTransfer | None = None
        self._memory: DepartingMemory | None = None
        self.disks: Mapping[str, DiskTransfer] = {}

    async def run(self) -> None:
        self.reach(MigrationState.SYNC)
        facts = self._source._facts()
        size = facts.spec.board.memory_mb << 20
        async with DepartingMemory.of(facts.memory, pid=self._machine.pid, size=size) as self._memory:
            plan = await self._move(facts, self._memory)
        self.reach(MigrationState.RAM_PUSH, MigrationState.PAUSE, MigrationState.RAM_PUSH_DIRTY, MigrationState.SERVER)
        await self._channel.receive(Ready)
        self.reach(MigrationState.FINISH)
        stopped_for_s = max(0.0, time.time() - self._machine.stopped_s)
        await self._channel.send(HandedOver(stopped_for_s=stopped_for_s))  # what raises here was not sent
        self._source._on_change(self.side(handed_over=True))
        for port in self._machine.serials:
            port.move_to(plan.address)

    async def _move(self, facts: SourceFacts, memory: DepartingMemory) -> Plan:
        """Agree with the target, and send it all but the guest."""
        plan = await self._sync(facts, memory)
        await _require_same_contents(facts.boot, plan)
        self.memory_transfer, self.disks = plan.memory_transfer, plan.disks
        self._source._on_change(self.side())
        self.reach(MigrationState.RAM_PUSH)
        await self._copy_disks(plan, facts.spec)
        await self._push(plan, memory, facts.spec.board.memory_mb)
        return plan

    def side(self, *, failure: str | None = None, handed_over: bool = False) -> MigrationSide:
        """Return the state of the migration."""
        return MigrationSide(
            id=self.id,
            memory_transfer=self.memory_transfer,
            disks=self.disks,
            failure=failure,
            handed_over=handed_over,
            carried_bytes=self.streams.carried_bytes + (self._memory.carried_bytes if self._memory else 0),
        )

    async def run_on(self) -> None:
        """Resume the guest here."""
        await self.mirror.close()
        if self._paused:
            await self._source._backends.record_clean(clean=False)
            await self._machine.resume()
            for port in self._machine.serials:
                port.release()

    def reach(self, *phases: MigrationState) -> None:
        for phase in phases:
            self._source._publish(self.id, phase)

    async def _sync(self, facts: SourceFacts, memory: DepartingMemory) -> Plan:
        await self._channel.select()
        require_migratable(facts.spec)
        self._described = await describe_disks(self._machine, facts.spec, facts.blobs)
        self.reach(MigrationState.SYNC)
        await self._channel.send(
            Preamble(
                host=this_host(),
                spec=facts.spec,
                boot=facts.boot,
                qemu_version=facts.qemu_version,
                accelerator=facts.accelerator,
                memory=facts.memory,
                disks=self._described,
                reads_memory=memory.is_read_in_process,
            )
        )
        return await self._channel.receive(Plan, timeout_s=PLAN_TIMEOUT_S)

    async def _copy_disks(self, plan: Plan, spec: InstanceSpec) -> None:
        """Mirror the guest's writes to the target's own disks; do nothing if it uses the source's."""
        if unknown := plan.disks.keys() - self._described.keys():
            raise MigrationFailed(f"the target wants to copy what is no disk: {', '.join(sorted(unknown))}")
        nodes = backend_nodes(spec.components)
        disks = [
            MirroredDisk(
                key=key,
                node=nodes[key],
                size_bytes=self._described[key].size_bytes,
                overlay=transfer is DiskTransfer.COPIED_OVERLAY,
            )
            for key, transfer in plan.disks.items()
            if transfer.is_copied
        ]
        if not disks:
            return

        async def reach(number: int) -> socket.socket:
            return await self._reach_target(plan, plan.disk_socket, disk_stream(number))

        async def copy() -> None:
            await self.mirror.start(disks, reach=reach)
            await self._channel.send(DisksReady())

        timeout_s = copy_timeout_s(sum(disk.size_bytes for disk in disks)) + ANSWER_TIMEOUT_S
        await transfer_and_confirm(copy(), self._channel.receive(Proceed, timeout_s=timeout_s))

    async def _pause(self) -> None:
        self._paused = True
        await self.mirror.guard(self._machine.pause())
        # QEMU has reported all earlier events of the guest when it answers this.
        await self._require_status("paused")
        self._require_no_end()
        self._hold()
        await self.mirror.finish()
        await self._source._backends.record_clean(clean=True)

    async def _require_status(self, wanted: str) -> None:
        status = (await self._machine.execute("query-status"))["status"]
        if status != wanted:
            raise MigrationFailed(f"the guest has stopped by itself ({status})")

    def _require_no_end(self) -> None:
        """Raise if the guest ended or reset itself while it was stopped: it is paused then, and would hang there."""
        assert self._ends is not None
        if not self._ends.empty():
            end: dict[str, Any] = dict(self._ends.history[-1])
            raise MigrationFailed(f"the guest has stopped by itself ({end['data']['reason']})")

    def _hold(self) -> None:
        self._paused = True
        for port in self._machine.serials:
            port.hold()
        self._machine.ports.hold()
        self.reach(MigrationState.PAUSE, MigrationState.PAUSE, MigrationState.RAM_PUSH_DIRTY)

    async def _push(self, plan: Plan, memory: DepartingMemory, memory_mib: int) -> None:
        """Send QEMU's state and the server's, and wait for confirmation that the target has loaded it."""
        is_shared = plan.memory_transfer is MemoryTransfer.SHARED_MEMORY
        timeout_s = ANSWER_TIMEOUT_S if is_shared else transfer_timeout_s(memory_mib)
        outgoing = await memory.start(plan.memory_transfer, self.streams)
        reached = await self._reach_target(plan, plan.stream, STATE_STREAM, outgoing=outgoing)
        with reached as stream, self._machine.events("SHUTDOWN") as self._ends:
            if plan.memory_transfer is MemoryTransfer.LIVE:
                await self._require_status("running")
            loaded = self._channel.receive(StreamLoaded, timeout_s=timeout_s)
            await transfer_and_confirm(self._send(stream.fileno(), plan.memory_transfer, timeout_s), loaded)

    async def _reach_target(
        self, plan: Plan, path: str, name: str, *, outgoing: Callable[[bytes], bytes] | None = None
    ) -> socket.socket:
        """Return a connection to a socket of the target: where it is, or over a websocket that the target opens."""
        return await (self.streams.take(name, outgoing=outgoing) if plan.is_remote else connect_stream(Path(path)))

    async def _send(self, stream: int, memory_transfer: MemoryTransfer, timeout_s: float) -> None:
        live = memory_transfer is MemoryTransfer.LIVE
        try:
            async with asyncio.timeout(timeout_s):
                if self._memory is not None:
                    await self._memory.copy_while_running()
                await save_state(
                    self._machine,
                    stream,
                    memory_in_file=memory_transfer.memory_in_file,
                    stop=None if live else self._stop,
                    on_switchover=self._switch_over if live else None,
                )
        except TimeoutError:
            await cancel_transfer(self._machine)
            raise MigrationFailed(f"the target has not taken the guest's state for {timeout_s:.0f} s") from None
        except BaseException:
            with contextlib.suppress(MachineError):
                await cancel_transfer(self._machine)
            raise
        await self._channel.send(StreamSent())
        # The target needs this next: so it need not ask while the guest is paused.
        com1, com2 = (port.state() for port in self._machine.serials)
        await self._channel.send(ServerState(com1=com1, com2=com2))

    async def _stop(self) -> None:
        await self._pause()
        if self._memory is not None:
            await self._memory.copy_rest()
        self._export()

    async def _switch_over(self) -> None:
        self._paused = True
        self._require_no_end()
        self._hold()
        await self.mirror.finish()
        await self._source._backends.record_clean(clean=True)
        self._export()

    def _export(self) -> None:
        self.reach(MigrationState.PAUSE, MigrationState.DEVICE)
        self._source._injector.exporting()


async def _require_same_contents(boot: BootSource, plan: Plan) -> None:
    """
    :raises MigrationFailed: when the target would boot from other files.
    """
    if not plan.is_remote:
        return  # the target has compared them
    try:
        ours = await asyncio.to_thread(boot_contents, boot)
    except OSError as error:
        raise MigrationFailed(f"what the guest boots from cannot be read at the source: {error}") from None
    for what, digest in ours.items():
        if plan.boot_contents.get(what) != digest:
            raise MigrationFailed(f"{what}: the target's has other contents than the source's")

"""The target of a migration: takes over the guest of another server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import UUID

from ...agent_api.boot_source import BootSource, boot_contents, boot_difference
from ...agent_api.migration_report import MemoryTransfer, MigrationSide
from ...propolis_api import FromMigration, InstanceSpec, MigrationState
from ..qemu.accelerator.probe import AcceleratorName
from ..qemu.devices.host_file import HostFile, this_host
from ..qemu.machine import Machine
from ..qemu.monitor import MachineError
from ..templates.state_stream import load_state
from .arriving_disks import ArrivingDisks
from .between_hosts.memory_copy import MEMORY_STREAM, MemoryReceiver
from .between_hosts.outcome import was_handed_over
from .between_hosts.remote_streams import STATE_STREAM, CarriedSocket, disk_stream
from .failure import FailureInjector, MigrationFailed
from .opened_connection import OpenedConnection
from .protocol import (
    ANSWER_TIMEOUT_S,
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
from .spec import replace_components
from .stream import StreamListener, connect_stream
from .transfer import select_copy_transfer, transfer_and_confirm

__all__ = ["MigrationTarget"]

logger = logging.getLogger(__name__)


class MigrationTarget:
    """One migration in: `sync`, build a machine from `spec` and the memory, and let the state driver call this object,
    as its `Arrive`. Close it in any case.

    :param address: where clients find this server.
    :param stream_path: where to wait for QEMU's state, in a private directory.
    :param boot: the boot source here. It must equal the source's, because the guest may be reset.
    :param disks: the VM's disks here. They are closed with this.
    :param publish: publishes a phase of the migration. Sync is already published.
    """

    def __init__(
        self,
        init: FromMigration,
        *,
        address: str,
        stream_path: Path,
        boot: BootSource,
        accelerator: AcceleratorName,
        qemu_version: tuple[int, int, int],
        disks: ArrivingDisks,
        publish: Callable[[UUID, MigrationState], None],
    ) -> None:
        self.id = init.migration_id
        self._init = init
        self._address = address
        self._stream_path = stream_path
        self._boot = boot
        self._accelerator = accelerator
        self._qemu_version = qemu_version
        self.disks = disks
        self._publish = publish
        self._channel: MigrationChannel | None = None
        self._injector = FailureInjector()
        self._memory_mib = 0
        self._has_guest = False
        self._is_remote = False
        self._has_memory_file = False
        self._source_reads_memory = False
        self._memory: int | None = None
        self._boot_contents: dict[str, str] = {}
        self._streams: list[CarriedSocket] = []
        self.memory_transfer: MemoryTransfer | None = None
        self.failure: str | None = None
        self._carried_bytes = 0
        self._handed_over: tuple[float, float] | None = None
        """How long the guest had been paused at the hand-over, and when that was."""
        self._began_s = time.monotonic()
        self._phases_s: dict[str, float] = {}

    def report(self, *, resumed_s: float) -> MigrationSide:
        """Return a report of the migration.

        :param resumed_s: when QEMU last let the guest run.
        """
        stopped_for_s, then_s = self._handed_over or (0.0, 0.0)
        return MigrationSide(
            id=self.id,
            memory_transfer=self.memory_transfer,
            disks=self.disks.transfers,
            failure=self.failure,
            handed_over=self._has_guest,
            carried_bytes=self._carried_bytes,
            pause_s=stopped_for_s + resumed_s - then_s if self._handed_over and resumed_s >= then_s else 0.0,
            phases_s=dict(self._phases_s),
        )

    async def sync(self) -> tuple[InstanceSpec, HostFile | None]:
        """Agree with the source: the spec of the VM here, and where its memory is, if the source can share it.

        :raises MigrationFailed: when the source does not answer or refuses, or its VM cannot run here.
        """
        connection = await OpenedConnection.to(self._init.src_addr, self.id)
        channel = self._channel = MigrationChannel(connection, other="source")
        await channel.propose()
        preamble = await channel.receive(Preamble)
        self._require_same("QEMU", ".".join(map(str, preamble.qemu_version)), ".".join(map(str, self._qemu_version)))
        self._require_same("accelerator", preamble.accelerator, self._accelerator)
        self._is_remote = preamble.host != this_host()
        self._has_memory_file = preamble.memory is not None
        self._source_reads_memory = preamble.reads_memory
        await self._require_same_boot(preamble.boot)
        spec = replace_components(preamble.spec, self._init.replace_components)
        spec = await self.disks.resolve(spec, preamble.disks)
        self._injector = FailureInjector.of(spec)
        self._memory_mib = spec.board.memory_mb
        return spec, None if self._is_remote else preamble.memory

    def plan(self, *, shares_memory: bool, memory: int | None) -> None:
        """Decide how the memory is transferred.

        :param memory: the file with the memory here, if there is one, which stays the caller's.
        """
        self._memory = memory
        into_file = self._is_remote and memory is not None
        self.memory_transfer = (
            MemoryTransfer.SHARED_MEMORY
            if shares_memory
            else select_copy_transfer(
                self._accelerator,
                self._qemu_version,
                between_files=into_file and self._has_memory_file,
                into_file=into_file and self._source_reads_memory,
            )
        )

    async def __call__(self, machine: Machine) -> None:
        """Transfer the guest, up to where it could run.

        :raises MachineError: when that fails. The source was notified, and resumes it.
        """
        try:
            await self._arrive(machine)
        except (MigrationFailed, MachineError) as error:
            logger.warning("migration %s in failed: %s", self.id, error)
            self.failure = str(error)
            self._publish(self.id, MigrationState.ERROR)
            raise MachineError(f"migration in: {error}") from None

    async def close(self) -> None:
        """End the conversation. A source that still has the guest resumes it. Idempotent."""
        await self._close_streams()
        self.disks.close(keep=self._has_guest)
        channel, self._channel = self._channel, None
        if channel is None:
            return
        if self._has_guest:
            await channel.close()
        else:
            await channel.fail(self.failure or "the target has ended")

    async def _arrive(self, machine: Machine) -> None:
        channel = self._channel
        assert channel is not None, "sync first"
        await self._load(channel, machine)
        self._reach(MigrationState.RAM_PULL)
        state = await channel.receive(ServerState)
        self._reach(MigrationState.SERVER)
        machine.serial.restore(state.com1)
        machine.second_serial.restore(state.com2)
        await channel.send(Ready())
        self._reach(MigrationState.FINISH)
        await self._receive_guest(channel)
        self._has_guest = True  # the source ends the conversation: the guest must not wait for that

    async def _receive_guest(self, channel: MigrationChannel) -> None:
        """Wait until this side owns the guest.

        The source may have handed it over when the connection was lost. It is queried again then.

        :raises MigrationFailed: when it is not.
        """
        try:
            handed_over = await channel.receive(HandedOver)
            self._handed_over = handed_over.stopped_for_s, time.time()
        except MigrationFailed as failure:
            if failure.reported or not await was_handed_over(self._init.src_addr, self.id):
                raise

    async def _load(self, channel: MigrationChannel, machine: Machine) -> None:
        assert self.memory_transfer is not None, "plan first"
        timeout_s = transfer_timeout_s(self._memory_mib)
        listener = StreamListener(self._stream_path)
        try:
            await self.disks.open(machine)
            await channel.send(self._plan(self.memory_transfer))
            self._reach(MigrationState.RAM_PUSH)
            await self._open_disk_streams()
            if self.disks.copied:
                await channel.receive(DisksReady, timeout_s=self.disks.timeout_s + ANSWER_TIMEOUT_S)
                await channel.send(Proceed())
            sent = channel.receive(StreamSent, timeout_s=timeout_s)
            await transfer_and_confirm(self._receive(listener, machine, self.memory_transfer, timeout_s), sent)
        finally:
            listener.close()
        await self.disks.shut(machine)
        await self._close_streams()
        self._reach(MigrationState.DEVICE)
        self._injector.importing()
        await channel.send(StreamLoaded())

    def _plan(self, memory_transfer: MemoryTransfer) -> Plan:
        return Plan(
            memory_transfer=memory_transfer,
            stream=str(self._stream_path),
            address=self._address,
            disks=self.disks.transfers,
            disk_socket=str(self.disks.socket),
            is_remote=self._is_remote,
            boot_contents=self._boot_contents,
        )

    async def _open_disk_streams(self) -> None:
        """Connect a source that cannot reach the disks' socket to it."""
        for number in range(len(self.disks.copied) if self._is_remote else 0):
            connection = await self._open_stream(disk_stream(number))
            try:
                local = await connect_stream(self.disks.socket)
            except BaseException:
                await connection.close("")
                raise
            self._streams.append(CarriedSocket(connection, local))

    async def _open_stream(self, name: str) -> OpenedConnection:
        return await OpenedConnection.to(self._init.src_addr, self.id, f"stream/{name}")

    async def _close_streams(self) -> None:
        while self._streams:
            carried = self._streams.pop()
            await carried.close()
            self._carried_bytes += carried.carried_bytes

    @contextlib.asynccontextmanager
    async def _stream(self, listener: StreamListener) -> AsyncIterator[socket.socket]:
        """Yield the connection on which the source's QEMU sends its state, for the length of the block."""
        if not self._is_remote:
            with await listener.accept() as stream:
                yield stream
            return
        carried = CarriedSocket(await self._open_stream(STATE_STREAM))
        try:
            with carried.take_local_end() as stream:
                yield stream
        finally:
            await carried.close()
            self._carried_bytes += carried.carried_bytes

    async def _receive(
        self, listener: StreamListener, machine: Machine, memory_transfer: MemoryTransfer, timeout_s: float
    ) -> None:
        try:
            async with asyncio.timeout(timeout_s), self._stream(listener) as stream:
                if memory_transfer in (MemoryTransfer.COPIED_IN_PASSES, MemoryTransfer.COPIED_AHEAD):
                    await self._receive_memory()
                self._reach(MigrationState.PAUSE, MigrationState.RAM_PUSH_DIRTY, MigrationState.PAUSE)
                await load_state(machine, stream.fileno(), memory_in_file=memory_transfer.memory_in_file)
        except TimeoutError:
            raise MigrationFailed(f"the guest's state has not come for {timeout_s:.0f} s") from None

    async def _receive_memory(self) -> None:
        assert self._memory is not None
        receiver = MemoryReceiver(self._memory, await self._open_stream(MEMORY_STREAM))
        try:
            await receiver.receive()
        finally:
            self._carried_bytes += receiver.carried_bytes
            await receiver.close()

    async def _require_same_boot(self, source: BootSource) -> None:
        """
        :raises MigrationFailed: when the guest would boot differently here; the source compares what only it can.
        """
        if difference := boot_difference(source, self._boot, contents=not self._is_remote):
            self._require_same(*difference)
        if self._is_remote:
            try:
                self._boot_contents = await asyncio.to_thread(boot_contents, self._boot)
            except OSError as error:
                raise MigrationFailed(f"what a guest boots from cannot be read here: {error}") from None

    def _reach(self, *phases: MigrationState) -> None:
        for phase in phases:
            self._phases_s.setdefault(phase.value, time.monotonic() - self._began_s)
            self._publish(self.id, phase)

    @staticmethod
    def _require_same(what: str, source: str, target: str) -> None:
        if source != target:
            raise MigrationFailed(f"{what}: {source} at the source, {target} here")

"""A Propolis server: the life around one VM, from "no VM" to "run down" and round again.

The wrapper of propolis-server: ``NoVm → WaitingForInit → Active → Rundown → RundownComplete → WaitingForInit …``. It is
told apart from the request queue, which belongs to one VM while it is active.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from ..propolis_api import (
    Instance,
    InstanceEnsureRequest,
    InstanceEnsureResponse,
    InstanceGetResponse,
    InstanceMigrateInitiateResponse,
    InstanceMigrateStatusResponse,
    InstanceProperties,
    InstanceSpec,
    InstanceSpecGetResponse,
    InstanceState,
    InstanceStateMonitorResponse,
    InstanceStateRequested,
    MigrationTargetInit,
    PresentSpec,
    ReplaceResult,
    WaitingForMigrationSource,
)
from .arriving_disks import ArrivingDisks
from .blobs import BlobFiles
from .block_backend import BackendMissing, BlockBackends, ReplacementRefused, VolumeGone
from .command_line import SpecRefused, SpecUnsupported
from .cpu_features import CpuFeatures
from .disks import DiskPart
from .display import screenshot
from .driver import Outcome, StateDriver
from .dropshot_errors import (
    ALREADY_INITIALIZED,
    NO_INSTANCE,
    VM_DESTROYED,
    ErrorAnswer,
    backend_not_found,
    bad_request,
    crucible_error,
    initialization_failed,
    never_published,
    state_change_denied,
)
from .hot_plug import plug, pluggable
from .machine import Machine, MachineError
from .migration_disks import DiskWay
from .migration_failure import FailureInjector, MigrationFailed
from .migration_protocol import MemoryFile, MigrationChannel
from .migration_report import MigrationReport, MigrationSide
from .migration_source import MigrationSource, SourceFacts
from .migration_target import MigrationTarget
from .migration_way import MigrationWay
from .migration_websocket import AcceptedConnection
from .own_memory import OwnMemory
from .publisher import PublisherGone, StatePublisher
from .refusal import Refusal, unsupported
from .request_queue import MigrateAsSource, Reboot, ReplaceVolume, Request, RequestDenied, RequestQueue, Run, Stop
from .serial_port import SerialPort
from .served_vm import ServedVm
from .server_config import ServerConfig
from .state_stream import save_state

__all__ = ["VmServer"]

logger = logging.getLogger(__name__)

REQUESTS: Final[dict[InstanceStateRequested, type[Run | Stop | Reboot]]] = {
    InstanceStateRequested.RUN: Run,
    InstanceStateRequested.STOP: Stop,
    InstanceStateRequested.REBOOT: Reboot,
}


class VmServer:
    """One base URL's worth of Propolis API, without the HTTP.

    Methods raise `Refusal` where upstream answers with an error.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._fork = config.fork
        self._vm: ServedVm | None = None
        self._life: asyncio.Task[None] | None = None
        self._cpu_features = CpuFeatures(
            config.qemu, config.accelerator, journal=config.journal, log_path=config.log_path
        )

    async def ensure(self, request: InstanceEnsureRequest) -> InstanceEnsureResponse:
        """Create the VM.

        Refused with 409 while there is one, with 400 for a bad spec, with 500 when it cannot be set up; then the state
        is Failed, and the server can be asked again.
        """
        try:
            await self._cpu_features.find_for(request)
        except MachineError as error:
            raise Refusal(initialization_failed(str(error))) from None
        if self._life is not None:
            raise Refusal(ALREADY_INITIALIZED)
        init = request.init
        if isinstance(init, MigrationTargetInit):
            vm = self._vm_to_come(request.properties, init)
        else:
            vm = self._new_vm(request.properties, init.value.spec)
        self._vm = vm
        self._life = asyncio.create_task(self._live(vm))
        try:
            # A caller who leaves does not undo what was asked for: as propolis-server, whose handlers run detached.
            await asyncio.shield(vm.initialized)
        except Refusal:
            await asyncio.shield(self._life_ended())
            raise
        except (MachineError, MigrationFailed) as error:
            await asyncio.shield(self._life_ended())
            raise Refusal(initialization_failed(str(error))) from None
        migrate = InstanceMigrateInitiateResponse(migration_id=vm.arrival.id) if vm.arrival else None
        return InstanceEnsureResponse(migrate=migrate)

    def get(self) -> InstanceGetResponse:
        vm = self._require_vm()
        return InstanceGetResponse(instance=Instance(properties=vm.properties, state=vm.publisher.state))

    def get_spec(self) -> InstanceSpecGetResponse:
        vm = self._require_vm()
        spec = PresentSpec(vm.spec) if vm.spec else WaitingForMigrationSource()
        return InstanceSpecGetResponse(properties=vm.properties, spec=spec, state=vm.publisher.state)

    def put_state(self, requested: InstanceStateRequested) -> None:
        """Queue a state change. Returns when it is queued or ignored, not when it is done."""
        self._request(REQUESTS[requested]())

    async def replace_volume(self, backend_id: str, vcr_json: str) -> ReplaceResult:
        """Give a block backend a new volume construction request, and wait for what it says to it.

        Refused with 404 where there is no such backend, with 400 when it says no, with 410 when the VM ends before.
        """
        reply: asyncio.Future[ReplaceResult] = asyncio.get_running_loop().create_future()
        self._request(ReplaceVolume(backend_id, vcr_json, reply))
        try:
            return await reply
        except BackendMissing:
            raise Refusal(backend_not_found(backend_id)) from None
        except ReplacementRefused as refused:
            raise Refusal(crucible_error(str(refused))) from None
        except VolumeGone:
            raise Refusal(VM_DESTROYED) from None

    async def monitor(self, gen: int) -> InstanceStateMonitorResponse:
        """Wait for generation `gen` of the VM's state; no time limit."""
        if self._vm is None:
            raise Refusal(NO_INSTANCE)
        try:
            return await self._vm.publisher.wait_for(gen)
        except PublisherGone:
            raise Refusal(never_published(gen)) from None

    def migration_status(self) -> InstanceMigrateStatusResponse:
        return self._require_vm().publisher.snapshot().migration

    def migration_report(self) -> MigrationReport:
        """What the API does not say of the migrations: how the memory was moved, why one failed, the pause."""
        vm = self._require_vm()
        arrival = vm.arrival
        came = arrival.report if arrival else None
        stopped_s, resumed_s = (vm.machine.stopped_s, vm.machine.resumed_s) if vm.machine else (0.0, 0.0)
        return MigrationReport(migration_in=came, migration_out=vm.departure, stopped_s=stopped_s, resumed_s=resumed_s)

    def migrate_out(self, migration_id: UUID, connection: AcceptedConnection) -> None:
        """Queue a migration to the target at the other end of a connection. Returns when it is queued.

        Refused as other state changes are.
        """
        channel = MigrationChannel(connection, other="target")
        self._request(MigrateAsSource(str(migration_id), channel))

    def serial(self) -> SerialPort:
        machine = self._require_active().machine
        assert machine is not None
        return machine.serial

    async def nmi(self) -> None:
        machine = self._require_active().machine
        assert machine is not None
        await machine.execute("inject-nmi")

    async def screenshot(self) -> bytes:
        """What the display shows, as a PNG image. Refused with 404 where there is no display."""
        machine = self._require_active().machine
        assert machine is not None
        if not self._config.display:
            raise Refusal(ErrorAnswer(status=404, message="this VM has no display"))
        try:
            return await screenshot(machine, directory=self._config.directory)
        except (MachineError, OSError) as error:
            raise Refusal(ErrorAnswer(status=500, error_code="Internal", message=str(error))) from None

    async def freeze(self, path: Path) -> None:
        """Stop the guest for good, and write its state, without its memory, to a new file.

        :raises MachineError: when QEMU cannot save it, with the reason.
        """
        machine = self._require_active().machine
        assert machine is not None
        await machine.pause()
        with path.open("xb") as file:
            await save_state(machine, file.fileno(), memory_in_file=True)

    @property
    def display_socket(self) -> Path | None:
        """Where the display's VNC server listens; None without one, and while QEMU does not run."""
        return self._config.display_socket if self.pid is not None else None

    @property
    def own_disks(self) -> tuple[Path, ...]:
        """The disks that were made here for a VM that migrated in. They are gone when the server is closed."""
        return tuple(self._vm.arrival.disks.files) if self._vm and self._vm.arrival else ()

    @property
    def panics(self) -> int:
        """How often the guest reported a panic, since the VM was made."""
        return self._vm.machine.panics if self._vm and self._vm.machine else 0

    @property
    def state_name(self) -> str | None:
        """The VM's public state; None before the first ensure."""
        return self._vm.publisher.state.value if self._vm else None

    @property
    def pid(self) -> int | None:
        """QEMU's process id while it runs."""
        return self._vm.machine.pid if self._vm and self._vm.machine and self._life else None

    async def close(self) -> None:
        """End the VM at once and release all it has. Closing twice is fine."""
        if self._life is not None:
            if not self._life.cancelling():  # cancelled twice, it would not get to its end
                self._life.cancel()
            await self._life_ended()
        if self._fork is not None:
            await self._fork.close()
        shutil.rmtree(self._config.directory, ignore_errors=True)

    def _request(self, request: Request) -> None:
        driver = self._require_active().driver
        assert driver is not None
        try:
            driver.request(request)
        except RequestDenied as denial:
            raise Refusal(state_change_denied(denial.reason)) from None

    def _new_vm(self, properties: InstanceProperties, spec: InstanceSpec) -> ServedVm:
        """A VM in the state Creating. Nothing outside of this process exists yet.

        :raises Refusal: when the spec cannot be realised.
        """
        vm = ServedVm.new(properties, spec, StatePublisher(InstanceState.CREATING))
        self._equip(vm, spec)
        return vm

    def _vm_to_come(self, properties: InstanceProperties, init: MigrationTargetInit) -> ServedVm:
        """A VM in the state Migrating, of which nothing is known yet but where it comes from."""
        publisher = StatePublisher(InstanceState.MIGRATING, migration_in=init.value.migration_id)
        vm = ServedVm.new(properties, None, publisher)
        vm.arrival = MigrationTarget(
            init.value,
            address=self._config.address,
            stream_path=self._config.directory / "migration.sock",
            boot=self._config.boot,
            accelerator=self._config.accelerator,
            qemu_version=self._config.qemu.version,
            disks=ArrivingDisks(
                init.value.migration_id,
                directory=self._config.directory,
                qemu_img=self._config.qemu.img,
                copy=self._config.copy_disks,
            ),
            publish=publisher.publish_migration_in,
        )
        return vm

    async def _sync(self, vm: ServedVm, arrival: MigrationTarget) -> None:
        """Learn what a VM that migrates in is, and make a machine for it.

        :raises MigrationFailed: when the source and this server do not agree.
        :raises Refusal: when the spec cannot be realised here.
        """
        vm.spec, memory = await arrival.sync()
        self._equip(vm, vm.spec, its_memory=memory)

    def _equip(self, vm: ServedVm, spec: InstanceSpec, *, its_memory: MemoryFile | None = None) -> None:
        """Give a VM its block backends, its machine and its driver.

        :param its_memory: the memory of the VM that migrates in.
        :raises Refusal: when the spec cannot be realised.
        """
        has_memory = self._config.memory is not None or self._fork is not None
        if not has_memory:
            vm.memory = OwnMemory.open(its_memory) if its_memory else None
        if vm.arrival is not None:
            vm.arrival.plan(shares_memory=vm.memory is not None)
        with contextlib.ExitStack() as undo, _spec_faults():
            if not has_memory and vm.memory is None:
                vm.memory = OwnMemory.make()
            undo.callback(vm.close_memory)
            vm.backends = BlockBackends.of(spec, self._config.backends, on_replaced=vm.volume_replaced)
            vm.blobs = undo.enter_context(BlobFiles(spec, theirs=vm.arrival.disks.blobs if vm.arrival else {}))
            arguments = self._config.arguments(vm, spec, self._cpu_features)
            vm.plugged = self._lacking(spec, vm.blobs)
            undo.pop_all()
        vm.driver = StateDriver(
            queue=RequestQueue(discard=_discard, migrating_in=vm.arrival is not None),
            publisher=vm.publisher,
            backends=vm.backends,
            arrive=vm.arrival,
            migrate_out=self._departure(vm, spec),
        )
        vm.machine = self._machine(vm, arguments, vm.driver)

    def _departure(self, vm: ServedVm, spec: InstanceSpec) -> MigrationSource:
        def facts() -> SourceFacts:
            return SourceFacts(
                spec=vm.spec or spec,
                boot=self._config.boot,
                qemu_version=self._config.qemu.version,
                accelerator=self._config.accelerator,
                memory=vm.memory.file if vm.memory else None,
                blobs=vm.blobs.files if vm.blobs else {},
            )

        def settled(
            migration_id: UUID, way: MigrationWay | None, disks: Mapping[str, DiskWay], failure: str | None
        ) -> None:
            vm.departure = MigrationSide(id=migration_id, way=way, disks=disks, failure=failure)

        publish = vm.publisher.publish_migration_out
        return MigrationSource(
            directory=self._config.directory,
            facts=facts,
            injector=FailureInjector.of(spec),
            publish=publish,
            settled=settled,
        )

    async def _live(self, vm: ServedVm) -> None:
        outcome = Outcome.FAILED
        try:
            if vm.arrival is not None:
                await self._sync(vm, vm.arrival)
            assert vm.machine is not None
            assert vm.driver is not None
            if not vm.machine.is_started:  # a fork is
                await vm.machine.start()
            await plug(vm.machine, vm.plugged)
            vm.active = True
            vm.initialized.set_result(None)
            outcome = await vm.driver.run(vm.machine)
        except (MachineError, MigrationFailed, Refusal) as error:
            vm.initialized.set_exception(error)
        except asyncio.CancelledError:
            outcome = Outcome.DESTROYED
            raise
        finally:
            vm.active = False
            await _to_the_end(self._run_down(vm, outcome))

    async def _run_down(self, vm: ServedVm, outcome: Outcome) -> None:
        """Release all that a VM has, and only then say that it is gone."""
        try:
            await vm.release()
        except Exception:
            logger.exception("the VM is not released as it should be")
            outcome = Outcome.FAILED
        finally:
            self._life = None
            vm.publisher.publish(InstanceState.DESTROYED if outcome is Outcome.DESTROYED else InstanceState.FAILED)
            vm.publisher.close()

    async def _life_ended(self) -> None:
        while (life := self._life) is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([life])
            if life.done() and self._life is life:
                self._life = None  # it was cancelled before it began

    def _machine(self, vm: ServedVm, arguments: list[str], driver: StateDriver) -> Machine:
        fork, self._fork = self._fork, None  # later VMs of this server boot
        if fork is not None:
            return fork.attach(driver.guest_did)
        assert vm.blobs is not None
        memory = [vm.memory.fd] if vm.memory else []
        return Machine(
            program=self._config.qemu.system,
            arguments=[*self._config.qemu.arguments, *arguments],
            log_path=self._config.log_path,
            journal=self._config.journal,
            on_event=driver.guest_did,
            inherit=[*memory, *vm.blobs.fds.values()],
            incoming=vm.arrival is not None,
        )

    def _lacking(self, spec: InstanceSpec, blobs: BlobFiles) -> list[DiskPart]:
        """The disks that a fork is to be given. Apart from them it is one machine and no other."""
        if self._fork is None:
            return []
        keys = self._fork.lacks(spec)
        if keys is None:
            raise Refusal(bad_request("the spec is not that of the template that this VM is a fork of"))
        return pluggable(spec, keys, blobs={key: file.path for key, file in blobs.files.items()})

    def _require_vm(self) -> ServedVm:
        if self._vm is None:
            raise Refusal(NO_INSTANCE)
        return self._vm

    def _require_active(self) -> ServedVm:
        vm = self._require_vm()
        if not vm.active:
            raise Refusal(NO_INSTANCE)
        return vm


@contextlib.contextmanager
def _spec_faults() -> Iterator[None]:
    """What is wrong with a spec, as the answer to whoever sent it."""
    try:
        yield
    except SpecRefused as error:
        raise Refusal(bad_request(str(error))) from None
    except SpecUnsupported as error:
        raise unsupported(str(error)) from None
    except OSError as error:
        raise Refusal(initialization_failed(str(error))) from None


def _discard(request: Request) -> None:
    """The VM ended before this was served."""
    if isinstance(request, ReplaceVolume) and isinstance(request.reply, asyncio.Future) and not request.reply.done():
        request.reply.set_exception(VolumeGone())
    if isinstance(request, MigrateAsSource) and isinstance(request.payload, MigrationChannel):
        request.payload.abandon()
    logger.info("%s is not served any more", request)


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Do this whole, however often the caller is cancelled meanwhile."""
    task = asyncio.create_task(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])

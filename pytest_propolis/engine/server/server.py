"""A Propolis server: the life around one VM, from "no VM" to "run down" and back.

The wrapper of propolis-server: ``NoVm → WaitingForInit → Active → Rundown → RundownComplete → WaitingForInit …``. It is
distinct from the request queue, which belongs to one VM while it is active.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from ...agent_api.migration_report import MigrationReport, MigrationSide
from ...errors import PropolisError
from ...propolis_api import (
    Component,
    Instance,
    InstanceEnsureRequest,
    InstanceEnsureResponse,
    InstanceGetResponse,
    InstanceMigrateInitiateResponse,
    InstanceMigrateStatusResponse,
    InstanceSpec,
    InstanceSpecGetResponse,
    InstanceState,
    InstanceStateMonitorResponse,
    InstanceStateRequested,
    MigrationTargetInit,
    PresentSpec,
    ReplaceResult,
    VolumeStatus,
    WaitingForMigrationSource,
)
from ...propolis_api.connection.endpoint import Endpoint
from ..migration.accepted_connection import AcceptedConnection
from ..migration.failure import MigrationFailed
from ..migration.protocol import MigrationChannel
from ..qemu.devices.display import screenshot
from ..qemu.devices.hot_plug import plug
from ..qemu.devices.port_forward import ForwardRefused, forward_port
from ..qemu.guest_ports import GuestPort
from ..qemu.monitor import MachineError
from ..qemu.serial_port import SerialPort
from ..request_queue import MigrateAsSource, Reboot, ReplaceVolume, Request, RequestDenied, Run, Stop
from ..templates.state_stream import save_state
from ..volumes.block_backend import BackendMissing, ReplacementRefused, VolumeGone
from .driver import Outcome
from .dropshot_errors import (
    ALREADY_INITIALIZED,
    NO_INSTANCE,
    VM_DESTROYED,
    ErrorResponse,
    HttpError,
    backend_not_found,
    bad_request,
    crucible_error,
    initialization_failed,
    never_published,
    state_change_denied,
)
from .publisher import PublisherGone
from .served_vm import ServedVm
from .server_config import ServerConfig
from .vm_maker import VmMaker
from .vm_objects import VmObjects
from .vm_volumes import attach_disk, take_snapshot, volume_status

__all__ = ["VmServer"]

logger = logging.getLogger(__name__)

REQUESTS: Final[dict[InstanceStateRequested, type[Run | Stop | Reboot]]] = {
    InstanceStateRequested.RUN: Run,
    InstanceStateRequested.STOP: Stop,
    InstanceStateRequested.REBOOT: Reboot,
}


class VmServer:
    """The Propolis API at one base URL, without HTTP.

    Methods raise `HttpError` where upstream responds with an error.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._maker = VmMaker(config)
        self._vm: ServedVm | None = None
        self._life: asyncio.Task[None] | None = None

    async def ensure(self, request: InstanceEnsureRequest) -> InstanceEnsureResponse:
        """Create the VM.

        Refused with 409 while there is one, with 400 for a bad spec, with 500 when it cannot be set up; then the state
        is Failed, and the server can be asked again.
        """
        await self._maker.get_ready(request)
        if self._life is not None:
            raise HttpError(ALREADY_INITIALIZED)
        init = request.init
        if isinstance(init, MigrationTargetInit):
            _require_address(init.value.src_addr)
            vm = self._maker.for_migration(request.properties, init)
        else:
            vm = self._maker.new(request.properties, init.value.spec)
        self._vm = vm
        self._life = asyncio.create_task(self._live(vm))
        try:
            # A caller that disconnects does not cancel its request: as in propolis-server, whose handlers run detached.
            await asyncio.shield(vm.initialized)
        except HttpError:
            await asyncio.shield(self._life_ended())
            raise
        except (MachineError, MigrationFailed, PropolisError) as error:
            await asyncio.shield(self._life_ended())
            raise HttpError(initialization_failed(str(error))) from None
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

    async def replace_volume(self, backend_id: str, vcr_json: str, *, checked: bool = True) -> ReplaceResult:
        """Send a new volume construction request to a block backend, and wait for its response.

        Refused with 404 if there is no such backend, with 400 if it refuses, with 410 if the VM ends before.

        :param checked: apply propolis-server's rules for when volumes may be replaced.
        """
        reply: asyncio.Future[ReplaceResult] = asyncio.get_running_loop().create_future()
        self._request(ReplaceVolume(backend_id, vcr_json, reply, is_checked=checked))
        try:
            return await reply
        except BackendMissing:
            raise HttpError(backend_not_found(backend_id)) from None
        except ReplacementRefused as api_error:
            raise HttpError(crucible_error(str(api_error))) from None
        except VolumeGone:
            raise HttpError(VM_DESTROYED) from None

    async def attach(self, components: Mapping[str, Component]) -> InstanceSpec:
        """Hot-plug a disk on a volume: `attach_disk`."""
        return await attach_disk(self._maker, self._require_active(), components)

    def volume_status(self, backend_id: str) -> VolumeStatus:
        """Return the status of the volume behind a block backend: `volume_status`."""
        return volume_status(self._require_active(), backend_id)

    async def snapshot(self, disk_id: str, snapshot_id: UUID) -> None:
        """Take a snapshot of the volume behind a disk: `take_snapshot`."""
        await take_snapshot(self._require_active(), disk_id, snapshot_id)

    async def monitor(self, gen: int) -> InstanceStateMonitorResponse:
        """Wait for generation `gen` of the VM's state; no time limit."""
        if self._vm is None:
            raise HttpError(NO_INSTANCE)
        try:
            return await self._vm.publisher.wait_for(gen)
        except PublisherGone:
            raise HttpError(never_published(gen)) from None

    def migration_status(self) -> InstanceMigrateStatusResponse:
        return self._require_vm().publisher.snapshot().migration

    def migration_report(self) -> MigrationReport:
        """Migration facts that the API lacks: how the memory was transferred, why a migration failed, the pause."""
        vm = self._require_vm()
        arrival = vm.arrival
        stopped_s, resumed_s = (0.0, 0.0)
        if vm.objects is not None:
            stopped_s, resumed_s = vm.objects.machine.stopped_s, vm.objects.machine.resumed_s
        came = arrival.report(resumed_s=resumed_s) if arrival else None
        return MigrationReport(migration_in=came, migration_out=vm.departure, stopped_s=stopped_s, resumed_s=resumed_s)

    def migrate_out(self, migration_id: UUID, connection: AcceptedConnection) -> None:
        """Queue a migration to the target at the other end of a connection. Returns when it is queued.

        Refused as other state changes are.
        """
        channel = MigrationChannel(connection, other="target")
        self._request(MigrateAsSource(str(migration_id), channel))

    def take_migration_stream(self, migration_id: UUID, name: str, connection: AcceptedConnection) -> None:
        """Hand a further connection of a migration's target over to that migration; abandon it if there is none."""
        self._require_active().source.take_stream(migration_id, name, connection)

    def migration_outcome(self, migration_id: UUID) -> MigrationSide:
        """Return the state of a migration out. Refused with 404 if it is not the latest one."""
        side = self._require_vm().departure
        if side is None or side.id != migration_id:
            raise HttpError(ErrorResponse(status=404, message="no such migration"))
        return side

    def serial(self) -> SerialPort:
        return self._require_active().machine.serial

    async def forward(self, port: int) -> int:
        """Forward a port of the host's loopback interface to a port of the guest; return it. Refused with 400."""
        vm = self._require_active()
        components = {key: wrapper.component for key, wrapper in vm.spec.components.items()}
        try:
            return await forward_port(vm.machine.execute, components, port)
        except ForwardRefused as refusal:
            raise HttpError(bad_request(str(refusal))) from None

    def guest_port(self, number: int) -> GuestPort:
        """Return one of the VM's guest ports. Refused with 404 if there is none of that number."""
        if port := self._require_active().machine.ports.get(number):
            return port
        raise HttpError(ErrorResponse(status=404, message=f"this VM has no guest port {number}"))

    def second_serial(self) -> SerialPort:
        """COM2."""
        return self._require_active().machine.second_serial

    async def nmi(self) -> None:
        await self._require_active().machine.execute("inject-nmi")

    async def screenshot(self) -> bytes:
        """Return a screenshot as a PNG image. Refused with 404 if there is no display."""
        machine = self._require_active().machine
        if not self._config.display:
            raise HttpError(ErrorResponse(status=404, message="this VM has no display"))
        try:
            return await screenshot(machine, directory=self._config.directory)
        except (MachineError, OSError) as error:
            raise HttpError(ErrorResponse(status=500, error_code="Internal", message=str(error))) from None

    async def freeze(self, path: Path) -> None:
        """Stop the guest permanently, and write its state, without its memory, to a new file.

        :raises MachineError: when QEMU cannot save it, with the reason.
        """
        machine = self._require_active().machine
        await machine.pause()
        with path.open("xb") as file:
            await save_state(machine, file.fileno(), memory_in_file=True)

    @property
    def log_path(self) -> Path:
        """The file that receives what QEMU prints, and failures of requests."""
        return self._config.log_path

    @property
    def firmware_variables(self) -> Path:
        """The path of the firmware's variables, once a VM with UEFI has existed here."""
        return self._config.variables

    @property
    def display_socket(self) -> Path | None:
        """The socket of the display's VNC server; None without a display, and while QEMU is not running."""
        return self._config.display_socket if self.pid is not None else None

    @property
    def own_disks(self) -> tuple[Path, ...]:
        """The disks created here for a VM that migrated in. They are removed when the server is closed."""
        return tuple(self._vm.arrival.disks.files) if self._vm and self._vm.arrival else ()

    @property
    def panics(self) -> int:
        """The number of panics that the guest has reported since the VM was created."""
        return self._vm.objects.machine.panics if self._vm and self._vm.objects else 0

    @property
    def failure(self) -> str | None:
        """Why the VM could not continue, if its disks are the reason."""
        return self._vm.objects.failure if self._vm and self._vm.objects else None

    @property
    def state_name(self) -> str | None:
        """The VM's public state; None before the first ensure."""
        return self._vm.publisher.state.value if self._vm else None

    @property
    def pid(self) -> int | None:
        """QEMU's process id while it runs."""
        return self._vm.objects.machine.pid if self._vm and self._vm.objects and self._life else None

    async def close(self) -> None:
        """End the VM at once and release all its resources. Idempotent."""
        if self._life is not None:
            if not self._life.cancelling():  # a second cancellation would keep it from completing
                self._life.cancel()
            await self._life_ended()
        await self._maker.close()
        for directory in (self._config.disks, self._config.directory):
            shutil.rmtree(directory, ignore_errors=True)

    def _request(self, request: Request) -> None:
        driver = self._require_active().driver
        try:
            driver.request(request)
        except RequestDenied as denial:
            raise HttpError(state_change_denied(denial.reason)) from None

    async def _live(self, vm: ServedVm) -> None:
        outcome = Outcome.FAILED
        try:
            if vm.arrival is not None:
                await self._maker.sync(vm, vm.arrival)
            built = vm.built
            machine = built.machine
            if not machine.is_started:  # a fork is
                await machine.start()
            await plug(machine, built.plugged)
            vm.active = True
            vm.initialized.set_result(None)
            async with self._producing_metrics(vm):
                outcome = await built.driver.run(machine)
            machine.serial.end_reason = built.failure or machine.serial.end_reason
        except (MachineError, MigrationFailed, HttpError, PropolisError) as error:
            vm.initialized.set_exception(error)
        except asyncio.CancelledError:
            outcome = Outcome.DESTROYED
            raise
        finally:
            vm.active = False
            await _to_the_end(self._run_down(vm, outcome))

    def _producing_metrics(self, vm: ServedVm) -> contextlib.AbstractAsyncContextManager[None]:
        if self._config.metrics is None:
            return contextlib.nullcontext()
        from .metrics import producing_metrics  # most VMs have none

        return producing_metrics(self._config.metrics, vm)

    async def _run_down(self, vm: ServedVm, outcome: Outcome) -> None:
        """Release all resources of a VM, and then publish its end."""
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
            if life.done() and self._life is life:  # it was cancelled before it began
                self._life = None
                await _to_the_end(self._run_down(self._require_vm(), Outcome.DESTROYED))

    def _require_vm(self) -> ServedVm:
        if self._vm is None:
            raise HttpError(NO_INSTANCE)
        return self._vm

    def _require_active(self) -> VmObjects:
        vm = self._require_vm()
        if not vm.active:
            raise HttpError(NO_INSTANCE)
        return vm.built


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Run this to completion, however often the caller is cancelled meanwhile."""
    task = asyncio.create_task(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])


def _require_address(src_addr: str) -> None:
    """:raises HttpError: 400 if the address is invalid."""
    try:
        Endpoint.at(src_addr)
    except ValueError as error:
        raise HttpError(bad_request(f"unable to parse JSON body: init.value.src_addr: {error}")) from None

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from ..propolis_api import (
    CrucibleStorageBackend,
    CrucibleStorageBackendComponent,
    Instance,
    InstanceEnsureRequest,
    InstanceEnsureResponse,
    InstanceGetResponse,
    InstanceMigrateStatusResponse,
    InstanceProperties,
    InstanceSpec,
    InstanceSpecGetResponse,
    InstanceState,
    InstanceStateMonitorResponse,
    InstanceStateRequested,
    PresentSpec,
    ReplaceResult,
    SpecInit,
)
from .accelerator import AcceleratorName
from .blobs import BlobFiles
from .block_backend import BackendFactory, BackendMissing, BlockBackends, ReplacementRefused, VolumeGone
from .boot_source import BootSource, Firmware
from .child import Journal
from .command_line import SpecRefused, SpecUnsupported, qemu_arguments
from .cpu_features import CpuFeatures
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
from .fork import Fork
from .guest_memory import GuestMemory
from .machine import Machine, MachineError
from .publisher import PublisherGone, StatePublisher
from .qemu_binary import Qemu, find_firmware
from .refusal import Refusal, unsupported
from .request_queue import Reboot, ReplaceVolume, Request, RequestDenied, RequestQueue, Run, Stop
from .serial_port import SerialPort
from .state_stream import save_state

__all__ = ["ServerConfig", "VmServer"]

logger = logging.getLogger(__name__)

REQUESTS: Final[dict[InstanceStateRequested, type[Run | Stop | Reboot]]] = {
    InstanceStateRequested.RUN: Run,
    InstanceStateRequested.STOP: Stop,
    InstanceStateRequested.REBOOT: Reboot,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What propolis-server gets on its command line, and a VM's spec cannot say.

    :param mark: an unguessable word that every process of this VM carries.
    :param qemu: QEMU's programs.
    :param accelerator: ``kvm`` or ``tcg``.
    :param boot: what the VM starts from.
    :param directory: a private directory for what the VM needs while it lives.
    :param log_path: receives what QEMU prints.
    :param journal: keeps account of processes.
    :param display: whether the VM has a display, which costs a little.
    :param backends: what makes the block backends, by type of the component that asks for one
        (`CrucibleStorageBackend`). A component that needs one that is not here is refused.
    :param memory: the file that holds the guest's memory; None for memory of QEMU's own.
    :param fork: a started fork, which becomes the VM; None for a VM that boots.
    """

    mark: str
    qemu: Qemu
    accelerator: AcceleratorName
    boot: BootSource
    directory: Path
    log_path: Path
    journal: Journal
    display: bool = False
    backends: Mapping[type, BackendFactory] = field(default_factory=dict)
    memory: GuestMemory | None = None
    fork: Fork | None = None

    @property
    def display_socket(self) -> Path | None:
        """Where the display's VNC server listens; None without a display."""
        return self.directory / "vnc.sock" if self.display else None


@dataclass(slots=True, kw_only=True)
class _Vm:
    """One VM: made by ensure, dropped by the next ensure.

    `initialized` tells whether QEMU came up; an exception there is a `MachineError`.
    """

    properties: InstanceProperties
    spec: InstanceSpec
    publisher: StatePublisher
    initialized: asyncio.Future[None]
    backends: BlockBackends | None = None
    driver: StateDriver | None = None
    machine: Machine | None = None
    blobs: BlobFiles | None = None
    active: bool = False

    def volume_replaced(self, key: str, vcr_json: str) -> None:
        """A block backend has become another: the spec tells of it."""
        backend = self.spec.components[key].component
        if isinstance(backend, CrucibleStorageBackend):
            component = CrucibleStorageBackendComponent(msgspec.structs.replace(backend, request_json=vcr_json))
            self.spec = msgspec.structs.replace(self.spec, components={**self.spec.components, key: component})


class VmServer:
    """One base URL's worth of Propolis API, without the HTTP.

    Methods raise `Refusal` where upstream answers with an error.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._fork = config.fork
        self._vm: _Vm | None = None
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
        if not isinstance(request.init, SpecInit):
            raise unsupported("initialization by migration")
        vm = self._new_vm(request.properties, request.init.value.spec)
        self._vm = vm
        self._life = asyncio.create_task(self._live(vm))
        try:
            # A caller who leaves does not undo what was asked for: as propolis-server, whose handlers run detached.
            await asyncio.shield(vm.initialized)
        except MachineError as error:
            await asyncio.shield(self._life_ended())
            raise Refusal(initialization_failed(str(error))) from None
        return InstanceEnsureResponse()

    def get(self) -> InstanceGetResponse:
        vm = self._require_vm()
        return InstanceGetResponse(instance=Instance(properties=vm.properties, state=vm.publisher.state))

    def get_spec(self) -> InstanceSpecGetResponse:
        vm = self._require_vm()
        return InstanceSpecGetResponse(properties=vm.properties, spec=PresentSpec(vm.spec), state=vm.publisher.state)

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

    def _new_vm(self, properties: InstanceProperties, spec: InstanceSpec) -> _Vm:
        """A VM in the state Creating. Nothing outside of this process exists yet.

        :raises Refusal: when the spec cannot be realised.
        """
        initialized: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        initialized.add_done_callback(lambda done: done.exception())  # the caller of ensure may have left
        publisher = StatePublisher(InstanceState.CREATING)
        vm = _Vm(properties=properties, spec=spec, publisher=publisher, initialized=initialized)
        with contextlib.ExitStack() as undo, _spec_faults():
            vm.backends = BlockBackends.of(spec, self._config.backends, on_replaced=vm.volume_replaced)
            vm.blobs = undo.enter_context(BlobFiles(spec))
            arguments = self._arguments(vm, vm.backends, vm.blobs)
            self._require_match(spec)
            undo.pop_all()
        vm.driver = StateDriver(queue=RequestQueue(discard=_discard), publisher=publisher, backends=vm.backends)
        vm.machine = self._machine(vm, arguments, vm.driver)
        return vm

    async def _live(self, vm: _Vm) -> None:
        assert vm.machine is not None
        assert vm.driver is not None
        outcome = Outcome.FAILED
        try:
            if not vm.machine.is_started:  # a fork is
                await vm.machine.start()
            vm.active = True
            vm.initialized.set_result(None)
            outcome = await vm.driver.run(vm.machine)
        except MachineError as error:
            vm.initialized.set_exception(error)
        except asyncio.CancelledError:
            outcome = Outcome.DESTROYED
            raise
        finally:
            vm.active = False
            await _to_the_end(self._run_down(vm, outcome))

    async def _run_down(self, vm: _Vm, outcome: Outcome) -> None:
        """Release all that a VM has, and only then say that it is gone."""
        assert vm.machine is not None
        assert vm.backends is not None
        assert vm.blobs is not None
        if not vm.initialized.done():
            vm.initialized.set_exception(MachineError("the server was closed before QEMU was up"))
        try:
            await vm.machine.close()
            await vm.backends.close()
        except Exception:
            logger.exception("the VM is not released as it should be")
            outcome = Outcome.FAILED
        finally:
            vm.blobs.close()
            self._life = None
            vm.publisher.publish(InstanceState.DESTROYED if outcome is Outcome.DESTROYED else InstanceState.FAILED)
            vm.publisher.close()

    async def _life_ended(self) -> None:
        while (life := self._life) is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([life])
            if life.done() and self._life is life:
                self._life = None  # it was cancelled before it began

    def _machine(self, vm: _Vm, arguments: list[str], driver: StateDriver) -> Machine:
        fork, self._fork = self._fork, None  # later VMs of this server boot
        if fork is not None:
            return fork.attach(driver.guest_did)
        assert vm.blobs is not None
        return Machine(
            program=self._config.qemu.system,
            arguments=[*self._config.qemu.arguments, *arguments],
            log_path=self._config.log_path,
            journal=self._config.journal,
            on_event=driver.guest_did,
            inherit=list(vm.blobs.fds.values()),
        )

    def _require_match(self, spec: InstanceSpec) -> None:
        """A fork is one machine and no other: its guest has found its devices already."""
        if self._fork is not None and not self._fork.is_of(spec):
            raise Refusal(bad_request("the spec is not that of the template that this VM is a fork of"))

    def _arguments(self, vm: _Vm, backends: BlockBackends, blobs: BlobFiles) -> list[str]:
        config = self._config
        return qemu_arguments(
            spec=vm.spec,
            properties=vm.properties,
            boot=config.boot,
            accelerator=config.accelerator,
            mark=config.mark,
            flash=self._flash(),
            memory=config.memory,
            nodes=backends.nodes,
            blobs=blobs.paths,
            cpu_features=self._cpu_features.known,
            display_socket=None if config.display_socket is None else str(config.display_socket),
            has_vsock=Path("/dev/vhost-vsock").exists(),
        )

    def _flash(self) -> dict[str, str]:
        boot = self._config.boot
        if not isinstance(boot, Firmware) or not boot.uefi:
            return {}
        firmware = find_firmware()
        if firmware is None:
            raise Refusal(initialization_failed("there is no UEFI firmware on this host: install the package ovmf"))
        variables = self._config.directory / "variables.fd"
        shutil.copyfile(firmware.variables, variables)
        return {"code": str(firmware.code), "variables": str(variables)}

    def _require_vm(self) -> _Vm:
        if self._vm is None:
            raise Refusal(NO_INSTANCE)
        return self._vm

    def _require_active(self) -> _Vm:
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
    logger.info("%s is not served any more", request)


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Do this whole, however often the caller is cancelled meanwhile."""
    task = asyncio.create_task(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])

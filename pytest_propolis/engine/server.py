"""A Propolis server: the life around one VM, from "no VM" to "run down" and round again.

The wrapper of propolis-server: ``NoVm → WaitingForInit → Active → Rundown → RundownComplete → WaitingForInit …``. It is
told apart from the request queue, which belongs to one VM while it is active.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..propolis_api import (
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
    SpecInit,
)
from .accelerator import AcceleratorName
from .boot_source import BootSource, Firmware
from .child import Journal
from .command_line import SpecRefused, SpecUnsupported, qemu_arguments
from .driver import Outcome, StateDriver
from .dropshot_errors import (
    ALREADY_INITIALIZED,
    NO_INSTANCE,
    bad_request,
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
from .request_queue import Reboot, RequestDenied, RequestQueue, Run, Stop
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
    memory: GuestMemory | None = None
    fork: Fork | None = None


@dataclass(slots=True, kw_only=True)
class _Vm:
    """One VM: made by ensure, dropped by the next ensure."""

    properties: InstanceProperties
    spec: InstanceSpec
    publisher: StatePublisher
    driver: StateDriver | None = None
    machine: Machine | None = None
    active: bool = False


class VmServer:
    """One base URL's worth of Propolis API, without the HTTP.

    Methods raise `Refusal` where upstream answers with an error.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._fork = config.fork
        self._vm: _Vm | None = None
        self._life: asyncio.Task[None] | None = None

    async def ensure(self, request: InstanceEnsureRequest) -> InstanceEnsureResponse:
        """Create the VM.

        Refused with 409 while there is one, with 400 for a bad spec, with 500 when it cannot be set up; then the state
        is Failed, and the server can be asked again.
        """
        if self._life is not None:
            raise Refusal(ALREADY_INITIALIZED)
        if not isinstance(request.init, SpecInit):
            raise unsupported("initialization by migration")
        spec = request.init.value.spec
        vm = _Vm(properties=request.properties, spec=spec, publisher=StatePublisher(InstanceState.CREATING))
        arguments = self._arguments(vm)
        self._require_match(spec)
        queue = RequestQueue(discard=lambda request: logger.info("%s is not served any more", request))
        vm.driver = StateDriver(queue=queue, publisher=vm.publisher)
        fork, self._fork = self._fork, None  # later VMs of this server boot
        vm.machine = fork.attach(vm.driver.guest_did) if fork else self._machine(arguments, vm.driver)
        self._vm = vm
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._life = asyncio.create_task(self._live(vm, vm.driver, vm.machine, started))
        try:
            await asyncio.shield(started)
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
        vm = self._require_active()
        assert vm.driver is not None
        request = REQUESTS[requested]()
        try:
            vm.driver.request(request)
        except RequestDenied as denial:
            raise Refusal(state_change_denied(denial.reason)) from None

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
            self._life.cancel()
            await self._life_ended()
        if self._fork is not None:
            await self._fork.close()
        shutil.rmtree(self._config.directory, ignore_errors=True)

    async def _live(self, vm: _Vm, driver: StateDriver, machine: Machine, started: asyncio.Future[None]) -> None:
        outcome = Outcome.FAILED
        try:
            try:
                if not machine.is_started:  # a fork is
                    await machine.start()
            except MachineError as error:
                started.set_exception(error)
                return
            vm.active = True
            started.set_result(None)
            outcome = await driver.run(machine)
        except asyncio.CancelledError:
            outcome = Outcome.DESTROYED
            raise
        finally:
            vm.active = False
            if not started.done():
                started.cancel()
            await asyncio.shield(machine.close())
            self._life = None
            vm.publisher.publish(InstanceState.DESTROYED if outcome is Outcome.DESTROYED else InstanceState.FAILED)
            vm.publisher.close()

    async def _life_ended(self) -> None:
        while self._life is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([self._life])

    def _machine(self, arguments: list[str], driver: StateDriver) -> Machine:
        return Machine(
            program=self._config.qemu.system,
            arguments=[*self._config.qemu.arguments, *arguments],
            log_path=self._config.log_path,
            journal=self._config.journal,
            on_event=driver.guest_did,
        )

    def _require_match(self, spec: InstanceSpec) -> None:
        """A fork is one machine and no other: its guest has found its devices already."""
        if self._fork is not None and not self._fork.is_of(spec):
            raise Refusal(bad_request("the spec is not that of the template that this VM is a fork of"))

    def _arguments(self, vm: _Vm) -> list[str]:
        config = self._config
        try:
            return qemu_arguments(
                spec=vm.spec,
                properties=vm.properties,
                boot=config.boot,
                accelerator=config.accelerator,
                mark=config.mark,
                flash=self._flash(),
                memory=config.memory,
            )
        except SpecRefused as error:
            raise Refusal(bad_request(str(error))) from None
        except SpecUnsupported as error:
            raise unsupported(str(error)) from None

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

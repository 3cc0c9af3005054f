"""Build VMs for a server: from a spec, from a started fork, or for a guest that migrates in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from ...agent_api.migration_report import MigrationSide
from ...propolis_api import (
    Component,
    InstanceEnsureRequest,
    InstanceProperties,
    InstanceSpec,
    InstanceState,
    MigrationTargetInit,
)
from ..migration.failure import FailureInjector
from ..migration.protocol import MigrationChannel
from ..migration.source import MigrationSource, SourceFacts
from ..qemu.command_line import InvalidSpec, SpecUnsupported
from ..qemu.cpu.features import CpuFeatures
from ..qemu.devices.blobs import BlobFiles
from ..qemu.devices.host_checks import require_host_resources
from ..qemu.devices.host_file import HostFile
from ..qemu.devices.hot_plug import pluggable
from ..qemu.machine import Machine
from ..qemu.machine_part import MachinePart
from ..qemu.memory import OwnMemory
from ..qemu.monitor import MachineError
from ..request_queue import MigrateAsSource, ReplaceVolume, Request, RequestQueue
from ..volumes.block_backend import BlockBackends, VolumeGone
from .driver import StateDriver
from .dropshot_errors import HttpError, bad_request, initialization_failed, unsupported
from .publisher import StatePublisher
from .served_vm import ServedVm
from .server_config import ServerConfig
from .vm_objects import VmObjects

if TYPE_CHECKING:
    from ..migration.target import MigrationTarget

__all__ = ["VmMaker"]

logger = logging.getLogger(__name__)


class VmMaker:
    """Creates the parts of a server's VMs, one VM after the other.

    A server that was given a started fork uses it for its first VM; later VMs boot.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._fork = config.fork
        self._cpu_features = CpuFeatures(
            config.qemu, config.accelerator, journal=config.journal, log_path=config.log_path
        )

    async def get_ready(self, request: InstanceEnsureRequest) -> None:
        """Probe the host for what this VM requires.

        :raises HttpError: if that fails.
        """
        try:
            await self._cpu_features.find_for(request)
        except MachineError as error:
            raise HttpError(initialization_failed(str(error))) from None

    async def close(self) -> None:
        """End a fork that was not used. Idempotent."""
        if self._fork is not None:
            await self._fork.close()

    def new(self, properties: InstanceProperties, spec: InstanceSpec) -> ServedVm:
        """Return a VM in the state Creating, without any resources outside this process yet.

        :raises HttpError: if the spec is not supported.
        """
        vm = ServedVm.new(properties, StatePublisher(InstanceState.CREATING))
        vm.objects = self._build(vm, spec)
        return vm

    def for_migration(self, properties: InstanceProperties, init: MigrationTargetInit) -> ServedVm:
        """Return a VM in the state Migrating, of which only the source is known yet."""
        from ..migration.arriving_disks import ArrivingDisks  # few VMs migrate in, and a server starts sooner
        from ..migration.target import MigrationTarget

        publisher = StatePublisher(InstanceState.MIGRATING, migration_in=init.value.migration_id)
        vm = ServedVm.new(properties, publisher)
        vm.arrival = MigrationTarget(
            init.value,
            address=self._config.address,
            stream_path=self._config.directory / "migration.sock",
            boot=self._config.boot,
            accelerator=self._config.accelerator,
            qemu_version=self._config.qemu.version,
            disks=ArrivingDisks(
                init.value.migration_id,
                directory=self._config.disks,
                socket=self._config.directory / "disks.sock",
                qemu_img=self._config.qemu.img,
                copy=self._config.copy_disks,
            ),
            publish=publisher.publish_migration_in,
        )
        return vm

    async def sync(self, vm: ServedVm, arrival: MigrationTarget) -> None:
        """Receive the spec of a VM that migrates in, and build a machine for it.

        :raises MigrationFailed: when the source and this server do not agree.
        :raises HttpError: when the spec is not supported here.
        """
        spec, memory = await arrival.sync()
        vm.objects = self._build(vm, spec, its_memory=memory)

    def addition(self, vm: VmObjects, components: Mapping[str, Component]) -> tuple[InstanceSpec, list[MachinePart]]:
        """Return the parts to add to a running VM, and its spec with them. The VM then owns their block backends.

        :raises HttpError: when they cannot be added.
        """
        for key in components:
            if key in vm.spec.components:
                raise HttpError(bad_request(f"the VM has a component {key!r} already"))
        spec = msgspec.structs.replace(vm.spec, components={**vm.spec.components, **components})
        with _spec_faults():
            vm.backends.add(components, self._config.backends)
            return spec, pluggable(spec, components, blobs=vm.blobs.paths, nodes=vm.backends.nodes)

    def _build(self, vm: ServedVm, spec: InstanceSpec, *, its_memory: HostFile | None = None) -> VmObjects:
        """Create the objects of a VM.

        :param its_memory: the memory of the VM that migrates in.
        :raises HttpError: when the spec is not supported.
        """
        with contextlib.ExitStack() as undo, _spec_faults():
            memory = self._memory(vm, its_memory)
            if memory is not None:
                undo.callback(memory.close)
            require_host_resources(spec)
            backends = BlockBackends.of(
                spec, self._config.backends, on_replaced=lambda key, vcr_json: vm.built.volume_replaced(key, vcr_json)
            )
            blobs = undo.enter_context(BlobFiles(spec, shared=vm.arrival.disks.blobs if vm.arrival else {}))
            arguments = self._config.arguments(
                vm.properties,
                spec,
                memory=memory,
                nodes=backends.nodes,
                blobs=blobs.paths,
                cpu_features=self._cpu_features.known,
            )
            plugged = self._missing_parts(spec, blobs, backends)
            undo.pop_all()
        source = self._departure(vm, spec, backends)
        driver = StateDriver(
            queue=RequestQueue(discard=_discard, migrating_in=vm.arrival is not None),
            publisher=vm.publisher,
            backends=backends,
            arrive=vm.arrival,
            migrate_out=source,
        )
        inherited = [*([memory.fd] if memory else []), *blobs.fds.values()]
        return VmObjects(
            spec=spec,
            memory=memory,
            backends=backends,
            blobs=blobs,
            source=source,
            driver=driver,
            machine=self._machine(arguments, driver, inherited=inherited, incoming=vm.arrival is not None),
            plugged=plugged,
        )

    def _memory(self, vm: ServedVm, its_memory: HostFile | None) -> OwnMemory | None:
        """Return memory for a VM; None if the agent or a template has a file for it.

        :param its_memory: the memory of the VM that migrates in.
        """
        is_given = self._config.memory is not None or self._fork is not None
        shared = OwnMemory.open(its_memory) if its_memory and not is_given else None
        memory = None if is_given else shared or OwnMemory.make()
        if vm.arrival is not None:
            vm.arrival.plan(shares_memory=shared is not None, memory=memory.fd if memory else None)
        return memory

    def _departure(self, vm: ServedVm, spec: InstanceSpec, backends: BlockBackends) -> MigrationSource:
        def facts() -> SourceFacts:
            built = vm.built
            return SourceFacts(
                spec=built.spec,
                boot=self._config.boot,
                qemu_version=self._config.qemu.version,
                accelerator=self._config.accelerator,
                memory=built.memory.file if built.memory else None,
                blobs=built.blobs.files,
            )

        def on_change(side: MigrationSide) -> None:
            vm.departure = side

        return MigrationSource(
            directory=self._config.directory,
            facts=facts,
            injector=FailureInjector.of(spec),
            publish=vm.publisher.publish_migration_out,
            on_change=on_change,
            backends=backends,
        )

    def _machine(
        self, arguments: list[str], driver: StateDriver, *, inherited: Sequence[int], incoming: bool
    ) -> Machine:
        fork, self._fork = self._fork, None  # later VMs of this server boot
        if fork is not None:
            return fork.attach(driver.guest_did)
        return Machine(
            program=self._config.qemu.system,
            arguments=[*self._config.qemu.arguments, *arguments],
            log_path=self._config.log_path,
            journal=self._config.journal,
            on_event=driver.guest_did,
            inherit=inherited,
            incoming=incoming,
            guest_ports=self._config.guest_ports,
        )

    def _missing_parts(self, spec: InstanceSpec, blobs: BlobFiles, backends: BlockBackends) -> list[MachinePart]:
        """Return the parts to hot-plug into a fork. The rest of the spec must be its template's."""
        if self._fork is None:
            return []
        keys = self._fork.missing_components(spec)
        if keys is None:
            raise HttpError(bad_request("the spec is not that of the template that this VM is a fork of"))
        paths = {key: file.path for key, file in blobs.files.items()}
        return pluggable(spec, keys, blobs=paths, nodes=backends.nodes)


@contextlib.contextmanager
def _spec_faults() -> Iterator[None]:
    """Convert an invalid spec to the error response for its sender."""
    try:
        yield
    except InvalidSpec as error:
        raise HttpError(bad_request(str(error))) from None
    except SpecUnsupported as error:
        raise unsupported(str(error)) from None
    except OSError as error:
        raise HttpError(initialization_failed(str(error))) from None


def _discard(request: Request) -> None:
    """The VM ended before this was served."""
    if isinstance(request, ReplaceVolume) and isinstance(request.reply, asyncio.Future) and not request.reply.done():
        request.reply.set_exception(VolumeGone())
        request.reply.exception()  # the requester may be about to disconnect
    if isinstance(request, MigrateAsSource) and isinstance(request.payload, MigrationChannel):
        request.payload.abandon()
    logger.info("%s is not served any more", request)

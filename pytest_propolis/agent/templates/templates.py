"""Templates on the agent's host: each built once for all runs, by the first client that needs it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from ...agent_api.guest_ports import SHELL_PORT
from ...agent_api.messages import CreateVm, Fault
from ...agent_api.templates import (
    MEMORY_FILE,
    STATE_FILE,
    ForkVm,
    FreezeVm,
    TemplateMaking,
    TemplateNeeded,
    VmForked,
    blank_file,
    disk_file,
)
from ...engine.qemu.memory import GuestMemory
from ...engine.qemu.monitor import MachineError
from ...engine.server.dropshot_errors import HttpError
from ...engine.templates.template import Template, with_disks_in
from ...errors import AgentError, BootError, PropolisError, ResourceExhausted, TemplateError
from ...propolis_api import (
    FromSpec,
    InstanceEnsureRequest,
    InstanceProperties,
    InstanceSpec,
    InstanceStateRequested,
    SpecInit,
)
from ...storage.eviction import Claim, note_use
from ...storage.images.overlays import create_blank_overlay
from ...storage.store import ArtifactStore
from ..budget import fork_cost_mib
from ..client_resources import OwnedVm
from ..disks.disk_images import make_image
from ..hypervisor import Hypervisor, HypervisorFinder
from ..registry import ResourceRegistry
from .identity import key_of

__all__ = ["Templates"]

PRIVATE: Final = 0o600
"""QEMU opens memory for writing even where it maps it privately."""

MARGIN_BYTES: Final = 256 << 20
LITTLE_BYTES: Final = 1 << 20
AT_ONCE_S: Final = 0.05
"""How long a client's statement of the time remains accurate."""

MIB: Final = 1 << 20
REFUSED: Final = (400, 501)
"""The HTTP statuses with which a server rejects a spec."""


class Templates:
    """Manages templates and the VMs forked from them.

    :param directory: the directory of the templates.
    :param allowed: directories in which files referenced by disk images may lie.
    """

    def __init__(
        self,
        hypervisors: HypervisorFinder,
        registry: ResourceRegistry,
        *,
        directory: Path,
        allowed: tuple[Path, ...],
    ) -> None:
        self._hypervisors = hypervisors
        self._registry = registry
        self._store = ArtifactStore(directory)
        self._allowed = allowed
        self._frozen: dict[str, asyncio.Future[FreezeVm]] = {}
        self._ready: dict[str, Template] = {}
        self._needed: dict[str, TemplateNeeded] = {}
        """What those that are ready were needed for."""
        self._unfit: dict[str, BootError | TemplateError] = {}
        self._claims: dict[str, Claim] = {}

    async def get(
        self,
        client: str,
        needed: TemplateNeeded,
        *,
        progress: Callable[[str], None],
        on_build_needed: Callable[[TemplateMaking], None],
    ) -> str:
        """Return the key of a template that exists and is intact; build it if necessary.

        :param on_build_needed: called with a VM for the client to make a template of, if that is needed.
        :raises TemplateError: when it cannot be made, now or earlier in this run.
        :raises BootError: when its guest did not boot while this client made it or waited for it.
        :raises ResourceExhausted: when there is no space for it.
        """
        hypervisor = await self._hypervisors.find()
        key = key_of(needed, hypervisor)
        if earlier := self._unfit.get(key):
            raise TemplateError.because_of(earlier)
        try:
            await self.derive(
                key,
                needed,
                lambda directory: self._make(client, needed, key, directory, hypervisor, on_build_needed),
                progress,
                title=f"a template of {needed.title}",
            )
        except (PropolisError, MachineError, OSError, msgspec.DecodeError) as error:
            self._unfit[key] = error if isinstance(error, BootError) else _template_error(error)
            self._require_fit(key)
        return key

    async def derive(
        self,
        key: str,
        needed: TemplateNeeded,
        make: Callable[[Path], Awaitable[None]],
        progress: Callable[[str], None],
        *,
        title: str,
    ) -> None:
        """Have a template made if it does not exist, and ready to be forked.

        :param make: fills the directory that it is given.
        :param title: what is being made, for progress messages.
        :raises PropolisError: when that cannot be done.
        :raises OSError: when its files cannot be had.
        """
        files = Template.files(len(needed.disks))
        directory = await self._claimed(key, files, make, progress, title=title, mode=PRIVATE)
        if key not in self._ready:
            note_use(directory)
            self._needed[key] = needed
            self._ready[key] = Template.load(directory)

    def exists(self, key: str, needed: TemplateNeeded) -> bool:
        """Return whether there is an intact template, which this agent may not have used."""
        return self._store.derived(key, Template.files(len(needed.disks))) is not None

    def in_use(self) -> Iterator[tuple[TemplateNeeded, Template, Path]]:
        """Yield the intact templates that this agent has used: what each was needed for, and its directory."""
        for key, template in list(self._ready.items()):
            if (directory := self._store.derived(key, Template.files(template.disks))) is not None:
                yield self._needed[key], template, directory

    def _require_fit(self, key: str) -> None:
        """
        :raises TemplateError: when the template could not be made.
        :raises BootError: when its guest did not boot.
        """
        if error := self._unfit.get(key):
            raise Fault.of(error).to_error()  # each client needs an error of its own

    async def _claimed(self, key: str, filenames: Sequence[str], *arguments: Any, **options: Any) -> Path:
        """Derive it, and claim it against eviction for the agent's lifetime."""
        while True:
            template_directory = await self._store.derive(key, filenames, *arguments, **options)
            if key in self._claims:
                return template_directory
            claim = Claim(self._store.directory, key)
            if self._store.derived(key, filenames):  # it may have been evicted in between
                self._claims[key] = claim
                return template_directory
            claim.close()

    def forget_failures(self) -> None:
        """Forget templates that could not be made, because another run begins."""
        self._unfit.clear()

    def close(self) -> None:
        """Release the claims on templates. No VM may be running from them any more."""
        for claim in self._claims.values():
            claim.close()

    def freeze(self, vm_id: str, request: FreezeVm) -> None:
        """Report that a client has prepared the VM that it was offered.

        :raises TemplateError: if no template is waiting for that VM.
        """
        self._waiting(vm_id).set_result(request)

    def give_up(self, vm_id: str, reason: Fault) -> None:
        """Report that a client could not prepare the VM that it was offered. No other client of this run is asked."""
        with contextlib.suppress(TemplateError):
            waiting = self._waiting(vm_id)
            waiting.set_exception(reason.to_error())
            waiting.exception()  # it may be awaited no more

    async def fork(self, client: str, request: ForkVm) -> VmForked:
        """Create a VM that resumes from a template.

        :raises TemplateError: if the template does not exist, or QEMU cannot load it.
        :raises HttpError: if it is to run, and the server rejects the spec with the added components.
        """
        began = time.monotonic()
        template = self._ready.get(request.template)
        template_directory = self._store.derived(template.key, Template.files(template.disks)) if template else None
        if template is None or template_directory is None:
            raise TemplateError(f"template {request.template} does not exist any more")
        create = CreateVm(
            name=request.name,
            group=request.group,
            boot=template.boot,
            log_path=request.log_path,
            memory_mib=fork_cost_mib(template.spec.board.memory_mb),
            guest_ports=template.guest_ports,
            metric_addr=request.metric_addr,
        )
        vm = await self._registry.fork_vm(client, create, template=template, template_directory=template_directory)
        assert vm.fork is not None
        typed = request.typed if request.run is not None and time.monotonic() - began < AT_ONCE_S else ""
        spec = msgspec.structs.replace(vm.fork.spec, components=vm.fork.spec.components | request.added)
        if request.run is not None:
            await self._run(client, vm, spec, request.run, typed)
        return VmForked(
            id=vm.id,
            path=f"/vms/{vm.id}",
            spec=spec,
            boot=template.boot,
            session=template.session,
            typed=bool(typed),
            took_s={} if vm.fork.stood_by else vm.fork.took_s,
        )

    async def _run(
        self, client: str, vm: OwnedVm, spec: InstanceSpec, properties: InstanceProperties, typed: str
    ) -> None:
        """Create, run and identify a VM in one request instead of three requests to its server.

        :raises HttpError: if the spec is invalid, as it would be for a VM that boots.
        """
        engine = vm.engine
        assert engine is not None, "forks are the engine's"
        try:
            await engine.ensure(InstanceEnsureRequest(properties=properties, init=SpecInit(FromSpec(spec=spec))))
            engine.put_state(InstanceStateRequested.RUN)
            if typed:
                line = engine.guest_port(SHELL_PORT) if vm.fork and vm.fork.template.guest_ports else engine.serial()
                await line.write(typed.encode())
        except (HttpError, OSError) as error:
            await self._registry.remove_vm(client, vm.id)
            if isinstance(error, HttpError) and error.answer.status in REFUSED:
                raise
            raise TemplateError(f"a fork does not run: {error}") from None

    async def _make(
        self,
        client: str,
        needed: TemplateNeeded,
        key: str,
        directory: Path,
        hypervisor: Hypervisor,
        on_build_needed: Callable[[TemplateMaking], None],
    ) -> None:
        self._require_fit(key)  # another client may have tried while this one waited for its turn
        _require_space(directory, needed)
        for index, disk in enumerate(needed.disks):
            await make_image(disk, hypervisor.qemu.img, directory / disk_file(index), allowed=self._allowed)
        facts = await self._boot_and_freeze(client, needed, key, directory, on_build_needed)
        template = Template(
            key=key,
            boot=needed.boot,
            spec=needed.spec,
            properties=needed.properties,
            disks=len(needed.disks),
            session=facts.session,
            console=facts.console,
            warmup_input=facts.warmup_input,
            warmup_marker=facts.warmup_marker,
            guest_ports=needed.guest_ports,
        )
        await self.complete(directory, template, hypervisor)

    async def complete(self, directory: Path, template: Template, hypervisor: Hypervisor) -> None:
        """Add to a directory what a template has beside the memory, the state and the disks of its guest."""
        for index in range(template.disks):
            # The command line names the disk by its future path.
            await create_blank_overlay(
                qemu_img=hypervisor.qemu.img,
                backing=directory / disk_file(index),
                named=self._template_directory(template.key) / disk_file(index),
                overlay=directory / blank_file(index),
            )
        template.save(directory)

    async def _boot_and_freeze(
        self,
        client: str,
        needed: TemplateNeeded,
        key: str,
        directory: Path,
        on_build_needed: Callable[[TemplateMaking], None],
    ) -> FreezeVm:
        """Write the memory and the state of a guest that the client has prepared to the directory.

        :raises ResourceExhausted: when there is no space for them.
        """
        create = CreateVm(
            name=f"template-{key[:12]}",
            group=needed.title,
            boot=needed.boot,
            log_path=needed.log_path,
            guest_ports=needed.guest_ports,
        )
        memory = GuestMemory(path=str(directory / MEMORY_FILE), shared=True)
        vm = await self._registry.create_vm(client, create, memory=memory)
        try:
            making = TemplateMaking(id=vm.id, path=f"/vms/{vm.id}", spec=with_disks_in(needed.spec, directory))
            facts = await self._have_booted(vm, making, on_build_needed)
            assert vm.engine is not None, "it was asked for without a program"
            await vm.engine.freeze(directory / STATE_FILE)
            return facts
        except (PropolisError, MachineError) as error:
            if _free_bytes(directory) < LITTLE_BYTES:  # a full file system kills QEMU without a message
                raise ResourceExhausted(f"no space was left for the template in {self._store.directory}") from error
            raise
        finally:
            with contextlib.suppress(AgentError):  # a client that has disconnected has no VMs any more
                await self._registry.remove_vm(client, vm.id)

    async def _have_booted(
        self, vm: OwnedVm, making: TemplateMaking, on_build_needed: Callable[[TemplateMaking], None]
    ) -> FreezeVm:
        frozen: asyncio.Future[FreezeVm] = asyncio.get_running_loop().create_future()
        self._frozen[vm.id] = frozen
        try:
            on_build_needed(making)
            return await frozen
        finally:
            del self._frozen[vm.id]

    def _waiting(self, vm_id: str) -> asyncio.Future[FreezeVm]:
        frozen = self._frozen.get(vm_id)
        if frozen is None or frozen.done():
            raise TemplateError(f"VM {vm_id} is not about to become a template")
        return frozen

    def _template_directory(self, key: str) -> Path:
        return self._store.directory / "derived" / key


def _template_error(error: Exception) -> TemplateError:
    if isinstance(error, PropolisError):
        return TemplateError.because_of(error)
    return TemplateError(str(error))


def _free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def _require_space(directory: Path, needed: TemplateNeeded) -> None:
    """Raise if space is short: a full file system kills a guest with file-backed memory without a message."""
    free = _free_bytes(directory)
    wanted = needed.spec.board.memory_mb * MIB + MARGIN_BYTES
    if free < wanted:
        raise ResourceExhausted(
            f"no space left for a template in {directory.parent.parent}:"
            f" {free // MIB} MiB are free, {wanted // MIB} MiB are needed",
            hint="free some space there, or choose another directory with --propolis-artifact-dir",
        )

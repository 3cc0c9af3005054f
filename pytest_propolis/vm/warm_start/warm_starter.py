"""Warm starts: fork a known template, or make it first, and run the fork if requested."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from ...agent_api.templates import ForkVm
from ...console.shell_protocol import TypedCommand
from ...errors import ApiError, BootError, TemplateError
from ...guests.adapter import GuestAdapter
from ...hosts.agent_clients.asynchronous import AsyncAgentClient
from ...hosts.host import Host
from ...propolis_api import Component, NvmeDisk, VirtioDisk, VirtioNic
from ...propolis_api.connection.transport import import_websockets
from ..config import CompleteVmConfig
from ..disks.layout import boot_order_of, boot_source_of, disks_of
from ..instance_spec.builder import instance_properties
from ..provisioning.admission import retry_while_busy
from ..provisioning.guest_images import ready_image
from ..timings import Timings
from .fork_handle import ForkHandle
from .identity import typed_identity
from .template_maker import TemplateKey, TemplateKind, TemplateMaker

__all__ = ["WarmStarter"]


class WarmStarter:
    """Forks VMs through one agent.

    :param group: the group of the VMs.
    """

    def __init__(
        self,
        host: Host,
        agent: AsyncAgentClient,
        *,
        group: str,
        log_dir: Path,
        progress: Callable[[str], None],
    ) -> None:
        self._host = host
        self._agent = agent
        self._group = group
        self._known = host.templates
        self._progress = progress
        self._maker = TemplateMaker(host, agent, log_dir=log_dir, progress=progress)

    async def fork(
        self,
        complete: CompleteVmConfig,
        guest: GuestAdapter,
        *,
        added: Mapping[str, Component],
        log_path: str,
        run: bool,
        metric_addr: str | None = None,
    ) -> ForkHandle | None:
        """Return a fork of the kind's template; None, after a line with the reason, if there can be none.

        :param complete: the kind; it has the disks that the template has.
        :param added: further disks and network cards.
        :param log_path: where QEMU's messages go; empty for the agent's choice.
        :param run: also create and run it, and assign the guest's identity if that does not delay the response.
        :param metric_addr: as in `CreateVm`.
        :raises BootError: when the template's guest does not boot in time.
        """
        phases = Timings()
        kind = TemplateKind.of(complete, guest)
        name = complete.config.name
        spec = _ForkSpec(
            name=name,
            guest=guest,
            over_port=complete.config.has_ports,
            added=added,
            log_path=log_path,
            run=run,
            metric_addr=metric_addr,
        )
        if kind in self._known:
            with contextlib.suppress(TemplateError):  # the template may have been removed meanwhile
                return await self._fork_of(self._known[kind], spec, phases)
        try:
            with phases.during("template"):
                key = self._known[kind] = await self._template_key(complete, guest)
            return await self._fork_of(key, spec, phases)
        except TemplateError as error:
            remedy = f"; {error.hint}" if error.hint else ""
            self._progress(f"{guest.name} boots from cold: {error.message}{remedy}")
            return None
        except BootError as error:
            raise error.with_context(vm=spec.name, operation="boot of its template") from None

    async def prepare(self, complete: CompleteVmConfig, guest: GuestAdapter) -> None:
        """Make the kind's template if it does not exist.

        :raises TemplateError: when it cannot be.
        :raises BootError: when its guest does not boot in time.
        """
        await self._template_key(complete, guest)

    async def _template_key(self, complete: CompleteVmConfig, guest: GuestAdapter) -> str:
        limit_s = complete.boot_timeout_s
        image = await ready_image(self._host, self._agent, guest.image, timeout_s=limit_s, progress=self._progress)
        key = TemplateKey(
            kind=TemplateKind.of(complete, guest),
            boot=boot_source_of(complete.config, guest, image),
            disks=tuple(disks_of(complete.config, image)),
            boot_order=boot_order_of(complete.config, image),
        )
        return await self._maker.key(key)

    async def _fork_of(self, key: str, spec: _ForkSpec, phases: Timings) -> ForkHandle:
        properties = instance_properties(spec.name)

        async def request_fork() -> ForkHandle:
            # It contains the time, and is therefore rendered each time.
            rendered_s, typed = time.monotonic(), spec.typed_identity()
            request = ForkVm(
                template=key,
                name=spec.name,
                group=self._group,
                log_path=spec.log_path,
                added=dict(spec.added),
                run=properties if spec.run else None,
                typed=typed.text,
                metric_addr=spec.metric_addr,
            )
            try:
                # Its console will need them, and the agent takes longer than the import.
                vm, _ = await asyncio.gather(self._agent.fork_vm(request), _import_websockets())
            except ApiError as error:
                raise error.with_context(vm=spec.name) from None
            return ForkHandle(
                vm=vm,
                properties=properties,
                phases=phases,
                runs=spec.run,
                typed_identity=typed if vm.typed else None,
                plugged=tuple(_addresses(spec.added)),
                rendered_s=rendered_s,
            )

        with phases.during("fork"):
            forked = await retry_while_busy(spec.name, request_fork, phases, progress=self._progress)
        phases.took_s |= forked.vm.took_s
        return forked


async def _import_websockets() -> None:
    import_websockets()


class _ForkSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The request for a fork, without the time at which it is rendered."""

    name: str
    guest: GuestAdapter
    over_port: bool
    added: Mapping[str, Component]
    log_path: str
    run: bool
    metric_addr: str | None

    def typed_identity(self) -> TypedCommand:
        return typed_identity(self.guest, name=self.name, over_port=self.over_port)


def _addresses(components: Mapping[str, Component]) -> Iterator[str]:
    """Return the addresses of these devices in Linux's notation."""
    for component in components.values():
        if isinstance(device := component.component, NvmeDisk | VirtioDisk | VirtioNic):
            path = device.pci_path
            yield f"0000:{path.bus:02x}:{path.device:02x}.{path.function:x}"

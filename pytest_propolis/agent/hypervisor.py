"""The host's hypervisor: QEMU and its accelerator, determined once per agent."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import cast

import msgspec

from ..agent_api.agent_process import AgentConfig
from ..engine.qemu.accelerator.probe import AcceleratorChoice, probe_accelerator
from ..engine.qemu.binary import Qemu, find_qemu
from ..errors import CapabilityMissing
from ..operating_system.registry import system
from ..settings import Accelerator
from ..storage.user_directories import cache_directory

__all__ = ["Hypervisor", "HypervisorFinder", "require_engine"]


class Hypervisor(msgspec.Struct, frozen=True, kw_only=True):
    """QEMU and the accelerator that it uses on this host."""

    qemu: Qemu
    accelerator: AcceleratorChoice


def require_engine() -> None:
    """
    :raises CapabilityMissing: when the operating system lacks what the engine needs.
    """
    here = system()
    if here.host.engine_obstacle is not None:
        raise CapabilityMissing(
            f"the engine cannot run on {here.name}: it needs {here.host.engine_obstacle}",
            hint="choose a server with --propolis-server: the path of a propolis-server, or the URL of one that runs",
        )


class HypervisorFinder:
    """Find the hypervisor in the background, from the agent's start on; callers wait for the result."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._seen: tuple[Qemu, object] | None = None
        self._search = self._begin()

    async def find(self) -> Hypervisor:
        """Return the hypervisor.

        :raises CapabilityMissing: if the engine cannot run here, there is no usable QEMU, or the requested accelerator
            does not work.
        """
        if self._search.done() and (self._search.cancelled() or self._search.exception()):
            self._search = self._begin()
        return await asyncio.shield(self._search)

    def has_changed(self) -> bool:
        """Return whether another QEMU would be found now: its file has changed, or another one is first on PATH."""
        found = self._seen
        return found is not None and _fingerprint(found[0]) != found[1]

    async def aclose(self) -> None:
        """Cancel a search in progress."""
        self._search.cancel()
        await asyncio.wait([self._search])

    def _begin(self) -> asyncio.Task[Hypervisor]:
        search = asyncio.create_task(self._find())
        # Callers get the failure; without callers it needs no report.
        search.add_done_callback(lambda done: done.cancelled() or done.exception())
        return search

    async def _find(self) -> Hypervisor:
        require_engine()
        qemu = await find_qemu(Path(self._config.qemu) if self._config.qemu else None)
        self._seen = qemu, _fingerprint(qemu)
        choice = await probe_accelerator(
            qemu,
            wanted=cast(Accelerator, self._config.options.accelerator),
            cache_dir=cache_directory(),
        )
        # This applies to every QEMU that this agent starts: an agent uses one.
        os.environ.update(qemu.environment)
        return Hypervisor(qemu=qemu, accelerator=choice)


def _fingerprint(qemu: Qemu) -> object:
    """Return a fingerprint that changes when another program would be found."""
    first = shutil.which(qemu.system.name) if qemu.origin == "PATH" else None
    try:
        image_tool = qemu.img.stat()
        return qemu.identity, first, image_tool.st_size, image_tool.st_mtime_ns
    except OSError:
        return None

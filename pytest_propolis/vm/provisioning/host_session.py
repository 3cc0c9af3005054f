"""The session of a VM factory on a host."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from ...agent_api.messages import ResourceIds
from ...errors import PropolisError
from ...hosts.agent_clients.asynchronous import AsyncAgentClient
from ...hosts.host import Host
from ..warm_start.warm_starter import WarmStarter

__all__ = ["HostSession"]


class HostSession:
    """A client of the host's agent, and the resources created there.

    :param agent: a client for the running event loop, which lives as long as the session.
    """

    def __init__(
        self, host: Host, agent: AsyncAgentClient, *, group: str, log_dir: Path, progress: Callable[[str], None]
    ) -> None:
        self.host = host
        self.agent = agent
        self.warm_starter = WarmStarter(host, agent, group=group, log_dir=log_dir, progress=progress)
        self._vm_ids: list[str] = []
        self._disk_ids: list[str] = []
        self._network_ids: list[str] = []
        self._logs: dict[str, Path] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def on(
        cls, host: Host, *, group: str, log_dir: Path, progress: Callable[[str], None]
    ) -> AsyncIterator[HostSession]:
        """A session, for the length of the block. What factories whose teardown was cancelled left is removed first.

        :raises HostError: when the host cannot be used.
        """
        agent = await host.client()
        try:
            while host.unfinished:
                await agent.remove(host.unfinished[-1].resources)
                host.unfinished.pop()
            yield cls(host, agent, group=group, log_dir=log_dir, progress=progress)
        finally:
            await agent.aclose()

    @property
    def resources(self) -> ResourceIds:
        """The VMs, disks and networks that were created, including removed ones."""
        return ResourceIds(vms=tuple(self._vm_ids), disks=tuple(self._disk_ids), networks=tuple(self._network_ids))

    def own_vm(self, vm_id: str, taken: contextlib.AsyncExitStack, *, log_path: Path) -> None:
        """Note a VM that was made, and have it removed when `taken` is closed.

        :param log_path: where the messages of its QEMU are to be on this machine.
        """
        self._vm_ids.append(vm_id)
        taken.push_async_callback(self.agent.remove_vm, vm_id)
        if not self.host.shares_files:
            self._logs[vm_id] = log_path
            taken.push_async_callback(self._fetch_log, vm_id)

    async def fetch_logs(self) -> None:
        """Bring the messages of the QEMUs here, from a host that has other files."""
        for vm_id in list(self._logs):
            await self._fetch_log(vm_id)

    async def _fetch_log(self, vm_id: str) -> None:
        path = self._logs.pop(vm_id, None)
        with contextlib.suppress(PropolisError):  # the host is lost, or the VM is gone
            if path is not None and (text := await self.agent.qemu_log(vm_id)):
                path.write_bytes(text)

    async def create_network(self, name: str) -> str:
        """Create a network on the host, and return its id; the caller removes it."""
        self._network_ids.append(await self.agent.create_network(name))
        return self._network_ids[-1]

    def own_disk(self, disk_id: str, taken: contextlib.AsyncExitStack) -> None:
        """Note a disk that was made, and have it removed when `taken` is closed."""
        self._disk_ids.append(disk_id)
        taken.push_async_callback(self.agent.remove_disk, disk_id)

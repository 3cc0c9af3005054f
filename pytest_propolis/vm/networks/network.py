"""A network between VMs: an isolated Ethernet, on one host or across hosts, with addresses and faults."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ...agent_api.networks import MOST_PORTS, AddPort, NetworkFaults
from ...errors import ConfigError, PropolisError

if TYPE_CHECKING:
    from ..instance import Instance
    from ..provisioning.host_session import HostSession
    from ..vm import TestVm

__all__ = ["Network"]


class _Part(msgspec.Struct, frozen=True):
    """The network's part on one host."""

    session: HostSession
    id: str


class Network:
    """A network of a factory. VMs are connected with ``Nic(network=…)`` when they are created.

    Its part on a host is created with the first VM there, and connected with the parts on other hosts. It stays
    connected when a VM migrates.

    :param subnet: the addresses of its VMs, assigned in order.
    :param dhcp: whether guests request their addresses by DHCP; otherwise their shells set them.
    :param slaac: whether the network's IPv6 prefix is advertised, so that guests form addresses of their own.
    """

    def __init__(self, name: str, subnet: ipaddress.IPv4Network, *, dhcp: bool = False, slaac: bool = False) -> None:
        self.name = name
        self.subnet = subnet
        self.dhcp = dhcp
        self.slaac = slaac
        self._ports: dict[str, int] = {}
        self._parts: dict[str, _Part] = {}
        self._making = asyncio.Lock()
        self._faults = NetworkFaults()

    @property
    def prefix(self) -> ipaddress.IPv6Network:
        """The IPv6 prefix that is advertised with `slaac`."""
        first, second = self.subnet.network_address.packed[:2]
        return ipaddress.IPv6Network(f"fd00:{first}:{second}::/64")

    def __repr__(self) -> str:
        return f"<Network {self.name!r} {self.subnet}>"

    def address(self, vm: Instance) -> str:
        """Return a VM's address.

        :raises ConfigError: when the VM has no card in this network.
        """
        return str(self.subnet[self._port_of(vm)])

    async def cut(self, one: TestVm, other: TestVm) -> None:
        """Drop all frames between two VMs, in both directions, in addition to other faults.

        :raises ConfigError: when one of them has no card in this network.
        """
        pair = (self._port_of(one), self._port_of(other))
        await self._order(msgspec.structs.replace(self._faults, cuts=(*self._faults.cuts, pair)))

    async def delay(self, *, delay_ms: float) -> None:
        """Delay each frame by this time from now on.

        :raises ConfigError: when it is negative.
        """
        if delay_ms < 0:
            raise ConfigError(f"network {self.name!r}: delay_ms is {delay_ms}, and cannot be negative")
        await self._order(msgspec.structs.replace(self._faults, delay_ms=float(delay_ms)))

    async def lose(self, *, loss_percent: float, seed: int = 0) -> None:
        """Drop this percentage of frames from now on.

        :param seed: seeds the random choice of frames.
        :raises ConfigError: when it is not from 0 to 100.
        """
        if not 0 <= loss_percent <= 100:
            raise ConfigError(f"network {self.name!r}: loss_percent is {loss_percent}, and must be from 0 to 100")
        await self._order(msgspec.structs.replace(self._faults, loss_percent=float(loss_percent), seed=seed))

    async def heal(self) -> None:
        """End all faults. Frames that are being delayed still arrive late."""
        await self._order(NetworkFaults())

    async def plug(self, session: HostSession, vm: str) -> str:
        """Return the link of a card of a VM on a host: for `VmFactory`.

        :param vm: the VM's name; one that has a port has the same one on every host.
        :raises ConfigError: when the network is full.
        """
        number = self._ports.setdefault(vm, max(self._ports.values(), default=0) + 1)
        if number > MOST_PORTS:
            raise ConfigError(f"network {self.name!r} has no room for more than {MOST_PORTS} VMs", vm=vm)
        part = await self._part_on(session)
        address = f"{self.subnet[number]}/{self.subnet.prefixlen}" if self.dhcp else None
        port = AddPort(number=number, dhcp_address=address, prefix=str(self.prefix) if self.slaac else None)
        return f"unix:{await session.agent.add_port(part.id, port)}"

    async def succeed(self, vm: str, successor: str) -> None:
        """Assign a VM's port to its successor, on any host."""
        self._ports[successor] = self._ports[vm]
        await self._move_port(successor, None)

    async def arrive(self, vm: str, host: str) -> None:
        """Forward frames for a VM to the host that it has migrated to.

        The guest's own announcement takes a moment to get there, and may come after other guests' next frames for it.
        """
        await self._move_port(vm, self._parts[host].id)

    async def write_captures(self, directory: Path) -> None:
        """Write the network's captures into a directory, one file for each host that had a part of it."""
        for host, part in self._parts.items():
            with contextlib.suppress(PropolisError):  # the host is lost, and the frames with it
                if capture := await part.session.agent.get_capture(part.id):
                    self.capture_path(directory, host).write_bytes(capture)

    def capture_path(self, directory: Path, host: str) -> Path:
        """Return the capture file for the frames of one host's VMs."""
        return directory / f"{self.name}.{host}.pcap"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names of the hosts that have a part of it."""
        return tuple(self._parts)

    async def aclose(self) -> None:
        """Remove it from all hosts."""
        parts, self._parts = self._parts, {}
        for part in parts.values():
            with contextlib.suppress(PropolisError):  # the host is lost, or its agent has ended
                await part.session.agent.remove_network(part.id)

    def _port_of(self, vm: Instance) -> int:
        if vm.name not in self._ports:
            raise ConfigError(f"it has no card in network {self.name!r}", vm=vm.name, hint="nics=(Nic(network=…),)")
        return self._ports[vm.name]

    async def _part_on(self, session: HostSession) -> _Part:
        async with self._making:
            if session.host.name not in self._parts:
                part = _Part(session, await session.create_network(self.name))
                await session.agent.order_faults(part.id, self._faults)
                for other in self._parts.values():
                    endpoint = other.session.agent.endpoint(f"/networks/{other.id}")
                    address = await session.host.address_for_agent(endpoint, on=other.session.host)
                    await session.agent.connect_network(part.id, address, other.id)
                self._parts[session.host.name] = part
        return self._parts[session.host.name]

    async def _move_port(self, vm: str, at: str | None) -> None:
        if len(self._parts) == 1:
            return
        port = self._ports[vm]
        await asyncio.gather(*(part.session.agent.move_port(part.id, port, at) for part in self._parts.values()))

    async def _order(self, faults: NetworkFaults) -> None:
        self._faults = faults
        await asyncio.gather(*(part.session.agent.order_faults(part.id, faults) for part in self._parts.values()))

"""The networks of one factory of VMs."""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...errors import ConfigError
from ...propolis_api import InstanceSpec
from ..instance_spec.builder import with_links
from ..instance_spec.device_names import NAME, NAME_HINT
from .network import Network

if TYPE_CHECKING:
    from ..config import Nic, VmConfig
    from ..provisioning.host_session import HostSession
    from ..vm import TestVm

__all__ = ["FactoryNetworks", "networked"]

FIRST: Final = 100
MOST: Final = 100
"""They have the addresses 10.100.0.0/24, 10.101.0.0/24, and so on."""


class FactoryNetworks:
    """Makes networks, and plugs the VMs of the factory into them."""

    def __init__(self) -> None:
        self._networks: dict[str, Network] = {}

    def get(self, name: str, *, dhcp: bool | None = None, slaac: bool | None = None) -> Network:
        """Return the network of that name; it is made when it is first asked for.

        :param dhcp: as for `Network`, and so is `slaac`; None for that of the existing network, or none.
        :raises ConfigError: when there cannot be one of that name, or are too many, or one of these differs.
        """
        if name not in self._networks:
            if not NAME.fullmatch(name):
                raise ConfigError(f"network: {name!r} cannot be its name", hint=NAME_HINT)
            if len(self._networks) == MOST:
                raise ConfigError(f"network {name!r}: a factory has at most {MOST} networks")
            subnet = ipaddress.IPv4Network(f"10.{FIRST + len(self._networks)}.0.0/24")
            self._networks[name] = Network(name, subnet, dhcp=bool(dhcp), slaac=bool(slaac))
        network = self._networks[name]
        for option, wanted, has in (("dhcp", dhcp, network.dhcp), ("slaac", slaac, network.slaac)):
            if wanted not in (None, has):
                raise ConfigError(
                    f"network {name!r} was created with {option}={has}", hint=f"give {option}= where it is first named"
                )
        return network

    async def plug(self, session: HostSession, config: VmConfig) -> VmConfig:
        """Return a configuration whose cards have the links that their networks are on a host.

        :raises ConfigError: when a network is another factory's, or two cards are in one.
        """
        networks = [nic.network for nic in config.nics if nic.network]
        for network in networks:
            if self._networks.get(network.name) is not network:
                raise ConfigError(f"network {network.name!r} belongs to another factory", vm=config.name)
            if networks.count(network) > 1:
                raise ConfigError(f"two of its cards are in network {network.name!r}", vm=config.name)
        nics = [
            dataclasses.replace(nic, link=await nic.network.plug(session, config.name)) if nic.network else nic
            for nic in config.nics
        ]
        return dataclasses.replace(config, nics=tuple(nics))

    async def succeed(self, vm: TestVm, name: str, session: HostSession, spec: InstanceSpec) -> InstanceSpec:
        """Return the spec of a VM's successor, whose cards have the VM's ports.

        :param name: the successor's.
        :param session: on the successor's host.
        """
        links = {}
        for nic in vm.nics:
            assert nic.network is not None
            await nic.network.succeed(vm.name, name)
            links[nic.name] = await nic.network.plug(session, name)
        return with_links(spec, links)

    async def write_captures(self, directory: Path) -> None:
        """Write the captures of the networks into an existing directory."""
        await asyncio.gather(*(network.write_captures(directory) for network in self._networks.values()))

    async def aclose(self) -> None:
        """Remove all networks. Idempotent."""
        await asyncio.gather(*(network.aclose() for network in self._networks.values()))


def networked(nics: Sequence[Nic]) -> tuple[Nic, ...]:
    """Return the cards that are in networks."""
    return tuple(nic for nic in nics if nic.network is not None)

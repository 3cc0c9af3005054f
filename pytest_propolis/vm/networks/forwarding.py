"""Forwarding of ports to a guest whose card is on QEMU's user-mode network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...errors import ConfigError
from ...hosts.vm_extensions import forward_guest_port
from ...propolis_api import InstanceSpec, VirtioNetworkBackend, VirtioNic

if TYPE_CHECKING:
    from ..vm import TestVm

__all__ = ["forward"]

USER: Final = ("user", "user:isolated")
ADDRESS: Final = "10.0.2.15"
"""What QEMU forwards to: the first address that its DHCP server gives."""

MOST: Final = (1 << 16) - 1


async def forward(vm: TestVm, port: int) -> int:
    """Have a port of this machine's loopback interface lead to a TCP port of a guest: `TestVm.forward`."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port <= MOST:
        raise ConfigError(f"{port!r} is not a port", vm=vm.name, hint=f"a number from 1 to {MOST}")
    card = _card(vm.spec)
    if card is None:
        raise ConfigError(
            "it has no network card on the user-mode network", vm=vm.name, hint='nics=(Nic(link="user:isolated"),)'
        )
    pci = f"0000:{card.pci_path.bus:02x}:{card.pci_path.device:02x}.{card.pci_path.function}"
    # A guest that asks by DHCP has the address already.
    up = vm.guest.network_command(pci, f"{ADDRESS}/24")
    await vm.run(f"ip addr show | grep -q 'inet {ADDRESS}/' || {{ {up}; }}")
    return await vm.host.forward_port(await forward_guest_port(vm.endpoint, port, vm=vm.name))


def _card(spec: InstanceSpec) -> VirtioNic | None:
    components = [wrapper.component for wrapper in spec.components.values()]
    cards = [component for component in components if isinstance(component, VirtioNic)]
    for key, wrapper in spec.components.items():
        backend = wrapper.component
        if isinstance(backend, VirtioNetworkBackend) and backend.vnic_name in USER:
            return next((card for card in cards if card.backend_id == key), None)
    return None

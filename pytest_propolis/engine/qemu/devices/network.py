"""Network cards, and what they are plugged into.

A virtio network backend names a link of the host. On illumos that is a VNIC; here it is one of:

=============================== ==============================================================================
``user``                        QEMU's user-mode network: the guest has an address by DHCP, and reaches what the
                                host reaches
``user:isolated``               the same, but the guest reaches neither the host nor anything beyond it
``unix:PATH``                   a switch that listens on a UNIX socket, and takes Ethernet frames, each after its
                                length as four bytes, most significant first
``multicast:ADDRESS:PORT``      an Ethernet of all VMs on this host that name the same IPv4 multicast group
=============================== ==============================================================================
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any, Final
from uuid import UUID

from ....propolis_api import DlpiNetworkBackend, VirtioNetworkBackend, VirtioNic
from ...invalid_spec import InvalidSpec
from ..machine_part import MachinePart, PartKind
from .pci import PciBuses

__all__ = ["mac_address", "network_parts"]

LONGEST_SOCKET_PATH: Final = 107
LOOPBACK: Final = "127.0.0.1"
KNOWN: Final = "'user', 'user:isolated', 'unix:PATH' or 'multicast:ADDRESS:PORT'"


def network_parts(components: Mapping[str, Any], buses: PciBuses) -> Iterator[MachinePart]:
    """Yield the QEMU parts of all network cards and their backends.

    :raises InvalidSpec: naming the component at fault.
    """
    users = _users(components)
    for number, (key, component) in enumerate(components.items()):
        if isinstance(component, DlpiNetworkBackend):
            raise InvalidSpec(f"backend {key!r}: DLPI links are of illumos, and there are none on this host")
        if isinstance(component, VirtioNetworkBackend):
            if key not in users:
                raise InvalidSpec(f"backend {key!r} is not used by any device")
            card = users[key]
            link, device = _link(key, component.vnic_name), _card(components[card], buses)
            yield MachinePart(key, PartKind.NETWORK, link | {"id": f"net{number}"})
            yield MachinePart(card, PartKind.DEVICE, device | {"netdev": f"net{number}"})


def mac_address(interface_id: UUID) -> str:
    """Return the address of a card, derived from its id, so that a migration keeps it."""
    # Locally administered, unicast; the digits of a random UUID that are not fixed by its version.
    octets = bytes([0x02, *interface_id.bytes[:3], *interface_id.bytes[-2:]])
    return ":".join(f"{octet:02x}" for octet in octets)


def _users(components: Mapping[str, Any]) -> dict[str, str]:
    """The card that uses each backend."""
    users: dict[str, str] = {}
    for key, card in components.items():
        if not isinstance(card, VirtioNic):
            continue
        backend = card.backend_id
        if not isinstance(components.get(backend), VirtioNetworkBackend | DlpiNetworkBackend):
            raise InvalidSpec(f"card {key!r} names backend {backend!r}, which is not a network backend of this spec")
        if users.setdefault(backend, key) != key:
            raise InvalidSpec(f"card {key!r}: backend {backend!r} is used by another card already")
    return users


def _link(key: str, name: str) -> dict[str, Any]:
    match name.split(":", 2):
        case ["user"]:
            return {"type": "user"}
        case ["user", "isolated"]:
            return {"type": "user", "restrict": True}
        case ["unix", *_]:
            return _switch(key, name.removeprefix("unix:"))
        case ["multicast", address, port]:
            return _multicast(key, address, port)
    raise InvalidSpec(f"backend {key!r}: there is no link {name!r} on this host; a link is {KNOWN}")


def _switch(key: str, path: str) -> dict[str, Any]:
    if not path.startswith("/") or len(path.encode()) > LONGEST_SOCKET_PATH:
        raise InvalidSpec(f"backend {key!r}: {path!r} is not an absolute path of at most {LONGEST_SOCKET_PATH} bytes")
    return {"type": "stream", "server": False, "addr": {"type": "unix", "path": path}}


def _multicast(key: str, address: str, port: str) -> dict[str, Any]:
    try:
        group = ipaddress.IPv4Address(address)
    except ValueError:
        group = None
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    if group is None or not group.is_multicast or not 0 < number < 1 << 16:
        raise InvalidSpec(f"backend {key!r}: '{address}:{port}' is not an IPv4 multicast address and a port")
    # Bound to the loopback interface: nothing leaves this host.
    return {"type": "socket", "mcast": f"{group}:{number}", "localaddr": LOOPBACK}


def _card(card: VirtioNic, buses: PciBuses) -> dict[str, Any]:
    return {
        "driver": "virtio-net-pci",
        **buses.properties(card.pci_path),
        "mac": mac_address(card.interface_id),
        # Its option ROM, for booting over the network, is a package of its own on some systems.
        "romfile": "",
    }

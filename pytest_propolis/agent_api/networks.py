"""Messages between clients and agents about networks between VMs."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = [
    "MOST_PORTS",
    "AddPort",
    "ConnectNetworks",
    "CreateNetwork",
    "ForwardPort",
    "MovePort",
    "NetworkCreated",
    "NetworkFaults",
    "PortAdded",
    "PortForwarded",
]

MOST_PORTS: Final = 253
"""How many ports a network has, numbered from 1; the last address of its subnet is that of its DHCP server."""


class CreateNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """Request an Ethernet network on the agent's host.

    :param name: for users.
    """

    name: str


class NetworkCreated(msgspec.Struct, frozen=True, kw_only=True):
    """An Ethernet network without ports was created."""

    id: str


class AddPort(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for a port of a network, unless there is one of that number.

    :param number: what names it on all hosts that have a part of the network, from 1 on.
    :param dhcp_address: the address, with the length of the prefix, that the card is given by DHCP; None for no DHCP.
    :param prefix: the IPv6 prefix that is advertised to the card; None for no advertisements.
    """

    number: int
    dhcp_address: str | None = None
    prefix: str | None = None


class PortAdded(msgspec.Struct, frozen=True, kw_only=True):
    """The UNIX socket at which a card is plugged in, as the link ``unix:PATH``."""

    path: str


class ConnectNetworks(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for frames to go to and from a part of the network on another host.

    :param address: where this agent finds that part (`Endpoint.at`).
    :param part: the part's id.
    """

    address: str
    part: str


class MovePort(msgspec.Struct, frozen=True, kw_only=True):
    """Set the part of the network that a port's card is connected to.

    :param part: the id of the part of the network that it is plugged in at; None while it moves.
    """

    part: str | None


class ForwardPort(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for a port of the host's loopback interface that leads to a TCP port of a guest on a user-mode network."""

    guest_port: int


class PortForwarded(msgspec.Struct, frozen=True, kw_only=True):
    """The port on the host."""

    port: int


class NetworkFaults(msgspec.Struct, frozen=True, kw_only=True):
    """Faults that a network injects. Each host applies them to the frames of its own cards.

    :param cuts: pairs of ports between which nothing passes, in either direction.
    :param delay_ms: how long each frame is held.
    :param loss_percent: how many frames of a hundred are lost, on average.
    :param seed: of the numbers that decide which.
    """

    cuts: tuple[tuple[int, int], ...] = ()
    delay_ms: float = 0.0
    loss_percent: float = 0.0
    seed: int = 0

"""Forwarding of ports of the host's loopback interface to a guest on a user-mode network."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from ....propolis_api import VirtioNetworkBackend
from .network import LOOPBACK

__all__ = ["ForwardRefused", "forward_port"]

USER: Final = ("user", "user:isolated")
ATTEMPTS: Final = 5

Execute = Callable[..., Awaitable[Any]]


class ForwardRefused(Exception):
    """Raised when a port cannot be forwarded; the message gives the reason."""


async def forward_port(execute: Execute, components: Mapping[str, Any], port: int) -> int:
    """Forward a free port of the loopback interface to a TCP port of the guest's first card on a user-mode network.

    :param execute: asks QEMU's monitor.
    :return: the port on the host.
    :raises ForwardRefused: when there is no such card, or QEMU does not.
    """
    netdev = _user_network(components)
    if netdev is None:
        raise ForwardRefused("it has no network card with the link 'user' or 'user:isolated'")
    for _ in range(ATTEMPTS):
        chosen = _free_port()
        command = f"hostfwd_add {netdev} tcp:{LOOPBACK}:{chosen}-:{port}"
        reply = await execute("human-monitor-command", **{"command-line": command})
        if not reply.strip():
            return chosen
    raise ForwardRefused(reply.strip())


def _user_network(components: Mapping[str, Any]) -> str | None:
    """Return QEMU's name of the first user-mode network, as `network_parts` gives it."""
    for number, component in enumerate(components.values()):
        if isinstance(component, VirtioNetworkBackend) and component.vnic_name in USER:
            return f"net{number}"
    return None


def _free_port() -> int:
    """Return a port that is free now; QEMU cannot choose one and report it."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port

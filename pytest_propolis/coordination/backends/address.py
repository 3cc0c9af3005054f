"""Addresses of stores and of groups: what a program needs to take part.

``embedded:///run/propolis/…/agent.sock#GROUP`` is the store of an agent, ``embedded://TOKEN@HOST:PORT#GROUP`` one that
``propolis node serve`` serves, and ``etcd://HOST:PORT/PREFIX#GROUP`` is in etcd.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from ...errors import SettingsError
from ...propolis_api.connection.endpoint import Endpoint
from .backend import Backend
from .embedded import EmbeddedBackend
from .etcd.address import SCHEMES as ETCD_SCHEMES
from .etcd.address import EtcdAddress
from .etcd.backend import EtcdBackend

__all__ = ["connect_store", "etcd_store", "group_and_store", "socket_address"]

SCHEMES: Final = {"embedded": "http", "embeddeds": "https"}
HINT: Final = "write embedded:///SOCKET, embedded://TOKEN@HOST:PORT or etcd://HOST:PORT, and #GROUP for a group in it"


def socket_address(socket: Path) -> str:
    """Return the address of the store behind an agent's socket."""
    return f"embedded://{quote(str(socket))}"


def group_and_store(address: str) -> tuple[str, str]:
    """Return the name of the group and the address of the store of a group's address.

    :raises SettingsError: when it names no group.
    """
    store, _, group = address.rpartition("#")
    if not store or not group:
        raise SettingsError(f"{_shown(address)!r} is no address of a group", hint=HINT)
    return group, store


async def connect_store(address: str) -> Backend:
    """Return a connection to the store of an address. The caller closes it.

    :raises SettingsError: when it is not an address.
    :raises CoordinationLost: when no store answers there.
    """
    scheme = address.partition("://")[0]
    if scheme in ETCD_SCHEMES:
        return EtcdBackend(EtcdAddress.parse(address))
    if scheme not in SCHEMES:
        raise SettingsError(f"{_shown(address)!r} is no address of a store", hint=HINT)
    endpoint, token = _embedded(scheme, address)
    return await EmbeddedBackend.connect(endpoint, token=token)


def etcd_store(address: str, *, below: str) -> str:
    """Return the address of the same cluster, with a name added to the prefix of all keys.

    :raises SettingsError: when it is not an address.
    """
    parts, prefix = urlsplit(address), EtcdAddress.parse(address).prefix
    return parts._replace(path=f"/{quote(prefix)}/{below}").geturl()


def _embedded(scheme: str, address: str) -> tuple[Endpoint, str]:
    parts = urlsplit(address)
    if not parts.netloc:
        if not parts.path.startswith("/"):
            raise SettingsError(f"{address!r} names no socket", hint=HINT)
        return Endpoint(base_url="http://agent", uds=Path(unquote(parts.path))), ""
    token, _, host = parts.netloc.rpartition("@")
    query = dict(parse_qsl(parts.query))
    try:
        tls = ssl.create_default_context(cafile=query["ca"]) if "ca" in query else None
        if not parts.hostname or not parts.port or not set(query) <= {"ca"}:
            raise ValueError("it needs a host and a port")
        if query and scheme != "embeddeds":
            raise ValueError("ca is for embeddeds://, which uses TLS")
        if not (unquote(token).isascii() and unquote(token).isprintable()):
            raise ValueError("its token is not of printable ASCII characters")
    except (OSError, ValueError) as error:
        raise SettingsError(f"the address {_shown(address)!r} cannot be used: {error}", hint=HINT) from None
    return Endpoint(base_url=f"{SCHEMES[scheme]}://{host}", tls=tls), unquote(token)


def _shown(address: str) -> str:
    """Return an address without what is secret in it."""
    scheme, separator, rest = address.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else address

"""The address of a group for programs on another host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from ...coordination.backends.address import socket_address
from ...coordination.backends.etcd.address import PORT
from ...errors import SettingsError
from ...hosts.host import Host
from ...propolis_api.connection.endpoint import Endpoint

__all__ = ["address_on"]

LOOPBACK: Final = "127.0.0.1"
THIS_MACHINE: Final = (LOOPBACK, "localhost")


async def address_on(host: Host, address: str, *, store_host: Host, progress: Callable[[str], None]) -> str:
    """Return the address by which programs on a host reach a group that this process reaches at `address`.

    What this machine alone reaches is forwarded to the host, the file of authorities is sent there, and a password that
    is in a file becomes a part of the address.

    :param store_host: the host whose agent serves the store, if an agent does.
    :raises HostError: when the host cannot be reached, or refuses to forward.
    """
    if host.shares_files:
        return address
    store, _, group = address.rpartition("#")
    parts = urlsplit(store)
    if not parts.netloc:
        endpoint = Endpoint(base_url="http://agent", uds=Path(unquote(parts.path)))
        there = Endpoint.at(await host.address_for_agent(endpoint, on=store_host)).uds
        assert there is not None
        return f"{socket_address(there)}#{group}"
    credentials, at, members = parts.netloc.rpartition("@")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if "password_file" in query:
        user = credentials.partition(":")[0] or quote(query.pop("user", ""), safe="")
        credentials, at = f"{user}:{quote(_password(query.pop('password_file')), safe='')}", "@"
    if "ca" in query:
        query["ca"] = await host.provide(Path(query["ca"]), progress)
    names = [await _member_on(host, member, store_host) for member in members.split(",")]
    netloc = f"{credentials}{at}{','.join(names)}"
    return f"{parts._replace(netloc=netloc, query=urlencode(query)).geturl()}#{group}"


async def _member_on(host: Host, member: str, store_host: Host) -> str:
    """Return a host and port of a store as another host reaches it."""
    parts = urlsplit(f"//{member}")
    if parts.hostname not in THIS_MACHINE:
        return member
    here = Endpoint(base_url=f"http://{LOOPBACK}:{parts.port or PORT}")
    there = Endpoint.at(await host.address_for_agent(here, on=store_host))
    return f"{parts.hostname}:{there.host_and_port[1]}"


def _password(file: str) -> str:
    try:
        return Path(file).read_text().rstrip("\n")
    except OSError as error:
        raise SettingsError(f"the password cannot be read from {file}: {error.strerror}") from None

"""The endpoint of a VM's server."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote, unquote, urlsplit

from ...errors import AgentError

__all__ = ["Endpoint", "Loss"]

Loss = Callable[[], Awaitable[AgentError | None]]

_UNIX: Final = "http+unix://"
_UNIX_HOST: Final = "http://agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The endpoint of a server.

    :param base_url: what the paths of the API are put after; it may have a path itself: ``http://agent/vms/3f2a``.
    :param uds: the UNIX socket to connect to, whatever host the URL names; None: TCP.
    :param tls: how the server of an ``https`` URL is checked; None: by the system's certificates.
    :param loss: tells why the host behind it is lost, when something there does not answer; None if it is not.
    """

    base_url: str
    uds: Path | None = None
    loss: Loss | None = field(default=None, compare=False, repr=False)
    tls: ssl.SSLContext | None = field(default=None, compare=False, repr=False)

    @classmethod
    def at(cls, address: str) -> Self:
        """The server of an address: one that `address` gave, a URL, or an IP address and port as propolis-server's.

        :raises ValueError: when there is nothing to connect to in it.
        """
        if not address:
            raise ValueError("the address is empty")
        if not address.startswith(_UNIX):
            url = address if "://" in address else f"http://{address}"
            _require_host(url)
            return cls(base_url=url)
        socket, _, path = address.removeprefix(_UNIX).partition("/")
        if not socket:
            raise ValueError(f"{address} names no socket")
        return cls(base_url=f"{_UNIX_HOST}/{path}", uds=Path(unquote(socket)))

    async def lost_or(self, error: AgentError) -> AgentError:
        """Return why the host is lost, or if it is not, the error that is given."""
        return (self.loss and await self.loss()) or error

    @property
    def host_and_port(self) -> tuple[str, int]:
        """Host and port to connect to if there is no UNIX socket."""
        parts = urlsplit(self.base_url)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def address(self) -> str:
        """One string for it, for where the API wants an address and port: ``127.0.0.1:12400`` for a server that has
        both to itself, ``http+unix://`` with the quoted socket and the path for one behind a UNIX socket."""
        scheme, _, rest = self.base_url.partition("://")
        if self.uds is not None:
            return f"{_UNIX}{quote(str(self.uds), safe='')}/{rest.partition('/')[2]}"
        return rest if scheme == "http" and "/" not in rest else self.base_url

    def __str__(self) -> str:
        return f"{self.base_url} (socket {self.uds})" if self.uds else self.base_url


def _require_host(url: str) -> None:
    """
    :raises ValueError: when a URL has no host to connect to, or an impossible port.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError(f"{url} has no scheme, host and port to connect to")
    if not url.isprintable() or " " in url:
        raise ValueError(f"{url!r} has characters that no URL has")

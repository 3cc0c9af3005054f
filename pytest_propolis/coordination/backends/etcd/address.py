"""The address of an etcd cluster: ``etcd://USER:PASSWORD@HOST:PORT,HOST:PORT/PREFIX?ca=FILE``."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from ....errors import SettingsError
from ....propolis_api.connection.endpoint import Endpoint

__all__ = ["EtcdAddress"]

SCHEMES: Final = {"etcd": "http", "etcds": "https"}
PORT: Final = 2379
PREFIX: Final = "pytest-propolis"
QUERY: Final = ("ca", "user", "password_file")


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdAddress:
    """Where an etcd cluster is, and the user that requests are made as.

    :param urls: of its members: ``https://host:2379``.
    :param prefix: what all keys begin with, without slashes at its ends.
    :param ca: the file of certificates that members are checked by; None: the system's.
    """

    urls: tuple[str, ...]
    prefix: str = PREFIX
    user: str = ""
    password: str = field(default="", repr=False)
    ca: Path | None = None

    @classmethod
    def parse(cls, text: str) -> EtcdAddress:
        """
        :raises SettingsError: when it is not a token.
        """
        hint = "write etcd://HOST:PORT[,HOST:PORT]…, or etcds://USER:PASSWORD@HOST:PORT?ca=FILE with TLS"
        parts = urlsplit(text)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        if parts.scheme not in SCHEMES or not parts.netloc or not set(query) <= set(QUERY):
            raise SettingsError(f"{_without_password(text)!r} is no address of etcd", hint=hint)
        credentials, _, hosts = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        try:
            if "password_file" in query:
                password = Path(query["password_file"]).read_text().rstrip("\n")
            urls = tuple(_url(SCHEMES[parts.scheme], host) for host in hosts.split(","))
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"the address {_without_password(text)!r} of etcd cannot be used: {error}", hint=hint
            ) from None
        return cls(
            urls=urls,
            prefix=unquote(parts.path).strip("/") or PREFIX,
            user=unquote(user) or query.get("user", ""),
            password=unquote(password) if "password_file" not in query else password,
            ca=Path(query["ca"]) if "ca" in query else None,
        )

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return the members.

        :raises SettingsError: when the certificates cannot be read.
        """
        tls = None
        if self.ca is not None:
            try:
                tls = ssl.create_default_context(cafile=self.ca)
            except (OSError, ssl.SSLError) as error:
                raise SettingsError(f"the certificates in {self.ca} cannot be used: {error}") from None
        return tuple(Endpoint(base_url=url, tls=tls) for url in self.urls)


def _url(scheme: str, host: str) -> str:
    parts = urlsplit(f"{scheme}://{host}")
    if not parts.hostname:
        raise ValueError(f"{host!r} names no host")
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{scheme}://{name}:{parts.port or PORT}"


def _without_password(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    credentials, at, hosts = rest.rpartition("@")
    return f"{scheme}{separator}{credentials.partition(':')[0]}{at}{hosts}" if separator else text

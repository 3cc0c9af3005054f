"""``propolis node serve``: serve a group to programs of this machine and of others."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import secrets
import signal
from pathlib import Path
from typing import Final
from urllib.parse import quote

import click

from ...agent.coordination.standalone import own_endpoint, require_certificate, served_store
from ...agent.http_server import Certificate
from ...agent.servers.standalone import Address
from ...coordination.backends.embedded import EmbeddedBackend
from ...coordination.group import GROUP_VARIABLE, NodeGroup
from ...errors import SettingsError
from .attached import print_json

__all__ = ["serve"]

TOKEN_BYTES: Final = 24
SHORTEST_TOKEN: Final = 16
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option(
    "--listen", "listen", metavar="IP:PORT", default="127.0.0.1:0", show_default=True, help="Port 0 takes a free port."
)
@click.option("--group", "name", metavar="NAME", default="nodes", show_default=True, help="The group's name.")
@click.option("--token-file", type=click.Path(path_type=Path), help="Read the token from there; default: a random one.")
@click.option("--certificate", type=click.Path(path_type=Path), help="Use TLS with this chain of certificates (PEM).")
@click.option("--key", type=click.Path(path_type=Path), help="The certificate's private key (PEM).")
@click.option("--ca", type=click.Path(path_type=Path), help="Where clients find the certificate of its authority.")
@click.option("--advertise", metavar="HOST", help="The host name in the address that is printed; default: the IP.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def serve(
    *,
    listen: str,
    name: str,
    token_file: Path | None,
    certificate: Path | None,
    key: Path | None,
    ca: Path | None,
    advertise: str | None,
    as_json: bool,
) -> None:
    """Serve a group until SIGTERM, and print its address.

    Programs take part that have the address in PROPOLIS_GROUP, or give it with --group. The token is part of the
    address: it is a secret. Beyond the loopback interface the token needs TLS: give --certificate and --key.
    """
    address = _address(listen)
    host = advertise or address.host
    chain = _certificate(certificate, key, is_loopback=ipaddress.ip_address(address.host).is_loopback)
    if ipaddress.ip_address(address.host).is_unspecified and advertise is None:
        raise click.UsageError(f"{listen} is every address: give the one that other machines use with --advertise")
    token = _token(token_file)
    asyncio.run(_serve(address, name=name, token=token, certificate=chain, host=host, ca=ca, as_json=as_json))


async def _serve(
    address: Address,
    *,
    name: str,
    token: str,
    certificate: Certificate | None,
    host: str,
    ca: Path | None,
    as_json: bool,
) -> None:
    logging.getLogger("uvicorn").addHandler(logging.NullHandler())  # it writes of every connection that is refused
    leave = asyncio.Event()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, leave.set)
    async with (
        served_store(address, token=token, certificate=certificate) as listener,
        contextlib.aclosing(await EmbeddedBackend.connect(own_endpoint(listener, certificate), token=token)) as backend,
        await NodeGroup.open(backend, name) as group,
    ):
        scheme = "embeddeds" if certificate else "embedded"
        port = listener.getsockname()[1]
        place = Address(host=host, port=port)
        query = f"?ca={quote(str(ca.absolute()))}" if ca else ""
        group.address = f"{scheme}://{quote(token, safe='')}@{place}{query}#{name}"
        if as_json:
            print_json({"group": group.address, "port": port})
        else:
            click.echo(f"{GROUP_VARIABLE}='{group.address}'")
        await leave.wait()


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    try:
        if not (port.isascii() and port.isdigit()) or int(port) >= 1 << 16:
            raise ValueError
        return Address(host=str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))), port=int(port))
    except ValueError:
        raise click.UsageError(f"--listen: {text!r} is not IP:PORT, as in 127.0.0.1:0") from None


def _certificate(chain: Path | None, key: Path | None, *, is_loopback: bool) -> Certificate | None:
    if chain is None and key is None:
        if not is_loopback:
            raise click.UsageError(
                "without TLS only this machine may be served: give --certificate and --key, or listen at 127.0.0.1"
            )
        return None
    if chain is None or key is None:
        raise click.UsageError("--certificate and --key belong together: give both")
    found = Certificate(chain=chain, key=key)
    require_certificate(found)
    return found


def _token(file: Path | None) -> str:
    if file is None:
        return secrets.token_urlsafe(TOKEN_BYTES)
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the token cannot be read from {file}: {error}") from None
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise SettingsError(
            f"the token in {file} cannot be used: it has {SHORTEST_TOKEN} or more ASCII characters and no blank",
            hint="make one with: openssl rand -hex 24",
        )
    return token

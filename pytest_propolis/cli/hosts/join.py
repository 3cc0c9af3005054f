"""``propolis join``: make this machine a host of a run elsewhere."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket

import click

from ...hosts.joined.joiner import Joiner
from ...hosts.joined.tokens import JoinToken
from ...option_values import host_and_port

__all__ = ["join"]


@click.command()
@click.argument("address")
@click.option("--token", envvar="PROPOLIS_JOIN_TOKEN", required=True, metavar="TOKEN", help="The token of the run.")
@click.option("--name", metavar="NAME", help="The host that this machine is to be; default: this machine's host name.")
def join(*, address: str, token: str, name: str | None) -> None:
    """Make this machine a host of the run that listens at ADDRESS, until the run ends.

    The run shows the whole command when it begins to listen (pytest --propolis-listen ADDRESS). Each run has a token of
    its own, which proves both sides to each other; other users of this machine do not see it in PROPOLIS_JOIN_TOKEN.

    The run starts its agent here, as a process of this user. What it has here is removed when it ends, when the
    connection is lost, or when this command ends.
    """
    try:
        host_and_port(address)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="ADDRESS") from None
    # A command that ends with the run may be reaped when its pipes are closed: asyncio warns of its unknown status.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    asyncio.run(_join(Joiner(address, JoinToken.parse(token), name=name or socket.gethostname())))


async def _join(joiner: Joiner) -> None:
    left = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, left.set)
    serving = asyncio.ensure_future(joiner.serve(lambda: click.echo("joined the run; Ctrl-C leaves it")))
    leaving = asyncio.ensure_future(left.wait())
    await asyncio.wait([serving, leaving], return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    if not serving.done():
        serving.cancel()
        await asyncio.wait([serving])
        click.echo("left the run")
        return
    await serving
    click.echo("the run has ended")

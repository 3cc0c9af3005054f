"""A link's connection to a machine that has joined the run, through the run's listener."""

from __future__ import annotations

import asyncio
import secrets
from functools import partial
from pathlib import Path
from typing import ClassVar, Final, Self

from ...errors import HostError
from ...propolis_api.connection.sockets import abort
from ..ssh.transport.transport import Channel
from .command_frames import channel_on
from .messages import (
    LINE_BYTES,
    CommandOrder,
    ForwardOrder,
    ForwardTarget,
    JoinDestination,
    OpenOutcome,
    Order,
    PortOrder,
    SocketOrder,
    StreamRequest,
    Watched,
    WatchRequest,
)
from .streams import Ends, Work, receive, relay, send

__all__ = ["JoinTransport"]

LOOPBACK: Final = "127.0.0.1"


class JoinTransport:
    """A connection to a joined machine, as one over SSH.

    :param watch: the connection to the listener that ends when the machine is lost.
    """

    errors: ClassVar[tuple[type[Exception], ...]] = (OSError, EOFError)
    label: ClassVar[str] = "its connection to the run"
    remedy: ClassVar[str] = "have it join the run again, with the command that the run showed when it began"

    def __init__(self, destination: JoinDestination, watch: Ends) -> None:
        self._destination = destination
        self._watch = watch
        self._work = Work()
        self._servers: list[asyncio.Server] = []
        self._streams: list[asyncio.StreamWriter] = []

    @classmethod
    async def connect(cls, destination: JoinDestination) -> Self:
        """Wait until the machine has joined.

        :raises HostError: when it has not joined in time, or the run does not listen.
        """
        watch = await _listener(destination)
        try:
            send(watch[1], WatchRequest(host=destination.name))
            watched: Watched = await receive(watch[0], Watched)
        except (OSError, EOFError):
            abort(watch[1].transport)
            raise _run_is_over(destination) from None
        except BaseException:
            abort(watch[1].transport)
            raise
        if watched.fault:
            abort(watch[1].transport)
            raise watched.fault.to_error()
        return cls(destination, watch)

    async def start(self, command: str) -> Channel:
        _, ends = await self._open(CommandOrder(command=command))
        return channel_on(ends)

    async def forward(self, local: Path, remote: str) -> None:
        self._servers.append(await asyncio.start_unix_server(self._forwarder(SocketOrder(path=remote)), local))
        local.chmod(0o600)

    async def forward_remote(self, remote: str, local: Path) -> None:
        await self._open(ForwardOrder(id=secrets.token_hex(16), path=remote), ForwardTarget(path=str(local)))

    async def forward_port(self, remote: int) -> int:
        server = await asyncio.start_server(self._forwarder(PortOrder(port=remote)), LOOPBACK, 0)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def forward_remote_port(self, local: int) -> int:
        outcome, _ = await self._open(ForwardOrder(id=secrets.token_hex(16)), ForwardTarget(port=local))
        return outcome.port

    async def wait_closed(self) -> None:
        try:
            lost: str | None = (await receive(self._watch[0], Watched)).lost
        except (OSError, EOFError):
            lost = None
        raise ConnectionResetError(lost or "the run's listener ended")

    def abort(self) -> None:
        for server in self._servers:
            server.close()
        for writer in (*self._streams, self._watch[1]):
            abort(writer.transport)

    def _forwarder(self, order: SocketOrder | PortOrder) -> partial[None]:
        return partial(self._accept, order)

    def _accept(self, order: Order, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._work.start(self._relay(order, (reader, writer)))

    async def _relay(self, order: Order, client: Ends) -> None:
        try:
            _, ends = await self._open(order)
            await relay(client, ends)
        except HostError:
            pass  # the client finds that nothing answers
        finally:
            abort(client[1].transport)

    async def _open(self, order: Order, target: ForwardTarget | None = None) -> tuple[OpenOutcome, Ends]:
        """Open a stream.

        :raises HostError: when the machine cannot do what is ordered.
        """
        ends = await _listener(self._destination)
        try:
            send(ends[1], StreamRequest(host=self._destination.name, order=order, target=target))
            outcome: OpenOutcome = await receive(ends[0], OpenOutcome)
            if outcome.error is not None:
                raise HostError(f"host {self._destination.name}: it cannot do what it is asked: {outcome.error}")
        except BaseException:
            abort(ends[1].transport)
            raise
        self._streams = [writer for writer in self._streams if not writer.is_closing()]
        self._streams.append(ends[1])
        return outcome, ends


async def _listener(destination: JoinDestination) -> Ends:
    try:
        return await asyncio.open_unix_connection(destination.socket, limit=LINE_BYTES)
    except OSError:
        raise _run_is_over(destination) from None


def _run_is_over(destination: JoinDestination) -> HostError:
    return HostError(f"host {destination.name}: the run's listener, at which machines join, has ended")

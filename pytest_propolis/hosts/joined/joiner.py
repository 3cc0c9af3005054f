"""A machine that joins a run: one connection for control, and one for each stream that the run requests."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

from ...agent.peers.limits import detect_loss
from ...errors import HostError
from ...propolis_api.connection.endpoint import Endpoint
from ...propolis_api.connection.sockets import abort, connect, reason_of
from .command_frames import serve_command
from .messages import (
    LINE_BYTES,
    Accepted,
    CommandOrder,
    Connected,
    ForwardOrder,
    Hello,
    OpenOutcome,
    OpenStream,
    Ping,
    PortOrder,
    Refused,
    RunEnded,
    RunMessage,
    SocketOrder,
    StreamOpened,
)
from .streams import Ends, Work, receive, relay, send
from .tokens import JoinToken

__all__ = ["Joiner"]

CONNECT_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 15.0
LOOPBACK: Final = "127.0.0.1"


class Joiner:
    """This machine as a host of a run.

    :param address: where the run listens: ``HOST:PORT``.
    :param name: the host of the run's inventory that this machine is to be.
    """

    def __init__(self, address: str, token: JoinToken, *, name: str) -> None:
        self._endpoint = Endpoint(base_url=f"https://{address}")
        self._address = address
        self._token = token
        self._name = name
        self._work = Work()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE  # its hash is compared with that of the token instead

    async def serve(self, joined: Callable[[], None]) -> None:
        """Join, and do as the run orders until it has ended. What the run has here is removed when this returns.

        :param joined: called when this machine is a host of the run.
        :raises HostError: when nothing answers there, the run is another one, it refuses this machine, or is lost.
        """
        reader, writer = await self._connect()
        try:
            send(writer, Hello(secret=self._token.secret, version=version("pytest-propolis"), name=self._name))
            silence_s = await self._accepted(reader)
            joined()
            await self._obey(reader, writer, silence_s)
        finally:
            abort(writer.transport)
            await self._work.end()

    async def _connect(self) -> Ends:
        """
        :raises HostError: when the run does not answer, or it is another one than that of the token.
        """
        try:
            connection = await connect(self._endpoint, timeout_s=CONNECT_TIMEOUT_S)
            try:
                detect_loss(connection)
                reader, writer = await asyncio.open_connection(
                    sock=connection, ssl=self._context, server_hostname="", limit=LINE_BYTES
                )
            except BaseException:
                connection.close()
                raise
        except OSError as error:  # TimeoutError and ssl.SSLError among them
            raise HostError(
                f"no run answers at {self._address}: {reason_of(error)}",
                hint="the address is that of pytest's option --propolis-listen, and must be reached from this machine",
            ) from None
        if not self._token.is_of(writer.get_extra_info("ssl_object").getpeercert(binary_form=True)):
            abort(writer.transport)
            raise HostError(
                f"what answers at {self._address} is not the run of this token",
                hint="each run has its own: copy the command that it showed",
            )
        return reader, writer

    async def _accepted(self, reader: asyncio.StreamReader) -> float:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                answer: RunMessage = await receive(reader, RunMessage)
        except (OSError, EOFError):
            raise HostError(f"the run at {self._address} does not answer", hint="it may be about to end") from None
        if isinstance(answer, Refused):
            raise answer.fault.to_error()
        assert isinstance(answer, Accepted)
        return answer.silence_s

    async def _obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silence_s: float) -> None:
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    message: RunMessage = await receive(reader, RunMessage)
            except TimeoutError:
                raise self._lost(f"nothing was heard from it for {silence_s:g} s") from None
            except (OSError, EOFError):
                raise self._lost("the connection ended") from None
            if isinstance(message, RunEnded):
                return
            if isinstance(message, Ping):
                send(writer, message)
            elif isinstance(message, OpenStream):
                self._work.start(self._open(message))

    def _lost(self, reason: str) -> HostError:
        return HostError(
            f"the run at {self._address} is lost: {reason}", hint="what it had on this machine has been removed"
        )

    async def _open(self, opened: OpenStream) -> None:
        try:
            ends = await self._connect()
        except HostError:
            return  # the run's wait for it ends with an error
        try:
            send(ends[1], StreamOpened(stream=opened.stream))
            try:
                await self._serve_order(opened, ends)
            except (OSError, ValueError) as error:
                send(ends[1], OpenOutcome(error=_reason(error)))
            ends[1].close()
            await ends[1].wait_closed()
        finally:
            abort(ends[1].transport)

    async def _serve_order(self, opened: OpenStream, ends: Ends) -> None:
        match opened.order:
            case CommandOrder(command=command):
                await serve_command(command, ends)
            case SocketOrder(path=path):
                other = await asyncio.open_unix_connection(path)
                send(ends[1], OpenOutcome())
                await relay(ends, other)
            case PortOrder(port=port):
                other = await asyncio.open_connection(LOOPBACK, port)
                send(ends[1], OpenOutcome())
                await relay(ends, other)
            case ForwardOrder() as order:
                await self._forward(order, ends)

    async def _forward(self, order: ForwardOrder, ends: Ends) -> None:
        """Listen until the stream ends."""
        work = Work()
        accept = partial(self._accept, order.id, work)
        if order.path is None:
            server = await asyncio.start_server(accept, LOOPBACK, 0)
        else:
            server = await asyncio.start_unix_server(accept, order.path)
            Path(order.path).chmod(0o600)
        try:
            port = 0 if order.path else server.sockets[0].getsockname()[1]
            send(ends[1], OpenOutcome(port=port))
            while await ends[0].read(LINE_BYTES):
                pass
        finally:
            server.close()
            await work.end()
            if order.path is not None:
                with contextlib.suppress(OSError):
                    Path(order.path).unlink(missing_ok=True)

    async def _accept(
        self, forward: str, work: Work, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        work.start(self._connect_client(forward, (reader, writer)))

    async def _connect_client(self, forward: str, client: Ends) -> None:
        try:
            run = await self._connect()
            send(run[1], Connected(forward=forward))
            await relay(client, run)
        except HostError:
            pass  # the run is about to be lost
        finally:
            abort(client[1].transport)


def _reason(error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else reason_of(error)

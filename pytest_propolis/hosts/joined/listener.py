"""The listener: the process of a run to which machines connect that join it, and that link processes reach them by.

``python -m pytest_propolis.hosts.joined.listener CONFIG READY_FD``

It ends with the process that started it, which holds the other end of READY_FD.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import ssl
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from ...agent.peers.limits import detect_loss
from ...agent_api.messages import Fault
from ...errors import CapabilityMissing, HostError, PropolisError
from ...propolis_api.connection.sockets import abort, reason_of
from .machines import Machine, Machines
from .messages import (
    LINE_BYTES,
    Connected,
    ForwardOrder,
    ForwardTarget,
    Hello,
    JoinerMessage,
    ListenConfig,
    ListenStarted,
    OpenOutcome,
    OpenStream,
    StreamOpened,
    StreamRequest,
    Watched,
    WatchRequest,
)
from .streams import Ends, Work, receive, relay, send
from .tokens import JoinToken

__all__ = ["Listener"]

FIRST_MESSAGE_TIMEOUT_S: Final = 10.0
STREAM_TIMEOUT_S: Final = 15.0
LEAVE_TIMEOUT_S: Final = 40.0
"""How long links may take to end their agents when the run's process has ended."""

LOOPBACK: Final = "127.0.0.1"


class Listener:
    """Joined machines, streams to them, and the links that ask for these."""

    def __init__(self, config: ListenConfig, token: JoinToken) -> None:
        self._machines = Machines(config.hosts, token, silence_s=config.silence_s)
        self._awaited: dict[str, asyncio.Future[Ends]] = {}
        self._targets: dict[str, ForwardTarget] = {}
        self._work = Work()
        self._links = 0
        self._left = asyncio.Event()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection of a machine."""
        self._work.start(self._serve_machine((reader, writer)))

    async def accept_link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection of a link process."""
        self._work.start(self._serve_link((reader, writer)))

    async def close(self) -> None:
        """Let the links end, and then the machines leave."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                while self._links:
                    self._left.clear()
                    await self._left.wait()
        await self._machines.dismiss()
        await self._work.end()

    async def _serve_machine(self, ends: Ends) -> None:
        reader, writer = ends
        try:
            async with asyncio.timeout(FIRST_MESSAGE_TIMEOUT_S):
                message: JoinerMessage = await receive(reader, JoinerMessage)
            if isinstance(message, Hello):
                await self._machines.serve(message, ends)
            elif isinstance(message, StreamOpened) and (awaited := self._awaited.pop(message.stream, None)):
                if not awaited.done():
                    awaited.set_result(ends)
                    return
            elif isinstance(message, Connected) and (target := self._targets.get(message.forward)):
                await relay(ends, await _connect(target))
            writer.close()
        except BaseException:
            abort(writer.transport)
            raise

    async def _serve_link(self, ends: Ends) -> None:
        reader, writer = ends
        self._links += 1
        try:
            request: WatchRequest | StreamRequest = await receive(reader, WatchRequest | StreamRequest)
            if isinstance(request, WatchRequest):
                await self._watch(request.host, ends)
            else:
                await self._stream(request, ends)
            writer.close()
        except BaseException:
            abort(writer.transport)
            raise
        finally:
            self._links -= 1
            self._left.set()

    async def _watch(self, host: str, ends: Ends) -> None:
        reader, writer = ends
        waiting = asyncio.ensure_future(self._machines.get(host))
        leaving = asyncio.ensure_future(reader.read())
        try:
            await asyncio.wait([waiting, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                return
            machine = waiting.result()
            send(writer, Watched())
            either: list[asyncio.Future[Any]] = [machine.lost, leaving]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if machine.lost.done():
                send(writer, Watched(lost=machine.lost.result()))
        except HostError as error:
            send(writer, Watched(fault=Fault.of(error)))
        finally:
            waiting.cancel()
            leaving.cancel()
            await asyncio.gather(waiting, leaving, return_exceptions=True)

    async def _stream(self, request: StreamRequest, ends: Ends) -> None:
        machine = self._machines.joined(request.host)
        if machine is None:
            send(ends[1], OpenOutcome(error="it has left the run"))
            return
        stream = secrets.token_hex(16)
        awaited = self._awaited[stream] = asyncio.get_running_loop().create_future()
        try:
            with self._forwarding(request):
                machine.send(OpenStream(stream=stream, order=request.order))
                either: list[asyncio.Future[Any]] = [awaited, machine.lost]
                await asyncio.wait(either, timeout=STREAM_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
                if awaited.done():
                    await _relay_until_lost(ends, awaited.result(), machine)
                else:
                    send(ends[1], OpenOutcome(error="it does not open a connection"))
        finally:
            self._awaited.pop(stream, None)
            awaited.cancel()

    @contextlib.contextmanager
    def _forwarding(self, request: StreamRequest) -> Iterator[None]:
        """Let the machine connect with the request's target meanwhile, if it has one."""
        if not isinstance(request.order, ForwardOrder) or request.target is None:
            yield
            return
        self._targets[request.order.id] = request.target
        try:
            yield
        finally:
            del self._targets[request.order.id]


async def _relay_until_lost(link: Ends, stream: Ends, machine: Machine) -> None:
    """Relay a stream; what a lost machine has not received is not waited for."""
    relaying = asyncio.ensure_future(relay(link, stream))
    try:
        either: list[asyncio.Future[Any]] = [relaying, machine.lost]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        relaying.cancel()
        await asyncio.gather(relaying, return_exceptions=True)


async def _connect(target: ForwardTarget) -> Ends:
    if target.path is not None:
        return await asyncio.open_unix_connection(target.path)
    return await asyncio.open_connection(LOOPBACK, target.port)


def _identity() -> str:
    try:
        from ..peers.identity import new_identity
    except ImportError:
        raise CapabilityMissing(
            "--propolis-listen needs the package cryptography, which is not installed here",
            hint="pip install 'pytest-propolis[ssh]'",
        ) from None
    return new_identity()


def _context(identity: str, directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with tempfile.NamedTemporaryFile("w", dir=directory) as file:  # ssl reads files only
        file.write(identity)
        file.flush()
        context.load_cert_chain(file.name)
    return context


async def _open_port(config: ListenConfig, context: ssl.SSLContext, listener: Listener) -> asyncio.Server:
    """
    :raises HostError: when the address cannot be listened on.
    """
    try:
        server = await asyncio.start_server(
            listener.accept,
            config.address,
            config.port,
            ssl=context,
            limit=LINE_BYTES,
            ssl_handshake_timeout=FIRST_MESSAGE_TIMEOUT_S,
            start_serving=False,
        )
    except OSError as error:
        reason = str(error) if isinstance(error, socket.gaierror) else reason_of(error)
        raise HostError(
            f"--propolis-listen {config.address}:{config.port}: no listening there: {reason}",
            hint="give an address of this machine and a port that is free, as in 192.0.2.1:7443; port 0 is a free one",
        ) from None
    for one in server.sockets:
        with socket.socket(fileno=os.dup(one.fileno())) as same:
            detect_loss(same)
    return server


async def _run_listener(config: ListenConfig, ready_fd: int) -> None:
    directory, ended = Path(config.directory), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, ended.set)
    identity = _identity()
    token = JoinToken.new(identity)
    listener = Listener(config, token)
    server = await _open_port(config, _context(identity, directory), listener)
    links = await asyncio.start_unix_server(listener.accept_link, directory / "listener.sock", limit=LINE_BYTES)
    await server.start_serving()
    _report(ready_fd, ListenStarted(port=server.sockets[0].getsockname()[1], token=str(token)))
    loop.add_reader(ready_fd, ended.set)  # its end: nothing is sent there
    await ended.wait()
    loop.remove_reader(ready_fd)
    server.close()
    await listener.close()
    links.close()


def _report(ready_fd: int, message: ListenStarted) -> None:
    with contextlib.suppress(OSError):
        os.write(ready_fd, msgspec.json.encode(message) + b"\n")


def main() -> None:
    """Listen until the process that started this has ended."""
    os.umask(0o077)
    config, ready_fd = msgspec.json.decode(sys.argv[1], type=ListenConfig), int(sys.argv[2])
    try:
        asyncio.run(_run_listener(config, ready_fd))
    except PropolisError as error:
        _report(ready_fd, ListenStarted(fault=Fault.of(error)))
    shutil.rmtree(config.directory, ignore_errors=True)


if __name__ == "__main__":
    main()

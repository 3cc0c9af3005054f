"""A program that a host's agent runs for this process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from ...agent_api.agent_process import CLIENT_HEADER
from ...agent_api.programs import PROGRAMS_PATH, EndProgram, ProgramEnded, StartProgram
from ...errors import AgentError, HostError
from ...hosts.host import Host
from ...propolis_api.connection.endpoint import Endpoint
from ...propolis_api.connection.transport import open_websocket

__all__ = ["HostProgram", "host_program"]


class HostProgram:
    """A program on a host. It is ended when this process disconnects, however that happens.

    :param host: the host's name.
    """

    def __init__(self, connection: ClientConnection, endpoint: Endpoint, *, host: str) -> None:
        self._connection = connection
        self._endpoint = endpoint
        self._host = host
        self.status: int | None = None
        """Its status, as a shell has it; None until all of its output has been read."""

    async def output(self) -> AsyncIterator[bytes]:
        """Yield what it writes, until it has ended.

        :raises HostError: when it cannot be run.
        :raises HostLost: when the host is lost.
        """
        while self.status is None:
            try:
                message = await self._connection.recv()
            except ConnectionClosed as error:
                reason = f": {error.reason}" if error.rcvd and error.rcvd.reason else ""
                raise await self._endpoint.lost_or(
                    AgentError(f"host {self._host}: its agent ended while it ran a program{reason}")
                ) from None
            if isinstance(message, bytes):
                yield message
                continue
            ended = msgspec.json.decode(message, type=ProgramEnded)
            if ended.fault is not None:
                raise ended.fault.to_error()
            self.status = ended.status

    async def end(self) -> None:
        """Ask the agent to end it, if it runs: with SIGTERM, and a few seconds later with SIGKILL."""
        with contextlib.suppress(ConnectionClosed):
            await self._connection.send(msgspec.json.encode(EndProgram()).decode())


@contextlib.asynccontextmanager
async def host_program(host: Host, request: StartProgram) -> AsyncIterator[HostProgram]:
    """Run a program on a host. At the end of the block it has ended.

    :raises HostError: when the host cannot be used.
    """
    async with await host.client() as agent:
        endpoint = agent.endpoint("")
        try:
            connection = await open_websocket(endpoint, PROGRAMS_PATH, {}, headers={CLIENT_HEADER: agent.client})
        except (OSError, InvalidHandshake) as error:
            raise await endpoint.lost_or(AgentError(f"host {host.name}: its agent runs no programs: {error}")) from None
        program = HostProgram(connection, endpoint, host=host.name)
        try:
            await connection.send(msgspec.json.encode(request).decode())
            yield program
        finally:
            await program.end()
            with contextlib.suppress(HostError):
                async for _ in program.output():
                    pass
            await connection.close()

"""The agent's path for programs that it runs for clients: a websocket for each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from ...agent_api.messages import Fault
from ...agent_api.programs import PROGRAMS_PATH, ProgramEnded, StartProgram
from ...errors import PropolisError
from ...ledger.writer import LedgerWriter
from .program import Program

__all__ = ["Programs"]

UNSUPPORTED: Final = 1003


class Programs:
    """All programs of an agent. Each runs until it ends, its client wants its end, or disconnects.

    :param directory: the agent's.
    :param writer: returns what records the resources of the client that sent a request, which has a lifeline.
    """

    def __init__(self, directory: Path, *, writer: Callable[[HTTPConnection], LedgerWriter]) -> None:
        self._directory = directory
        self._writer = writer
        self._running: dict[asyncio.Task[ProgramEnded], Program] = {}
        self._is_closed = False

    @property
    def routes(self) -> list[BaseRoute]:
        return [WebSocketRoute(PROGRAMS_PATH, self._serve)]

    async def close(self) -> None:
        """End all programs, and wait until they have ended."""
        self._is_closed = True
        for program in self._running.values():
            program.end()
        if self._running:
            await asyncio.wait(list(self._running))

    async def _serve(self, websocket: WebSocket) -> None:
        await websocket.accept()
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            try:
                message = msgspec.json.decode(await websocket.receive_text(), type=StartProgram)
            except msgspec.DecodeError as error:
                await websocket.close(UNSUPPORTED, str(error)[:100])
                return
            ended = await self._run(websocket, message)
            await websocket.send_text(msgspec.json.encode(ended).decode())
            await websocket.close()

    async def _run(self, websocket: WebSocket, message: StartProgram) -> ProgramEnded:
        async def send(data: bytes) -> None:
            try:
                await websocket.send_bytes(data)
            except (WebSocketDisconnect, RuntimeError) as error:
                raise ConnectionError(str(error)) from None

        try:
            program = Program(message, directory=self._directory, writer=self._writer(websocket), send=send)
        except PropolisError as error:
            return ProgramEnded(fault=Fault.of(error))
        running = asyncio.create_task(_result(program))
        self._running[running] = program
        running.add_done_callback(self._running.pop)
        if self._is_closed:
            program.end()
        listening = asyncio.create_task(_listen(websocket, program))
        try:
            return await asyncio.shield(running)
        finally:
            program.end()
            listening.cancel()


async def _result(program: Program) -> ProgramEnded:
    try:
        return ProgramEnded(status=await program.run())
    except PropolisError as error:
        return ProgramEnded(fault=Fault.of(error))


async def _listen(websocket: WebSocket, program: Program) -> None:
    """End a program when its client says anything more, or disconnects."""
    try:
        await websocket.receive()
    finally:
        program.end()

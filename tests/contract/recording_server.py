"""A server that records the requests of a client, and sends the responses that a test sets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import uvicorn

__all__ = ["Recorder", "recording", "serving"]

Message = dict[str, Any]


@dataclass(slots=True)
class Recorder:
    """An ASGI application that records every request, and sends the responses that are set."""

    answer: tuple[int, bytes] = (200, b"null")
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.answering.set()

    async def __call__(self, scope: Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        body = b"" if scope["type"] == "websocket" else await _body(receive)
        self.seen.append(
            {
                "method": scope.get("method", "GET"),
                "path": scope["path"],
                "raw_path": scope["raw_path"].decode(),
                "query": parse_qs(scope["query_string"].decode()),
                "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
                "body": body,
            }
        )
        await self.answering.wait()
        kind = "websocket.http" if scope["type"] == "websocket" else "http"
        if scope["type"] == "websocket" and self.answer[0] == 101:
            await _echo(receive, send)
            return
        status, content = self.answer
        headers = [(b"content-type", b"application/json")]
        await send({"type": f"{kind}.response.start", "status": status, "headers": headers})
        await send({"type": f"{kind}.response.body", "body": content})


async def _body(receive: Callable[..., Any]) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)


async def _echo(receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "bytes": message["bytes"]})


class InThisLoop(uvicorn.Server):
    """A server that leaves signals to pytest, and exits on request without polling."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.leaving = asyncio.Event()

    async def main_loop(self) -> None:
        await self.leaving.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving(recorder: Recorder, listener: socket.socket) -> AsyncIterator[None]:
    listener.listen()
    config = uvicorn.Config(recorder, lifespan="off", log_level="error", ws="websockets-sansio")
    server = InThisLoop(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.force_exit = True
        server.leaving.set()
        await task


@contextlib.asynccontextmanager
async def recording(path: Path) -> AsyncIterator[Recorder]:
    """Serve on a UNIX socket for a block's time."""
    recorder = Recorder()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        async with serving(recorder, listener):
            yield recorder

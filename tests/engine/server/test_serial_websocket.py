"""The frames that a client of a serial port receives, and their order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from starlette.websockets import WebSocket

from pytest_propolis.engine.qemu.serial_port import SerialPort
from pytest_propolis.engine.server.serial_websocket import serve_serial
from pytest_propolis.propolis_api.serial import NOTICES_HEADER

pytestmark = pytest.mark.asyncio(loop_scope="function")


class Client:
    """A client over ASGI.

    :param headers: its request's.
    """

    def __init__(self, port: SerialPort, *headers: str) -> None:
        self.shown: list[Any] = []
        """Output as bytes, messages as text."""
        self.typed: asyncio.Queue[bytes] = asyncio.Queue()
        self.closed: Any = None
        """The code and the reason of the close frame."""
        self._port = port
        self._sent = asyncio.Event()
        scope = {"type": "websocket", "headers": [(name.encode(), b"1") for name in headers]}
        self._websocket = WebSocket(scope, self._receive, self._send)
        self._began = False

    async def serve(self) -> None:
        await self._websocket.accept()
        await serve_serial(self._websocket, self._port, 0)

    async def until(self, count: int) -> list[Any]:
        async with asyncio.timeout(30):
            while len(self.shown) < count:
                self._sent.clear()
                await self._sent.wait()
        return self.shown

    async def _receive(self) -> dict[str, Any]:
        if not self._began:
            self._began = True
            return {"type": "websocket.connect"}
        return {"type": "websocket.receive", "bytes": await self.typed.get()}

    async def _send(self, message: Any) -> None:
        if message["type"] == "websocket.send":
            self.shown.append(message.get("bytes") or message["text"])
            self._sent.set()
        elif message["type"] == "websocket.close":
            self.closed = (message["code"], message["reason"])


@pytest_asyncio.fixture(loop_scope="function")
async def port() -> AsyncIterator[SerialPort]:
    port = SerialPort()
    yield port
    port.close()


async def test_a_reset_is_announced_between_the_output_of_two_boots(port: SerialPort) -> None:
    client, other = Client(port, NOTICES_HEADER), Client(port)
    serving = [asyncio.create_task(each.serve()) for each in (client, other)]
    port.qemu_end.send(b"first ")
    assert await client.until(1) == [b"first "]
    # None of this has been read when the reset is announced, and the second boot has begun before the client is served.
    port.qemu_end.send(b"boot")
    port.announce_reset()
    port.history.append(b"second boot")
    assert await client.until(4) == [b"first ", b"boot", '{"GuestReset":{}}', b"second boot"]
    assert b"".join(await other.until(2)) == b"first bootsecond boot"
    port.announce_reset()
    assert (await client.until(5))[4] == '{"GuestReset":{}}'
    port.history.finish()
    await asyncio.gather(*serving)
    assert port.reset_listeners == set()


async def test_a_client_that_types_after_qemu_has_been_killed_learns_why_the_port_ends(port: SerialPort) -> None:
    client = Client(port)
    serving = asyncio.create_task(client.serve())
    port.qemu_end.send(b"up")
    await client.until(1)
    port.qemu_end.close()
    await client.typed.put(b"hello")
    while not client.typed.empty() or port._broken is None:
        await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not serving.done()
    port.end_reason = "QEMU was killed by SIGKILL"  # its exit status comes later
    port.close()
    await serving
    assert client.closed == (1001, "QEMU was killed by SIGKILL")

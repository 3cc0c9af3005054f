"""How a console, or a boot on it, ends: waits end at once, errors say why, and nothing of the next boot is hidden."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import unix_connect
from websockets.asyncio.server import ServerConnection, unix_serve

from pytest_propolis.console.console import Console
from pytest_propolis.errors import ConsoleClosed

LIMIT_S = 300
"""Far more than an end takes: a wait that lasts so long was not ended."""


@asynccontextmanager
async def console_of(server: Callable[[ServerConnection], Awaitable[None]], directory: Path) -> AsyncIterator[Console]:
    path = str(directory / "socket")
    async with (
        unix_serve(server, path),
        unix_connect(path, "ws://vm/") as connection,
        Console.over(connection, vm="vm", log_path=directory / "serial.log") as console,
    ):
        yield console


async def stop(connection: ServerConnection) -> None:
    await connection.close(1001, "VM stopped")


async def drop_a_slow_client(connection: ServerConnection) -> None:
    await connection.close(1013, "too slow: output was dropped")


async def hand_over(connection: ServerConnection) -> None:
    await connection.send('{"Migrating": {"destination": "127.0.0.1:1", "from_start": 0}}')
    await connection.close()


async def leave(connection: ServerConnection) -> None:
    await connection.close()


async def die(connection: ServerConnection) -> None:
    connection.transport.abort()


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (stop, "the VM has stopped"),
        (drop_a_slow_client, "too slow: output was dropped"),
        (hand_over, "the guest has moved to another VM"),
        (leave, "its server has closed the console"),
        (die, r"its server or its agent has gone \(code 1006\)"),
    ],
)
async def test_the_end_of_a_connection_is_called_what_it_is(
    tmp_path: Path, server: Callable[[ServerConnection], Awaitable[None]], reason: str
) -> None:
    async with console_of(server, tmp_path) as console:
        with pytest.raises(ConsoleClosed, match=f"the console closed: {reason}"):
            await console.wait_for("anything", timeout_s=LIMIT_S)


async def test_a_reader_that_dies_ends_every_wait(tmp_path: Path) -> None:
    async def talk(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send(b"hello")
        await connection.wait_closed()

    def fail(_signal: object) -> None:
        raise ValueError("a defect")

    async with console_of(talk, tmp_path) as console:
        console.on_signal = fail
        waits = [asyncio.create_task(console.wait_for(word, timeout_s=LIMIT_S)) for word in ("one", "another")]
        await asyncio.sleep(0)
        await console.send("go")
        for ended in await asyncio.gather(*waits, return_exceptions=True):
            assert isinstance(ended, ConsoleClosed)
            assert "it could not be read: ValueError('a defect')" in ended.message
        with pytest.raises(ConsoleClosed, match="it could not be read"):
            await console.wait_for("a third", timeout_s=LIMIT_S)


@pytest.mark.parametrize(
    "unfinished", [b"\x1er0123", b"\x1e", b"\x1b]0;a title"], ids=["mark", "separator", "sequence"]
)
async def test_what_a_reset_cuts_off_hides_nothing_of_the_next_boot(tmp_path: Path, unfinished: bytes) -> None:
    async def reset(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send(b"before " + unfinished)
        await connection.send('{"GuestReset": {}}')
        await connection.send(b"login: ")
        await connection.wait_closed()

    async with console_of(reset, tmp_path) as console:
        console.expect_nonces("r01234567")
        await console.send("go")
        await console.next_reset()
        await console.wait_for("login: ", timeout_s=LIMIT_S)

"""A console that follows its migrating guest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import pytest
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.asyncio.server import ServerConnection, unix_serve

from pytest_propolis.console.console import Console
from pytest_propolis.console.following import ExpectedMove
from pytest_propolis.errors import ConsoleClosed, HostError, HostLost
from pytest_propolis.propolis_api.serial import SerialConsoleMoved


async def tell_of_a_migration(connection: ServerConnection) -> None:
    moved = {"destination": "127.0.0.1:1", "from_start": 0}
    await connection.send(json.dumps({"Migrating": moved}))
    await connection.close()


async def follow_in_vain(moved: SerialConsoleMoved) -> NoReturn:
    raise HostError("the target is silent")


async def test_a_console_that_cannot_follow_its_guest_says_why(tmp_path: Path) -> None:
    path, log = str(tmp_path / "socket"), tmp_path / "serial.log"
    async with (
        unix_serve(tell_of_a_migration, path),
        unix_connect(path, "ws://vm/") as connection,
        Console.over(connection, vm="vm", log_path=log, follow=follow_in_vain) as console,
    ):
        with pytest.raises(ConsoleClosed, match="its console cannot be followed: the target is silent"):
            await console.wait_for("anything", timeout_s=30)
    assert "cannot be followed" in log.read_text()


async def lose_the_connection(connection: ServerConnection) -> None:
    await connection.send(b"before ")
    connection.transport.abort()


async def show_the_rest(connection: ServerConnection) -> None:
    await connection.send(b"and after")
    await connection.wait_closed()


async def test_a_console_whose_server_is_lost_follows_a_guest_that_the_target_has(tmp_path: Path) -> None:
    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    followed = list[SerialConsoleMoved]()

    async def follow(moved: SerialConsoleMoved) -> ClientConnection:
        followed.append(moved)
        return await unix_connect(target, "ws://vm/")

    move = ExpectedMove("127.0.0.1:1")
    async with (
        unix_serve(lose_the_connection, source),
        unix_serve(show_the_rest, target),
        unix_connect(source, "ws://vm/") as connection,
        Console.over(connection, vm="vm", log_path=tmp_path / "serial.log", follow=follow) as console,
    ):
        console.expect(move)
        moved = console.moves()
        await connection.wait_closed()
        assert not moved.done()
        move.settle(is_handed_over=True)
        await console.wait_for("before and after", timeout_s=30)
        assert moved.result()
    assert followed == [SerialConsoleMoved(destination="127.0.0.1:1", from_start=len("before "))]


async def test_a_console_whose_server_is_lost_with_its_guest_says_that_the_host_is_lost(tmp_path: Path) -> None:
    path, move = str(tmp_path / "socket"), ExpectedMove("127.0.0.1:1")

    async def loss() -> HostLost:
        return HostLost("host h1 is lost: its agent ended")

    async with (
        unix_serve(lose_the_connection, path),
        unix_connect(path, "ws://vm/") as connection,
        Console.over(
            connection, vm="vm", log_path=tmp_path / "serial.log", follow=follow_in_vain, loss=loss
        ) as console,
    ):
        console.expect(move)
        move.settle(is_handed_over=False)
        with pytest.raises(HostLost, match="its agent ended"):
            await console.wait_for("anything", timeout_s=30)

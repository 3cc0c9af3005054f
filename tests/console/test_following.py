"""A console that follows its migrating guest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import pytest
from websockets.asyncio.client import unix_connect
from websockets.asyncio.server import ServerConnection, unix_serve

from pytest_propolis.console.console import Console
from pytest_propolis.errors import ConsoleClosed, HostError
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

"""The lifeline of a process ends with that process, whoever else holds a copy of it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from pytest_propolis.hosts.lifeline import Lifeline


@asynccontextmanager
async def listener(path: Path) -> AsyncIterator[asyncio.Event]:
    """Answer a lifeline as an agent does; the event is set when the connection has ended."""
    ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nalive\n")
        await reader.read()
        ended.set()
        writer.close()

    async with await asyncio.start_unix_server(answer, path):
        yield ended


@contextmanager
def forked_child(does: Callable[[], object] = lambda: None) -> Iterator[None]:
    """A forked process that does this and then stays until the block ends."""
    stays, goes = os.pipe()
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(goes)
            does()
            os.write(told, b"1")
            os.read(stays, 1)
        finally:
            os._exit(0)
    try:
        assert os.read(ready, 1) == b"1"
        yield
    finally:
        for descriptor in (goes, stays, ready, told):
            os.close(descriptor)
        os.waitpid(child, 0)


async def test_a_closed_lifeline_ends_though_a_forked_child_lives(tmp_path: Path) -> None:
    async with listener(tmp_path / "s") as ended:
        lifeline = await Lifeline.open(tmp_path / "s", client="c")
        with forked_child():
            lifeline.close()
            async with asyncio.timeout(10):
                await ended.wait()


async def test_a_closed_lifeline_ends_though_another_process_was_handed_its_descriptor(tmp_path: Path) -> None:
    async with listener(tmp_path / "s") as ended:
        lifeline = await Lifeline.open(tmp_path / "s", client="c")
        copy = socket.socket(fileno=os.dup(lifeline._connection.fileno()))
        with copy:
            lifeline.close()
            async with asyncio.timeout(10):
                await ended.wait()


async def test_a_process_that_dies_breaks_its_lifeline_though_a_forked_child_lives(tmp_path: Path) -> None:
    async with listener(tmp_path / "s") as ended:
        lifeline = await Lifeline.open(tmp_path / "s", client="c")
        with forked_child():
            os.close(lifeline._connection.detach())  # what the kernel does for a process that is killed
            async with asyncio.timeout(10):
                await ended.wait()
        lifeline.close()


async def test_a_forked_child_does_not_end_its_parents_lifeline(tmp_path: Path) -> None:
    async with listener(tmp_path / "s") as ended:
        lifeline = await Lifeline.open(tmp_path / "s", client="c")

        def close_and_drop() -> None:
            lifeline.close()
            lifeline.drop()

        with forked_child(does=close_and_drop):
            lifeline._connection.sendall(b"still there")  # fails on a connection that was shut down
        assert not ended.is_set()
        assert lifeline in Lifeline.all_open()
        lifeline.close()
        async with asyncio.timeout(10):
            await ended.wait()

"""A downstairs: its sessions, its metadata and its cleanup; with real storage daemons, without a VM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
import pytest_asyncio

from pytest_propolis.engine.volumes import session as session_module
from pytest_propolis.engine.volumes.downstairs import Downstairs
from pytest_propolis.engine.volumes.nbd import NbdError, probe_export
from pytest_propolis.engine.volumes.negotiation import Promote
from pytest_propolis.engine.volumes.region_file import RegionFile
from pytest_propolis.engine.volumes.session import DownstairsRefused, DownstairsUnreachable, Session
from pytest_propolis.engine.volumes.storage_daemon import StorageDaemonError
from pytest_propolis.operating_system.child import NoJournal

SIZE = 1 << 20
VOLUME = uuid.uuid4()


@pytest_asyncio.fixture
async def downstairs(tmp_path: Path) -> AsyncIterator[Downstairs]:
    program = shutil.which("qemu-storage-daemon")
    assert program
    path = tmp_path / "region.raw"
    path.write_bytes(bytes(SIZE))
    region = RegionFile(volume=VOLUME, path=path, size_bytes=SIZE, block_size=512, key="secret")
    served = Downstairs(region, program=Path(program), log_path=tmp_path / "log", journal=NoJournal())
    await served.start()
    try:
        yield served
    finally:
        await served.close()


def promotion(generation: int = 1, *, volume: UUID = VOLUME, key: str | None = "secret") -> Promote:
    return Promote(volume=volume, session=uuid.uuid4(), generation=generation, key=key)


async def gone(session: Session) -> None:
    async with asyncio.timeout(10):
        await session.ended.wait()


async def export_gone(session: Session) -> None:
    """Wait until the session's export is withdrawn."""
    async with asyncio.timeout(10):
        while True:
            try:
                await session.check(timeout_s=5)
            except DownstairsUnreachable:
                return


async def test_an_upstairs_gets_an_export_of_its_own(downstairs: Downstairs) -> None:
    session = await Session.open(downstairs.address, promotion())
    region = session.region
    assert (region.size_bytes, region.last_generation, region.epoch, region.clean) == (SIZE, 0, 0, True)
    export = await probe_export(session.host, region.port, region.export, timeout_s=5)
    assert (export.size_bytes, export.readonly) == (SIZE, False)
    session.close()


async def test_no_name_of_an_export_comes_again(downstairs: Downstairs) -> None:
    names = set()
    for _ in range(3):
        session = await Session.open(downstairs.address, promotion())
        names.add(session.region.export)
        session.close()
        await export_gone(session)
    await downstairs.start()
    session = await Session.open(downstairs.address, promotion())
    names.add(session.region.export)
    session.close()
    assert len(names) == 4


async def test_a_higher_generation_takes_over_and_the_other_one_learns_it(downstairs: Downstairs) -> None:
    old = await Session.open(downstairs.address, promotion(1))
    new = await Session.open(downstairs.address, promotion(2))
    await gone(old)
    assert old.fenced_by == 2
    with pytest.raises(NbdError, match="no such export"):
        await probe_export(old.host, old.region.port, old.region.export, timeout_s=5)
    with pytest.raises(DownstairsUnreachable):
        await old.record_epoch(1)
    await new.check(timeout_s=5)
    new.close()


async def test_a_request_of_a_session_that_is_closed_fails_at_once(
    downstairs: Downstairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "ANSWER_TIMEOUT_S", 3600.0)
    session = await Session.open(downstairs.address, promotion())
    downstairs.pause()
    asked = asyncio.create_task(session.record_epoch(1))
    await asyncio.sleep(0)
    session.close()
    async with asyncio.timeout(30):
        with pytest.raises(DownstairsUnreachable, match="has hung up"):
            await asked
    downstairs.resume()


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (promotion(1), "generation 1 is lower than 2"),
        (promotion(2), "another upstairs has it with generation 2"),
        (promotion(3, volume=uuid.uuid4()), "belongs to volume"),
        (promotion(3, key="other"), "the key is not"),
        (promotion(3, key=None), "the key is not"),
    ],
)
async def test_whom_it_refuses(downstairs: Downstairs, request_: Promote, reason: str) -> None:
    session = await Session.open(downstairs.address, promotion(2))
    with pytest.raises(DownstairsRefused, match=reason):
        await Session.open(downstairs.address, request_)
    await session.check(timeout_s=5)
    session.close()


async def test_an_equal_generation_is_welcome_when_the_other_upstairs_has_left(downstairs: Downstairs) -> None:
    session = await Session.open(downstairs.address, promotion(2))
    session.close()
    await export_gone(session)
    again = await Session.open(downstairs.address, promotion(2))
    assert again.region.last_generation == 2
    again.close()


async def test_what_was_marked_outlives_the_session_and_the_process(downstairs: Downstairs) -> None:
    session = await Session.open(downstairs.address, promotion())
    await session.record_epoch(7, clean=True)
    session.close()
    await downstairs.start()
    again = await Session.open(downstairs.address, promotion())
    assert (again.region.epoch, again.region.clean) == (7, True)
    await again.record_epoch(8)
    again.close()
    await export_gone(again)
    third = await Session.open(downstairs.address, promotion())
    assert not third.region.clean
    third.close()


async def test_a_generation_rises_within_a_session(downstairs: Downstairs) -> None:
    request = promotion(1)
    session = await Session.open(downstairs.address, request)
    export = session.region.export
    await session.promote(Promote(volume=request.volume, session=request.session, generation=5, key=request.key))
    assert downstairs.region.generation == 5
    await probe_export(session.host, session.region.port, export, timeout_s=5)
    session.close()


async def test_one_that_is_killed_refuses_connections_and_has_its_address_again_later(downstairs: Downstairs) -> None:
    address = downstairs.address
    session = await Session.open(address, promotion())
    await downstairs.kill()
    await gone(session)
    with pytest.raises(DownstairsUnreachable, match="Connect"):
        await Session.open(address, promotion())
    await downstairs.start()
    assert downstairs.address == address
    (await Session.open(address, promotion())).close()


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 20, 100])
async def test_one_that_is_closed_while_it_starts_again_leaves_no_process(downstairs: Downstairs, steps: int) -> None:
    starting = asyncio.create_task(downstairs.start())
    for _ in range(steps):
        await asyncio.sleep(0)
    await downstairs.close()
    pid = downstairs.pid
    with contextlib.suppress(StorageDaemonError):
        await starting
    assert (downstairs.state, downstairs.pid, pid) == ("dead", None, None)


async def test_one_that_hangs_is_found_out(downstairs: Downstairs) -> None:
    session = await Session.open(downstairs.address, promotion())
    downstairs.pause()
    with pytest.raises(DownstairsUnreachable, match="has not answered"):
        await session.check(timeout_s=0.2)
    downstairs.resume()
    await session.check(timeout_s=10)
    session.close()


async def test_garbage_is_answered_and_hurts_nobody(downstairs: Downstairs) -> None:
    session = await Session.open(downstairs.address, promotion())
    host, port = downstairs.address.split(":")
    for garbage in (b"nonsense\n", b"{}\n", b"x" * (1 << 17), b"\0\n"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(garbage)
        writer.write_eof()
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
        writer.close()
    await session.record_epoch(1)
    session.close()


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"NBDMAGICIHAVEOPT\0\1" + b"\xff" * 40])
async def test_what_is_no_nbd_server_is_told_from_one(greeting: bytes) -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        with pytest.raises((NbdError, OSError)):
            await probe_export("127.0.0.1", server.sockets[0].getsockname()[1], "x", timeout_s=5)


async def test_a_black_hole_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as hole, pytest.raises(NbdError, match="has not answered"):
        await probe_export("127.0.0.1", hole.getsockname()[1], "x", timeout_s=0.2)


async def test_one_whose_process_is_killed_hangs_up_and_can_be_started_again(downstairs: Downstairs) -> None:
    session = await Session.open(downstairs.address, promotion())
    assert downstairs.pid
    os.kill(downstairs.pid, signal.SIGKILL)
    await gone(session)
    assert downstairs.state == "dead"
    with pytest.raises(DownstairsUnreachable):
        await Session.open(downstairs.address, promotion())
    await downstairs.start()
    assert downstairs.state == "idle"
    (await Session.open(downstairs.address, promotion())).close()

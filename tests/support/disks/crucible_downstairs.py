"""A stand-in for ``crucible-downstairs``, with its command line, whose regions the engine's upstairs can use.

It is one process, as the real one: a signal reaches all of it. What it must know after a kill is in its region.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from pytest_propolis.engine.volumes.downstairs import Downstairs
from pytest_propolis.engine.volumes.negotiation import Answer
from pytest_propolis.engine.volumes.region_file import RegionFile
from pytest_propolis.operating_system.child import NoJournal
from pytest_propolis.operating_system.python_processes import write_python_script

__all__ = ["extent_files", "main", "write_crucible_downstairs"]

LOOPBACK: Final = "127.0.0.1"
REPAIR_PORT_OFFSET: Final = 4000
STATE: Final = ("generation", "epoch", "clean")
HANDSHAKE_FLAGS: Final = 3
EXPORT_FLAGS: Final = 1 | 4 | 8 | 32 | 64
OPTION: Final = struct.Struct(">8sII")
OPTION_REPLY: Final = struct.Struct(">QIII")
REQUEST: Final = struct.Struct(">IHHQQI")
REPLY: Final = struct.Struct(">IIQ")
OPTION_MAGIC: Final = 0x3E889045565A9
REPLY_MAGIC: Final = 0x67446698
ACK, INFO, UNSUPPORTED, UNKNOWN = 1, 3, 0x80000001, 0x80000006
ABORT, QUERY, GO = 2, 6, 7
READ, WRITE, DISCONNECT, FLUSH, WRITE_ZEROES = 0, 1, 2, 3, 6

PROGRAM: Final = """\
import sys
sys.path[:0] = {path!r}
from crucible_downstairs import main
main(unanswered={unanswered})
"""


def write_crucible_downstairs(directory: Path, *, unanswered: int = 0) -> Path:
    """Write the program into a directory, and return its path.

    :param unanswered: how many of QEMU's connections each of its processes leaves without an answer.
    """
    path = directory / "crucible-downstairs"
    where = [str(Path(__file__).parent), *filter(None, sys.path)]
    write_python_script(path, PROGRAM.format(path=where, unanswered=unanswered))
    return path


def extent_files(directory: Path) -> list[Path]:
    """Return the files that a region's blocks are in, in their order."""
    return sorted(directory.glob("[0-9A-F][0-9A-F]/*/*"))


def main(*, unanswered: int = 0) -> None:
    options = _parser().parse_args()
    _Exports.unanswered = unanswered
    if options.command == "create":
        _create(options)
    else:
        asyncio.run(_run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="crucible-downstairs")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create")
    create.add_argument("--block-size", type=int, default=512)
    create.add_argument("--data", type=Path, required=True)
    create.add_argument("--encrypted", choices=("true", "false"), default="false")
    create.add_argument("--uuid", type=UUID, required=True)
    create.add_argument("--extent-size", type=int, default=100)
    create.add_argument("--extent-count", type=int, default=15)
    create.add_argument("--import-path", type=Path)
    run = commands.add_parser("run")
    run.add_argument("--address", default="0.0.0.0")
    run.add_argument("--port", type=int, default=9000)
    run.add_argument("--data", type=Path, required=True)
    return parser


def _create(options: argparse.Namespace) -> None:
    directory: Path = options.data
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / "region.json").exists():
        sys.exit(f"{directory} has a region already")
    extent_bytes = options.block_size * options.extent_size
    contents = options.import_path.read_bytes() if options.import_path else b""
    for number in range(options.extent_count):
        path = directory / f"{number >> 24:02X}" / f"{number >> 12 & 0xFFF:03X}" / f"{number & 0xFFF:03X}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[number * extent_bytes : (number + 1) * extent_bytes])
        os.truncate(path, extent_bytes)
    facts = {name: getattr(options, name) for name in ("block_size", "extent_size", "extent_count")}
    state = {"generation": 0, "epoch": 1 if contents else 0, "clean": True}
    _save(directory, {**facts, "uuid": str(options.uuid), "encrypted": options.encrypted == "true", **state})


def _save(directory: Path, facts: dict[str, Any]) -> None:
    new = directory / "region.json.new"
    new.write_text(json.dumps(facts))
    new.replace(directory / "region.json")


async def _run(options: argparse.Namespace) -> None:
    facts = json.loads((options.data / "region.json").read_text())
    repair = await asyncio.start_server(lambda *_: None, options.address, options.port + REPAIR_PORT_OFFSET)
    downstairs = _Served(options.data, facts, f"{options.address}:{options.port}")
    await downstairs.start()
    sys.stderr.write(f"listening on {options.address}:{options.port}\n")
    sys.stderr.flush()
    async with repair:
        await repair.serve_forever()


class _Served(Downstairs):
    """The engine's negotiation, over a region that stores what has been negotiated."""

    def __init__(self, directory: Path, facts: dict[str, Any], address: str) -> None:
        size_bytes = facts["block_size"] * facts["extent_size"] * facts["extent_count"]
        region = RegionFile(
            volume=UUID(facts["uuid"]),
            path=directory,
            size_bytes=size_bytes,
            block_size=facts["block_size"],
            key=None,
            **{name: facts[name] for name in STATE},
        )
        super().__init__(region, program=Path(), log_path=Path(), journal=NoJournal())
        self._directory, self._facts = directory, facts
        self._reserved.close()
        host, _, port = address.rpartition(":")
        self._reserved = self._bound(host, int(port))
        extents = _Extents(directory, facts["block_size"] * facts["extent_size"])
        self._make_daemon = lambda: _Exports(extents, size_bytes)  # type: ignore[assignment,return-value]

    @staticmethod
    def _bound(host: str, port: int) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        return bound

    async def _promote(self, session: Any, request: Any) -> Answer:
        # A key is what the upstairs encrypts with: the real program never receives it.
        self.region.key = request.key
        return await super()._promote(session, request)

    async def _answer(self, session: Any, line: bytes) -> Answer:
        answer = await super()._answer(session, line)
        _save(self._directory, {**self._facts, **{name: getattr(self.region, name) for name in STATE}})
        return answer


class _Extents:
    """The blocks of a region, in one file for each extent."""

    def __init__(self, directory: Path, extent_bytes: int) -> None:
        self._extent_bytes = extent_bytes
        self._files = [os.open(path, os.O_RDWR) for path in extent_files(directory)]

    def read(self, offset: int, length: int) -> bytes:
        return b"".join(os.pread(file, part, start) for file, start, part in self._parts(offset, length))

    def write(self, offset: int, data: bytes) -> None:
        done = 0
        for file, start, part in self._parts(offset, len(data)):
            os.pwrite(file, data[done : done + part], start)
            done += part

    def _parts(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        while length:
            number, start = divmod(offset, self._extent_bytes)
            part = min(length, self._extent_bytes - start)
            yield self._files[number], start, part
            offset, length = offset + part, length - part


class _Exports:
    """An NBD server for the region, under one name at a time."""

    is_running = True
    pid = os.getpid()
    unanswered = 0

    def __init__(self, extents: _Extents, size_bytes: int) -> None:
        self._extents = extents
        self._size_bytes = size_bytes
        self._name: bytes | None = None
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def export(self, name: str) -> None:
        await self.withdraw()
        self._name = name.encode()

    async def withdraw(self) -> None:
        self._name = None
        for task, writer in list(self._connections.items()):
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def wait(self) -> None:
        await asyncio.Event().wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                if await self._handshake(reader, writer):
                    await self._transmission(reader, writer)
        finally:
            del self._connections[task]
            writer.close()

    async def _handshake(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"NBDMAGICIHAVEOPT" + struct.pack(">H", HANDSHAKE_FLAGS))
        await reader.readexactly(4)
        while True:
            _, option, length = OPTION.unpack(await reader.readexactly(OPTION.size))
            payload = await reader.readexactly(length)
            if option == GO and self.unanswered:
                self.unanswered -= 1
                await reader.read()  # until QEMU gives up
                return False
            answers: Sequence[tuple[int, bytes]] = [(UNSUPPORTED, b"")]
            if option in (QUERY, GO):
                (size,) = struct.unpack_from(">I", payload)
                answers = self._description() if payload[4 : 4 + size] == self._name else [(UNKNOWN, b"")]
            elif option == ABORT:
                answers = [(ACK, b"")]
            for kind, data in answers:
                writer.write(OPTION_REPLY.pack(OPTION_MAGIC, option, kind, len(data)) + data)
            await writer.drain()
            if option == ABORT or (option == GO and answers[-1][0] == ACK):
                return bool(option == GO)

    def _description(self) -> list[tuple[int, bytes]]:
        size = struct.pack(">HQH", 0, self._size_bytes, EXPORT_FLAGS)
        return [(INFO, size), (INFO, struct.pack(">HIII", 3, 1, 4096, 32 << 20)), (ACK, b"")]

    async def _transmission(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            _, _, kind, cookie, offset, length = REQUEST.unpack(await reader.readexactly(REQUEST.size))
            data = b""
            if kind == DISCONNECT:
                return
            if kind == WRITE:
                self._extents.write(offset, await reader.readexactly(length))
            elif kind == WRITE_ZEROES:
                self._extents.write(offset, bytes(length))
            elif kind == READ:
                data = self._extents.read(offset, length)
            writer.write(REPLY.pack(REPLY_MAGIC, 0, cookie) + data)
            await writer.drain()

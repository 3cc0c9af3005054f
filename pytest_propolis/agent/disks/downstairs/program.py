"""A downstairs that is a program with the command line of ``crucible-downstairs``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from ....agent_api.volumes import CreateVolume
from ....engine.volumes.downstairs import reserve_port
from ....engine.volumes.storage_daemon import LOOPBACK
from ....errors import AgentError, ArtifactError, CapabilityMissing, HostError
from ....ledger.writer import LedgerWriter
from ....operating_system.child import Child, ChildRecord, Journal, NoJournal, spawn
from ....storage.files import last_lines, open_log
from ....storage.programs import executable_program, run_program
from .kind import VolumeFacts, write_file

__all__ = ["DownstairsProgram", "DownstairsPrograms"]

REPAIR_PORT_OFFSET: Final = 4000
"""A downstairs listens also at the port that is higher by so much, for others that repair themselves from it."""

HIGHEST_PORT: Final = 65535 - REPAIR_PORT_OFFSET
PORT_ATTEMPTS: Final = 100
START_TIMEOUT_S: Final = 30.0
FIRST_PAUSE_S: Final = 0.01
LONGEST_PAUSE_S: Final = 0.25


class ProgramRegion(msgspec.Struct, frozen=True, kw_only=True):
    """A region, as ``crucible-downstairs create`` makes it.

    :param directory: holds it; must not exist yet.
    :param is_encrypted: whether the upstairs encrypts what it writes. Imported contents are not encrypted.
    """

    id: UUID
    directory: Path
    block_size: int
    extent_bytes: int
    size_bytes: int
    is_encrypted: bool

    def corrupt(self, offset: int, length: int) -> None:
        """Write random bytes over a part of the region, without involving the process that serves it.

        Each extent is a file that begins with its blocks. A part that reaches over its end is cut off.

        :raises OSError: when it cannot be written.
        """
        number, start = divmod(offset, self.extent_bytes)
        path = self.directory / f"{number >> 24:02X}" / f"{number >> 12 & 0xFFF:03X}" / f"{number & 0xFFF:03X}"
        with path.open("r+b") as file:
            os.pwrite(file.fileno(), secrets.token_bytes(min(length, self.extent_bytes - start)), start)


class DownstairsProgram:
    """One replica that such a program keeps: its region and its process. Its address stays the same.

    The program does not report which upstairs it serves.

    :param log_path: receives what it prints.
    """

    generation: Final = 0
    epoch: Final = 0
    snapshots: Final[tuple[Path, ...]] = ()

    def __init__(self, region: ProgramRegion, *, program: Path, log_path: Path, journal: Journal) -> None:
        self.region = region
        self.log_path = log_path
        self._program = program
        self._journal = journal
        self._record: ChildRecord = NoJournal()
        self._child: Child | None = None
        self._is_paused = False
        self._changes = asyncio.Lock()
        self._closed = False
        self._reserved = _reserve_ports()

    @property
    def path(self) -> Path:
        return self.region.directory

    @property
    def address(self) -> str:
        """Its address for an upstairs: ``IP:PORT``."""
        return f"{LOOPBACK}:{self._port}"

    @property
    def state(self) -> str:
        """For people: ``running``, ``paused`` or ``dead``."""
        if self.pid is None:
            return "dead"
        return "paused" if self._is_paused else "running"

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child and self._child.returncode is None else None

    async def create(self, contents: Path | None = None) -> None:
        """Create the region.

        :param contents: a file that is imported.
        :raises AgentError: when the program fails, with the last lines of its output.
        """
        region = self.region
        options = {
            "--block-size": str(region.block_size),
            "--data": str(region.directory),
            "--encrypted": "true" if region.is_encrypted else "false",
            "--uuid": str(region.id),
            "--extent-size": str(region.extent_bytes // region.block_size),
            "--extent-count": str(region.size_bytes // region.extent_bytes),
            **({"--import-path": str(contents)} if contents else {}),
        }
        words = [str(self._program), "create", *(word for option in options.items() for word in option)]
        try:
            finished = await run_program(words, ends_with_parent=True)
        except OSError as error:
            raise self._cannot_be_run(error) from None
        if finished.status != 0:
            raise AgentError(f"{self._program} create failed: {finished.last_lines()}")

    async def start(self) -> None:
        """Start it, or start it again; return when it listens.

        :raises AgentError: when it ends or does not listen, with the last line of its output.
        """
        async with self._changes:
            await self._end()
            if self._closed:
                raise AgentError(f"downstairs {self.address} is closed")
            try:
                with open_log(self.log_path) as log:
                    await self._launch(log.fileno())
                await self._until_it_listens()
            except BaseException:
                await self._end()
                raise

    async def kill(self) -> None:
        """End it at once. Its region stays."""
        async with self._changes:
            await self._end()

    def pause(self) -> None:
        """Let it hang: its connections stay open, and it answers nothing."""
        self._signal(signal.SIGSTOP)
        self._is_paused = self.pid is not None

    def resume(self) -> None:
        """Resume it after `pause`."""
        self._signal(signal.SIGCONT)
        self._is_paused = False

    async def disconnect(self) -> None:
        """Disconnect its upstairs, which may reconnect: the program is killed and started again.

        :raises AgentError: when it does not start.
        """
        await self.start()

    async def slow_down(self, delay_ms: float) -> None:
        """
        :raises CapabilityMissing: always but for no delay, because the program has no means for it.
        """
        if delay_ms:
            raise CapabilityMissing(
                f"{self._program} cannot be slowed down",
                hint="pause it, or use a disk of this project's own downstairs",
            )

    async def close(self) -> None:
        """End it permanently. Its region stays. Idempotent."""
        self._closed = True
        await self.kill()
        for reserved in self._reserved:
            reserved.close()

    @property
    def _port(self) -> int:
        return int(self._reserved[0].getsockname()[1])

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None:
            self._child.signal(number)

    async def _launch(self, log: int) -> None:
        arguments = ["run", "--address", LOOPBACK, "--port", str(self._port), "--data", str(self.path)]
        record = self._record = self._journal.intend()
        try:
            self._child = await spawn(self._program, arguments, stdout=log, stderr=log, environment=record.environment)
        except OSError as error:
            raise self._cannot_be_run(error) from None
        record.live(self._child.pid)

    async def _until_it_listens(self) -> None:
        assert self._child is not None
        ended = asyncio.create_task(self._child.wait())
        pause_s = FIRST_PAUSE_S
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not await _listens(self._port):
                    if ended.done():
                        raise AgentError(f"{self._program} ended with status {ended.result()}: {self._last_line()}")
                    await asyncio.wait([ended], timeout=pause_s)
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        except TimeoutError:
            raise AgentError(
                f"{self._program} has not listened at {self.address} for {START_TIMEOUT_S:.0f} s: {self._last_line()}"
            ) from None
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)

    async def _end(self) -> None:
        child, self._child = self._child, None
        self._is_paused = False
        if child is not None:
            await child.end()
        self._record.gone()
        self._record = NoJournal()

    def _last_line(self) -> str:
        return "".join(last_lines(self.log_path, 1)) or "it printed nothing"

    def _cannot_be_run(self, error: OSError) -> HostError:
        return HostError(
            f"{self._program} cannot be run: {error.strerror or error}", hint="correct --propolis-crucible-downstairs"
        )


class DownstairsPrograms:
    """The `DownstairsKind` that a real ``propolis-server`` needs.

    :param program: has the command line of ``crucible-downstairs``.
    """

    def __init__(self, program: Path) -> None:
        self._program = program

    async def require_image(self, image: Path, image_format: str) -> None:
        if image_format != "raw":
            raise ArtifactError(
                f"{image} is a {image_format} image, and the read-only parent of a crucible-downstairs is raw",
                hint=f"convert it: qemu-img convert -O raw {image} {image.with_suffix('.raw')}",
            )

    async def image_size(self, image: Path, image_format: str) -> int:
        return image.stat().st_size

    def is_encrypted(self, request: CreateVolume) -> bool:
        return request.contents is None  # what a program imports is not encrypted

    async def make(self, volume: VolumeFacts, number: int, *, writer: LedgerWriter, blank: bool) -> DownstairsProgram:
        request = volume.request
        region = ProgramRegion(
            id=volume.upstairs_id,
            directory=volume.directory / f"region-{number}",
            block_size=request.block_size,
            extent_bytes=volume.extent_bytes,
            size_bytes=volume.size_bytes,
            is_encrypted=volume.key is not None,
        )
        contents = None
        if request.contents is not None and not blank:
            contents = volume.directory / "contents"
            write_file(contents, request.contents, len(request.contents))
        self._program = executable_program(self._program, volume.directory)
        log_path = volume.directory / f"{number}.log"
        downstairs = DownstairsProgram(region, program=self._program, log_path=log_path, journal=writer)
        try:
            await downstairs.create(contents)
        except BaseException:
            await downstairs.close()
            raise
        return downstairs


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return False
    writer.close()
    return True


def _reserve_ports() -> Sequence[socket.socket]:
    """Reserve a port of the loopback interface, and the one for repairs.

    :raises HostError: when no such pair is free.
    """
    with contextlib.ExitStack() as unsuitable:
        for _ in range(PORT_ATTEMPTS):
            reserved = reserve_port()
            port = reserved.getsockname()[1]
            if port <= HIGHEST_PORT:
                with contextlib.suppress(OSError):
                    return reserved, reserve_port(port + REPAIR_PORT_OFFSET)
            unsuitable.enter_context(reserved)  # not to be given it again
    raise HostError(f"no two TCP ports of {LOOPBACK} with a distance of {REPAIR_PORT_OFFSET} are free")

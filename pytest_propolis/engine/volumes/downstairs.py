"""A downstairs: one replica of a region. It serves one upstairs at a time, the one with the highest generation."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from ...operating_system.child import Journal
from ...storage.files import mount_point
from .negotiation import LONGEST_LINE, Answer, Done, Fenced, Promote, Promoted, RecordEpoch, Refused, Request
from .region_file import RegionFile
from .storage_daemon import LOOPBACK, StorageDaemon, StorageDaemonError

__all__ = ["Downstairs", "reserve_port"]

logger = logging.getLogger(__name__)

_REQUESTS: Final = msgspec.json.Decoder(Request)


class _Session(msgspec.Struct, eq=False):
    """A connection of an upstairs; `id` is None until it is promoted."""

    writer: asyncio.StreamWriter
    id: UUID | None = None


class Downstairs:
    """One replica: its file, the process that serves it, and the port on which an upstairs asks for it.

    Its address stays the same when it is killed and started again.

    :param program: ``qemu-storage-daemon``.
    :param log_path: receives what that prints.
    """

    def __init__(self, region: RegionFile, *, program: Path, log_path: Path, journal: Journal) -> None:
        self.region = region
        self.log_path = log_path
        self._make_daemon: Callable[[], StorageDaemon] = lambda: StorageDaemon(
            program=program, file=region.path, file_format=region.file_format, log_path=log_path, journal=journal
        )
        self._daemon: StorageDaemon | None = None
        self._reserved = reserve_port()
        self._server: asyncio.Server | None = None
        self._sessions: set[_Session] = set()
        self._handlers: set[asyncio.Task[None]] = set()
        self._active: _Session | None = None
        self._running = asyncio.Event()
        self._running.set()
        self._promotions = asyncio.Lock()
        self._changes = asyncio.Lock()
        """Held while it is started or ended: one that is being started when it is closed ends all the same."""
        self._closed = False
        self._watcher: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Its address for an upstairs: ``IP:PORT``."""
        host, port = self._reserved.getsockname()
        return f"{host}:{port}"

    @property
    def state(self) -> str:
        """For people: ``serving``, ``idle``, ``paused`` or ``dead``."""
        if self._daemon is None or not self._daemon.is_running:
            return "dead"
        if not self._running.is_set():
            return "paused"
        return "serving" if self._active else "idle"

    @property
    def pid(self) -> int | None:
        return self._daemon.pid if self._daemon else None

    @property
    def path(self) -> Path:
        return self.region.path

    @property
    def generation(self) -> int:
        return self.region.generation

    @property
    def epoch(self) -> int:
        return self.region.epoch

    @property
    def snapshots(self) -> Sequence[Path]:
        return self.region.snapshots

    async def start(self) -> None:
        """Start it, or start it again after its death.

        :raises StorageDaemonError: when its process does not start, or it is closed.
        """
        async with self._changes:
            await self._end()
            if self._closed:
                raise StorageDaemonError("it is closed")
            daemon = self._make_daemon()
            await daemon.start()
            self._daemon = daemon
            self._watcher = asyncio.create_task(self._watch(daemon))
            self._server = await asyncio.start_server(self._serve, *self._reserved.getsockname(), limit=LONGEST_LINE)

    async def kill(self) -> None:
        """End it at once. Its file stays."""
        async with self._changes:
            await self._end()

    async def _end(self) -> None:
        self._running.set()
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self._hang_up()
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            await daemon.close()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    def pause(self) -> None:
        """Let it hang: its connections stay open, and it answers nothing."""
        self._running.clear()
        if self._daemon is not None:
            self._daemon.pause()

    def resume(self) -> None:
        """Resume it after `pause`."""
        if self._daemon is not None:
            self._daemon.resume()
        self._running.set()

    async def disconnect(self) -> None:
        """Disconnect its upstairs, which may reconnect.

        :raises StorageDaemonError: when its process does not answer.
        """
        self._hang_up()
        if self._daemon is not None:
            await self._daemon.withdraw()

    async def slow_down(self, delay_ms: float) -> None:
        """Make it serve requests one by one, with this delay between; 0 for no delay.

        :raises StorageDaemonError: when its process does not answer.
        """
        if self._daemon is None:
            raise StorageDaemonError("it is dead")
        await self._daemon.slow_down(delay_ms)

    async def close(self) -> None:
        """End the downstairs permanently. Its file stays. Idempotent."""
        self._closed = True
        await self.kill()
        self._reserved.close()

    async def _watch(self, daemon: StorageDaemon) -> None:
        """A downstairs whose process has died is dead as a whole."""
        await daemon.wait()
        logger.warning("downstairs %s has died", self.address)
        if self._server is not None:
            self._server.close()
        self._hang_up()

    def _hang_up(self) -> None:
        for session in self._sessions:
            session.writer.close()
        self._active = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = _Session(writer)
        self._sessions.add(session)
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        task.add_done_callback(self._handlers.discard)
        try:
            while line := await reader.readline():
                await self._running.wait()
                _send_answer(session, await self._answer(session, line))
        except (OSError, ValueError):  # a line that is too long is a ValueError
            pass
        finally:
            self._sessions.discard(session)
            writer.close()
            await self._session_ended(session)

    async def _session_ended(self, session: _Session) -> None:
        async with self._promotions:
            if self._active is not session:
                return
            self._active = None
            await self._running.wait()
            if self._daemon is not None and self._daemon.is_running:
                with contextlib.suppress(StorageDaemonError):
                    await self._daemon.withdraw()

    async def _answer(self, session: _Session, line: bytes) -> Answer:
        try:
            request = _REQUESTS.decode(line)
        except msgspec.DecodeError as error:
            return Refused(reason=f"the request is not understood: {error}", final=True)
        async with self._promotions:
            if isinstance(request, Promote):
                return await self._promote(session, request)
            if self._active is not session:
                return Refused(reason="another upstairs has taken over", final=True)
            if isinstance(request, RecordEpoch):
                self.region.epoch, self.region.clean = request.epoch, request.clean
                return Done()
            return await self._snapshot(request.id)

    async def _promote(self, session: _Session, request: Promote) -> Answer:
        region = self.region
        if request.volume != region.volume:
            return Refused(reason=f"this region belongs to volume {region.volume}", final=True)
        if not hmac.compare_digest((request.key or "").encode(), (region.key or "").encode()):
            return Refused(reason="the key is not this region's", final=True)
        if request.generation < region.generation:
            reason = f"generation {request.generation} is lower than {region.generation}, which had it last"
            return Refused(reason=reason, final=True, generation=region.generation)
        other = self._active if self._active is not session else None
        if other is not None and request.generation == region.generation:
            reason = f"another upstairs has it with generation {region.generation}"
            return Refused(reason=reason, final=True, generation=region.generation)
        if self._daemon is None:
            return Refused(reason="it is dead", final=False)
        answer = self._promoted(f"generation-{request.generation}-{secrets.token_hex(8)}")
        if self._active is not session:
            try:
                await self._daemon.export(answer.export)
            except StorageDaemonError as error:
                return Refused(reason=str(error), final=False)
        if other is not None:
            _send_answer(other, Fenced(generation=request.generation))
        session.id = request.session
        self._active = session
        region.generation = request.generation
        return answer

    async def _snapshot(self, snapshot_id: UUID) -> Answer:
        try:
            await self.region.snapshot(snapshot_id)
        except OSError as error:
            return Refused(reason=f"snapshot {snapshot_id} cannot be made: {error}", final=True)
        return Done()

    def _promoted(self, export: str) -> Promoted:
        region, daemon = self.region, self._daemon
        assert daemon is not None
        return Promoted(
            region_id=region.id,
            size_bytes=region.size_bytes,
            block_size=region.block_size,
            export=export,
            port=daemon.port,
            last_generation=region.generation,
            epoch=region.epoch,
            clean=region.clean,
            parent=region.parent,
            stall_timeout_s=region.stall_timeout_s,
            file_system=mount_point(region.path),
        )


def _send_answer(session: _Session, answer: Answer) -> None:
    session.writer.write(msgspec.json.encode(answer) + b"\n")


def reserve_port(port: int = 0) -> socket.socket:
    """Return a port of the loopback interface that stays this object's while nothing listens on it.

    :param port: 0 for any.
    :raises OSError: when it is taken.
    """
    with socket.socket() as probe:
        probe.bind((LOOPBACK, port))
        address = probe.getsockname()
        reserved = socket.socket()
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            reserved.bind(address)
        except OSError:
            reserved.close()
            raise
    return reserved

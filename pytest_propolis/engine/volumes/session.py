"""An upstairs's session with one downstairs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, Self
from uuid import UUID

import msgspec

from .nbd import NbdError, probe_export
from .negotiation import LONGEST_LINE, Answer, Done, Fenced, Promote, Promoted, RecordEpoch, Refused, Request, Snapshot

__all__ = ["DownstairsRefused", "DownstairsUnreachable", "Session"]

CONNECT_TIMEOUT_S: Final = 2.0
ANSWER_TIMEOUT_S: Final = 15.0
_ANSWERS: Final = msgspec.json.Decoder(Answer)


class DownstairsUnreachable(Exception):
    """Raised when a downstairs does not answer, now or any more. It may later."""


class DownstairsRefused(Exception):
    """Raised when a downstairs will never serve this upstairs; the text says why.

    `generation` is that of the upstairs that has the region now, where that is the reason.
    """

    def __init__(self, reason: str, generation: int | None = None) -> None:
        super().__init__(reason)
        self.generation = generation


class Session:
    """A connection on which a downstairs has promoted this upstairs. It ends when either side closes it.

    :param address: of the downstairs.
    """

    def __init__(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.address = address
        self._reader = reader
        self._writer = writer
        self._answers: asyncio.Queue[Promoted | Refused | Done | None] = asyncio.Queue()
        self._asking = asyncio.Lock()
        self.ended = asyncio.Event()
        """Set when the connection is gone."""
        self.fenced_by: int | None = None
        """The generation of the upstairs that has taken over."""
        self._reading = asyncio.create_task(self._read())
        self.region: Promoted

    @classmethod
    async def open(cls, address: str, request: Promote) -> Self:
        """Connect and get promoted, then verify the export.

        :raises DownstairsUnreachable: when it does not answer.
        :raises DownstairsRefused: when it will never serve this upstairs.
        """
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), limit=LONGEST_LINE)
        except (OSError, ValueError) as error:  # TimeoutError is an OSError
            raise DownstairsUnreachable(f"{address}: {error or 'timed out'}") from None
        session = cls(address, reader, writer)
        try:
            await session.promote(request)
            region = session.region
            export = await probe_export(session.host, region.port, region.export, timeout_s=CONNECT_TIMEOUT_S)
            if export.size_bytes != region.size_bytes:
                raise DownstairsRefused(f"{address} serves {export.size_bytes} bytes, not {region.size_bytes}")
        except (OSError, NbdError) as error:
            session.close()
            raise DownstairsUnreachable(f"{address}: {error}") from None
        except BaseException:
            session.close()
            raise
        return session

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0].strip("[]")

    async def promote(self, request: Promote) -> None:
        """Be promoted, for the first time or to a higher generation.

        :raises DownstairsUnreachable: when it does not answer.
        :raises DownstairsRefused: when it will never serve this upstairs.
        """
        answer = await self._request(request)
        if not isinstance(answer, Promoted):
            raise DownstairsUnreachable(f"{self.address} does not answer as a downstairs does")
        if not hasattr(self, "region"):
            self.region = answer

    async def record_epoch(self, epoch: int, *, clean: bool = False) -> None:
        """Store the epoch in the metadata of the region.

        :raises DownstairsUnreachable: when it does not answer.
        :raises DownstairsRefused: when another upstairs has taken over.
        """
        await self._request(RecordEpoch(epoch=epoch, clean=clean))

    async def snapshot(self, snapshot_id: UUID) -> None:
        """Snapshot the region.

        :raises DownstairsUnreachable: when it does not answer.
        :raises DownstairsRefused: when it cannot, with the reason.
        """
        await self._request(Snapshot(id=snapshot_id))

    async def check(self, *, timeout_s: float) -> None:
        """Make sure that the downstairs still serves.

        :raises DownstairsUnreachable: when it does not, in that time.
        """
        try:
            await probe_export(self.host, self.region.port, self.region.export, timeout_s=timeout_s)
        except (OSError, NbdError) as error:
            raise DownstairsUnreachable(f"{self.address}: {error}") from None

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call a function in the event loop when the connection has ended, from either side."""
        self._reading.add_done_callback(lambda _: callback())

    def close(self) -> None:
        """End the session; a request that waits for its answer fails. Idempotent."""
        self._reading.cancel()
        self._writer.close()
        self._note_end()

    async def _request(self, request: Request) -> Promoted | Done:
        try:
            async with self._asking, asyncio.timeout(ANSWER_TIMEOUT_S):
                if self.ended.is_set():
                    raise DownstairsUnreachable(f"{self.address} has hung up")
                self._writer.write(msgspec.json.encode(request) + b"\n")
                answer = await self._answers.get()
        except TimeoutError:
            self.close()  # a late answer would be taken for that to the next request
            raise DownstairsUnreachable(f"{self.address} has not answered for {ANSWER_TIMEOUT_S:.0f} s") from None
        if answer is None:
            raise DownstairsUnreachable(f"{self.address} has hung up")
        if isinstance(answer, Refused):
            if answer.final:
                raise DownstairsRefused(f"{self.address}: {answer.reason}", answer.generation)
            raise DownstairsUnreachable(f"{self.address}: {answer.reason}")
        return answer

    async def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError, msgspec.DecodeError):  # a line that is too long is a ValueError
            while line := await self._reader.readline():
                answer = _ANSWERS.decode(line)
                if isinstance(answer, Fenced):
                    self.fenced_by = answer.generation
                    break
                self._answers.put_nowait(answer)
        self._note_end()

    def _note_end(self) -> None:
        self.ended.set()
        self._answers.put_nowait(None)

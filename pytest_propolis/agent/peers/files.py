"""The agent's paths below ``/files``: files that hosts pass on to each other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from ...agent_api.messages import (
    FetchFile,
    FileDigest,
    FileFetched,
    FileFound,
    FindFile,
    ProgressMade,
    SendFile,
    StreamLine,
)
from ...engine.server.app import decoded, encoded
from ...engine.server.dropshot_errors import ErrorResponse, HttpError
from ...errors import AgentError
from ...propolis_api.connection.endpoint import Endpoint
from ...propolis_api.connection.sockets import reason_of
from ...storage.file_stream import BY_CONTENT, PartialFile, frames, is_there
from ..progress_stream import progress_response
from .file_download import FileDownload

__all__ = ["SharedFiles"]

T = TypeVar("T")

SILENCE_S: Final = 10.0
"""How long the other agent may send nothing: without it, the file comes from the client's machine."""

POLL_S: Final = 0.05
REPORT_BYTES: Final = 256 << 20


class SharedFiles:
    """Sends files to other agents, and fetches files from them. What it has is complete: the rest has another name.

    :param in_progress: holds what is being fetched until it has ended.
    :param shortcut: returns where the connections that an endpoint accepts lead.
    """

    def __init__(
        self, in_progress: set[asyncio.Future[StreamLine]], *, shortcut: Callable[[Endpoint], Endpoint]
    ) -> None:
        self._in_progress = in_progress
        self._shortcut = shortcut
        self._digests: dict[str, asyncio.Future[str]] = {}
        """Of the files that are being fetched, by the ids of the requests."""

    @property
    def routes(self) -> list[BaseRoute]:
        return [
            Route("/files/found", self._find, methods=["POST"]),
            Route("/files/sent", self._send, methods=["POST"]),
            Route("/files/fetched", self._fetch, methods=["POST"]),
            Route("/files/digest", self._take_digest, methods=["POST"]),
        ]

    async def _find(self, request: Request) -> Response:
        wanted = await decoded(request, FindFile)
        return encoded(FileFound(is_there=is_there(wanted.path, wanted.size)))

    async def _send(self, request: Request) -> Response:
        wanted = await decoded(request, SendFile)
        if not is_there(wanted.path, wanted.size):
            raise HttpError(ErrorResponse(status=404, message="no such file"))
        return StreamingResponse(_frames(wanted), media_type="application/octet-stream")

    async def _fetch(self, request: Request) -> Response:
        wanted = await decoded(request, FetchFile)

        async def work(tell: Callable[[StreamLine], None]) -> StreamLine:
            digest = self._digest(wanted.id)
            try:
                source = self._shortcut(Endpoint.at(wanted.source))
                await _fetch(wanted, source, digest, lambda text: tell(ProgressMade(text)))
                await digest  # also if the file was there: it is told in any case
            finally:
                del self._digests[wanted.id]
            return FileFetched()

        return progress_response(work, self._in_progress)

    async def _take_digest(self, request: Request) -> Response:
        told = await decoded(request, FileDigest)
        if not (digest := self._digest(told.id)).done():
            digest.set_result(told.digest)
        return Response(status_code=204)

    def _digest(self, fetch_id: str) -> asyncio.Future[str]:
        if fetch_id not in self._digests:
            self._digests[fetch_id] = asyncio.get_running_loop().create_future()
        return self._digests[fetch_id]


def _frames(wanted: SendFile) -> Iterator[bytes]:
    with Path(wanted.path).open("rb") as file:
        yield from frames(file.fileno(), wanted.size, wanted.start)


async def _fetch(
    wanted: FetchFile, source: Endpoint, digest: asyncio.Future[str], progress: Callable[[str], None]
) -> None:
    """Fetch a file from another agent, unless it is there; what arrives before an error is not sent again.

    :param source: the other agent's.
    :param digest: what its digest should be, once that is known.
    :raises AgentError: when it does not arrive.
    """
    try:
        part = await _part(wanted)
        if part is None:
            return
        try:
            await _receive(wanted, source, part, progress)
            expected = await digest
            if not await _in_thread(lambda: part.finish(expected)):
                raise AgentError("it did not arrive as it should be")
        finally:
            part.close()
    except OSError as error:  # TimeoutError and ConnectionError among them
        reason = f"nothing came for {SILENCE_S:g} s" if isinstance(error, TimeoutError) else reason_of(error)
        raise AgentError(reason) from None


async def _part(wanted: FetchFile) -> PartialFile | None:
    """Return the part to write to, once no other transfer does; None if the file is there."""
    path = Path(wanted.path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    while not is_there(wanted.path, wanted.size):
        try:
            part = PartialFile(wanted.path, wanted.size, wanted.mode, BY_CONTENT, wait=False)
        except BlockingIOError:
            await asyncio.sleep(POLL_S)
            continue
        if not is_there(wanted.path, wanted.size):
            return part
        part.discard()
        part.close()
    return None


async def _receive(wanted: FetchFile, source: Endpoint, part: PartialFile, progress: Callable[[str], None]) -> None:
    loop, reported = asyncio.get_running_loop(), part.done

    def write(offset: int, data: bytes) -> None:
        nonlocal reported
        part.write(offset, data)
        if part.done - reported >= REPORT_BYTES:
            reported = part.done
            name = os.path.basename(part.path)  # noqa: PTH119
            loop.call_soon_threadsafe(progress, f"{reported >> 20} of {part.size >> 20} MiB of {name}")

    download = FileDownload(source, silence_s=SILENCE_S)
    request = SendFile(path=wanted.source_path, size=wanted.size, start=part.done)
    try:
        await _in_thread(lambda: download.run(request, write), abort=download.abort)
    except BaseException:
        await _in_thread(part.save)
        raise


async def _in_thread(work: Callable[[], T], *, abort: Callable[[], None] = lambda: None) -> T:
    """Call in a thread, and wait for its end even when cancelled: it writes to a descriptor that is closed then.

    :param abort: called when cancelled.
    """
    calling = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(calling)
    except asyncio.CancelledError:
        abort()
        await asyncio.wait([calling])
        raise

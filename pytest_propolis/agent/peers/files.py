"""The agent's paths below ``/files``: files that hosts pass on to each other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from ...agent_api.messages import FetchFile, FileFetched, FileFound, FindFile, ProgressMade, SendFile, StreamLine
from ...engine.server.app import decoded, encoded
from ...engine.server.dropshot_errors import ErrorResponse
from ...engine.server.http_error import HttpError
from ...errors import AgentError
from ...propolis_api.connection.endpoint import Endpoint
from ...propolis_api.connection.http import HttpClient, HttpStream
from ...propolis_api.connection.sockets import reason_of
from ...storage.file_stream import BY_CONTENT, COMPRESSED, HEADER, PartialFile, frames, is_there, unpacked
from ..progress_stream import progress_response

__all__ = ["SharedFiles"]

P = ParamSpec("P")
T = TypeVar("T")

SILENCE_S: Final = 10.0
"""How long the other agent may send nothing: without it, the file comes from the client's machine."""

POLL_S: Final = 0.05
REPORT_BYTES: Final = 256 << 20


class SharedFiles:
    """Sends files to other agents, and fetches files from them. What it has is complete: the rest has another name.

    :param in_progress: holds what is being fetched until it has ended.
    """

    def __init__(self, in_progress: set[asyncio.Future[StreamLine]]) -> None:
        self._in_progress = in_progress

    @property
    def routes(self) -> list[BaseRoute]:
        return [
            Route("/files/found", self._find, methods=["POST"]),
            Route("/files/sent", self._send, methods=["POST"]),
            Route("/files/fetched", self._fetch, methods=["POST"]),
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
            await _fetch(wanted, lambda text: tell(ProgressMade(text)))
            return FileFetched()

        return progress_response(work, self._in_progress)


def _frames(wanted: SendFile) -> Iterator[bytes]:
    with Path(wanted.path).open("rb") as file:
        yield from frames(file.fileno(), wanted.size, wanted.start)


async def _fetch(wanted: FetchFile, progress: Callable[[str], None]) -> None:
    """Fetch a file from another agent, unless it is there; what arrives before an error is not sent again.

    :raises AgentError: when it does not arrive.
    """
    try:
        part = await _part(wanted)
        if part is None:
            return
        try:
            await _receive(wanted, part, progress)
            if not await _in_thread(part.finish, wanted.digest):
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


async def _receive(wanted: FetchFile, part: PartialFile, progress: Callable[[str], None]) -> None:
    request = SendFile(path=wanted.source_path, size=wanted.size, start=part.done)
    content = msgspec.json.encode(request)
    async with (
        HttpClient(Endpoint.at(wanted.source), headers={}) as client,
        client.stream("POST", "/files/sent", content=content, timeout_s=SILENCE_S) as answer,
    ):
        if answer.status != 200:
            raise AgentError(f"it has no such file (status {answer.status})")
        try:
            await _write_frames(answer, part, progress)
        except BaseException:
            await _in_thread(part.save)
            raise


async def _write_frames(answer: HttpStream, part: PartialFile, progress: Callable[[str], None]) -> None:
    received, reported = bytearray(), part.done
    async for data in answer.data():
        received += data
        while len(received) >= HEADER.size:
            offset, length = HEADER.unpack_from(received)
            end = HEADER.size + (length & ~COMPRESSED)
            if length == 0:
                return
            if len(received) < end:
                break
            payload = bytes(received[HEADER.size : end])
            del received[:end]
            await _in_thread(part.write, offset, unpacked(length, payload))
            if part.done - reported >= REPORT_BYTES:
                reported = part.done
                progress(f"{reported >> 20} of {part.size >> 20} MiB of {os.path.basename(part.path)}")  # noqa: PTH119
    raise ConnectionError("it ended the transfer")


async def _in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call in a thread, and wait for its end even when cancelled: it writes to a descriptor that is closed then."""
    calling = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(calling)
    except asyncio.CancelledError:
        await asyncio.wait([calling])
        raise

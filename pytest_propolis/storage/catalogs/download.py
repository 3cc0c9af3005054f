"""``python -m pytest_propolis.storage.catalogs.download REQUEST``: download a file from HTTP servers.

They are tried in turn. A download that breaks off is resumed, with bounded retries.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import msgspec

from ...errors import ArtifactMissing, PropolisError, ResourceExhausted
from ...operating_system.python_processes import end_of_imports
from ..files import sha256_of
from .download_messages import DownloadReport, DownloadRequest
from .hashing_writer import HashingWriter

ATTEMPTS: Final = 3
LONGEST_PAUSE_S: Final = 60.0
CONNECT_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 60.0
ANSWER_TIMEOUT_S: Final = 120.0
"""For all headers of an answer, after any redirections: each byte may take `READ_TIMEOUT_S`."""
SLOW_WINDOW_S: Final = 60.0
SLOW_BYTES: Final = 64 << 10
"""A server that sends less than this in a window has failed: some are slow for ever."""
REDIRECTS: Final = 10
PROGRESS_S: Final = 5.0
PARTIAL: Final = 206
RANGE_REFUSED: Final = 416


def main(request: DownloadRequest) -> None:
    """Download a file, and report how that went."""
    try:
        report = DownloadReport(sha256=asyncio.run(_fetch(request)))
    except PropolisError as error:
        report = DownloadReport(error=type(error).__name__, message=error.message, hint=error.hint)
    _send(report)


def _send(report: DownloadReport) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()


def _progress(text: str) -> None:
    _send(DownloadReport(progress=text))


async def _fetch(request: DownloadRequest) -> str:
    """Download the file; return its SHA-256.

    :raises ArtifactMissing: when no server gives it, with what each one answered.
    :raises ResourceExhausted: when there is no space left.
    """
    name = hashlib.sha256("\n".join(request.urls).encode()).hexdigest()[:32]
    part = Path(request.downloads) / f"{name}.download"
    deadline_s, pause_s = time.monotonic() + request.wait_s, request.first_pause_s
    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    async with httpx.AsyncClient(follow_redirects=True, max_redirects=REDIRECTS, timeout=timeout) as client:
        while True:
            failures = []
            for url in request.urls:
                try:
                    sha256 = await _try(client, url, part, request.first_pause_s)
                except _NotFound as error:
                    failures.append(str(error))
                else:
                    part.replace(request.destination)
                    return sha256
            if time.monotonic() >= deadline_s:
                raise ArtifactMissing("; ".join(failures), hint="check the network and the URLs, or give a local file")
            _progress(f"{failures[-1]}: trying again in {pause_s:.0f} s")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


async def _try(client: httpx.AsyncClient, url: str, part: Path, pause_s: float) -> str:
    """Download from one server; return the SHA-256.

    :raises _NotFound: when the server does not give it, with the reason.
    """
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(pause_s)
            pause_s *= 2
        try:
            return await _download(client, url, part)
        except httpx.HTTPStatusError as error:
            reason = f"{url}: {error.response.status_code} {error.response.reason_phrase}"
            if error.response.status_code == RANGE_REFUSED:
                part.unlink(missing_ok=True)  # it is longer than the file: not the same one
            elif not error.response.is_server_error:
                break
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
            reason = f"{url}: {error}"
            break
        except httpx.ReadTimeout:
            reason = f"{url}: it sent nothing for {READ_TIMEOUT_S:g} s"
        except httpx.ConnectTimeout:
            reason = f"{url}: there was no connection in {CONNECT_TIMEOUT_S:g} s"
        except (httpx.HTTPError, _TooSlow) as error:
            reason = f"{url}: {str(error) or type(error).__name__}"
        except OSError as error:
            raise ResourceExhausted(
                f"{part} cannot be written: {error.strerror}",
                hint="free some space there",
            ) from None
    raise _NotFound(reason)


class _NotFound(Exception):
    """Raised when a server does not give a file."""


class _TooSlow(Exception):
    """Raised when a server sends next to nothing."""


@asynccontextmanager
async def _answer(client: httpx.AsyncClient, request: httpx.Request) -> AsyncIterator[httpx.Response]:
    """An answer whose content is still to come.

    :raises _TooSlow: when its headers do not come.
    """
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            answer = await client.send(request, stream=True)
    except TimeoutError:
        raise _TooSlow(f"it sent no complete answer in {ANSWER_TIMEOUT_S:g} s") from None
    try:
        yield answer
    finally:
        await answer.aclose()


async def _download(client: httpx.AsyncClient, url: str, part: Path) -> str:
    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    async with _answer(client, client.build_request("GET", url, headers=headers)) as answer:
        if start and answer.status_code == RANGE_REFUSED and _total_size(answer) == start:
            return await sha256_of(part)
        answer.raise_for_status()
        resumed = answer.status_code == PARTIAL
        done = start if resumed else 0
        total = done + int(answer.headers.get("content-length", 0))
        _progress(f"{'going on with' if resumed else 'downloading'} {url}{_size(total)}")
        window_s, window, reported_s = time.monotonic(), done, time.monotonic()
        async with HashingWriter.open(part, append=resumed) as file:
            async for data in answer.aiter_raw():
                await file.write(data)
                done += len(data)
                now_s = time.monotonic()
                if now_s - window_s > SLOW_WINDOW_S:
                    if done - window < SLOW_BYTES:
                        raise _TooSlow(f"it sent only {done - window} bytes in {SLOW_WINDOW_S:g} s")
                    window_s, window = now_s, done
                if now_s - reported_s > PROGRESS_S:
                    reported_s = now_s
                    _progress(f"{url}: {done >> 20} MiB{_size(total)}")
        return file.sha256


def _total_size(answer: httpx.Response) -> int | None:
    """The size of a file of which nothing is left to send."""
    size = answer.headers.get("content-range", "").rpartition("/")[2]
    return int(size) if size.isdigit() else None


def _size(total: int) -> str:
    return f" (of {total >> 20} MiB)" if total >> 20 else ""


if __name__ == "__main__":
    end_of_imports()
    main(msgspec.json.decode(sys.argv[1], type=DownloadRequest))

"""Files on HTTP servers: tried in turn, resumed after a break, with bounded retries."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from ...errors import ArtifactMissing, ResourceExhausted
from ..files import private_directory, sha256_of
from ..progress import Progress
from .hashing_writer import HashingWriter

if TYPE_CHECKING:
    import httpx

__all__ = ["RemoteFile"]

ATTEMPTS: Final = 3
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
CONNECT_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 60.0
SLOW_WINDOW_S: Final = 60.0
SLOW_BYTES: Final = 64 << 10
"""A server that sends less than this in a window has failed: some are slow for ever."""
REDIRECTS: Final = 10
PROGRESS_S: Final = 5.0
PARTIAL: Final = 206
RANGE_REFUSED: Final = 416
NO_SPACE: Final = "No space left"


class RemoteFile(msgspec.Struct, frozen=True, tag="remote-file"):
    """A file on HTTP servers.

    :param urls: where it may be, tried in turn.
    :param wait_s: how long to try again when no server has it: a build service publishes a file when it is built.
    """

    urls: tuple[str, ...]
    wait_s: float = 0.0

    def __str__(self) -> str:
        return " or ".join(self.urls)

    async def fetch(self, destination: Path, progress: Progress, *, shelf: Path) -> str:
        """Download the file; return its SHA-256. What an earlier attempt has left on the shelf is completed.

        :raises ArtifactMissing: when no server gives it, with what each one answered.
        :raises ResourceExhausted: when there is no space left.
        """
        import httpx  # a run that downloads nothing does not pay for it

        name = hashlib.sha256("\n".join(self.urls).encode()).hexdigest()[:32]
        part = private_directory(shelf) / f"{name}.download"
        deadline_s, pause_s = time.monotonic() + self.wait_s, FIRST_PAUSE_S
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        async with httpx.AsyncClient(follow_redirects=True, max_redirects=REDIRECTS, timeout=timeout) as client:
            while True:
                failures = []
                for url in self.urls:
                    try:
                        sha256 = await self._try(client, url, part, progress)
                    except _NotHad as error:
                        failures.append(str(error))
                    else:
                        part.replace(destination)
                        return sha256
                if time.monotonic() >= deadline_s:
                    raise ArtifactMissing(
                        "; ".join(failures), hint="check the network and the URLs, or give a local file"
                    )
                progress(f"{failures[-1]}: trying again in {pause_s:.0f} s")
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _try(self, client: httpx.AsyncClient, url: str, part: Path, progress: Progress) -> str:
        """Download from one server; return the SHA-256.

        :raises _NotHad: when the server does not give it, with the reason.
        """
        import httpx

        reason, pause_s = "", FIRST_PAUSE_S
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(pause_s)
                pause_s *= 2
            try:
                return await _download(client, url, part, progress)
            except httpx.HTTPStatusError as error:
                reason = f"{url}: {error.response.status_code} {error.response.reason_phrase}"
                if error.response.status_code == RANGE_REFUSED:
                    part.unlink(missing_ok=True)  # it is longer than the file: not the same one
                elif not error.response.is_server_error:
                    break
            except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
                reason = f"{url}: {error}"
                break
            except (httpx.HTTPError, _TooSlow) as error:
                reason = f"{url}: {error or type(error).__name__}"
            except OSError as error:
                raise ResourceExhausted(
                    f"{part} cannot be written: {error.strerror}",
                    hint="free some space there",
                ) from None
        raise _NotHad(reason)


class _NotHad(Exception):
    """Raised when a server does not give a file."""


class _TooSlow(Exception):
    """Raised when a server sends next to nothing."""


async def _download(client: httpx.AsyncClient, url: str, part: Path, progress: Progress) -> str:
    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    async with client.stream("GET", url, headers=headers) as answer:
        if start and answer.status_code == RANGE_REFUSED and _whole_size(answer) == start:
            return await sha256_of(part)
        answer.raise_for_status()
        resumed = answer.status_code == PARTIAL
        done = start if resumed else 0
        total = done + int(answer.headers.get("content-length", 0))
        progress(f"{'going on with' if resumed else 'downloading'} {url}{_size(total)}")
        window_s, window, told_s = time.monotonic(), done, time.monotonic()
        async with HashingWriter.open(part, append=resumed) as file:
            async for data in answer.aiter_raw():
                await file.write(data)
                done += len(data)
                now_s = time.monotonic()
                if now_s - window_s > SLOW_WINDOW_S:
                    if done - window < SLOW_BYTES:
                        raise _TooSlow(f"it sent only {done - window} bytes in {SLOW_WINDOW_S:.0f} s")
                    window_s, window = now_s, done
                if now_s - told_s > PROGRESS_S:
                    told_s = now_s
                    progress(f"{url}: {done >> 20} MiB{_size(total)}")
        return file.sha256


def _whole_size(answer: httpx.Response) -> int | None:
    """Return the size of a file of which nothing is left to send."""
    size = answer.headers.get("content-range", "").rpartition("/")[2]
    return int(size) if size.isdigit() else None


def _size(total: int) -> str:
    return f" (of {total >> 20} MiB)" if total >> 20 else ""

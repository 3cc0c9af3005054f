"""A file of this machine for several hosts: it is sent to one of them, from which the others fetch it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, Self

from ...agent_api.messages import FetchFile, FileDigest
from ...errors import AgentError, HostError, HostLost
from ...ledger.rendezvous import Rendezvous
from ...storage.progress import Progress
from ..agent_clients.asynchronous import AsyncAgentClient
from ..ssh.link_client import link_base

__all__ = ["LARGE_BYTES", "SharedFile", "SharingHost", "path_of_content", "provide"]

logger = logging.getLogger(__name__)

LARGE_BYTES: Final = 1 << 20
"""A smaller file is sent to each host: that takes less than a connection between them."""

ANSWER_TIMEOUT_S: Final = 5.0
MOST_SOURCES: Final = 2
"""Hosts that do not reach each other say so after seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedFile:
    """A file of this machine.

    :param content: the name of its content, which its path on hosts consists of.
    :param digest: returns what `file_stream.digest` does.
    """

    path: Path
    content: str
    size: int
    mode: int
    digest: Callable[[], str]


class SharingHost(Protocol):
    """A host that may have files and templates that others need."""

    @property
    def name(self) -> str: ...

    @property
    def run_id(self) -> str: ...

    async def client(self) -> AsyncAgentClient: ...

    async def files_directory(self) -> Path | None:
        """Return its directory of files that are named by their content; None if the run has no agent there now."""

    async def direct_address_of(self, other: Self) -> str | None:
        """Return the address at which its agent reaches that of another host directly; None if it does not."""


def path_of_content(directory: Path, content: str, name: str) -> str:
    """Return the path of a file in the directory of files that are named by their content."""
    return str(directory / content[:32] / name)


async def provide(
    file: SharedFile,
    *,
    to: SharingHost,
    others: Sequence[SharingHost],
    send: Callable[[], Awaitable[None]],
    progress: Progress,
) -> None:
    """Provide a host with a file, from another host that has it and that it reaches, else from this machine.

    While it is sent from here to one host, the others of the run wait, whichever process wants it for them.

    :param others: the other hosts of the run.
    :param send: sends it from this machine, unless it is there; goes on where an earlier transfer was broken off.
    :raises HostError: when it cannot be sent.
    """
    async with _sending(file, (to, *others)):
        if await _has(to, file):
            return
        source = await _source(file, to, others)
        if source is None:
            await send()
            return
    if not await _fetch(file, to, *source, progress=progress):
        async with _sending(file, (to, *others)):
            await send()


def _sending(file: SharedFile, hosts: Sequence[SharingHost]) -> AbstractAsyncContextManager[None]:
    """Exclude all other processes of the run that are about to send the same content."""
    run = min(host.run_id for host in hosts)  # it has an id of its own for each host
    return Rendezvous(link_base(), f"{run}-{file.content[:16]}").hold()


async def _has(host: SharingHost, file: SharedFile) -> bool:
    place = await _place(host, file)
    if place is None:
        return False
    async with await host.client() as agent:
        return await agent.has_file(place, file.size)


async def _place(host: SharingHost, file: SharedFile) -> str | None:
    directory = await host.files_directory()
    return path_of_content(directory, file.content, file.path.name) if directory else None


async def _source(file: SharedFile, to: SharingHost, others: Sequence[SharingHost]) -> tuple[SharingHost, str] | None:
    """Return a host that has a file, and its address for the one that wants it; None if there is none."""
    found = await asyncio.gather(*(_has_now(other, file) for other in others))
    having = [other for other, has in zip(others, found, strict=True) if has]
    for other in random.sample(having, min(MOST_SOURCES, len(having))):  # so that not all fetch it from one
        with contextlib.suppress(HostLost):
            if (address := await to.direct_address_of(other)) is not None:
                return other, address
    return None


async def _has_now(host: SharingHost, file: SharedFile) -> bool:
    """As `_has`; False if the host does not answer soon."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return await _has(host, file)
    except (HostError, TimeoutError):
        return False


async def _fetch(file: SharedFile, to: SharingHost, source: SharingHost, address: str, *, progress: Progress) -> bool:
    """Have a host fetch a file from another one, and return whether it has it."""
    here, there = await _place(to, file), await _place(source, file)
    assert here is not None
    if there is None:
        return False
    wanted = FetchFile(
        id=secrets.token_hex(8), path=here, size=file.size, mode=file.mode, source=address, source_path=there
    )
    progress(f"host {to.name}: {file.path.name} comes from {source.name}")
    try:
        async with await to.client() as agent:
            fetching = agent.fetch_file(wanted, lambda text: progress(f"host {to.name}: {text} from {source.name}"))
            await _both(fetching, _tell_digest(agent, wanted.id, file))
    except HostLost:
        raise
    except AgentError as error:
        logger.warning(
            "%s does not get %s from %s, and it is sent from this machine: %s",
            to.name,
            file.path.name,
            source.name,
            error.message,
        )
        return False
    return True


async def _tell_digest(agent: AsyncAgentClient, fetch_id: str, file: SharedFile) -> None:
    """Compute the digest while the file is on its way."""
    digest = await asyncio.to_thread(file.digest)
    await agent.tell_digest(FileDigest(id=fetch_id, digest=digest))


async def _both(*works: Coroutine[Any, Any, None]) -> None:
    """Do both at the same time; a failure of one ends the other."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()

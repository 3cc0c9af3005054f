"""A template or prepared image that another host of the run has: it is fetched from there, and not made once more."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Sequence
from typing import Final

import msgspec

from ...agent_api.derived import AdoptDerived, DerivedNeeded, SentDerived, SentFile
from ...agent_api.messages import FetchFile, FileDigest
from ...errors import AgentError, HostLost, PropolisError
from ...ledger.rendezvous import Rendezvous
from ...storage.progress import Progress
from ..agent_clients.asynchronous import AsyncAgentClient
from ..ssh.link_client import link_base
from .shared_files import SharingHost, path_of_content

__all__ = ["provide_derived"]

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S: Final = 30.0
"""How long another host may take to say what it has: it reads the files once."""

PRIVATE: Final = 0o600


async def provide_derived(
    needed: DerivedNeeded, *, to: SharingHost, others: Sequence[SharingHost], progress: Progress, title: str
) -> None:
    """Provide a host with what another host has made and that it reaches, unless it has it.

    Otherwise nothing happens: the host makes it itself. The processes of a run that need it on one host wait for each
    other.

    :param others: the other hosts of the run.
    :param title: what it is, for users.
    :raises HostLost: when the host itself is lost.
    """
    try:
        async with await to.client() as agent:
            state = await agent.derived_state(needed)
            if state.is_there:
                return
            async with Rendezvous(link_base(), f"{to.run_id}-{state.identity[:16]}").hold():
                if (await agent.derived_state(needed)).is_there:
                    return
                found = await _source(state.identity, to, others)
                if found is not None:
                    await _take(needed, agent, to, *found, progress=progress, title=title)
    except HostLost:
        raise
    except PropolisError as error:
        logger.warning("host %s makes %s itself: %s", to.name, title, error.message)


async def _source(
    identity: str, to: SharingHost, others: Sequence[SharingHost]
) -> tuple[SharingHost, str, SentDerived] | None:
    """Return a host that has it, its address for the one that needs it, and what is sent; None if there is none."""
    found = await asyncio.gather(*(_found_at(other, identity) for other in others))
    having = [(other, sent) for other, sent in zip(others, found, strict=True) if sent]
    for other, sent in random.sample(having, min(1, len(having))):  # so that not all fetch it from one
        with contextlib.suppress(HostLost):
            if (address := await to.direct_address_of(other)) is not None:
                return other, address, sent
    return None


async def _found_at(host: SharingHost, identity: str) -> SentDerived | None:
    """Return what is sent; None if the host does not have it, or does not answer soon."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            if await host.files_directory() is None:
                return None
            async with await host.client() as agent:
                return await agent.find_derived(identity)
    except (PropolisError, TimeoutError):
        return None


async def _take(
    needed: DerivedNeeded,
    agent: AsyncAgentClient,
    to: SharingHost,
    source: SharingHost,
    address: str,
    sent: SentDerived,
    *,
    progress: Progress,
    title: str,
) -> None:
    progress(f"host {to.name}: {title} comes from {source.name}")
    directory = await to.files_directory()
    if directory is None:
        raise AgentError("its agent has ended")
    files = []
    for file in sent.files:
        place = path_of_content(directory, file.digest, file.name)
        await _fetch(file, agent, place, address, lambda text: progress(f"host {to.name}: {text} from {source.name}"))
        files.append(msgspec.structs.replace(file, path=place))
    adopted = AdoptDerived(needed=needed, sent=msgspec.structs.replace(sent, files=tuple(files)))
    await agent.adopt_derived(adopted, progress)


async def _fetch(file: SentFile, agent: AsyncAgentClient, place: str, address: str, progress: Progress) -> None:
    wanted = FetchFile(
        id=secrets.token_hex(8), path=place, size=file.size, mode=PRIVATE, source=address, source_path=file.path
    )
    await agent.tell_digest(FileDigest(id=wanted.id, digest=file.digest))
    await agent.fetch_file(wanted, progress)

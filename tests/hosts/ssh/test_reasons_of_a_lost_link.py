"""Why a link says that its host is lost, when the end of its channels and that of the connection are found in turn."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_propolis.hosts.ssh.link import Link
from pytest_propolis.hosts.ssh.link_messages import LinkConfig
from pytest_propolis.hosts.ssh.transport.transport import SshDestination


class EndingTransport:
    """A connection whose channels have ended, and whose own end is known a moment later."""

    errors = (OSError,)
    label = "the connection"
    remedy = ""

    def __init__(self, reason: Exception | None) -> None:
        self.channels_ended = asyncio.Event()
        self._reason = reason

    async def forward(self, local: Path, remote: str) -> None:
        """Nothing connects."""

    async def wait_closed(self) -> None:
        await self.channels_ended.wait()
        for _ in range(3):  # the link has found its channels at their end by then
            await asyncio.sleep(0)
        if self._reason is not None:
            raise self._reason

    async def read(self, _size: int) -> bytes:
        self.channels_ended.set()
        raise ConnectionResetError("a channel has ended")


@pytest.mark.parametrize(
    ("reason", "told"),
    [(ConnectionResetError("the machine has left"), "the machine has left"), (None, "a channel has ended")],
    ids=["known", "unknown"],
)
async def test_what_the_connection_says_counts_and_else_what_its_channel_has_raised(
    tmp_path: Path, reason: Exception | None, told: str
) -> None:
    transport: Any = EndingTransport(reason)
    channel = SimpleNamespace(
        stdin=SimpleNamespace(write=lambda data: None), stdout=SimpleNamespace(read=transport.read)
    )
    agent: Any = SimpleNamespace(started=SimpleNamespace(socket="agent.sock"), channel=channel)
    config = LinkConfig(
        destination=SshDestination(name="far", address="far"), run="a" * 16, directory=str(tmp_path), bundle_cache=""
    )
    link = Link(config, transport, agent)
    ready, written = os.pipe()
    try:
        await link.serve(written)
    finally:
        os.close(ready)
    assert link._over.result() == f"the connection was lost: {told}"

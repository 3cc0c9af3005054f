"""Hosts that were lost, and are asked again and again whether they can be used."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from ..errors import PropolisError
from ..hosts.run_hosts import open_hosts
from ..settings import Settings
from .background_loop import BackgroundLoop

__all__ = ["Rejoining"]

PERIOD_S: Final = 5.0
"""How long after an attempt the next one is made."""


class Rejoining:
    """Connects to lost hosts until they can be used.

    :param shared_id: the secret that all processes of the run share.
    """

    def __init__(self, settings: Settings, background: BackgroundLoop, *, shared_id: str) -> None:
        self._settings = settings
        self._background = background
        self._shared_id = shared_id

    def watch(self, name: str, back: Callable[[], None]) -> None:
        """Try a host until it can be used.

        :param back: called then, in the background's thread.
        """
        self._background.start(self._until_used(name, back))

    async def _until_used(self, name: str, back: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            with contextlib.suppress(PropolisError, OSError):
                await self._use(name)
                back()
                return

    async def _use(self, name: str) -> None:
        hosts = open_hosts(self._settings, shared_id=self._shared_id)
        host = next(host for host in hosts if host.name == name)
        try:
            client = await host.client()
            await client.aclose()
        finally:
            await asyncio.to_thread(host.close)

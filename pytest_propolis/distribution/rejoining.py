"""Hosts that were lost, and are asked again and again whether they can be used."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Final

from ..errors import PropolisError
from ..hosts.run_hosts import open_hosts
from ..settings import Settings

__all__ = ["Rejoining"]

PERIOD_S: Final = 5.0
"""How long after an attempt the next one is made."""

END_S: Final = 10.0
"""How long an attempt may take to end that is cancelled."""


class Rejoining:
    """Connects to lost hosts in threads of its own: the controller's thread has no event loop, and may not wait.

    :param shared_id: the secret that all processes of the run share.
    """

    def __init__(self, settings: Settings, *, shared_id: str) -> None:
        self._settings = settings
        self._shared_id = shared_id
        self._attempts: list[_Attempts] = []

    def watch(self, name: str, back: Callable[[], None]) -> None:
        """Try a host until it can be used.

        :param back: called then, in another thread.
        """
        self._attempts = [attempts for attempts in self._attempts if attempts.is_alive()]
        self._attempts.append(_Attempts(lambda: self._use(name), back))
        self._attempts[-1].start()

    def end(self) -> None:
        """Try no more. Returns when attempts that were being made have left nothing behind."""
        for attempts in self._attempts:
            attempts.cancel()
        for attempts in self._attempts:
            attempts.join(END_S)

    async def _use(self, name: str) -> None:
        hosts = open_hosts(self._settings, shared_id=self._shared_id)
        host = next(host for host in hosts if host.name == name)
        try:
            client = await host.client()
            await client.aclose()
        finally:
            await asyncio.to_thread(host.close)


class _Attempts(threading.Thread):
    """A thread that tries something until it succeeds, or is cancelled."""

    def __init__(self, attempt: Callable[[], Awaitable[None]], succeeded: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._attempt = attempt
        self._succeeded = succeeded
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._is_cancelled = False

    def cancel(self) -> None:
        self._is_cancelled = True
        with contextlib.suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(lambda: self._task and self._task.cancel())

    def run(self) -> None:
        with contextlib.closing(self._loop):
            self._task = self._loop.create_task(self._until_it_succeeds())
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._task)
        if not self._is_cancelled:
            self._succeeded()

    async def _until_it_succeeds(self) -> None:
        while not self._is_cancelled:
            await asyncio.sleep(PERIOD_S)
            with contextlib.suppress(PropolisError, OSError):
                await self._attempt()
                return

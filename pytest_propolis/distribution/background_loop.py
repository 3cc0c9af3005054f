"""An event loop in a thread: the controller's own thread has none, and may not wait."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

__all__ = ["BackgroundLoop"]

END_TIMEOUT_S: Final = 20.0
"""How long what still runs may take to end when it is cancelled."""


class BackgroundLoop:
    """Runs coroutines beside the controller. The thread starts with the first of them."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Begin a coroutine, and return at once. It may be called in any thread."""
        if self._loop is None:
            from ..propolis_api.connection.sockets import new_event_loop  # here, because many runs never get here

            self._loop = new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="propolis-background", daemon=True)
            self._thread.start()
        self._loop.call_soon_threadsafe(self._start, coroutine)

    def end(self, last: Callable[[], Awaitable[None]] | None = None) -> None:
        """Cancel what still runs, and wait for its end, for a limited time. Idempotent.

        :param last: called then in the loop, if it ever ran.
        """
        if self._loop is None or self._thread is None or self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._cancel(last), self._loop)
        self._thread.join(END_TIMEOUT_S)
        if not self._thread.is_alive():
            self._loop.close()

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel(self, last: Callable[[], Awaitable[None]] | None) -> None:
        assert self._loop is not None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(Exception):  # what is left behind is found by the check at the end of the run
            if last is not None:
                await last()
        self._loop.stop()

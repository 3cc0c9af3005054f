"""Templates that the scheduler wants to be made, before tests ask for them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import PropolisError
from ..hosts.run_hosts import open_hosts
from ..settings import Settings

if TYPE_CHECKING:
    from ..guests.registry import GuestRegistry
    from ..hosts.host import Host

__all__ = ["TemplateMaking"]

END_S: Final = 20.0
"""How long it may take to end what is being made."""


class TemplateMaking:
    """Makes templates in a thread of its own, which has the event loop that the controller's has not.

    :param shared_id: the secret that all processes of the run share.
    :param say: shows a line to the person at the terminal; called in that thread.
    """

    def __init__(
        self, settings: Settings, guests: GuestRegistry, *, shared_id: str, log_dir: Path, say: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._guests = guests
        self._log_dir = log_dir
        self._say = say
        self._hosts = {host.name: host for host in open_hosts(settings, shared_id=shared_id)}
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="propolis-templates", daemon=True)
        self._thread.start()

    def make(self, host: str, guest: str, done: Callable[[], None]) -> None:
        """Have a host make the template of a guest.

        :param done: called when it is there, or cannot be made, in the thread. Tests then boot without it, and say why.
        """
        self._loop.call_soon_threadsafe(self._start, self._hosts[host], guest, done)

    def end(self) -> None:
        """End what is being made, and let go of the hosts. Ending twice is fine."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._cancel(), self._loop)
            self._thread.join(END_S)
            if not self._thread.is_alive():
                self._loop.close()

    def _start(self, host: Host, guest: str, done: Callable[[], None]) -> None:
        task = self._loop.create_task(self._make(host, guest, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _make(self, host: Host, guest: str, done: Callable[[], None]) -> None:
        from ..vm.warm_start.preparation import prepare_template

        with contextlib.suppress(PropolisError, OSError):  # the test that needs it says so
            await prepare_template(
                host,
                self._guests.get(guest),
                self._settings,
                log_dir=self._log_dir / host.name / guest,
                progress=lambda text: self._say(f"propolis: host {host.name}: {text}"),
            )
        done()

    async def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # What is left behind there is found by the check at the end of the run.
        await asyncio.gather(*(asyncio.to_thread(host.close) for host in self._hosts.values()), return_exceptions=True)
        self._loop.stop()

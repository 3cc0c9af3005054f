"""Templates that the scheduler requests before tests ask for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PropolisError
from ..hosts.run_hosts import open_hosts
from ..settings import Settings
from .background_loop import BackgroundLoop

if TYPE_CHECKING:
    from ..guests.registry import GuestRegistry

__all__ = ["TemplatePreparer"]


class TemplatePreparer:
    """Makes templates on the hosts of a run.

    :param shared_id: the secret that all processes of the run share.
    :param say: shows a line to the person at the terminal; called in the background's thread.
    """

    def __init__(
        self,
        settings: Settings,
        guests: GuestRegistry,
        background: BackgroundLoop,
        *,
        shared_id: str,
        log_dir: Path,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._guests = guests
        self._background = background
        self._log_dir = log_dir
        self._say = say
        self._hosts = {host.name: host for host in open_hosts(settings, shared_id=shared_id)}

    def make(self, host: str, guest: str, done: Callable[[], None]) -> None:
        """Have a host make the template of a guest.

        :param done: called when it is there, or cannot be made, in the background's thread. Tests then boot without it,
            and say why.
        """
        self._background.start(self._make(host, guest, done))

    async def aclose(self) -> None:
        """Let go of the hosts."""
        await asyncio.gather(*(asyncio.to_thread(host.close) for host in self._hosts.values()), return_exceptions=True)

    async def _make(self, host: str, guest: str, done: Callable[[], None]) -> None:
        with contextlib.suppress(PropolisError, OSError):  # the test that needs it says so
            # Its agent starts while what is asked of it is imported.
            agent, prepare_template = await asyncio.gather(self._hosts[host].client(), asyncio.to_thread(_import))
            await agent.aclose()
            await prepare_template(
                self._hosts[host],
                self._guests.get(guest),
                self._settings,
                log_dir=self._log_dir / host / guest,
                progress=lambda text: self._say(f"propolis: host {host}: {text}"),
            )
        done()


def _import() -> Callable[..., Awaitable[None]]:
    from ..vm.warm_start.preparation import prepare_template

    return prepare_template

"""Leases in etcd: for runs on several machines.

``leases/HOST/ID`` describes a run that requests a host, and is on a lease of that run. The run of the oldest of these
keys has the host. The keys of a run that was killed expire with its lease.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import secrets
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from ...agent_api.key_value import Entry, Put
from ...coordination.backends.address import connect_store
from ...coordination.lease_keeper import LeaseKeeper
from ...coordination.mirror import Mirror
from ..background_loop import BackgroundLoop
from .holder import Holder, decode_holder

__all__ = ["EtcdLeases"]

TTL_S: Final = 10.0
DIRECTORY: Final = "leases/"


class EtcdLeases:
    """Takes hosts, and keeps them until it is closed, or for some seconds after its process has ended.

    :param store: the address of etcd.
    :param say: shows a line to the user; it is called in another thread.
    """

    def __init__(self, store: str, *, say: Callable[[str], None]) -> None:
        self._store = store
        self._say = say
        self._id = secrets.token_hex(8)
        self._background = BackgroundLoop()

    def take(self, names: Sequence[str], me: Holder) -> None:
        """Wait until this run has all hosts of these names.

        :raises CoordinationError: when etcd cannot be reached, or refuses.
        """
        taken: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._background.start(self._hold(names, me, taken))
        taken.result()

    def close(self) -> None:
        """Release the hosts. Idempotent."""
        self._background.end()

    async def _hold(self, names: Sequence[str], me: Holder, taken: concurrent.futures.Future[None]) -> None:
        """Take the hosts, report that, and keep them until this is cancelled."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                backend = await stack.enter_async_context(contextlib.aclosing(await connect_store(self._store)))
                mirror = await stack.enter_async_context(contextlib.aclosing(Mirror(backend, DIRECTORY)))
                await mirror.start()
                keeper = LeaseKeeper(backend, await backend.grant(TTL_S), ttl_s=TTL_S, on_lost=self._lose)
                stack.push_async_callback(keeper.revoke)
                for name in names:
                    put = Put(f"{DIRECTORY}{name}/{self._id}", msgspec.json.encode(me), keeper.lease)
                    outcome = await backend.commit(put)
                    await mirror.reach(outcome.revision, puts=(f"{name}/{self._id}",), deletes=())
                    await self._wait(name, mirror)
                taken.set_result(None)
                await asyncio.Event().wait()
        except Exception as error:
            if not taken.done():
                taken.set_exception(error)

    async def _wait(self, name: str, mirror: Mirror) -> None:
        """Wait until this run has a host, and say meanwhile which one has it."""
        waited = False
        while (first := _first(mirror, f"{name}/"))[0] != self._id:
            waited, (identity, entry) = True, first
            holder = decode_holder(entry.value)
            self._say(f"propolis: waiting for host {name}: {holder or 'another run has it'}")
            await mirror.until(lambda: _first(mirror, f"{name}/")[0] != identity or None, on=(f"{name}/",))  # noqa: B023
        if waited:
            self._say(f"propolis: host {name} is free now")

    def _lose(self, reason: str) -> None:
        self._say(f"propolis: this run has lost its hosts to other runs (--propolis-leases): {reason}")


def _first(mirror: Mirror, directory: str) -> tuple[str, Entry]:
    """Return the oldest key of a directory, in which there is at least this run's.

    :raises CoordinationLost: when etcd is no longer followed.
    """
    mirror.require()
    there = mirror.below(directory)
    return min(there.items(), key=lambda item: item[1].revision)

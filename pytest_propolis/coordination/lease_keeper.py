"""A lease that is kept alive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from ..errors import CoordinationError
from .backends.backend import Backend

__all__ = ["EXPIRED", "LeaseKeeper"]

EXPIRED: Final = "its lease of {:g} s has expired"

SIGNS_PER_TTL = 3


class LeaseKeeper:
    """Gives a lease three signs of life within its time, in the background.

    :param on_lost: called once with the reason, when the lease is gone although it was kept alive.
    """

    def __init__(self, backend: Backend, lease: int, *, ttl_s: float, on_lost: Callable[[str], None]) -> None:
        self._backend = backend
        self._on_lost = on_lost
        self._ttl_s = ttl_s
        self.lease = lease
        self._task = asyncio.create_task(self._keep())

    async def is_alive(self) -> bool:
        """Return whether the lease is there, and give it a sign of life."""
        return await self._backend.keep_alive(self.lease)

    async def revoke(self) -> None:
        """End the lease, and delete its keys."""
        await self.aclose()
        await self._backend.revoke(self.lease)

    async def aclose(self) -> None:
        """Stop keeping it alive: it expires by itself. Idempotent."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep(self) -> None:
        try:
            while True:
                await asyncio.sleep(self._ttl_s / SIGNS_PER_TTL)
                if not await self._backend.keep_alive(self.lease):
                    self._on_lost(EXPIRED.format(self._ttl_s))
                    return
        except CoordinationError as error:
            self._on_lost(error.message)

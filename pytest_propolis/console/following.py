"""How a client follows a guest that migrates: where it has gone if the source is lost before it reports that, and which
input the target must be sent again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from ..propolis_api.serial import SerialConsoleMoved

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

__all__ = ["MOVED", "ExpectedMove", "Follow", "Sent"]

MOVED: Final = "the guest has moved to another VM"

Follow = Callable[[SerialConsoleMoved], Awaitable["ClientConnection"]]
"""Opens the console again where a guest that migrates has gone."""

KEPT_BYTES: Final = 4 << 20
"""More than can be on its way to a server that has not read it."""


class ExpectedMove:
    """The move of a guest that the client has requested. Settle it in any case.

    :param destination: the target's server, as an address.
    """

    def __init__(self, destination: str) -> None:
        self._destination = destination
        self._is_handed_over: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def settle(self, *, is_handed_over: bool) -> None:
        """Tell whether the target has the guest. Only the first call counts."""
        if not self._is_handed_over.done():
            self._is_handed_over.set_result(is_handed_over)

    async def outcome(self, offset: int) -> SerialConsoleMoved | None:
        """Wait until it is settled, and return where the console goes on; None if the guest was not handed over.

        How much of what was typed at the source has reached the guest is not known: what was sent last may be lost.

        :param offset: up to where its output was received.
        """
        if not await asyncio.shield(self._is_handed_over):
            return None
        return SerialConsoleMoved(destination=self._destination, from_start=offset)


class Sent:
    """The last that was sent over one connection, and how much it was in all.

    `total` is how much it was. `is_sent_on` is set when what the guest's last host has not taken is sent to the next.
    """

    def __init__(self) -> None:
        self.is_sent_on = False
        self.total = 0
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0

    def append(self, data: bytes) -> None:
        self.total += len(data)
        self._kept.append(data)
        self._kept_bytes += len(data)
        while self._kept_bytes - len(self._kept[0]) >= KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popleft())

    def beyond(self, taken: int) -> tuple[bytes, int]:
        """What follows the first `taken` bytes, and how many bytes of that are not known any more: those before it."""
        forgotten = self.total - self._kept_bytes
        rest = b"".join(self._kept)[max(taken - forgotten, 0) :]
        return rest, max(forgotten - taken, 0)

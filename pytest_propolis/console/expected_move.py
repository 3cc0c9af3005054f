"""A migration whose outcome the client learns from the target, if the source is lost before it reports it."""

from __future__ import annotations

import asyncio

from ..propolis_api.serial import SerialConsoleMoved

__all__ = ["ExpectedMove"]


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

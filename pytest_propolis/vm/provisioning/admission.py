"""Admission of a VM to a host: repeat a request while there is no memory for it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from ...errors import HostBusy, ResourceExhausted
from ..timings import Timings

__all__ = ["retry_while_busy"]

ADMISSION_TIMEOUT_S: Final = 600.0

T = TypeVar("T")


async def retry_while_busy(
    name: str, request: Callable[[], Awaitable[T]], phases: Timings, *, progress: Callable[[str], None]
) -> T:
    """Ask for a VM until there is memory for it, and say once that it waits.

    :param phases: receives how long it waited.
    :raises ResourceExhausted: when there is none for long.
    """
    began = time.monotonic()
    while True:
        try:
            answer = await request()
        except ResourceExhausted as error:
            raise error.with_context(vm=name) from None
        except HostBusy as busy:
            waited_s = time.monotonic() - began
            if waited_s > ADMISSION_TIMEOUT_S:
                raise ResourceExhausted(busy.message, vm=name, waited_s=waited_s, hint=busy.hint) from None
            if "queue" not in phases.took_s:
                progress(f"VM {name!r} waits for memory: {busy.message}")
            phases.took_s["queue"] = time.monotonic() - began
        else:
            return answer

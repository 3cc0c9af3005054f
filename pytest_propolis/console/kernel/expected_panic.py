"""A panic that a test expects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from ...errors import BootError, ConsoleClosed, ConsoleTimeout, GuestPanicked, PropolisError, ShellLost

if TYPE_CHECKING:
    from ..console import Console
    from .failures import Expectation, KernelFailures

__all__ = ["expected_panic"]

CONSEQUENCES: Final = (GuestPanicked, BootError, ShellLost, ConsoleClosed)
"""How a panic ends what waits for the guest meanwhile."""


@asynccontextmanager
async def expected_panic(
    failures: KernelFailures, console: Callable[[], Console], *, timeout_s: float
) -> AsyncIterator[Expectation]:
    """Expect a panic in the block, or within a time after it. See `TestVm.expect_panic`."""
    with failures.expecting() as expectation:
        try:
            yield expectation
        except CONSEQUENCES as error:
            if expectation.line is None or error.vm != failures.vm:
                raise
        await _until_over(expectation, failures, console(), timeout_s=timeout_s)


async def _until_over(
    expectation: Expectation, failures: KernelFailures, console: Console, *, timeout_s: float
) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            if not expectation.over.done():
                console.transcript.on_failure(expectation.over)
            await expectation.over
    except TimeoutError:
        if expectation.line is None:  # a panic that has come is enough: not every server reports the reset after it
            raise ConsoleTimeout(
                "the guest was expected to panic, and its console shows no panic",
                vm=failures.vm,
                waited_s=timeout_s,
                console_tail=console.tail(),
                log_path=str(console.log_path),
            ) from None
    except PropolisError:
        if expectation.line is None:
            raise

"""The messages of a guest's kernel."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from ...errors import ConsoleError, ShellError

if TYPE_CHECKING:
    from ..console import Console

__all__ = ["kernel_messages"]

_MESSAGE: Final = re.compile(r"\[ *\d+\.\d+\].*")


async def kernel_messages(console: Console, dmesg: Callable[[], Awaitable[str]]) -> tuple[str, ...]:
    """Return the kernel's messages of this boot: from the guest, or else from what its console has shown."""
    try:
        return tuple((await dmesg()).splitlines())
    except (ShellError, ConsoleError):
        return tuple(_MESSAGE.findall(console.transcript.since(console.boot_start)))

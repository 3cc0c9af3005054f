"""Login prompts on a serial console."""

from __future__ import annotations

import re
from typing import Final

from ..console.console import Console
from ..errors import BootError

__all__ = ["log_in_at_prompts"]

LOGIN_PROMPT: Final = re.compile(r"^\S+ login: ", re.MULTILINE)
ASKED: Final = r"([Pp]assword: ?)"


async def log_in_at_prompts(console: Console, *, user: str, prompt: re.Pattern[str]) -> None:
    """Wait for a login prompt of any host name; log in without a password, and wait for a shell's prompt.

    :param prompt: the shell's; it has no groups.
    :raises BootError: when the guest asks for a password.
    """
    await console.transcript.wait_for(LOGIN_PROMPT)
    await console.send(f"{user}\n")
    found = await console.transcript.wait_for(re.compile(f"{ASKED}|{prompt.pattern}"))
    if found.groups[0]:
        raise BootError(
            f"the guest asks for a password of {user!r}",
            hint="prepare the image without one, or write a guest adapter that types it",
            console_tail=console.tail(),
            log_path=str(console.log_path),
        )

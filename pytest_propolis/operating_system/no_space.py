"""Whether an error means that no space is left, in a file system, in a quota or in the allowed size of a file."""

from __future__ import annotations

import errno
from typing import Final

__all__ = ["is_no_space", "reports_no_space"]

NUMBERS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
MESSAGES: Final = ("no space left on device", "disk quota exceeded", "file too large", "out of space", "quota exceeded")


def is_no_space(error: OSError) -> bool:
    """Return whether a system call has failed for want of space."""
    return error.errno in NUMBERS


def reports_no_space(output: str) -> bool:
    """Return whether a program's messages, in English, say that there is no space left."""
    lowered = output.lower()
    return any(message in lowered for message in MESSAGES)

"""How many files this process may have open."""

from __future__ import annotations

import errno
import resource
from typing import Final

from ..errors import ResourceExhausted

__all__ = ["raise_open_files_limit", "too_many_open_files"]

ENOUGH: Final = 1 << 16


def raise_open_files_limit() -> None:
    """Raise the soft limit to the hard one: a VM takes some thirty files, and often the limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def too_many_open_files(error: Exception) -> ResourceExhausted | None:
    """Return what an error means if it is that a limit of open files is reached; else None."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EMFILE:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return ResourceExhausted(
            f"the server has as many open files as it may have: {limit}",
            hint="raise the hard limit (`ulimit -Hn`), or run fewer VMs at once",
        )
    if number == errno.ENFILE:
        return ResourceExhausted(
            "the host has as many open files as it can have",
            hint="raise the sysctl fs.file-max, or run fewer VMs at once",
        )
    return None

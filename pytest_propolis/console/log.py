"""The log of a console: a file for a person to read, up to the last character shown."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ..errors import HostError, ResourceExhausted
from ..operating_system.no_space import is_no_space

__all__ = ["ConsoleLog", "log_place_error", "make_log_directory"]

FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
"""No link is followed: in a directory of another user's it could lead to any file of this user's."""

HINT: Final = "free some space there, or choose another place with --propolis-log-dir"


class ConsoleLog:
    """A log file that is written at once, also where a line is not finished. What is there already is kept.

    A log that cannot be written any more ends no test: `failure` says why it is incomplete.

    :raises HostError: when the file cannot be had.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failure: str | None = None
        try:
            self._fd = os.open(path, FLAGS, 0o600)
        except OSError as error:
            raise log_place_error(path, error) from None

    def write(self, text: str) -> None:
        if self._fd < 0 or self.failure:
            return
        try:
            left = memoryview(text.encode(errors="replace"))
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            self.failure = error.strerror

    def close(self) -> None:
        """Write no more. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def make_log_directory(path: Path) -> None:
    """Make the directory of a test's logs.

    :raises HostError: when it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise log_place_error(path, error) from None


def log_place_error(path: Path, error: OSError) -> HostError:
    """Return an operating system error about a log's path as an error that names it."""
    kind = ResourceExhausted if is_no_space(error) else HostError
    return kind(f"the log {path} cannot be written: {error.strerror}", hint=HINT)

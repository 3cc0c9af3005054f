"""The progress of a transfer, for users."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

__all__ = ["Meter", "OnProgress", "Progress"]

LOGGED_EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of a transfer.

    :param name: the file in the guest.
    :param done_bytes: the bytes transferred so far.
    :param total_bytes: the bytes to transfer; None if unknown, as for a directory in the guest.
    """

    name: str
    done_bytes: int
    total_bytes: int | None

    def __str__(self) -> str:
        total = "" if self.total_bytes is None else f" of {_megabytes(self.total_bytes)}"
        return f"{self.name}: {_megabytes(self.done_bytes)}{total} MB"


OnProgress = Callable[[Progress], None]


class Meter:
    """Counts the bytes of one transfer, and reports them.

    :param log: takes a line now and then, and one at the end.
    """

    def __init__(
        self, name: str, total_bytes: int | None, *, log: Callable[[str], None], on_progress: OnProgress | None
    ) -> None:
        self._name = name
        self._total_bytes = total_bytes
        self._log = log
        self._on_progress = on_progress
        self._done_bytes = 0
        self._began_s = self._logged_s = time.monotonic()

    @property
    def done_bytes(self) -> int:
        return self._done_bytes

    def at(self, done_bytes: int) -> None:
        """Tell how much was transferred; less than before, if a part must be transferred again."""
        self._done_bytes = done_bytes
        now = self._now()
        if self._on_progress is not None:
            self._on_progress(now)
        if time.monotonic() - self._logged_s > LOGGED_EVERY_S:
            self._logged_s = time.monotonic()
            self._log(str(now))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        outcome = "done" if kind is None else "failed"
        self._log(f"{self._now()} in {time.monotonic() - self._began_s:.1f} s: {outcome}")

    def _now(self) -> Progress:
        return Progress(name=self._name, done_bytes=self._done_bytes, total_bytes=self._total_bytes)


def _megabytes(number: int) -> str:
    return f"{number / 1e6:.2f}"

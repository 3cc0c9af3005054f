"""The run that has a host."""

from __future__ import annotations

import time

import msgspec

__all__ = ["Holder", "decode_holder"]


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A run that has a host.

    :param machine: where it runs; empty for this machine.
    :param since: since when, in s since the epoch.
    """

    pid: int
    user: str
    directory: str
    machine: str = ""
    since: float

    def __str__(self) -> str:
        since = time.strftime("%H:%M:%S", time.localtime(self.since))
        where = f" on {self.machine}" if self.machine else ""
        return f"the run of {self.user} in {self.directory} (pid {self.pid}{where}), which has it since {since}"


def decode_holder(content: bytes) -> Holder | None:
    """Return what a run has written about itself; None if that is not understood."""
    try:
        return msgspec.json.decode(content, type=Holder)
    except msgspec.DecodeError:
        return None

"""Events of a guest, its disks and its QEMU, as `Machine` reports them."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from enum import Enum
from typing import Any, Self

import msgspec

__all__ = ["DiskError", "GuestEvent", "event_time_s", "exit_reason"]


class GuestEvent(Enum):
    """Events initiated by the guest."""

    RESET = "reset"
    SHUTDOWN = "shutdown"
    PANICKED = "panicked"
    EXITED = "exited"
    DISK_LOST = "disk lost"
    """A disk whose blocks are served from elsewhere: `Machine.failure` tells."""

    DISK_FAILED = "disk failed"
    """QEMU has stopped the guest, because a disk could not be written: `Machine.disk_error` tells."""


class DiskError(msgspec.Struct, frozen=True):
    """Why QEMU has stopped a guest.

    :param node: the block node that could not be written or read.
    :param is_full: whether there was no space left.
    :param reason: what the operating system said.
    """

    node: str
    is_full: bool
    reason: str

    @classmethod
    def of_event(cls, data: Mapping[str, Any]) -> Self:
        """Return the error of QEMU's event ``BLOCK_IO_ERROR``."""
        # A node that was inserted by a job has no name of ours; what is above it is the device's then.
        node = str(data.get("node-name") or data.get("device") or data.get("qom-path"))
        return cls(node, bool(data.get("nospace")), str(data.get("reason", "")))


def event_time_s(event: Mapping[str, Any]) -> float:
    """Return when QEMU sent an event, by the host's clock, in seconds since the epoch."""
    timestamp: dict[str, int] = event["timestamp"]
    return timestamp["seconds"] + timestamp["microseconds"] / 1e6


def exit_reason(status: int, last_line: str = "") -> str:
    """Describe how QEMU ended. Without a last line it has at most 123 octets, which fit into a websocket's close frame.

    :param last_line: of QEMU's output.
    """
    if status == -signal.SIGKILL:  # QEMU has printed nothing about it
        return "QEMU was killed by SIGKILL; is the host or its container out of memory?"
    reason = f"QEMU ended by itself with status {status}"
    if status < 0:
        reason = f"QEMU was ended by signal {_signal_name(-status)}"
    return f"{reason}: {last_line}" if last_line else reason


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return str(number)

"""The history of an instance's serial console."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

from msgspec import DecodeError, Struct, field
from msgspec.json import Decoder
from msgspec.structs import force_setattr

from .integers import Uint8, Uint64, require_uint64

__all__ = [
    "NOTICES_HEADER",
    "InstanceSerialConsoleHistoryResponse",
    "SerialConsoleGuestReset",
    "SerialConsoleMigrating",
    "SerialConsoleMoved",
    "is_reset_notice",
    "migration_notice",
]


class InstanceSerialConsoleHistoryResponse(Struct, frozen=True, kw_only=True):
    """A piece of what the guest has written to COM1.

    :param data: the bytes, as an array of numbers as on the wire. Bytes may be given; read them back from `content`.
    :param last_byte_offset: the offset, counted from the instance's start, that follows the last byte of `data`.
    """

    data: Sequence[Uint8]
    last_byte_offset: Uint64

    def __post_init__(self) -> None:
        require_uint64(last_byte_offset=self.last_byte_offset)
        # msgspec would write bytes as base64.
        if isinstance(self.data, bytes | bytearray | memoryview):
            force_setattr(self, "data", list(self.data))

    @property
    def content(self) -> bytes:
        """The bytes of `data`."""
        return bytes(self.data)


class SerialConsoleMoved(Struct, frozen=True, kw_only=True):
    """The new address of a serial console.

    :param destination: the server, as an address.
    :param from_start: the offset from which on to ask for its output there.
    :param typed: how many of the bytes that were sent over this connection are the guest's. The others reach it only if
        they are sent again at the destination. None from propolis-server, which does not report it.
    """

    destination: str
    from_start: Uint64
    typed: Uint64 | None = None


class SerialConsoleMigrating(Struct, frozen=True, kw_only=True):
    """The text message in a serial console's websocket that says that the guest has migrated."""

    migrating: SerialConsoleMoved = field(name="Migrating")


NOTICES_HEADER: Final = "x-propolis-notices"
"""A client that sends this header when it opens the console is notified of resets. propolis-server ignores it."""


class GuestReset(Struct, frozen=True, kw_only=True):
    """The empty body of a reset message."""


class SerialConsoleGuestReset(Struct, frozen=True, kw_only=True):
    """The text message that says that the guest has reset its machine; this project's own."""

    guest_reset: GuestReset = field(name="GuestReset")


_MIGRATIONS: Final = Decoder(SerialConsoleMigrating)
_RESETS: Final = Decoder(SerialConsoleGuestReset)


def migration_notice(message: str) -> SerialConsoleMoved | None:
    """Return where the guest has migrated to, if a server's text message says so."""
    with contextlib.suppress(DecodeError):
        return _MIGRATIONS.decode(message).migrating
    return None


def is_reset_notice(message: str) -> bool:
    """Return whether a server's text message says that the guest has reset its machine."""
    with contextlib.suppress(DecodeError):
        _RESETS.decode(message)
        return True
    return False

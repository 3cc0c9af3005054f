"""The history of an instance's serial console."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import force_setattr

from .integers import Uint8, Uint64, require_uint64

__all__ = ["InstanceSerialConsoleHistoryResponse"]


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

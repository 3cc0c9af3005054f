"""A probe of the exports of NBD servers, without QEMU, whose monitor would block meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from dataclasses import dataclass
from typing import Final

__all__ = ["Export", "NbdError", "probe_export"]

_GREETING: Final = struct.Struct(">8s8sH")
_OPTION: Final = struct.Struct(">8sII")
_REPLY: Final = struct.Struct(">QIII")
_REPLY_MAGIC: Final = 0x3E889045565A9
_FIXED_NEWSTYLE: Final = 1
_CLIENT_FLAGS: Final = struct.pack(">I", 3)
_OPTION_ABORT, _OPTION_INFO = 2, 6
_ACK, _INFO = 1, 3
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_ERROR_BIT: Final = 1 << 31
_UNKNOWN_EXPORT: Final = 0x80000006
_LONGEST_REPLY: Final = 4096
_READ_ONLY_FLAG: Final = 2


class NbdError(Exception):
    """Raised when a server does not answer as an NBD server does, or lacks the export."""


@dataclass(frozen=True, slots=True)
class Export:
    """A server's description of an export.

    :param minimum_block_bytes: the smallest transfer that it accepts.
    """

    size_bytes: int
    readonly: bool
    minimum_block_bytes: int


async def probe_export(host: str, port: int, name: str, *, timeout_s: float) -> Export:
    """Ask an NBD server for an export.

    :raises NbdError: when it lacks that export, is no NBD server, or does not answer in time.
    :raises OSError: when it cannot be reached.
    """
    writer = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
            return await _request(reader, writer, name)
    except TimeoutError:
        raise NbdError(f"{host}:{port} has not answered for {timeout_s:.1f} s") from None
    except (asyncio.IncompleteReadError, struct.error):
        raise NbdError(f"{host}:{port} hung up in the NBD handshake") from None
    finally:
        if writer is not None:
            writer.close()


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> Export:
    magic, option_magic, flags = _GREETING.unpack(await reader.readexactly(_GREETING.size))
    if (magic, option_magic) != (b"NBDMAGIC", b"IHAVEOPT") or not flags & _FIXED_NEWSTYLE:
        raise NbdError("what listens there is not a supported NBD server")
    encoded = name.encode()
    wanted = struct.pack(">I", len(encoded)) + encoded + struct.pack(">HH", 1, _INFO_BLOCK_SIZE)
    writer.write(_CLIENT_FLAGS + _OPTION.pack(b"IHAVEOPT", _OPTION_INFO, len(wanted)) + wanted)
    export, minimum = None, 1
    while True:
        kind, payload = await _reply(reader)
        if kind & _ERROR_BIT:
            reason = "there is no such export" if kind == _UNKNOWN_EXPORT else f"NBD error {kind:#x}"
            raise NbdError(f"export {name!r}: {reason}")
        if kind == _ACK:
            break
        what = struct.unpack_from(">H", payload)[0] if kind == _INFO else None
        if what == _INFO_EXPORT:
            export = struct.unpack_from(">QH", payload, 2)
        elif what == _INFO_BLOCK_SIZE:
            minimum = struct.unpack_from(">I", payload, 2)[0]
    if export is None:
        raise NbdError(f"export {name!r}: the server does not tell its size")
    with contextlib.suppress(OSError):
        writer.write(_OPTION.pack(b"IHAVEOPT", _OPTION_ABORT, 0))
        await writer.drain()
    size_bytes, transmission = export
    return Export(size_bytes, bool(transmission & _READ_ONLY_FLAG), minimum)


async def _reply(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    magic, _option, kind, length = _REPLY.unpack(await reader.readexactly(_REPLY.size))
    if magic != _REPLY_MAGIC or length > _LONGEST_REPLY:
        raise NbdError("what listens there does not speak NBD")
    return kind, await reader.readexactly(length)

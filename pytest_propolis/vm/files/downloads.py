"""Files and directories on their way out of a guest."""

from __future__ import annotations

import re
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

import msgspec

from .archive import unpack
from .guest_side import GuestSide
from .local_files import SparseWriter, appearing_file
from .progress import Meter

__all__ = ["RemoteStatus", "download_bytes", "download_directory", "download_file", "remote_status"]

_STATUS: Final = "stat -L -c '%f %s %Y %Z' @FILE@"
_BLOCK: Final = "dd if=@FILE@ bs={size} skip={number} count=1 status=none"
_WHOLE: Final = "cat @FILE@"
_AND_STATUS: Final = f" && {_STATUS} >&2"
_PACK: Final = "cd @FILE@ && tar -cf - ."


class RemoteStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The guest's facts about a file.

    :param version: differs when the file was written meanwhile (in seconds).
    """

    mode: int
    size: int
    version: str

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


async def remote_status(guest: GuestSide) -> RemoteStatus:
    """Return the status of a file, or of the target of a symbolic link.

    :raises FileTransferError: when there is none.
    """
    return _parsed(await guest.run(_STATUS), guest)


def _parsed(answer: str, guest: GuestSide) -> RemoteStatus:
    # A kernel's message may stand before it.
    found = re.search(r"^([0-9a-f]+) (\d+) (\d+ \d+)$", answer, re.MULTILINE)
    if found is None:
        raise guest.error(f"its status cannot be read: {answer!r}")
    return RemoteStatus(mode=int(found[1], 16), size=int(found[2]), version=found[3])


async def download_bytes(guest: GuestSide, status: RemoteStatus, *, meter: Meter) -> bytes:
    """Return the content of a file."""
    with tempfile.TemporaryFile() as file:
        await _copy(guest, status, file, meter=meter)
        file.seek(0)
        return file.read()


async def download_file(guest: GuestSide, status: RemoteStatus, target: Path, *, meter: Meter) -> None:
    """Copy a file, with its mode. Pages of zeros become holes."""
    with appearing_file(target, mode=stat.S_IMODE(status.mode)) as file:
        await _copy(guest, status, file, meter=meter)


async def download_directory(guest: GuestSide, target: Path, *, meter: Meter) -> None:
    """Copy a directory with all that is in it, to a name that must not exist yet."""
    if target.exists() or target.is_symlink():
        raise FileExistsError(None, "it exists already", str(target))
    with tempfile.TemporaryFile(dir=target.parent) as archive:
        await _append(guest, _PACK, archive, meter)
        archive.seek(0)
        unpack(archive, target)


async def _copy(guest: GuestSide, status: RemoteStatus, file: IO[bytes], *, meter: Meter) -> None:
    """Copy content in blocks, so that a damaged block is all that must be sent again.

    What has no size, such as a file of /proc or a device, is copied at once.
    """
    size = guest.channel.block_bytes
    if size is None or status.size <= size:
        scripts = [_WHOLE]
    else:
        scripts = [_BLOCK.format(size=size, number=number) for number in range(-(-status.size // size))]
    if status.size:
        scripts[-1] += _AND_STATUS  # with the last of the content: each command of its own costs a small file much
    for script in scripts:
        told = await _append(guest, script, file, meter)
    after = _parsed(told, guest) if status.size else status
    if after.version != status.version or (status.size and meter.done_bytes != status.size):
        raise guest.error("it changed while it was read")


async def _append(guest: GuestSide, script: str, file: IO[bytes], meter: Meter) -> str:
    """Append a script's output to a file, and repeat it from there if it arrives damaged; return its standard error."""
    start, base = file.tell(), meter.done_bytes
    writer = SparseWriter(file)

    def begin() -> Callable[[bytes], None]:
        nonlocal writer
        file.seek(start)
        file.truncate()
        meter.at(base)
        writer = SparseWriter(file)
        return write

    def write(data: bytes) -> None:
        writer.write(data)
        meter.at(meter.done_bytes + len(data))

    errors = await guest.download(script, begin)
    writer.finish()
    return errors

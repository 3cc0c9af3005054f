"""Files into a guest and out of it, over any channel."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from ...console.channels.channel import ByteChannel
from ...console.shell import Shell
from ...errors import FileTransferError
from .archive import archive_bytes
from .downloads import download_bytes, download_directory, download_file, remote_status
from .guest_side import GuestSide
from .progress import Meter, OnProgress
from .remote_path import GuestPath, RemotePath
from .uploads import upload_bytes, upload_directory, upload_file

__all__ = ["FileTransfers", "LocalPath"]

LocalPath = str | os.PathLike[str]

DEFAULT_MODE: Final = 0o644
"""Of a file that is made from bytes."""


class FileTransfers(msgspec.Struct, frozen=True, kw_only=True):
    """Copies files and directories between this machine and one guest.

    :param vm: the VM's name, for errors.
    """

    shell: Shell
    channel: ByteChannel
    vm: str

    async def put(
        self, content: LocalPath | bytes, remote: GuestPath, *, mode: int | None, on_progress: OnProgress | None
    ) -> None:
        """Copy bytes, a file or a directory into the guest.

        :raises FileTransferError: when it does not get there.
        """
        guest = self._guest(remote, "put")
        with _local_errors(guest):
            if isinstance(content, bytes):
                with self._meter(guest, len(content), on_progress) as meter:
                    await upload_bytes(guest, content, mode=DEFAULT_MODE if mode is None else mode, meter=meter)
            elif Path(content).is_dir():
                with self._meter(guest, archive_bytes(Path(content)), on_progress) as meter:
                    await upload_directory(guest, Path(content), meter=meter)
            else:
                await self._put_file(guest, Path(content), mode, on_progress)

    async def _put_file(self, guest: GuestSide, local: Path, mode: int | None, on_progress: OnProgress | None) -> None:
        with local.open("rb") as file:
            status = os.fstat(file.fileno())
            with self._meter(guest, status.st_size, on_progress) as meter:
                await upload_file(guest, file, mode=status.st_mode & 0o7777 if mode is None else mode, meter=meter)

    async def get(self, remote: GuestPath, local: LocalPath, *, on_progress: OnProgress | None) -> None:
        """Copy a file or a directory out of the guest.

        :raises FileTransferError: when it does not get here.
        """
        guest = self._guest(remote, "get")
        status = await remote_status(guest)
        with _local_errors(guest):
            total_bytes = None if status.is_directory else status.size
            with self._meter(guest, total_bytes, on_progress) as meter:
                if status.is_directory:
                    await download_directory(guest, Path(local), meter=meter)
                else:
                    await download_file(guest, status, Path(local), meter=meter)

    async def get_bytes(self, remote: GuestPath) -> bytes:
        """Return the content of a file of the guest.

        :raises FileTransferError: when it does not get here.
        """
        guest = self._guest(remote, "get")
        status = await remote_status(guest)
        if status.is_directory:
            raise guest.error("it is a directory")
        with _local_errors(guest), self._meter(guest, status.size, None) as meter:
            return await download_bytes(guest, status, meter=meter)

    def _guest(self, remote: GuestPath, verb: str) -> GuestSide:
        try:
            path = RemotePath.of(remote)
        except ValueError as error:
            raise FileTransferError(f"{remote!r}: {error}", path=repr(remote), vm=self.vm, operation=verb) from None
        return GuestSide(shell=self.shell, channel=self.channel, path=path, vm=self.vm, operation=f"{verb} {path}")

    def _meter(self, guest: GuestSide, total_bytes: int | None, on_progress: OnProgress | None) -> Meter:
        return Meter(guest.operation, total_bytes, log=self.shell.note, on_progress=on_progress)


@contextlib.contextmanager
def _local_errors(guest: GuestSide) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(map(str, error.args))
        path = os.fsdecode(error.filename) if error.filename is not None else str(guest.path)
        raise FileTransferError(f"{path}: {reason}", path=path, vm=guest.vm, operation=guest.operation) from error

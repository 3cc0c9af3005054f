"""A file of this host, named so that another process of the host can be sure to have found the same one."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Self

import msgspec

__all__ = ["HostFile", "this_host"]


@cache
def this_host() -> str:
    """Return an identifier that is the same for all processes that see the same files and processes.

    Containers of one machine do not.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    spaces = [Path(f"/proc/self/ns/{kind}").stat().st_ino for kind in ("mnt", "pid")]
    return ":".join([boot, *map(str, spaces)])


class HostFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file.

    :param path: where it can be looked for.
    :param device: with `inode`, tells whether what is found there is that file.
    :param host: the host that it is on (`this_host`).
    """

    path: str
    device: int
    inode: int
    host: str = msgspec.field(default_factory=this_host)

    @classmethod
    def at(cls, path: str) -> Self:
        """
        :raises OSError: when there is none.
        """
        status = Path(path).stat()
        return cls(path=str(Path(path).absolute()), device=status.st_dev, inode=status.st_ino)

    @classmethod
    def of(cls, fd: int) -> Self:
        """An open file of this process, for others as long as it is open here."""
        status = os.fstat(fd)
        return cls(path=f"/proc/{os.getpid()}/fd/{fd}", device=status.st_dev, inode=status.st_ino)

    def open(self, flags: int) -> int | None:
        """Open the file; return None if it is on another host, deleted, or not this user's."""
        if self.host != this_host():
            return None
        try:
            fd = os.open(self.path, flags | os.O_CLOEXEC)
        except OSError:
            return None
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != (self.device, self.inode):
            os.close(fd)
            return None
        return fd

    def can_be_opened(self, flags: int) -> bool:
        fd = self.open(flags)
        if fd is None:
            return False
        os.close(fd)
        return True

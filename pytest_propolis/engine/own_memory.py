"""Memory that a server made for its VM: a file without a name, which nothing leaves behind."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .guest_memory import GuestMemory
from .migration_protocol import MemoryFile

__all__ = ["OwnMemory"]


@dataclass(slots=True)
class OwnMemory:
    """A memfd, or the memfd of another server, until it is closed. Closing twice is fine.

    :param fd: QEMU inherits it.
    """

    fd: int

    @classmethod
    def make(cls) -> OwnMemory:
        """Memory for a VM that begins. It costs nothing until QEMU writes to it."""
        return cls(os.memfd_create("guest-memory", os.MFD_CLOEXEC))

    @classmethod
    def open(cls, file: MemoryFile) -> OwnMemory | None:
        """The memory of another server's VM; None where it cannot be had: on another host, or not this user's."""
        try:
            fd = os.open(file.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != (file.device, file.inode):
            os.close(fd)
            return None
        return cls(fd)

    @property
    def guest_memory(self) -> GuestMemory:
        return GuestMemory(path=f"/proc/self/fd/{self.fd}", shared=True)

    @property
    def file(self) -> MemoryFile:
        """How another server finds it."""
        status = os.fstat(self.fd)
        return MemoryFile(path=f"/proc/{os.getpid()}/fd/{self.fd}", device=status.st_dev, inode=status.st_ino)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

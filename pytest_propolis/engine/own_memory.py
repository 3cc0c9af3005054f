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
        fd = file.open(os.O_RDWR)
        return None if fd is None else cls(fd)

    @property
    def guest_memory(self) -> GuestMemory:
        return GuestMemory(path=f"/proc/self/fd/{self.fd}", shared=True)

    @property
    def file(self) -> MemoryFile:
        """How another server finds it."""
        return MemoryFile.of(self.fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

"""A guest's memory: a file that another QEMU can map, too."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec

from .devices.host_file import HostFile

__all__ = ["MEMORY_ID", "GuestMemory", "OwnMemory"]

MEMORY_ID = "ram"
"""QEMU's id of the board's memory."""


class GuestMemory(msgspec.Struct, frozen=True, kw_only=True):
    """A file that holds all of a guest's memory.

    :param path: the file; ``/proc/self/fd/N`` for one that QEMU inherits, as a memfd, which leaves no file behind.
    :param shared: whether the guest writes into the file. If not, it has a private copy-on-write mapping: then the file
        must not change while the guest exists.
    """

    path: str
    shared: bool

    def arguments(self, *, size_mib: int) -> Iterator[str]:
        """The object on QEMU's command line; the machine names it by `MEMORY_ID`."""
        share = "on" if self.shared else "off"
        path = self.path.replace(",", ",,")
        yield from ("-object", f"memory-backend-file,id={MEMORY_ID},size={size_mib}M,mem-path={path},share={share}")


class OwnMemory(msgspec.Struct):
    """A VM's memory in a memfd, its own or another server's. Closing it is idempotent.

    :param fd: QEMU inherits it.
    """

    fd: int

    @classmethod
    def make(cls) -> OwnMemory:
        """Return memory for a new VM. It uses no space until QEMU writes to it."""
        return cls(os.memfd_create("guest-memory", os.MFD_CLOEXEC))

    @classmethod
    def open(cls, file: HostFile) -> OwnMemory | None:
        """Return the memory of another server's VM; None if it is on another host, or another user's."""
        fd = file.open(os.O_RDWR)
        return None if fd is None else cls(fd)

    @property
    def guest_memory(self) -> GuestMemory:
        return GuestMemory(path=f"/proc/self/fd/{self.fd}", shared=True)

    @property
    def file(self) -> HostFile:
        """The reference by which another server opens it."""
        return HostFile.of(self.fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

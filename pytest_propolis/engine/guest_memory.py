"""Where a guest's memory lies: in a file that another QEMU can map, too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["MEMORY_ID", "GuestMemory"]

MEMORY_ID = "ram"
"""What QEMU calls the memory of the board."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestMemory:
    """A file that holds all of a guest's memory.

    :param path: the file; ``/proc/self/fd/N`` for one that QEMU inherits, as a memfd, which leaves no file behind.
    :param shared: whether the guest writes into the file. If not, it has a private copy-on-write mapping: then the file
        must not change while the guest lives.
    """

    path: str
    shared: bool

    def arguments(self, *, size_mib: int) -> Iterator[str]:
        """The object on QEMU's command line; the machine names it by `MEMORY_ID`."""
        share = "on" if self.shared else "off"
        path = self.path.replace(",", ",,")
        yield from ("-object", f"memory-backend-file,id={MEMORY_ID},size={size_mib}M,mem-path={path},share={share}")

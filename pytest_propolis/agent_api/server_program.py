"""A server of the Propolis API that an agent starts as a separate program, for one VM."""

from __future__ import annotations

from typing import Final

import msgspec

from ..errors import CapabilityMissing

__all__ = ["ENGINE_PROGRAM", "SERVER_HINT", "ServerProgram", "unreadable_disk"]

ENGINE_PROGRAM: Final = "propolis-server-qemu"
"""The engine as a program, which every agent has."""

SERVER_HINT: Final = (
    "give engine, the path of a program, the name of an artifact, or http://IP:PORT of a server that runs"
)


class ServerProgram(msgspec.Struct, frozen=True, kw_only=True):
    """A program with the command line of ``propolis-server run``.

    :param path: of the program, absolute, on the agent's host; or `ENGINE_PROGRAM`.
    :param start_timeout_s: how long it may take to answer.
    """

    path: str
    start_timeout_s: float


def unreadable_disk(server: str, disk: str) -> CapabilityMissing:
    """Return the error for a server that does not announce that it reads qcow2, and a VM with such a disk."""
    return CapabilityMissing(
        f"the server {server} reads raw disks, and {disk} is a qcow2 file",
        hint="start a VM that is to migrate to it at a server that reads raw disks, too, and fork raw images with "
        "providers=('reflink', 'copy')",
    )

"""The file of a replica, and the metadata that its downstairs stores."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

from ...storage.programs import run_program

__all__ = ["RegionFile"]


@dataclass(slots=True, kw_only=True)
class RegionFile:
    """One replica's file.

    :param volume: the id of the upstairs that it belongs to.
    :param key: a secret of that upstairs.
    :param parent: the image that the file is an overlay of.
    """

    volume: UUID
    path: Path
    size_bytes: int
    block_size: int
    key: str | None
    file_format: str = "raw"
    parent: str | None = None
    stall_timeout_s: float = 60.0
    id: UUID = field(default_factory=uuid4)
    generation: int = 0
    epoch: int = 0
    clean: bool = True
    snapshots: list[Path] = field(default_factory=list)

    def corrupt(self, offset: int, length: int) -> None:
        """Write random bytes over a part of the file, without involving the process that serves it.

        :raises OSError: when it cannot be written.
        """
        with self.path.open("r+b") as file:
            os.pwrite(file.fileno(), secrets.token_bytes(length), offset)

    async def snapshot(self, snapshot_id: UUID) -> None:
        """Keep a copy of the file as it is now, which shares its blocks where the file system can do that.

        :raises OSError: when it cannot be made, or is there already.
        """
        copy = self.path.with_name(f"{self.path.name}.snapshot-{snapshot_id}")
        if copy.exists():
            raise FileExistsError("it is there already")
        finished = await run_program(["cp", "--reflink=auto", "--sparse=always", str(self.path), str(copy)])
        if finished.status != 0:
            copy.unlink(missing_ok=True)
            raise OSError(finished.last_lines(1))
        self.snapshots.append(copy)

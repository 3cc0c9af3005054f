"""What a volume needs of its downstairs, whatever they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from uuid import UUID

import msgspec

from ....agent_api.volumes import CreateVolume
from ....errors import ResourceExhausted
from ....ledger.writer import LedgerWriter

__all__ = ["Downstairs", "DownstairsKind", "Region", "VolumeFacts", "write_file"]


class Region(Protocol):
    """The data of one downstairs."""

    def corrupt(self, offset: int, length: int) -> None:
        """Write random bytes over a part, without involving the process that serves it.

        :raises OSError: when it cannot be written.
        """
        ...


class Downstairs(Protocol):
    """One replica of a volume: its data and the process that serves it. Its address stays the same."""

    log_path: Path

    @property
    def region(self) -> Region: ...

    @property
    def path(self) -> Path:
        """Where its data is."""
        ...

    @property
    def address(self) -> str:
        """Its address for an upstairs: ``IP:PORT``."""
        ...

    @property
    def state(self) -> str:
        """For people."""
        ...

    @property
    def pid(self) -> int | None: ...

    @property
    def generation(self) -> int:
        """That of the upstairs that had it last; 0 if only its program knows."""
        ...

    @property
    def epoch(self) -> int:
        """Replicas of the highest have all writes; 0 if only its program knows."""
        ...

    @property
    def snapshots(self) -> Sequence[Path]: ...

    async def start(self) -> None:
        """Start it, or start it again."""
        ...

    async def kill(self) -> None:
        """End its process at once. Its data stays."""
        ...

    def pause(self) -> None:
        """Let it hang: its connections stay open, and it answers nothing."""
        ...

    def resume(self) -> None:
        """Resume it after `pause`."""
        ...

    async def disconnect(self) -> None:
        """Disconnect its upstairs, which may connect again."""
        ...

    async def slow_down(self, delay_ms: float) -> None:
        """Delay its answers."""
        ...

    async def close(self) -> None:
        """End it permanently. Its data stays. Idempotent."""
        ...


class VolumeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A volume, as its downstairs need to know it.

    :param upstairs_id: the id of the upstairs that uses it.
    :param key: a secret of that upstairs, in base64; None if it does not encrypt.
    :param directory: where its files are.
    """

    request: CreateVolume
    upstairs_id: UUID
    key: str | None
    size_bytes: int
    extent_bytes: int
    directory: Path


class DownstairsKind(Protocol):
    """A kind of downstairs. A second one is a module beside this one, and a choice in `kinds`."""

    async def require_image(self, image: Path, image_format: str) -> None:
        """
        :raises ArtifactError: when an image cannot lie under a volume.
        """
        ...

    async def image_size(self, image: Path, image_format: str) -> int:
        """Return the size in bytes of the disk in an image."""
        ...

    def is_encrypted(self, request: CreateVolume) -> bool:
        """Return whether the upstairs of a volume encrypts what it writes."""
        ...

    async def make(self, volume: VolumeFacts, number: int, *, writer: LedgerWriter, blank: bool) -> Downstairs:
        """Make a downstairs with the first contents of a volume. It does not run yet.

        :param number: its number in the volume, which names its files.
        :param blank: make it empty, because what the others hold is copied to it.
        :raises ResourceExhausted: when there is no space for it.
        :raises AgentError: when its program fails.
        """
        ...


def write_file(path: Path, contents: bytes, size_bytes: int) -> None:
    """Write a file with a hole behind its contents.

    :raises ResourceExhausted: when it cannot be written.
    """
    try:
        with path.open("wb") as file:
            file.write(contents)
            file.truncate(size_bytes)
    except OSError as error:
        raise ResourceExhausted(f"{path} cannot be made: {error.strerror or error}") from None

"""A fork: a writable file or volume with the content of an artifact, and the interface of what makes one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from ...errors import ConfigError

__all__ = ["ForkProvider", "ForkRequest", "ForkedImage", "checked_snapshot_name"]

_SNAPSHOT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkRequest:
    """A request to fork an image.

    :param image: the artifact's file, or its ZFS volume; it must not change while forks of it live.
    :param image_format: its format: ``raw`` or ``qcow2``.
    :param target: the path of the fork, which does not exist. A provider with a place of its own (ZFS) ignores its
        directory, and uses its name.
    :param mark: a part of the fork's name in a place of the provider's own, by which the audit of leaks finds it.
    """

    image: Path
    image_format: str
    target: Path
    mark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkedImage:
    """A fork that was made.

    :param provider: the name of the provider that made it, and removes it.
    :param path: the writable file, or block device.
    :param format: the format of its content: ``raw`` or ``qcow2``.
    :param origin: the image that it is a fork of.
    :param dataset: the ZFS dataset that it lies in; None elsewhere.
    :param facts: what the provider needs to remove it, as strings that a ledger can hold.
    """

    provider: str
    path: Path
    format: str
    origin: Path
    dataset: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


class ForkProvider(Protocol):
    """One way to fork images. A provider keeps no state: what a fork needs later is in its `ForkedImage`."""

    @property
    def name(self) -> str:
        """The name of the provider, such as ``zfs``; unique among them."""

    @property
    def keeps_format(self) -> bool:
        """Whether its forks have the format of the image, so that the fork of a raw image is raw."""

    async def obstacle(self, request: ForkRequest) -> str | None:
        """Return why this provider cannot serve the request; None if no reason is known in advance."""

    async def plan(self, request: ForkRequest) -> ForkedImage:
        """Describe the fork that `fork` will create, so that it can be recorded before it exists.

        :raises ArtifactError: when the image is missing.
        """

    async def fork(self, request: ForkRequest) -> ForkedImage:
        """Make a fork. A call that fails or is cancelled leaves nothing behind.

        :raises ArtifactError: when the image is missing or broken, or the fork cannot be made.
        :raises ResourceExhausted: when there is no space left, naming the file system.
        """

    async def snapshot(self, fork: ForkedImage, name: str) -> None:
        """Record the content of a fork that no VM writes to.

        :raises ConfigError: when it has a snapshot of that name, or the name cannot be one.
        """

    async def rollback(self, fork: ForkedImage, name: str) -> None:
        """Give a fork that no VM uses the content that it had at a snapshot; later snapshots are removed.

        :raises ConfigError: when it has no such snapshot.
        """

    async def remove(self, fork: ForkedImage) -> None:
        """Remove a fork with its snapshots. Idempotent.

        :raises ArtifactError: when something still uses it.
        """


def checked_snapshot_name(name: str) -> str:
    """Return the name if it can be a snapshot's.

    :raises ConfigError: when it cannot.
    """
    if not _SNAPSHOT_NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a snapshot",
            hint="use up to 64 letters, digits, '.', '_' and '-', and begin with a letter or a digit",
        )
    return name

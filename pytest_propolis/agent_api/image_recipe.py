"""A recipe: how a disk image becomes another, by typing at the console of a guest that boots from it.

Editing an image inside a guest needs neither root nor loop devices nor the host's support for its file system.
"""

from __future__ import annotations

import hashlib

import msgspec

from ..field_checks import check_fields
from ..storage.artifacts import Artifact

__all__ = ["ImageNeeded", "ImageRecipe"]


class ImageRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Steps that prepare an image, as data, so that their hash can name the result.

    :param name: what it makes, for users.
    :param kernel: SHA-256 of the kernel to boot with.
    :param initrd: SHA-256 of its initial RAM disk.
    :param disk: SHA-256 of the image to start from, attached as the first virtio disk.
    :param command_line: the kernel's parameters.
    :param prompt: what the console shows when the guest takes input.
    :param script: the lines to type. The last one must make the guest print `done` and nothing else must.
    :param done: what the console shows when all is on disk.
    """

    name: str
    kernel: str
    initrd: str
    disk: str
    command_line: str
    prompt: str
    script: str
    done: str
    revision: int = 1

    def __post_init__(self) -> None:
        check_fields(self, subject=f"recipe {self.name!r}")

    @property
    def key(self) -> str:
        """A name for the result that changes with everything that shapes it."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


class ImageNeeded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Ask for an artifact, or for what a recipe makes of three, on the agent's host.

    With a recipe, `artifacts` holds what its hashes name. The answer is a stream of `StreamLine`.
    """

    artifacts: tuple[Artifact, ...]
    recipe: ImageRecipe | None = None
    timeout_s: float = 300.0

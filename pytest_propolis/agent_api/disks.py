"""Messages between clients and agents about disks and forks of images."""

from __future__ import annotations

import msgspec

from ..propolis_api import Component

__all__ = ["AttachDisk", "CreateDisk", "DiskCreated", "ForkImage", "ImageForked"]


class CreateDisk(msgspec.Struct, frozen=True, kw_only=True):
    """Request a disk: a copy-on-write fork of an image, or an empty one.

    :param image: absolute path of the image, which must not change while forks live; None for an empty disk.
    :param image_format: ``qcow2`` or ``raw``; None for raw, unless the image looks like a container.
    :param size_bytes: the size of an empty disk.
    :param block_size: the disk has whole blocks of so many bytes: what the image lacks of the last one reads as zeros.
    :param reader: the path of the server program that is to read it; empty for a server of which nothing is known; None
        for the engine. The disk is raw, unless its reader announces that it reads qcow2.
    """

    image: str | None = None
    image_format: str | None = None
    size_bytes: int | None = None
    block_size: int = 512
    reader: str | None = None


class ForkImage(msgspec.Struct, frozen=True, kw_only=True):
    """Request a writable fork of an image, independent of any VM.

    :param image: path of the image on the agent's host, or of its ZFS volume; it must not change while forks live.
    :param image_format: ``qcow2`` or ``raw``; None for raw, unless the image looks like a container.
    :param providers: the names of the providers that will do; any, if empty.
    """

    image: str
    image_format: str | None = "qcow2"
    providers: tuple[str, ...] = ()


class ImageForked(msgspec.Struct, frozen=True, kw_only=True):
    """The fork: a file or a block device on the agent's host that belongs to the client.

    :param size_bytes: the size of the disk that a guest sees.
    :param note: what users should know about the chosen provider; empty if nothing.
    """

    id: str
    path: str
    format: str
    provider: str
    origin: str
    size_bytes: int
    dataset: str | None = None
    note: str = ""


class DiskCreated(msgspec.Struct, frozen=True, kw_only=True):
    """The disk: a qcow2 file, or a raw one, that belongs to the client."""

    id: str
    path: str


class AttachDisk(msgspec.Struct, frozen=True, kw_only=True):
    """Have a disk plugged into a VM that runs. The answer is the VM's spec with it.

    :param components: the disk and its backend, by key.
    """

    components: dict[str, Component]

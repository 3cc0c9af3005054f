"""Disks created for clients: copy-on-write overlays on images, and empty disks."""

from __future__ import annotations

from pathlib import Path

from ...agent_api.agent_process import AgentConfig
from ...agent_api.disks import CreateDisk
from ...errors import ConfigError
from ...storage.images.image_references import require_contained
from ...storage.images.overlays import (
    check_image,
    convert_to_raw,
    create_blank,
    create_overlay,
    image_info,
    presumed_format,
    put_overlay_on,
)
from ...storage.user_directories import default_artifact_dir

__all__ = [
    "allowed_image_directories",
    "is_to_be_converted",
    "make_image",
    "make_raw_copy",
    "put_on_image",
    "require_absolute",
]


def allowed_image_directories(config: AgentConfig) -> tuple[Path, ...]:
    """Return the directories in which files referenced by images may lie: the store, and those that the user allows."""
    store = Path(config.artifact_dir) if config.artifact_dir else default_artifact_dir()
    return (store, *map(Path, config.peer_stores), *map(Path, config.image_dirs))


def require_absolute(path: str, *, what: str) -> Path:
    """Return a client's path if it means the same file to this process.

    :raises ConfigError: if it is relative, because this process has a different working directory.
    """
    if not Path(path).is_absolute():
        raise ConfigError(f"{what} {path!r} is a relative path", hint="give an absolute one: Path(...).absolute()")
    return Path(path)


async def make_image(request: CreateDisk, qemu_img: Path, path: Path, *, allowed: tuple[Path, ...]) -> None:
    """Create the disk that a client requested.

    :param allowed: directories, besides the image's own, in which files referenced by the image may lie.
    :raises ConfigError: when the image has a relative path.
    :raises ArtifactError: when the image is missing or broken, is not of its format, or names files elsewhere.
    :raises ResourceExhausted: when there is no space left.
    """
    if request.image is None:
        await create_blank(qemu_img=qemu_img, image=path, size_bytes=request.size_bytes or 0)
        return
    image = require_absolute(request.image, what="disk image")
    image_format = request.image_format or presumed_format(image)
    require_contained(image, image_format, allowed=allowed)
    await check_image(qemu_img=qemu_img, image=image, image_format=image_format)
    size_bytes = await _whole_blocks(qemu_img, image, image_format, request.block_size)
    await create_overlay(
        qemu_img=qemu_img, backing=image, overlay=path, backing_format=image_format, size_bytes=size_bytes
    )


async def put_on_image(request: CreateDisk, qemu_img: Path, overlay: Path, *, allowed: tuple[Path, ...]) -> None:
    """Have an overlay that another host has made as `make_image` does read this host's copy of the image.

    :param allowed: as for `make_image`.
    :raises ConfigError: when the image has a relative path.
    :raises ArtifactError: when the image is missing, is not of its format, or names files elsewhere.
    """
    if request.image is None:
        return
    image = require_absolute(request.image, what="disk image")
    image_format = request.image_format or presumed_format(image)
    require_contained(image, image_format, allowed=allowed)
    await put_overlay_on(qemu_img=qemu_img, backing=image, overlay=overlay, backing_format=image_format)


def is_to_be_converted(request: CreateDisk) -> bool:
    """Return whether a raw disk needs its image converted: a raw image is copied as it is.

    :raises ArtifactError: when the image's format was not stated, and it looks like a container.
    """
    if request.image is None:
        return False
    image = require_absolute(request.image, what="disk image")
    return (request.image_format or presumed_format(image)) != "raw"


async def make_raw_copy(request: CreateDisk, qemu_img: Path, path: Path, *, allowed: tuple[Path, ...]) -> None:
    """Create a raw, sparse disk with the contents of an image of another format.

    :param allowed: as for `make_image`.
    :raises ArtifactError: when the image is missing or broken, is not of its format, or names files elsewhere.
    :raises ResourceExhausted: when there is no space left.
    """
    assert request.image is not None
    image, image_format = Path(request.image), request.image_format or presumed_format(Path(request.image))
    require_contained(image, image_format, allowed=allowed)
    await check_image(qemu_img=qemu_img, image=image, image_format=image_format)
    await convert_to_raw(qemu_img=qemu_img, image=image, image_format=image_format, target=path)


async def _whole_blocks(qemu_img: Path, image: Path, image_format: str, block_size: int) -> int | None:
    """Return the disk's size rounded up to whole blocks; None for the size of the image."""
    if block_size <= 512:
        return None  # images consist of such blocks
    size_bytes = (await image_info(qemu_img=qemu_img, image=image, image_format=image_format)).virtual_size_bytes
    return -(-size_bytes // block_size) * block_size

"""The disks that clients ask for: copy-on-write forks of images, and empty ones."""

from __future__ import annotations

from pathlib import Path

from ..agent_api.messages import AgentConfig, CreateDisk
from ..errors import ConfigError
from ..storage.image_references import require_contained
from ..storage.overlays import check_image, create_blank, create_overlay, image_info, presumed_format
from ..storage.store import default_artifact_dir

__all__ = ["allowed_image_directories", "make_image", "require_absolute"]


def allowed_image_directories(config: AgentConfig) -> tuple[Path, ...]:
    """The directories in which the files may lie that images name: the store, and those that the user allows."""
    store = Path(config.artifact_dir) if config.artifact_dir else default_artifact_dir()
    return (store, *map(Path, config.peer_stores), *map(Path, config.image_dirs))


def require_absolute(path: str, *, what: str) -> Path:
    """Return a path that a client gave, unless it means another file here than it does there.

    :raises ConfigError: when it is relative: this process has a working directory of its own.
    """
    if not Path(path).is_absolute():
        raise ConfigError(f"{what} {path!r} is a relative path", hint="give an absolute one: Path(...).absolute()")
    return Path(path)


async def make_image(request: CreateDisk, qemu_img: Path, path: Path, *, allowed: tuple[Path, ...]) -> None:
    """Make what a client asks for.

    :param allowed: where further files may lie that the image consists of, beside its own directory.
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


async def _whole_blocks(qemu_img: Path, image: Path, image_format: str, block_size: int) -> int | None:
    """The size of a disk with room for the whole of its last block; None for that of the image."""
    if block_size <= 512:
        return None  # images consist of such blocks
    size_bytes = (await image_info(qemu_img=qemu_img, image=image, image_format=image_format)).virtual_size_bytes
    return -(-size_bytes // block_size) * block_size

"""Disk images: overlays on a backing image, and blank ones; with ``qemu-img`` where that is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from ...errors import (
    ArtifactCorrupt,
    ArtifactError,
    ArtifactMissing,
    CapabilityMissing,
    PropolisError,
    ResourceExhausted,
)
from ...operating_system.no_space import reports_no_space
from ..programs import Finished, run_program
from .image_headers import container_of
from .qcow2_overlay import write_overlay

__all__ = [
    "ImageInfo",
    "check_image",
    "create_blank",
    "create_blank_overlay",
    "create_overlay",
    "image_info",
    "presumed_format",
    "put_overlay_on",
]

CONVERTIBLE: Final = frozenset({"vmdk", "vhdx", "vpc", "qed", "parallels", "vdi"})
"""The formats that qemu-img can convert."""

SMALLEST_QCOW2_BYTES: Final = 104
_LEAKS_ONLY: Final = 3
_NOT_CHECKABLE: Final = 63


class ImageInfo(msgspec.Struct, frozen=True):
    """The output of ``qemu-img info`` for an image.

    :param format: QEMU's name for the format: ``qcow2``, ``raw``.
    :param virtual_size_bytes: the size of the disk that a guest sees.
    :param allocated_bytes: the space that the file uses.
    :param backing: the backing image, with its path resolved.
    """

    format: str
    virtual_size_bytes: int
    allocated_bytes: int
    backing: Path | None


async def create_overlay(
    *, qemu_img: Path, backing: Path, overlay: Path, backing_format: str, size_bytes: int | None = None
) -> None:
    """Create a qcow2 overlay: it receives all writes, and unwritten data is read from ``backing``.

    The backing image must not be moved or changed as long as the overlay is in use. A call that fails or is cancelled
    leaves nothing behind.

    :param backing_format: the format of ``backing``; never guessed, because a guest can write a header into a raw disk.
    :param size_bytes: the size of the overlay's disk; that of the backing image by default.
    :raises ArtifactMissing: when there is no backing image, or one under it is missing.
    :raises ArtifactCorrupt: when the backing image is not a good image of its format, with what ``qemu-img`` said.
    :raises ArtifactError: when ``overlay`` exists, or cannot be made.
    :raises ResourceExhausted: when there is no space left.
    :raises CapabilityMissing: when ``qemu_img`` cannot be run. For usual images it is not needed: `write_overlay`.
    """
    _require_image(backing)
    with _new_file(overlay):
        if write_overlay(backing=backing, overlay=overlay, backing_format=backing_format, size_bytes=size_bytes):
            return
    options = ["-F", backing_format, "-b", _absolute(backing)]
    size = [] if size_bytes is None else [str(size_bytes)]
    with _new_file(overlay):
        await _qemu_img(qemu_img, "create", "-q", "-f", "qcow2", *options, _absolute(overlay), *size, image=backing)


async def create_blank_overlay(*, qemu_img: Path, backing: Path, named: Path, overlay: Path) -> None:
    """Create a qcow2 overlay on a qcow2 image that is about to be moved: it references ``named``, not ``backing``.

    :raises ArtifactError: when ``overlay`` exists, or cannot be made.
    :raises ResourceExhausted: when there is no space left.
    """
    size_bytes = (await image_info(qemu_img=qemu_img, image=backing, image_format="qcow2")).virtual_size_bytes
    options = ["-u", "-F", "qcow2", "-b", _absolute(named)]
    with _new_file(overlay):
        await _qemu_img(qemu_img, "create", "-q", "-f", "qcow2", *options, _absolute(overlay), str(size_bytes))


async def put_overlay_on(*, qemu_img: Path, backing: Path, overlay: Path, backing_format: str) -> None:
    """Have a qcow2 overlay read another file: one with the same content as that of its backing image so far.

    :raises ArtifactMissing: when there is no such file.
    :raises ArtifactCorrupt: when the overlay is not a good image.
    """
    _require_image(backing)
    options = ["-u", "-f", "qcow2", "-F", backing_format, "-b", _absolute(backing)]
    await _qemu_img(qemu_img, "rebase", "-q", *options, _absolute(overlay), image=overlay)


async def create_blank(*, qemu_img: Path, image: Path, size_bytes: int, image_format: str = "qcow2") -> None:
    """Create a sparse image of a disk that reads as zeros.

    :raises ArtifactError: when ``image`` exists, or cannot be made.
    :raises ResourceExhausted: when there is no space left.
    :raises CapabilityMissing: when ``qemu_img`` cannot be run.
    """
    with _new_file(image):
        await _qemu_img(qemu_img, "create", "-q", "-f", image_format, _absolute(image), str(size_bytes))


async def convert_to_raw(*, qemu_img: Path, image: Path, image_format: str, target: Path) -> None:
    """Create a raw, sparse file with the contents of an image. A call that fails leaves nothing behind.

    :param image_format: the format of ``image``.
    :raises ArtifactMissing: when there is no such image, or one under it is missing.
    :raises ArtifactError: when ``target`` exists, or cannot be made.
    :raises ResourceExhausted: when there is no space left.
    :raises CapabilityMissing: when ``qemu_img`` cannot be run.
    """
    _require_image(image)
    with _new_file(target):
        arguments = ("-f", image_format, "-O", "raw", _absolute(image), _absolute(target))
        await _qemu_img(qemu_img, "convert", "-q", *arguments, image=image)


async def image_info(*, qemu_img: Path, image: Path, image_format: str | None = None) -> ImageInfo:
    """Describe an image, even while a VM writes to it.

    :param image_format: the format of ``image``; guessed from its content by default.
    :raises ArtifactMissing: when there is no such image, or one under it is missing.
    :raises ArtifactCorrupt: when it, or an image under it, is not a good image of its format.
    :raises CapabilityMissing: when ``qemu_img`` cannot be run.
    """
    _require_image(image)
    options = ["-f", image_format] if image_format else []
    finished = await _qemu_img(qemu_img, "info", "-U", "--output=json", *options, _absolute(image), image=image)
    document = json.loads(finished.output)
    backing = document.get("full-backing-filename")
    return ImageInfo(
        format=document["format"],
        virtual_size_bytes=document["virtual-size"],
        allocated_bytes=document["actual-size"],
        backing=Path(backing) if backing else None,
    )


async def check_image(*, qemu_img: Path, image: Path, image_format: str) -> None:
    """Check that an image has all clusters that its tables name. Opening a truncated image succeeds.

    Nothing may be writing to the image. An image that was good is not checked again until it changes. Formats that
    cannot be checked (``raw``) pass.

    :raises ArtifactMissing: when there is no such image.
    :raises ArtifactCorrupt: when it is broken.
    :raises CapabilityMissing: when ``qemu_img`` cannot be run.
    """
    _require_image(image)
    _require_format(image, image_format)
    version = _version(image)
    if image_format == "raw" or (image_format, version) in _GOOD:
        return
    arguments = ("check", "-q", "-f", image_format, _absolute(image))
    finished = await _run(qemu_img, arguments)
    if finished.status not in (0, _LEAKS_ONLY, _NOT_CHECKABLE):
        raise _failure(finished, arguments, image)
    if image.is_file() and version == _version(image):
        _GOOD.add((image_format, version))


_GOOD: Final[set[tuple[str, tuple[int, ...]]]] = set()
"""The formats and versions of images that were checked."""


def _version(image: Path) -> tuple[int, ...]:
    """Return what changes when an image is replaced or written to."""
    facts = image.stat()
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _absolute(path: Path) -> str:
    """Return an absolute path: qemu-img would take a relative one with a colon for a protocol."""
    return str(path.absolute())


def presumed_format(image: Path) -> str:
    """Return ``raw``, the default for an image of unstated format, unless the image is a known container.

    :raises ArtifactMissing: if there is no such image.
    :raises ArtifactError: if it is a container: the guest would see the container instead of its content.
    """
    _require_image(image)
    if (container := container_of(_head(image))) is None:
        return "raw"
    remedy = {"qcow2": 'give image_format="qcow2", or "raw" if the guest is to see the container itself'}
    raise ArtifactError(
        f"disk image {image} is a {container} file, and its format was not stated",
        hint=remedy.get(container, 'unpack it, or convert it with qemu-img, or give image_format="raw"'),
    )


def _require_format(image: Path, image_format: str) -> None:
    container = container_of(_head(image))
    if image_format != "qcow2" or container == "qcow2":
        return
    if image.stat().st_size < SMALLEST_QCOW2_BYTES:
        return  # truncated: qemu-img reports it
    source = container if container in CONVERTIBLE else "raw"
    raise ArtifactCorrupt(
        f"disk image {image} is not a qcow2 image; it looks like {container or 'a raw disk'}",
        hint=f"check its format, or convert it: qemu-img convert -f {source} -O qcow2 {image} {image}.converted"
        if container is None or container in CONVERTIBLE
        else "unpack it first",
    )


def _head(image: Path) -> bytes:
    try:
        with image.open("rb") as file:
            return file.read(512)
    except OSError as error:
        raise ArtifactError(
            f"disk image {image} cannot be read: {error.strerror}", hint="check its permissions"
        ) from None


def _require_image(image: Path) -> None:
    """Accept regular files and block devices."""
    if image.is_file() or image.is_block_device():
        return
    if image.exists():
        kind = "a directory" if image.is_dir() else "neither a file nor a block device"
        raise ArtifactError(f"disk image {image} is {kind}", hint="name a file or a block device")
    raise ArtifactMissing(f"there is no disk image {image}", hint="check the path, or fetch the image again")


@contextmanager
def _new_file(path: Path) -> Iterator[None]:
    """Let the block create the file ``path``, which must not exist, and remove it if the block fails."""
    if path.exists() or path.is_symlink():
        raise ArtifactError(
            f"disk image {path} exists", hint="remove it, or choose another name: it is not overwritten"
        )
    if not path.parent.is_dir():
        raise ArtifactError(f"disk image {path} cannot be made: its directory is missing", hint="make the directory")
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


async def _qemu_img(program: Path, *arguments: str, image: Path | None = None) -> Finished:
    """Run ``qemu-img``; ``image`` is its input, which errors blame where appropriate."""
    finished = await _run(program, arguments)
    if finished.status != 0:
        raise _failure(finished, arguments, image)
    return finished


async def _run(program: Path, arguments: Sequence[str]) -> Finished:
    try:
        return await run_program([str(program), *arguments])
    except OSError as error:
        raise CapabilityMissing(
            f"{program} cannot be run: {error.strerror}",
            hint="install QEMU's tools (package qemu-utils), or run 'propolis setup'",
        ) from None


def _failure(finished: Finished, arguments: Sequence[str], image: Path | None) -> PropolisError:
    output = finished.last_lines()
    if reports_no_space(output):
        return ResourceExhausted(
            f"no space left for a disk image: {output}", hint="free some space there, or choose another directory"
        )
    if image is None or _mentions(output, *_OF_THE_CALLER):
        return ArtifactError(
            f"qemu-img failed: {output}", hint=f"correct what it names; it was run as: qemu-img {' '.join(arguments)}"
        )
    if _mentions(output, "No such file or directory"):
        return ArtifactMissing(
            f"an image that {image} is an overlay on is missing: {output}",
            hint=f"put it back, or remove {image}, so that it is made again",
        )
    return ArtifactCorrupt(
        f"disk image {image} is broken: {output}",
        hint="check its format, or remove it, so that it is fetched or made again",
    )


_OF_THE_CALLER: Final = ("Permission denied", "Unknown", "Invalid", "Failed to get", "Could not create")


def _mentions(text: str, *phrases: str) -> bool:
    return any(phrase in text for phrase in phrases)

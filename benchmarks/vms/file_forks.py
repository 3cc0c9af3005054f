"""A fork of an image of 30 GiB: by reflink on XFS, and as a qcow2 overlay, each against the same by hand."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from pytest_propolis.storage.forks.files import ReflinkProvider
from pytest_propolis.storage.forks.fork import ForkProvider, ForkRequest
from pytest_propolis.storage.forks.qcow2 import Qcow2Provider

from ..common.figure import Figure
from ..common.options import Options, say
from ..common.samples import ratio_of_medians, spread
from ..common.timing import run_program, timed

__all__ = ["measure"]

REPEATS: Final = 15
IMAGE_BYTES: Final = 30 << 30
DATA_BYTES: Final = 64 << 20
EXTENTS: Final = 64
FILE_SYSTEM_BYTES: Final = 1 << 30
BOUND_S: Final = 0.020
COPIED_BYTES: Final = 16 << 20
"""More than the metadata of all forks, and less than one copy."""


def measure(options: Options) -> list[Figure]:
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="propolis-benchmark-")))
        try:
            stack.enter_context(_xfs(directory))
        except (OSError, subprocess.CalledProcessError) as error:
            say(f"file_forks: no XFS can be mounted here: {error}")
            return []
        return asyncio.run(_measure(directory / "mount", options.repeated(REPEATS)))


@contextlib.contextmanager
def _xfs(directory: Path) -> Iterator[None]:
    """Mount a file system with reflinks below a directory."""
    device, mount = directory / "device", directory / "mount"
    mount.mkdir()
    with device.open("wb") as file:
        file.truncate(FILE_SYSTEM_BYTES)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(device)], check=True)
    subprocess.run(["mount", "-o", "loop", str(device), str(mount)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(mount)], check=True)


async def _measure(directory: Path, repeats: int) -> list[Figure]:
    image = directory / "image.raw"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
        for part in range(EXTENTS):
            file.seek(part * (IMAGE_BYTES // EXTENTS))
            file.write(os.urandom(DATA_BYTES // EXTENTS))
    return [
        await _figure("reflink", ReflinkProvider(), image, _reflink_by_hand, repeats),
        await _figure("qcow2 overlay", Qcow2Provider(), image, _overlay_by_hand, repeats),
    ]


async def _figure(
    name: str, provider: ForkProvider, image: Path, by_hand: Callable[[Path, Path], Awaitable[None]], repeats: int
) -> Figure:
    ours, floor = [], []
    used_bytes = _used_bytes(image.parent)
    for number in range(repeats + 1):
        request = ForkRequest(image=image, image_format="raw", target=image.with_name(f"{provider.name}-{number}"))
        ours.append(await timed(partial(provider.fork, request)))
        floor.append(await timed(partial(by_hand, image, image.with_name(f"by-hand-{provider.name}-{number}"))))
    copied_bytes = _used_bytes(image.parent) - used_bytes
    return Figure(
        name=f"fork of an image of 30 GiB, {name}, n={repeats}, load {os.getloadavg()[0]:.1f}",
        measured=f"{spread(ours[1:])}, {copied_bytes >> 10} KiB for {2 * len(ours)} forks",
        floor=spread(floor[1:]),
        ratio=f"{ratio_of_medians(ours[1:], floor[1:]):.2f}",
        bound=f"<= {BOUND_S * 1000:.0f} ms, no data copied",
        met=median(ours[1:]) <= BOUND_S and copied_bytes < COPIED_BYTES,
    )


def _used_bytes(directory: Path) -> int:
    os.sync()
    status = os.statvfs(directory)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


async def _reflink_by_hand(image: Path, target: Path) -> None:
    await run_program("cp", "--reflink=always", str(image), str(target))


async def _overlay_by_hand(image: Path, target: Path) -> None:
    await run_program("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image), "-F", "raw", str(target))

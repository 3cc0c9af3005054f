"""Forks of images that clients own independently of any VM: create, read, write, snapshot, remove."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import math
import os
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from ...agent_api.disks import ForkImage, ImageForked
from ...errors import AgentError, ArtifactError, ConfigError
from ...ledger.entry import Entry
from ...ledger.writer import LedgerWriter
from ...storage.forks.choice import choose_provider
from ...storage.forks.fork import ForkedImage, ForkProvider, ForkRequest
from ...storage.images.image_headers import Qcow2Header
from ...storage.images.image_references import require_contained
from ...storage.images.overlays import image_info, presumed_format
from ...storage.programs import run_program
from .disk_images import require_absolute
from .disk_space import DiskSpace
from .raw_disks import RAW_PROVIDERS, require_raw

__all__ = ["LARGEST_TRANSFER_BYTES", "OwnedFork", "fork_of", "require_fork"]

LARGEST_TRANSFER_BYTES: Final = 16 << 20
"""The largest single read or write."""

SECTOR_BYTES: Final = 512
LARGEST_BLOCK_BYTES: Final = 1 << 20
"""A disk of 1 GiB takes 2 minutes to read in sectors, and 4 s in these."""

CHUNK_BYTES: Final = 4 << 20


class OwnedFork(msgspec.Struct, kw_only=True):
    """A fork, its provider, and its ledger entry.

    :param qemu_img: used to access content that is not raw; None where all is.
    """

    id: str
    fork: ForkedImage
    provider: ForkProvider
    entry: Entry
    writer: LedgerWriter
    qemu_img: Path | None
    size_bytes: int
    note: str = ""

    @property
    def described(self) -> ImageForked:
        fork = self.fork
        return ImageForked(
            id=self.id,
            path=str(fork.path),
            format=fork.format,
            provider=fork.provider,
            origin=str(fork.origin),
            size_bytes=self.size_bytes,
            dataset=fork.dataset,
            note=self.note,
        )

    async def remove(self) -> None:
        """Remove the fork with its snapshots."""
        await self.provider.remove(self.fork)
        self.writer.gone(self.entry)

    async def snapshot(self, name: str) -> None:
        await self.provider.snapshot(self.fork, name)

    async def rollback(self, name: str) -> None:
        await self.provider.rollback(self.fork, name)

    async def read(self, offset: int, length: int) -> bytes:
        """Return the bytes that a guest would read. Nothing may be writing to the fork.

        :raises ConfigError: if the range extends beyond the end, or is too large.
        """
        self._require_inside(offset, length)
        first, last = _sectors(offset, length)
        async with self._raw(first, last - first) as raw:
            with raw.open("rb") as file:
                file.seek(offset if raw == self.fork.path else offset - first)
                return file.read(length)

    async def write(self, offset: int, data: bytes) -> None:
        """Write bytes to the disk as a guest would read them. No VM may be using the fork.

        :raises ConfigError: if the range extends beyond the end, or is too large.
        """
        self._require_inside(offset, len(data))
        if self.fork.format == "raw":
            with self.fork.path.open("r+b") as file:
                file.seek(offset)
                file.write(data)
            return
        first, last = _sectors(offset, len(data))
        window = bytearray(await self.read(first, min(last, self.size_bytes) - first))
        window[offset - first : offset - first + len(data)] = data
        with tempfile.NamedTemporaryFile(dir=self.fork.path.parent) as file:
            file.write(window)
            file.flush()
            await self._qemu_io(f"write -q -s {file.name} {first} {len(window)}")

    async def sha256(self) -> str:
        """Return the hash of the whole disk as a guest reads it."""
        digest = hashlib.sha256()
        async with self._raw(0, self.size_bytes) as raw:
            with raw.open("rb") as file:
                while data := file.read(CHUNK_BYTES):
                    digest.update(data)
                    await asyncio.sleep(0)
        return digest.hexdigest()

    @asynccontextmanager
    async def _raw(self, offset: int, length: int) -> AsyncIterator[Path]:
        """Provide a file with the raw content of a range: the fork itself if it is raw."""
        if self.fork.format == "raw":
            yield self.fork.path
            return
        with tempfile.TemporaryDirectory(dir=self.fork.path.parent, prefix=f".{self.id}.") as directory:
            raw = Path(directory) / "raw"
            source, block = str(self.fork.path), math.gcd(offset, length, LARGEST_BLOCK_BYTES)
            await self._run(
                self._tool("qemu-img"), "dd", "-U", "-f", self.fork.format, "-O", "raw", f"bs={block}",
                f"skip={offset // block}", f"count={(offset + length) // block}", f"if={source}", f"of={raw}",
            )  # fmt: skip
            yield raw

    async def _qemu_io(self, command: str) -> None:
        await self._run(self._tool("qemu-io"), "-f", self.fork.format, "-c", command, str(self.fork.path))

    def _tool(self, name: str) -> str:
        assert self.qemu_img is not None
        return str(self.qemu_img.with_name(name))

    async def _run(self, *argv: str) -> None:
        finished = await run_program(argv)
        if finished.status != 0:
            raise ArtifactError(
                f"{argv[0]} failed: {finished.last_lines()}",
                hint="a VM that has the fork open holds its lock: stop it first",
            )

    def _require_inside(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise ConfigError(f"bytes {offset} to {offset + length} are outside a disk of {self.size_bytes} bytes")
        if length > LARGEST_TRANSFER_BYTES:
            raise ConfigError(
                f"{length} bytes are too many at once", hint=f"transfer at most {LARGEST_TRANSFER_BYTES} bytes"
            )


async def fork_of(
    request: ForkImage, *, space: DiskSpace, writer: LedgerWriter, qemu_img: Path | None, allowed: tuple[Path, ...]
) -> OwnedFork:
    """Create a fork, recorded in the ledger first. A call that fails leaves nothing behind.

    :param qemu_img: None where there is no QEMU: then image and fork are raw.
    :param allowed: directories, besides the image's own, in which files referenced by the image may lie.
    :raises ArtifactError: when the image is missing or broken, is not of its format, or names files elsewhere.
    :raises CapabilityMissing: when no provider can fork it, with the reason of each.
    :raises ResourceExhausted: when there is no space left.
    """
    image = require_absolute(request.image, what="image")
    image_format = request.image_format or presumed_format(image)
    if image.is_file():
        require_contained(image, image_format, allowed=allowed)
    providers = request.providers
    if qemu_img is None:
        require_raw(request.image, image_format)
        providers = providers or RAW_PROVIDERS
    fork_id, notes = secrets.token_hex(8), list[str]()
    target = space.path_of(fork_id)
    fork_request = ForkRequest(image=image, image_format=image_format, target=target, mark=target.parent.name)
    provider = await choose_provider(fork_request, progress=notes.append, only=providers)
    planned = await provider.plan(fork_request)
    if planned.format != "raw":  # The server knows the format of a disk's file by its suffix.
        fork_request = dataclasses.replace(fork_request, target=fork_request.target.with_suffix(f".{planned.format}"))
        planned = await provider.plan(fork_request)
    if planned.facts:
        with writer.making(f"{provider.name}-clone", planned.facts) as entry:
            fork = await provider.fork(fork_request)
    else:
        with writer.creating("file", planned.path) as entry:
            fork = await provider.fork(fork_request)
    try:
        size_bytes = await _size_bytes(fork, qemu_img)
    except BaseException:
        await provider.remove(fork)
        writer.gone(entry)
        raise
    return OwnedFork(
        id=fork_id,
        fork=fork,
        provider=provider,
        entry=entry,
        writer=writer,
        qemu_img=qemu_img,
        size_bytes=size_bytes,
        note="; ".join(notes),
    )


async def _size_bytes(fork: ForkedImage, qemu_img: Path | None) -> int:
    """Return the size of the disk that a guest sees."""
    if fork.format == "raw":
        with fork.path.open("rb") as file:
            size_bytes = file.seek(0, os.SEEK_END)
        # QEMU has whole sectors.
        return size_bytes if qemu_img is None else -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES
    header = Qcow2Header.read(fork.path) if fork.format == "qcow2" else None
    if header is not None:
        return header.size_bytes
    assert qemu_img is not None
    return (await image_info(qemu_img=qemu_img, image=fork.path, image_format=fork.format)).virtual_size_bytes


def require_fork(fork: OwnedFork | None, fork_id: str) -> OwnedFork:
    """
    :raises AgentError: when the client has no such fork.
    """
    if fork is None:
        raise AgentError(f"there is no fork {fork_id}", hint="it was removed, or belongs to another client")
    return fork


def _sectors(offset: int, length: int) -> tuple[int, int]:
    """Extend a range to whole sectors."""
    first = offset - offset % SECTOR_BYTES
    return first, -(-(offset + length) // SECTOR_BYTES) * SECTOR_BYTES

"""The bundle: this project and its agent's dependencies, as one zip for the Python of a host.

The same content yields the same bytes, so that a bundle is identified by its hash.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import secrets
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from .distributions import PROJECT, HostPython, download, installed_files, needed_distributions, this_python

__all__ = ["Bundle", "make_bundle"]

PACKAGE: Final = Path(__file__).parents[2]
EPOCH: Final = (1980, 1, 1, 0, 0, 0)
KEPT: Final = 8
"""Bundles that stay in the cache: each change of a source file makes a new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A zip, and what names it."""

    sha256: str
    data: bytes


async def make_bundle(python: HostPython, *, cache: Path) -> Bundle:
    """Return the bundle for a host's Python.

    :param cache: a directory of this user, which is made; it keeps wheels and the latest bundles.
    :raises HostError: when a distribution is not to be had for that Python.
    """
    names = needed_distributions(python)
    archive = next((path for path in PACKAGE.parents if path.is_file()), None)  # of a zip application
    files, zips = ([], [archive]) if archive else (list(_project_files()), [])
    if python.runs_files_of(this_python()):
        files += [(name, path) for name, path in installed_files(names) if archive not in path.parents]
    else:
        key = hashlib.sha256(repr((python.version[:2], python.machine, python.libc, names)).encode()).hexdigest()[:16]
        zips += await download(names, python, cache / "wheels" / key)
    return await asyncio.to_thread(_cached, files, zips, cache)


def _project_files() -> Iterator[tuple[str, Path]]:
    """Yield this project's files, wherever it is imported from: an editable installation lists none of them."""
    for path in PACKAGE.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            yield str(path.relative_to(PACKAGE.parent)), path


def _cached(files: list[tuple[str, Path]], zips: list[Path], cache: Path) -> Bundle:
    """Return the bundle of these files, which is packed again only if one of them has changed."""
    found = [*files, *((path.name, path) for path in zips)]
    stats = sorted((name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in found)
    state = repr((stats, _project_metadata()))
    path = cache / "bundles" / f"{hashlib.sha256(state.encode()).hexdigest()[:32]}.zip"
    try:
        data = path.read_bytes()
        os.utime(path)
    except FileNotFoundError:
        data = _pack(files, zips)
        _store(path, data)
    return Bundle(sha256=hashlib.sha256(data).hexdigest(), data=data)


def _store(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_suffix(f".{secrets.token_hex(8)}")
    part.write_bytes(data)
    part.replace(path)
    with contextlib.suppress(FileNotFoundError):  # another run removes the old ones, too
        by_age = sorted(path.parent.glob("*.zip"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in by_age[KEPT:]:
            old.unlink()


def _pack(files: Iterable[tuple[str, Path]], zips: Iterable[Path]) -> bytes:
    contents = {name: path.read_bytes() for name, path in files}
    for path in zips:
        with zipfile.ZipFile(path) as archive:
            contents.update((name, archive.read(name)) for name in archive.namelist() if not name.endswith("/"))
    version = metadata.version(PROJECT)
    contents[f"pytest_propolis-{version}.dist-info/METADATA"] = _project_metadata().encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in sorted(contents.items()):
            bundle.writestr(zipfile.ZipInfo(name, EPOCH), content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _project_metadata() -> str:
    return f"Metadata-Version: 2.1\nName: {PROJECT}\nVersion: {metadata.version(PROJECT)}\n"

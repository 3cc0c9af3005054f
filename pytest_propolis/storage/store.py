"""The artifact store: a content-addressed directory of files.

::

    <directory>/<sha256>/<filename>     an artifact: complete, verified, read-only
    <directory>/derived/<key>/          files derived from artifacts, with a manifest
    <directory>/shelf/                  files that sources keep for later artifacts
    <directory>/locks/

Any number of processes may share a store. Names that do not begin with a dot appear only when complete.
"""

# A look at a file's status takes microseconds: content is what is read in pieces.

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, final

from ..errors import ArtifactCorrupt, ArtifactError, ResourceExhausted
from .artifacts import Artifact, checked_name
from .catalogs.archive_member import ArchiveMember
from .catalogs.derived_file import DerivedFile
from .catalogs.unpacked_file import UnpackedFile, unpack
from .debian import DebianBuild
from .files import copy, private_directory, remove, require_trusted, sha256_of, space_errors, sync
from .locks import locked
from .manifests import Manifest, Verified
from .progress import Progress
from .sources import FetchedSource, LocalFile

__all__ = ["ArtifactStore"]

_ATTEMPTS: Final = 2
_MANIFEST: Final = "manifest.json"
_READ_ONLY: Final = 0o444
_VERIFIED: Final = ".verified.json"


@final
class ArtifactStore:
    """Artifacts in a directory, which is created on first use.

    :param peers: stores on this machine that may have the same files, which are then linked or copied, and verified.

    A file never appears under its name before it is complete. A cancelled or failed call cleans up before it returns,
    and the remains of a killed process are removed by the next call that creates the same file.
    """

    __slots__ = ("_peers", "directory")

    def __init__(self, directory: Path, *, peers: Sequence[Path] = ()) -> None:
        self.directory = directory.absolute()
        self._peers = [ArtifactStore(peer) for peer in peers]

    async def get(self, artifact: Artifact, progress: Progress) -> Path:
        """Return the path of an artifact, and fetch it if necessary. The file must not be written to.

        The content is hashed on arrival, and later only if the file's metadata has changed. Corrupt content is fetched
        again, once. Processes that need the same artifact wait for the first of them, and report that.

        :raises ArtifactCorrupt: when what the source gives does not have the artifact's hash.
        :raises ArtifactMissing: when the source cannot give it.
        :raises ResourceExhausted: when there is no space left.
        :raises HostError: when the store's directory cannot be used.
        """
        require_trusted(self.directory)
        try:
            return await self._get(artifact, progress)
        except (ArtifactError, ResourceExhausted) as error:
            error.with_context(operation=f"getting artifact {artifact.key}")
            raise

    async def _get(self, artifact: Artifact, progress: Progress) -> Path:
        source = artifact.source
        if isinstance(source, LocalFile):
            return await self._in_place(artifact, source.readable(), progress)
        if isinstance(source, DebianBuild):
            await self.derive(source.key, source.filenames, partial(source.make, progress=progress), progress)
            return self.path_of(artifact)
        if isinstance(source, ArchiveMember | DerivedFile):
            make = partial(self._make_from_another, artifact, source, progress)
            await self.derive(source.key, [artifact.filename], make, progress)
            return self.path_of(artifact)
        sha256, path = _hash_of(artifact), self.path_of(artifact)
        require_trusted(path.parent)
        if not _is_verified(path, home=path.parent, sha256=sha256):
            async with self._home(sha256, purpose=f"fetching {artifact.key}", progress=progress) as home:
                await self._ensure(artifact, source, home / artifact.filename, sha256, progress)
        return path

    def path_of(self, artifact: Artifact) -> Path:
        """Return the path that an artifact has once it is fetched. No file is accessed."""
        source = artifact.source
        if isinstance(source, LocalFile):
            return Path(source.path)
        if isinstance(source, DebianBuild | ArchiveMember | DerivedFile):
            return self.derived_directory(source.key) / artifact.filename
        return self.directory / _hash_of(artifact) / artifact.filename

    def known_sha256(self, artifact: Artifact) -> str | None:
        """Return the hash that the artifact should have: the stated one, or the one it had when it was made here."""
        if artifact.sha256 is not None or isinstance(artifact.source, LocalFile):
            return artifact.sha256
        entry = Manifest.load(self.path_of(artifact).parent / _MANIFEST).files.get(artifact.filename)
        return entry.sha256 if entry else None

    def missing_build(self, artifact: Artifact) -> str | None:
        """Return the command that builds an artifact on this machine; None if it exists, or is fetched."""
        if not isinstance(artifact.source, DebianBuild) or self.derived(artifact.source.key, [artifact.filename]):
            return None
        return artifact.source.command

    def derived_directory(self, key: str) -> Path:
        """Return the directory of the files that `derive` creates under this key."""
        return self.directory / "derived" / checked_name(key, what="key")

    async def derive(
        self,
        key: str,
        filenames: Sequence[str],
        make: Callable[[Path], Awaitable[None]],
        progress: Progress,
        *,
        title: str | None = None,
        mode: int = _READ_ONLY,
    ) -> Path:
        """Return a directory with these files, created by ``make`` if it does not exist or is not intact.

        :param key: identifies the content: it must change with everything that ``make`` depends on.
        :param filenames: the files that ``make`` creates; any others are discarded.
        :param make: fills the empty directory that it is given. Its exceptions propagate.
        :param title: what is being created, for progress messages.
        :param mode: the permissions of the files.
        :raises ArtifactError: when a name cannot name a file, or ``make`` did not make one of the files.
        :raises ResourceExhausted: when there is no space left.
        :raises HostError: when the store's directory cannot be used.
        """
        for name in filenames:
            checked_name(name, what=f"derived {key}: file name")
        directory = self.derived_directory(key)
        self._require_trusted_directory(directory)
        if not _all_verified(directory, filenames):
            async with self._lock(f"derived-{key}", purpose=f"making {title or key}", progress=progress):
                if not await _intact(directory, filenames):
                    if (peer := self._peer_with(key, filenames)) is not None:
                        make = partial(_link_all, peer, filenames)
                    else:
                        progress(f"making {title or key}")
                    await _rebuild(directory, filenames, make, progress, mode=mode)
        return directory

    def derived(self, key: str, filenames: Sequence[str]) -> Path | None:
        """Return the directory that `derive` would return, if it exists and is unchanged since it was created."""
        directory = self.directory / "derived" / key
        self._require_trusted_directory(directory)
        return directory if _all_verified(directory, filenames) else None

    def _peer_with(self, key: str, filenames: Sequence[str]) -> Path | None:
        found = (peer.derived(key, filenames) for peer in self._peers)
        return next((directory for directory in found if directory is not None), None)

    def _require_trusted_directory(self, directory: Path) -> None:
        for trusted in (self.directory, directory.parent, directory):
            require_trusted(trusted)

    async def _make_from_another(
        self, artifact: Artifact, source: ArchiveMember | DerivedFile, progress: Progress, directory: Path
    ) -> None:
        made = directory / artifact.filename
        if isinstance(source, ArchiveMember):
            archive = Artifact(f"{artifact.key}-archive", source.archive_name, source.archive_sha256, source.archive)
            path = await self._get(archive, progress)
            progress(f"extracting {source.member} from {path.name}")
        else:
            base = Artifact(f"{artifact.key}-base", source.base_name, source.base_sha256, source.base)
            path = await self._get(base, progress)
            progress(f"making {artifact.key} of {path.name} with {source.recipe}")
        await source.make(path, made)

    async def _in_place(self, artifact: Artifact, path: Path, progress: Progress) -> Path:
        sha256 = artifact.sha256
        if sha256 is not None and not _is_verified(path, home=self.directory / sha256, sha256=sha256):
            async with self._home(sha256, purpose=f"checking {artifact.key}", progress=progress) as home:
                progress(f"checking {path}")
                await _verify(artifact, path, sha256)
                _mark_verified(path, home=home, sha256=sha256)
        return path

    async def _ensure(
        self, artifact: Artifact, source: FetchedSource | UnpackedFile, path: Path, sha256: str, progress: Progress
    ) -> None:
        if _is_verified(path, home=path.parent, sha256=sha256):  # another process was faster
            return
        if path.exists():
            progress(f"checking {path}")
            if await sha256_of(path) != sha256:
                progress(f"{path} is damaged: fetching it again")
                path.unlink()
        if not path.exists():
            await self._fetch(artifact, source, path, sha256, progress)
        _mark_verified(path, home=path.parent, sha256=sha256)

    async def _fetch(
        self, artifact: Artifact, source: FetchedSource | UnpackedFile, path: Path, sha256: str, progress: Progress
    ) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            with _part_beside(path) as part:
                try:
                    found = None
                    if attempt > 1 or not await self._copy_from_peer(artifact, sha256, part):
                        found = await self._fetch_content(artifact, source, part, progress)
                    await _verify(artifact, part, sha256, found=found)
                except ArtifactCorrupt as error:
                    if attempt == _ATTEMPTS:
                        raise
                    progress(f"{error.message}: fetching it again")
                else:
                    part.chmod(_READ_ONLY)
                    sync(part)
                    part.replace(path)
                    sync(path.parent)
                    return

    async def _fetch_content(
        self, artifact: Artifact, source: FetchedSource | UnpackedFile, part: Path, progress: Progress
    ) -> str | None:
        """Write the content; return its SHA-256 if it was taken meanwhile."""
        if not isinstance(source, UnpackedFile):
            return await source.fetch(part, progress, downloads=self.directory / "shelf")
        base = Artifact(f"{artifact.key}-base", source.base_name, source.base_sha256, source.base)
        path = await self._get(base, progress)
        progress(f"unpacking {path.name}")
        await unpack(path, part)
        return None

    async def _copy_from_peer(self, artifact: Artifact, sha256: str, part: Path) -> bool:
        for peer in self._peers:
            path = peer.path_of(artifact)
            if _is_verified(path, home=path.parent, sha256=sha256):
                part.unlink()
                await _link(path, part)
                return True
        return False

    @asynccontextmanager
    async def _home(self, sha256: str, *, purpose: str, progress: Progress) -> AsyncIterator[Path]:
        """Provide the locked directory of one content; remove it again if it stays empty."""
        async with self._lock(sha256, purpose=purpose, progress=progress):
            home = private_directory(self.directory / sha256)
            try:
                yield home
            finally:
                with suppress(OSError):  # not empty, as it should be
                    home.rmdir()

    @asynccontextmanager
    async def _lock(self, name: str, *, purpose: str, progress: Progress) -> AsyncIterator[None]:
        with space_errors(self.directory):
            private_directory(self.directory)
            path = private_directory(self.directory / "locks") / f"{name}.lock"
            async with locked(path, purpose=purpose, progress=progress):
                yield


async def _link(source: Path, target: Path) -> None:
    """Hard-link a complete file, which nothing writes to; copy it if that is not possible."""
    try:
        os.link(source, target)
    except OSError:
        await copy(source, target)


async def _link_all(source: Path, filenames: Sequence[str], directory: Path) -> None:
    for name in filenames:
        await _link(source / name, directory / name)


def _hash_of(artifact: Artifact) -> str:
    if artifact.sha256 is None:
        raise ArtifactError(
            f"artifact {artifact.key} has no sha256", hint="only a LocalFile can be without: give the hash"
        )
    return artifact.sha256


async def _verify(artifact: Artifact, path: Path, sha256: str, *, found: str | None = None) -> None:
    """Compare the content of a file with what it should be.

    :param found: its SHA-256, if it was taken while the file was written.
    """
    found = found or await sha256_of(path)
    if found != sha256:
        raise ArtifactCorrupt(
            f"artifact {artifact.key}, from {artifact.source}: its SHA-256 is {found}, and should be {sha256}",
            hint="get the file again from where it comes from, or correct the hash",
        )


def _is_verified(path: Path, *, home: Path, sha256: str) -> bool:
    return Manifest.load(home / _VERIFIED).verified_hash(str(path), path) == sha256


def _mark_verified(path: Path, *, home: Path, sha256: str) -> None:
    manifest = Manifest.load(home / _VERIFIED)
    manifest.having(str(path), Verified.now(path, sha256)).save(home / _VERIFIED)


@contextmanager
def _part_beside(path: Path) -> Iterator[Path]:
    """Provide a temporary file, removed after the block unless it was renamed. The caller holds the path's lock."""
    prefix = f".{path.name}."
    remove(path.parent.glob(f"{prefix}*"))
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=prefix)
    os.close(descriptor)
    part = Path(name)
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _all_verified(directory: Path, filenames: Sequence[str]) -> bool:
    manifest = Manifest.load(directory / _MANIFEST)
    return all(manifest.verified_hash(name, directory / name) for name in filenames)


async def _intact(directory: Path, filenames: Sequence[str]) -> bool:
    """Return whether the content matches the manifest, even if the files were copied or touched since."""
    if _all_verified(directory, filenames):
        return True
    known = Manifest.load(directory / _MANIFEST).files
    for name in filenames:
        if (
            name not in known
            or not (directory / name).is_file()
            or await sha256_of(directory / name) != known[name].sha256
        ):
            return False
    Manifest({name: Verified.now(directory / name, known[name].sha256) for name in known}).save(directory / _MANIFEST)
    return True


async def _rebuild(
    directory: Path,
    filenames: Sequence[str],
    make: Callable[[Path], Awaitable[None]],
    progress: Progress,
    *,
    mode: int,
) -> None:
    private_directory(directory.parent)
    remove(directory.parent.glob(f".{directory.name}.*"))  # of processes that died: we hold the lock
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as name:
        made = Path(name) / "made"
        made.mkdir(mode=0o700)
        await make(made)
        await _seal(made, filenames, key=directory.name, mode=mode)
        if directory.exists():
            progress(f"{directory} is damaged: it is replaced")
            directory.rename(Path(name) / "damaged")
        made.rename(directory)
    sync(directory.parent)


async def _seal(made: Path, filenames: Sequence[str], *, key: str, mode: int) -> None:
    remove(path for path in made.iterdir() if path.name not in filenames)
    entries = {}
    for name in filenames:
        path = made / name
        if not path.is_file():
            raise ArtifactError(f"derived {key}: {name} was not made", hint="see the messages before this one")
        path.chmod(mode)
        sync(path)
        entries[name] = Verified.now(path, await sha256_of(path))
    Manifest(entries).save(made / _MANIFEST)
    sync(made / _MANIFEST, made)

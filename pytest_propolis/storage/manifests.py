"""Manifests: the hashes of verified files, with their metadata at the time.

A file with unchanged metadata (inode, mtime, size) is assumed to have unchanged content, so that later runs need not
hash it again. Silent corruption on the medium is not detected.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import msgspec

__all__ = ["Manifest", "Verified"]


class Verified(msgspec.Struct, frozen=True):
    """One verified file."""

    sha256: str
    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def now(cls, file: Path, sha256: str) -> Self:
        """Describe ``file``, whose content has just been verified to have this hash."""
        status = file.stat()
        return cls(sha256=sha256, size=status.st_size, mtime_ns=status.st_mtime_ns, inode=status.st_ino)

    def still_holds(self, file: Path) -> bool:
        """Return whether ``file`` exists with unchanged metadata."""
        try:
            return self.now(file, self.sha256) == self
        except OSError:
            return False


class Manifest(msgspec.Struct, frozen=True):
    """Verified files by name."""

    files: Mapping[str, Verified]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a manifest. A missing or damaged one counts as empty."""
        try:
            document = json.loads(path.read_bytes())
            return cls({name: Verified(**entry) for name, entry in document.items()})
        except (OSError, ValueError, TypeError, AttributeError):
            return cls({})

    def save(self, path: Path) -> None:
        """Write the manifest atomically. Hold its lock: two processes must not save the same one at once."""
        document = {name: msgspec.structs.asdict(entry) for name, entry in self.files.items()}
        part = path.with_name(path.name + ".part")
        try:
            part.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
            os.replace(part, path)  # noqa: PTH105 - one system call, and says so
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def verified_hash(self, name: str, file: Path) -> str | None:
        """Return the hash of ``file`` if its metadata is unchanged since it was verified under this name, else None."""
        entry = self.files.get(name)
        return entry.sha256 if entry and entry.still_holds(file) else None

    def having(self, name: str, entry: Verified) -> Manifest:
        """Return a manifest with one more entry."""
        return Manifest({**self.files, name: entry})

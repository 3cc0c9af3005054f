"""A manifest: which files were verified, and how each looked when it was.

A file that still looks the same (inode, time of modification, size) is taken to have the same content, so that a second
run does not hash what the first one hashed. Content that rots on the medium without a write is not noticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

__all__ = ["Manifest", "Verified"]


@dataclass(frozen=True, slots=True)
class Verified:
    """One file whose content is known."""

    sha256: str
    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def now(cls, file: Path, sha256: str) -> Self:
        """Describe ``file``, whose content was just found to have this hash."""
        status = file.stat()
        return cls(sha256=sha256, size=status.st_size, mtime_ns=status.st_mtime_ns, inode=status.st_ino)

    def still_holds(self, file: Path) -> bool:
        """Say whether ``file`` is there and looks as it did."""
        try:
            return self.now(file, self.sha256) == self
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class Manifest:
    """Verified files by name."""

    files: Mapping[str, Verified]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a manifest. One that is missing or damaged vouches for nothing: it is empty."""
        try:
            document = json.loads(path.read_bytes())
            return cls({name: Verified(**entry) for name, entry in document.items()})
        except (OSError, ValueError, TypeError, AttributeError):
            return cls({})

    def save(self, path: Path) -> None:
        """Write the manifest in one step. Two processes must not save the same one at once: hold its lock."""
        document = {name: asdict(entry) for name, entry in self.files.items()}
        part = path.with_name(path.name + ".part")
        try:
            part.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
            os.replace(part, path)  # noqa: PTH105 - one system call, and says so
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def vouches_for(self, name: str, file: Path) -> str | None:
        """Return the hash of ``file`` if it still looks as when it was verified under this name, else None."""
        entry = self.files.get(name)
        return entry.sha256 if entry and entry.still_holds(file) else None

    def having(self, name: str, entry: Verified) -> Manifest:
        """Return a manifest with one more entry."""
        return Manifest({**self.files, name: entry})

"""A path in the guest, and the shell's words for it."""

from __future__ import annotations

import os
import posixpath
import secrets
from typing import Self

import msgspec

from ...console.read_eval_loop import quoted

__all__ = ["GuestPath", "RemotePath"]

GuestPath = str | bytes | os.PathLike[str]
"""How a test names a file in the guest: bytes for a name that is not UTF-8."""


class RemotePath(msgspec.Struct, frozen=True):
    """A path in the guest. Bytes that are not UTF-8 are surrogate escapes, as in `os.fsdecode`.

    :param temporary: a name beside it, under which it is written.
    """

    path: str
    temporary: str

    @classmethod
    def of(cls, path: GuestPath) -> Self:
        """Return a path as a test gave it.

        :raises ValueError: when it is empty, or has a NUL.
        """
        text = path.decode(errors="surrogateescape") if isinstance(path, bytes) else os.fspath(path)
        if not text or "\0" in text:
            raise ValueError("a path must not be empty, and has no NUL")
        text = posixpath.normpath(text) if text.strip("/") else "/"
        plain = text if text.startswith("/") else f"./{text}"  # one that begins with a hyphen is no option
        return cls(plain, posixpath.join(posixpath.dirname(plain), f".propolis-{secrets.token_hex(6)}"))

    def __str__(self) -> str:
        return self.path.encode(errors="surrogateescape").decode(errors="backslashreplace")

    def fill(self, script: str) -> str:
        """Return a script with its words @FILE@, @PART@ (the temporary name) and @DIRECTORY@ filled in."""
        substitutions = {"@FILE@": self.path, "@PART@": self.temporary, "@DIRECTORY@": posixpath.dirname(self.path)}
        for placeholder, text in substitutions.items():
            script = script.replace(placeholder, quoted(text))
        return script

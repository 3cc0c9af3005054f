"""Paths in messages to an agent, which has a different working directory than its clients."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigError

__all__ = ["host_path"]


def host_path(path: str | os.PathLike[str], *, purpose: str) -> str:
    """Return a path as text that names the same file for every process on this host: absolute, without ``~``.

    A relative path is relative to the working directory.

    :param purpose: what the path is for, in errors: "the image of data disk 'data'".
    :raises ConfigError: if the path is of another type, empty, below an unknown home directory, or not valid UTF-8,
        which messages require.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"{purpose}: the path is {path!r}", hint="it must be text or a Path")
    text = os.fspath(path)
    if not text:
        raise ConfigError(f"{purpose}: the path is empty", hint="give the path of a file")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{purpose}: the path {text!r} is not text in UTF-8", hint="link to the file under a name that is"
        ) from None
    try:
        return str(Path(text).expanduser().absolute())
    except RuntimeError:
        raise ConfigError(
            f"{purpose}: the home directory in {text} is not known", hint="set HOME, or give the path without ~"
        ) from None

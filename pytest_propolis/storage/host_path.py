"""Paths as a message to an agent carries them: an agent runs in another directory than its clients."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigError

__all__ = ["host_path"]


def host_path(path: str | os.PathLike[str], *, purpose: str) -> str:
    """Return a path as text that means the same file to every process of this host: absolute, without ``~``.

    A relative path is relative to the working directory.

    :param purpose: what the path is for, in errors: "the image of data disk 'data'".
    :raises ConfigError: when the path is empty, below a home directory that is not known, or not text in UTF-8, which
        messages are.
    """
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

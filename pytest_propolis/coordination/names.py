"""Names of groups, nodes, barriers, batons and locks, which are parts of keys."""

from __future__ import annotations

import re
from typing import Final

from ..errors import CoordinationError

__all__ = ["require_key", "require_name"]

_NAME: Final = re.compile(r"[A-Za-z0-9_.:@+-]{1,100}")
_KEY: Final = re.compile(r"[A-Za-z0-9_.:@+-]+(/[A-Za-z0-9_.:@+-]+)*")
_KEY_LENGTH: Final = 300


def require_name(kind: str, name: str) -> str:
    """Return a name.

    :raises CoordinationError: when it cannot be part of a key.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise CoordinationError(
            f"{name!r} is not a name of a {kind}", hint="it has 1 to 100 letters, digits and characters of _.:@+-"
        )
    return name


def require_key(key: str) -> str:
    """Return a key of the key-values.

    :raises CoordinationError: when it cannot be one.
    """
    if not isinstance(key, str) or len(key) > _KEY_LENGTH or not _KEY.fullmatch(key):
        raise CoordinationError(
            f"{key!r} is not a key", hint=f"it has up to {_KEY_LENGTH} characters: names that are separated by slashes"
        )
    return key

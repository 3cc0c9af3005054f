"""An ordinary user for tests that run as root, which exists only for the commands run as this user."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

__all__ = ["USER_ID", "OrdinaryUser", "needs_subordinate_ids", "ordinary_user"]

USER_ID: Final = 54321

needs_subordinate_ids = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("newuidmap") is None, reason="needs root, and the package uidmap"
)

# In a mount namespace, so that the machine's own files stay as they are.
AS_USER: Final = """
place=$1 user=$2 ranges=$3; shift 3
printf '%s' "$ranges" > "$place/ranges"
{ cat /etc/passwd; echo "tester:x:$user:$user::$place/home:/bin/sh"; } > "$place/passwd"
mount --bind "$place/passwd" /etc/passwd
for table in subuid subgid; do mount --bind "$place/ranges" "/etc/$table"; done
exec setpriv --reuid "$user" --regid "$user" --clear-groups "$@"
"""


class OrdinaryUser:
    """A user with a home directory that no other user may enter."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.home = place / "home"
        place.chmod(0o755)
        self.home.mkdir(mode=0o700)
        os.chown(self.home, USER_ID, USER_ID)

    def prefix(self, *, subordinate_ids: bool = True) -> tuple[str, ...]:
        """Return the command prefix that runs a program as this user, with or without subordinate ids."""
        ranges = "tester:300000:65536\n" if subordinate_ids else ""
        return ("unshare", "--mount", "sh", "-euc", AS_USER, "sh", str(self._place), str(USER_ID), ranges)


@contextmanager
def ordinary_user() -> Iterator[OrdinaryUser]:
    """Yield an ordinary user. Its home is not below pytest's directory, which no other user may enter."""
    with tempfile.TemporaryDirectory(prefix="u-", dir="/tmp") as place:
        yield OrdinaryUser(Path(place))

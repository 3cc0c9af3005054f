"""Run directories: private directories with short, unguessable names, for files that live as long as a run.

They contain UNIX sockets, whose paths are limited to 107 characters.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from ..errors import HostError, ResourceExhausted
from ..operating_system.no_space import is_no_space
from ..operating_system.registry import system
from ..storage.user_directories import cache_directory

__all__ = ["agent_directory", "base_directory", "make_private_directory", "require_private_directory", "run_token"]


def base_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """The parent of all run directories of this user: never in a shared temporary directory.

    :raises HostError: if the environment defines no private directory of this user.
    """
    runtime = environment.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_absolute() and Path(runtime).is_dir():  # relative ones are invalid (XDG)
        return Path(runtime) / "propolis"
    if os.geteuid() == 0:
        return system().host.run_directory / "propolis"
    return cache_directory() / "run"


def run_token(shared_id: str | None) -> str:
    """Return the id of a run: the same in all xdist workers, which share an id, and in no other run."""
    if shared_id is None:
        return secrets.token_hex(8)
    return hashlib.sha256(shared_id.encode()).hexdigest()[:16]


def agent_directory(run: str) -> Path:
    """Return a directory for one agent of a run; it is not created. A replacement agent gets a new directory."""
    return base_directory() / f"{run}-{secrets.token_hex(4)}"


def make_private_directory(directory: Path) -> None:
    """Create a directory that only this user can access, and its missing parents.

    :raises HostError: if it is not this user's, or cannot be written.
    :raises ResourceExhausted: when there is no space for it.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_private_directory(directory)
    except OSError as error:
        if is_no_space(error):
            raise ResourceExhausted(
                f"{directory} cannot be used: {error.strerror}",
                hint="free some space there, or set XDG_RUNTIME_DIR to another directory of your own",
            ) from None
        raise HostError(
            f"the directory {directory} cannot be made: {error.strerror}",
            hint="set XDG_RUNTIME_DIR to a directory of your own",
        ) from None


def require_private_directory(directory: Path) -> None:
    """
    :raises HostError: when it is not a directory of this user that no other user may enter.
    :raises OSError: when it is not there.
    """
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise HostError(
            f"{directory} is not a directory of this user alone", hint="remove it, or set XDG_RUNTIME_DIR to your own"
        )

"""Directories of the user that runs this process."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import HostError

__all__ = ["cache_directory", "default_artifact_dir", "disk_directory", "template_directory"]


def cache_directory() -> Path:
    """Return the cache directory, for files that can be fetched or built again. It is not created.

    :raises HostError: if the environment does not define it, as in a container whose user has no entry in
        ``/etc/passwd``.
    """
    import platformdirs  # here, because most runs never ask

    if not os.environ.get("XDG_CACHE_HOME"):
        try:
            Path.home()
        except RuntimeError:
            raise HostError(
                f"user {os.geteuid()} has no home directory, and XDG_CACHE_HOME and XDG_RUNTIME_DIR are not set",
                hint="set HOME to a directory that this user can write, or set both variables",
            ) from None
    return platformdirs.user_cache_path("propolis")


def default_artifact_dir() -> Path:
    """Return the default artifact directory, in the user's cache. It is not created."""
    return cache_directory() / "artifacts"


def template_directory(artifact_dir: str | Path | None) -> Path:
    """Return the directory of templates: with the artifacts, because they are large. It is not created."""
    return Path(artifact_dir or default_artifact_dir()) / "templates"


def disk_directory(artifact_dir: str | Path | None) -> Path:
    """Return the default directory of VMs' writable disks, with the artifacts. It is not created."""
    return Path(artifact_dir or default_artifact_dir()) / "disks"

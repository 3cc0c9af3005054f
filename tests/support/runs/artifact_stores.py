"""Artifact stores of single tests."""

from __future__ import annotations

from pathlib import Path

from pytest_propolis.storage.user_directories import default_artifact_dir

__all__ = ["store_without_templates"]


def store_without_templates(directory: Path) -> Path:
    """Make a store that has the images of the user's own, but no templates yet."""
    directory.mkdir()
    for entry in default_artifact_dir().iterdir():
        if entry.name not in ("templates", "disks"):
            (directory / entry.name).symlink_to(entry)
    return directory

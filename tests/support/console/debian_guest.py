"""The guest debian, which only some machines have: building it takes minutes."""

from __future__ import annotations

from typing import Final

import pytest

from pytest_propolis.storage.debian import DebianBuild
from pytest_propolis.storage.user_directories import default_artifact_dir

__all__ = ["needs_debian"]

_BUILD: Final = DebianBuild()

needs_debian = pytest.mark.skipif(
    not (default_artifact_dir() / "derived" / _BUILD.key / _BUILD.disk).exists(),
    reason="the guest debian is not built: `propolis setup debian` does it",
)

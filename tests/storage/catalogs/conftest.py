"""The store of a test's artifacts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_propolis.storage.store import ArtifactStore


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")

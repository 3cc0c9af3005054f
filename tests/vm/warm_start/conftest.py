"""Factories whose store has no templates yet."""

from __future__ import annotations

from pathlib import Path

import pytest
from artifact_stores import store_without_templates
from own_agents import Factories, factories_on_own_agents

from pytest_propolis.guests.micro import Micro
from pytest_propolis.guests.registry import GuestRegistry


@pytest.fixture
def lines() -> list[str]:
    """Return the lines of progress."""
    return []


@pytest.fixture
def artifact_dir(tmp_path: Path) -> Path:
    return store_without_templates(tmp_path / "artifacts")


@pytest.fixture
def more_guests() -> list[Micro]:
    """Return guests that a module adds."""
    return []


@pytest.fixture
def factories(artifact_dir: Path, tmp_path: Path, lines: list[str], more_guests: list[Micro]) -> Factories:
    """Factories on agents of their own, as of separate runs."""
    guests = GuestRegistry(more_guests)
    return factories_on_own_agents(artifact_dir, tmp_path, guests=guests, progress=lines.append)

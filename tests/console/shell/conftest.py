"""Shells that take commands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from local_pty import SHELLS
from local_shell import ALL_SHELLS, Local, any_shell, local_shell


@pytest.fixture(params=ALL_SHELLS)
async def local(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Local]:
    async with any_shell(request.param, tmp_path) as made:
        yield made


@pytest.fixture(params=SHELLS)
async def on_console(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Local]:
    async with local_shell(request.param, tmp_path) as made:
        yield made


@pytest.fixture
async def dash(tmp_path: Path) -> AsyncIterator[Local]:
    """A shell, where its kind does not matter."""
    async with local_shell("dash", tmp_path) as made:
        yield made

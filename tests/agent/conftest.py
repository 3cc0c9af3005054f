"""The agent's rig, with one client."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from agent_rig import AgentRig


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[AgentRig]:
    """An agent; everything that a test makes is removed with it."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("QEMU is not installed")
    rig = AgentRig(tmp_path)
    await rig.registry.admit("client", pid=os.getpid())
    try:
        yield rig
    finally:
        await rig.app.close()
        assert rig.ledger.entries() == []
        rig.ledger.close()

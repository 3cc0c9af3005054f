"""Factories of VMs on agents of their own, as of separate runs, with a store of templates that they share."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from pytest_propolis.guests.registry import GuestRegistry
from pytest_propolis.hosts.local import LocalHost
from pytest_propolis.hosts.run_directory import run_token
from pytest_propolis.settings import Settings
from pytest_propolis.vm.factory import VmFactory

__all__ = ["Factories", "factories_on_own_agents", "template_in"]

Factories = Callable[..., AbstractAsyncContextManager[VmFactory]]
"""Called with the name of a group, and how many forks are to stand by."""


def factories_on_own_agents(
    artifact_dir: Path, log_dir: Path, *, guests: GuestRegistry, progress: Callable[[str], None]
) -> Factories:
    """Return what opens a factory on an agent that ends with it."""

    @contextlib.asynccontextmanager
    async def make(name: str, *, standby: int = 0) -> AsyncIterator[VmFactory]:
        settings = Settings(artifact_dir=artifact_dir, standby=standby)
        host = LocalHost(settings, run_id=run_token(None))
        try:
            async with VmFactory.on(
                [host],
                settings=settings,
                guests=guests,
                group=name,
                log_dir=log_dir / name,
                progress=progress,
                made=lambda vm: None,
                artifact=lambda name: None,
            ) as factory:
                yield factory
        finally:
            host.close()

    return make


def template_in(artifact_dir: Path) -> Path:
    """Return the directory of the only template in a store."""
    (place,) = (artifact_dir / "templates" / "derived").iterdir()
    return place

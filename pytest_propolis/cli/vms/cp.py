"""``propolis cp``: copy files into a VM that was kept, and out of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import click

from ..hosts.remote_commands import on_hosts
from .guest_command import own_statuses

if TYPE_CHECKING:
    from ...hosts.host import HostSpec

__all__ = ["cp"]


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@on_hosts
def cp(*, source: str, target: str, hosts: tuple[HostSpec, ...] | None) -> None:
    """Copy a file or a directory into a VM that was kept, or out of it.

    One of SRC and DST is ID:PATH, with the id shown by `propolis ps --kept` and in reports, or a prefix of it. Both
    paths are those of the file itself, and not of a directory for it. A path here that contains a colon is written with
    a slash: ./a:b.

    Exit statuses: 0, 125 when it did not get there, 130 after Ctrl-C. Then nothing is left of it.
    """
    inward, outward = _InVm.parsed(target), _InVm.parsed(source)
    if (inward is None) == (outward is None):
        raise click.UsageError("exactly one of SRC and DST must be ID:PATH")
    with own_statuses():
        if inward is not None:
            asyncio.run(_put(Path(source), inward, hosts))
        elif outward is not None:
            asyncio.run(_get(outward, Path(target), hosts))


@dataclass(frozen=True, slots=True)
class _InVm:
    """A path in a VM."""

    vm_id: str
    path: str

    @classmethod
    def parsed(cls, argument: str) -> Self | None:
        """``ID:PATH``; None for a path on this machine."""
        vm_id, colon, path = argument.partition(":")
        return cls(vm_id, path) if colon and vm_id and "/" not in vm_id else None


async def _put(local: Path, remote: _InVm, hosts: tuple[HostSpec, ...] | None) -> None:
    from .kept_guest import kept_files

    async with kept_files(remote.vm_id, hosts) as files:
        await files.put(local, remote.path, mode=None, on_progress=None)


async def _get(remote: _InVm, local: Path, hosts: tuple[HostSpec, ...] | None) -> None:
    from .kept_guest import kept_files

    async with kept_files(remote.vm_id, hosts) as files:
        await files.get(remote.path, local, on_progress=None)

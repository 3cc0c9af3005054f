"""The registry of fork providers, and the choice of the best one that a place allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ...errors import CapabilityMissing, ConfigError
from .files import COPY, REFLINK
from .fork import ForkedImage, ForkProvider, ForkRequest
from .qcow2 import QCOW2
from .zfs import ZFS

__all__ = ["PROVIDERS", "fork_image", "provider_named"]

PROVIDERS: Final[tuple[ForkProvider, ...]] = (ZFS, REFLINK, QCOW2, COPY)
"""All providers, the best first. A new one is a module beside these, and an entry here."""


def provider_named(name: str) -> ForkProvider:
    """Return a provider by name.

    :raises ConfigError: when there is none of that name.
    """
    for provider in PROVIDERS:
        if provider.name == name:
            return provider
    raise ConfigError(
        f"there is no fork provider {name!r}", hint=f"choose one of {', '.join(p.name for p in PROVIDERS)}"
    )


async def fork_image(
    request: ForkRequest,
    *,
    progress: Callable[[str], None],
    only: Sequence[str] = (),
) -> ForkedImage:
    """Fork an image by the best provider that can; a copy is announced with its size.

    :param only: the names of the providers that will do; any, if empty.
    :raises CapabilityMissing: when none of them can, with the reason of each.
    :raises ArtifactError: when the image is missing or broken.
    :raises ResourceExhausted: when there is no space left.
    """
    obstacles = []
    for provider in [provider_named(name) for name in only] or PROVIDERS:
        if obstacle := await provider.obstacle(request):
            obstacles.append(f"{provider.name}: {obstacle}")
            continue
        if provider is COPY:
            data_mib = request.image.stat().st_blocks * 512 / (1 << 20)
            progress(f"copying {data_mib:.0f} MiB of {request.image}: no file system here can fork it")
        return await provider.fork(request)
    raise CapabilityMissing(
        f"{request.image} cannot be forked here:\n" + "\n".join(f"  {line}" for line in obstacles),
        hint="put the artifacts on ZFS, btrfs or XFS, or allow another provider",
    )

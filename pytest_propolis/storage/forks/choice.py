"""The registry of fork providers, and the choice of the best one that a place allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ...errors import CapabilityMissing, ConfigError
from .files import COPY, REFLINK
from .fork import ForkedImage, ForkProvider, ForkRequest
from .qcow2 import QCOW2
from .zfs import ZFS

__all__ = ["PROVIDERS", "choose_provider", "fork_image", "provider_named"]

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


async def choose_provider(
    request: ForkRequest, *, progress: Callable[[str], None], only: Sequence[str] = ()
) -> ForkProvider:
    """Return the best provider that can fork an image; a copy is announced with its size.

    :param only: the names of the providers that will do; any, if empty.
    :raises CapabilityMissing: when none of them can, with the reason of each.
    """
    obstacles = []
    for provider in [provider_named(name) for name in only] or PROVIDERS:
        if (obstacle := await provider.obstacle(request)) is None:
            if provider is COPY and request.image.is_file():
                data_mib = request.image.stat().st_blocks * 512 / (1 << 20)
                progress(f"copying {data_mib:.0f} MiB of {request.image}: no file system here can fork it")
            return provider
        obstacles.append(f"{provider.name}: {obstacle}")
    raise CapabilityMissing(
        f"{request.image} cannot be forked here:\n" + "\n".join(f"  {line}" for line in obstacles),
        hint="put the artifacts on ZFS, btrfs or XFS, or allow another provider",
    )


async def fork_image(request: ForkRequest, *, progress: Callable[[str], None], only: Sequence[str] = ()) -> ForkedImage:
    """Fork an image by the best provider that can: `choose_provider`, and its `fork`.

    :raises ArtifactError: when the image is missing or broken.
    :raises ResourceExhausted: when there is no space left.
    """
    provider = await choose_provider(request, progress=progress, only=only)
    return await provider.fork(request)

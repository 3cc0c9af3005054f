"""The factory of image forks: makes them for a test, and takes them away."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from ...agent_api.disks import ForkImage
from ...guests.registry import GuestRegistry
from ...hosts.host import Host
from ...storage.artifacts import Artifact
from ...storage.catalogs.catalog import Catalog
from ...storage.forks.choice import provider_named
from .image_disk import image_format_of
from .image_fork import ImageFork
from .images import ImageFinder

__all__ = ["ImageForkFactory"]


class ImageForkFactory:
    """Creates forks on one host when it is called, and removes them at the end of its ``async with``.

    :param default: the guest whose disk is forked where nothing else is asked for.
    :param zfs_only: whether only ZFS will do.
    :param fallback: receives a line for users when ZFS was not possible.
    """

    def __init__(
        self,
        host: Host,
        *,
        guests: GuestRegistry,
        catalog: Catalog,
        default: str,
        boot_timeout_s: float,
        progress: Callable[[str], None],
        zfs_only: bool = False,
        fallback: Callable[[str], None],
    ) -> None:
        self._host = host
        self._guests = guests
        self._catalog = catalog
        self._default = default
        self._boot_timeout_s = boot_timeout_s
        self._progress = progress
        self._providers: Sequence[str] = ("zfs",) if zfs_only else ()
        self._fallback = fallback
        self._stack = contextlib.AsyncExitStack()

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[ImageForkFactory]:
        """The factory, with everything that it makes."""
        async with self._stack:
            self._agent = await self._host.client()
            self._stack.push_async_callback(self._agent.aclose)
            self._images = ImageFinder(
                self._host,
                self._agent,
                guests=self._guests,
                artifact=self._catalog.find,
                boot_timeout_s=self._boot_timeout_s,
                progress=self._progress,
            )
            yield self

    async def __call__(
        self, artifact: str | Artifact | Path | None = None, *, image_format: str | None = None, provider: str = ""
    ) -> ImageFork:
        """Fork an artifact.

        :param artifact: the name of an artifact in a catalog; the name of a guest, whose disk is forked; an artifact;
            the path of an image; by default the default guest's disk.
        :param image_format: ``qcow2`` or ``raw``; by default that of a guest's disk, else by the name's ending.
        :param provider: the only provider that will do.
        :raises ConfigError: when the guest has no disk, or there is no such provider.
        :raises CapabilityMissing: when the image cannot be forked as asked, with the reason of each provider.
        """
        if provider:
            provider_named(provider)
        image = await self._images.path(artifact or self._default)
        made = await self._agent.fork_image(
            ForkImage(
                image=image,
                image_format=image_format or image_format_of(image),
                providers=(provider,) if provider else tuple(self._providers),
            )
        )
        self._stack.push_async_callback(self._agent.remove_fork, made.id)
        if made.note:
            self._progress(made.note)
        elif not provider and made.provider != "zfs":
            self._fallback(f"forks are made by {made.provider}: {made.origin} is not on ZFS")
        return ImageFork(self._host, self._agent, made)

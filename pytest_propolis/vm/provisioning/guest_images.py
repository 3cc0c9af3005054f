"""Getting guests ready: their images on the host's disk, fetched and prepared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ...agent_api.image_recipe import ImageNeeded
from ...guests.adapter import GuestAdapter, GuestImage
from ...hosts.agent_clients.asynchronous import AsyncAgentClient
from ...hosts.host import Host

__all__ = ["ReadyImage", "prepare_guests", "ready_image"]


class ReadyImage(msgspec.Struct, frozen=True, kw_only=True):
    """A guest's prepared image on the host; attributes that are None in the image are None here.

    :param disk_format: of the disk, ``qcow2`` or ``raw``; None for raw, unless it looks like a container.
    """

    kernel: Path | None
    initrd: Path | None
    disk: Path | None
    disk_format: str | None = "qcow2"


async def ready_image(
    host: Host, agent: AsyncAgentClient, image: GuestImage, *, timeout_s: float, progress: Callable[[str], None]
) -> ReadyImage:
    """Fetch and prepare a guest's image, unless that was done before.

    :raises ArtifactError: when it cannot be had.
    :raises ResourceExhausted: when there is no space for it.
    """
    needed_files = tuple(item for item in (image.kernel, image.initrd, image.disk) if item is not None)
    artifacts = tuple([await host.provide_artifact(item, progress) for item in needed_files])
    paths = dict(zip(needed_files, await agent.get_images(ImageNeeded(artifacts=artifacts), progress), strict=True))
    disk = paths[image.disk] if image.disk else None
    if image.recipe is not None:
        needed = ImageNeeded(artifacts=artifacts, recipe=image.recipe, timeout_s=timeout_s)
        await host.provide_derived(needed, progress, title=image.recipe.name)
        (disk,) = await agent.get_images(needed, progress)
    return ReadyImage(
        kernel=paths[image.kernel] if image.kernel else None,
        initrd=paths[image.initrd] if image.initrd else None,
        disk=disk,
    )


async def prepare_guests(
    host: Host, guests: Sequence[GuestAdapter], *, timeout_s: float, progress: Callable[[str], None]
) -> None:
    """Fetch and prepare the images of these guests on a host, so that the first test need not.

    :param timeout_s: for each of them, how long its boot may take.
    :raises ArtifactError: when one cannot be had.
    """
    agent = await host.client()
    try:
        for guest in guests:
            await ready_image(host, agent, guest.image, timeout_s=timeout_s, progress=progress)
    finally:
        await agent.aclose()

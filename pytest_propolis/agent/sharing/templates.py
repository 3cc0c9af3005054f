"""Templates that hosts pass on to each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from ...agent_api.derived import DerivedState, SentDerived
from ...agent_api.templates import MEMORY_FILE, STATE_FILE, TemplateNeeded, disk_file
from ...engine.templates.template import Template
from ...errors import TemplateError
from ..disks.disk_images import put_on_image
from ..hypervisor import HypervisorFinder
from ..templates.identity import identity_of, key_of
from ..templates.templates import Templates
from .files import move_to, sent_file

__all__ = ["SharedTemplates"]


class SharedTemplates:
    """Recognizes and takes over templates of other hosts.

    :param allowed: directories in which files referenced by disk images may lie.
    """

    def __init__(self, templates: Templates, hypervisors: HypervisorFinder, *, allowed: tuple[Path, ...]) -> None:
        self._templates = templates
        self._hypervisors = hypervisors
        self._allowed = allowed

    async def state(self, needed: TemplateNeeded) -> DerivedState:
        """Return whether a template exists, and if not, its identity on all hosts.

        :raises TemplateError: when it cannot be made, or what it is made of cannot be read.
        """
        hypervisor = await self._hypervisors.find()
        if self._templates.exists(key_of(needed, hypervisor), needed):
            return DerivedState(is_there=True, identity="")
        return DerivedState(is_there=False, identity=await identity_of(needed, hypervisor))

    async def find(self, identity: str) -> SentDerived | None:
        """Return what is sent of a template that is in use here; None if there is none of this identity.

        The blank overlays are not sent: they name the host's own paths.

        :raises TemplateError: when what it is made of cannot be read.
        """
        hypervisor = await self._hypervisors.find()
        for needed, template, directory in self._templates.in_use():
            if await identity_of(needed, hypervisor) == identity:
                names = (MEMORY_FILE, STATE_FILE, *map(disk_file, range(template.disks)))
                files = tuple([await sent_file(directory / name) for name in names])
                return SentDerived(files=files, description=msgspec.json.encode(template).decode())
        return None

    async def adopt(self, needed: TemplateNeeded, sent: SentDerived, *, progress: Callable[[str], None]) -> None:
        """Make a template of files that were fetched, unless it exists.

        :raises PropolisError: when that cannot be done.
        """
        hypervisor = await self._hypervisors.find()
        key = key_of(needed, hypervisor)

        async def take(directory: Path) -> None:
            await move_to(directory, sent)
            for index, disk in enumerate(needed.disks):
                overlay = directory / disk_file(index)
                await put_on_image(disk, hypervisor.qemu.img, overlay, allowed=self._allowed)
            template = msgspec.json.decode(sent.description, type=Template)
            template = msgspec.structs.replace(template, key=key, boot=needed.boot)
            await self._templates.complete(directory, template, hypervisor)

        try:
            title = f"a template of {needed.title} from the files of another host's"
            await self._templates.derive(key, needed, take, progress, title=title)
        except (OSError, msgspec.DecodeError) as error:
            raise TemplateError(str(error)) from None

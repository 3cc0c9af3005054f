"""A template: a guest that was booted once and stopped, from which any number of VMs resume."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final, Self
from uuid import UUID

import msgspec

from ...agent_api.boot_source import BootSource
from ...agent_api.templates import MANIFEST_FILE, MEMORY_FILE, STATE_FILE, blank_file, disk_file
from ...propolis_api import FileStorageBackendComponent, InstanceProperties, InstanceSpec
from ..qemu.accelerator.probe import AcceleratorName
from ..qemu.command_line import HostResources, qemu_arguments
from ..qemu.memory import GuestMemory

__all__ = ["Template", "template_key", "with_disks_in"]

FORMAT: Final = 2
"""The format version: changes when earlier templates can no longer be used."""


def with_disks_in(spec: InstanceSpec, directory: Path) -> InstanceSpec:
    """A template's spec with its disks in a directory."""
    return msgspec.structs.replace(
        spec,
        components={
            key: FileStorageBackendComponent(
                msgspec.structs.replace(component.component, path=str(directory / component.component.path))
            )
            if isinstance(component, FileStorageBackendComponent)
            else component
            for key, component in spec.components.items()
        },
    )


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of a template, stored beside its memory, state and disks.

    :param boot: what its guest started from, and what a fork that is reset starts from.
    :param spec: the machine; the paths of its disks are `disk_file` names.
    :param properties: its name and id: a fork has its own, but the firmware's tables lie in memory as they were made.
    :param disks: how many disks there are.
    :param session: the id of the read-eval loop that waits for commands in the guest.
    :param console: what the guest showed until the log-in was complete.
    :param warmup_input: what to type so that the guest runs a command, with which a fork that waits is warmed up.
    :param warmup_marker: what the guest shows at the very end of it.
    :param guest_ports: whether the machine has guest ports.
    """

    key: str
    boot: BootSource
    spec: InstanceSpec
    properties: InstanceProperties
    disks: int
    session: str
    console: str
    warmup_input: str
    warmup_marker: str
    guest_ports: bool = False

    @classmethod
    def load(cls, directory: Path) -> Self:
        return msgspec.json.decode((directory / MANIFEST_FILE).read_bytes(), type=cls)

    def save(self, directory: Path) -> None:
        (directory / MANIFEST_FILE).write_bytes(msgspec.json.encode(self))

    @staticmethod
    def files(disks: int) -> tuple[str, ...]:
        """The names of all files of a template with so many disks."""
        images = [name(index) for index in range(disks) for name in (disk_file, blank_file)]
        return (MANIFEST_FILE, MEMORY_FILE, STATE_FILE, *images)

    def arguments(
        self, *, spec: InstanceSpec, template_directory: Path, accelerator: AcceleratorName, tag: str, generation: UUID
    ) -> list[str]:
        """QEMU's arguments for a fork.

        :param generation: one of its own, so that its guest's kernel knows at once that it is a copy.
        :raises InvalidSpec: when the spec contradicts itself.
        :raises SpecUnsupported: when it has what this engine does not support.
        """
        return qemu_arguments(
            spec=spec,
            properties=self.properties,
            boot=self.boot,
            accelerator=accelerator,
            tag=tag,
            resources=HostResources(memory=GuestMemory(path=str(template_directory / MEMORY_FILE), shared=False)),
            generation=generation,
            guest_ports=self.guest_ports,
        )


def template_key(
    *,
    spec: InstanceSpec,
    properties: InstanceProperties,
    boot: BootSource,
    accelerator: AcceleratorName,
    facts: tuple[str, ...],
    guest_ports: bool = False,
) -> str:
    """Return a name that changes with everything that affects a template.

    :param facts: facts that are not on the machine's command line: contents of files, QEMU, the guest's adapter.
    """
    arguments = qemu_arguments(
        spec=spec,
        properties=properties,
        boot=boot,
        accelerator=accelerator,
        tag="",
        resources=HostResources(memory=GuestMemory(path=MEMORY_FILE, shared=False)),
        generation=UUID(int=0),
        guest_ports=guest_ports,
    )
    arguments[arguments.index("-uuid") + 1] = ""
    # The command line has no names of components, and a fork has those of its template.
    return hashlib.sha256(json.dumps([FORMAT, list(spec.components), arguments, facts]).encode()).hexdigest()

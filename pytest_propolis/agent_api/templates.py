"""Templates of VMs and their forks: messages between clients and agents, and the layout of a template."""

from __future__ import annotations

from typing import Final

import msgspec

from ..propolis_api import Component, InstanceProperties, InstanceSpec
from .boot_source import BootSource
from .disks import CreateDisk

__all__ = [
    "BOUNDARY",
    "MANIFEST_FILE",
    "MEMORY_FILE",
    "STATE_FILE",
    "ForkVm",
    "FreezeVm",
    "TemplateMaking",
    "TemplateNeeded",
    "VmForked",
    "blank_file",
    "disk_file",
]


MEMORY_FILE: Final = "memory"
STATE_FILE: Final = "state"
MANIFEST_FILE: Final = "template.json"

BOUNDARY: Final = "[propolis] above: the boot of the template that this VM was forked from"
"""The line of a fork's console between what its template showed and what is its own."""


def disk_file(index: int) -> str:
    """The frozen disk's name beside the memory; in a fork, the name of its own overlay. Specs of templates use it."""
    return f"disk-{index}.qcow2"


def blank_file(index: int) -> str:
    """An empty overlay on a frozen disk: copying it takes a hundredth of the time of having one made."""
    return f"blank-{index}.qcow2"


class TemplateNeeded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Ask for a template, which the client makes itself if there is none.

    The answer is a stream of `StreamLine`. One of them may be `TemplateMaking`: then the client boots that VM, makes
    its guest quiet, and freezes it; the stream goes on meanwhile, and ends with `TemplateFound`.

    :param title: what it is a template of, for users.
    :param boot: what its guest starts from.
    :param spec: the machine; the paths of its disks are `disk_file` names.
    :param disks: what the disks are made of, in that order.
    :param guest: changes with everything else that shapes it: the guest's adapter, the shell protocol.
    :param log_path: where the messages of the QEMU that makes it go; if empty, into its directory.
    :param guest_ports: whether the machine has guest ports.
    """

    title: str
    boot: BootSource
    spec: InstanceSpec
    properties: InstanceProperties
    disks: tuple[CreateDisk, ...]
    guest: str
    log_path: str
    guest_ports: bool = False


class TemplateMaking(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The VM that will become a template was created: its API is below `path`, its disks exist."""

    id: str
    path: str
    spec: InstanceSpec


class FreezeVm(msgspec.Struct, frozen=True, kw_only=True):
    """The VM of a `TemplateMaking` is ready to be frozen.

    :param session: the id of the read-eval loop that waits for commands in its guest.
    :param console: what it showed until the log-in was complete.
    :param warmup_input: what to type so that its guest runs a command that changes nothing.
    :param warmup_marker: what it shows at the very end of it.
    """

    session: str
    console: str
    warmup_input: str
    warmup_marker: str


class ForkVm(msgspec.Struct, frozen=True, kw_only=True):
    """Request a Propolis server whose first VM continues from a template.

    :param template: the key that the answer to `TemplateNeeded` gave.
    :param added: disks and network cards that it has beyond the template's.
    :param run: make the instance with these properties, and run it; without them the client does so.
    :param typed: what is typed at it then. It tells the time, and so is left out if the fork is not ready at once.
    :param metric_addr: as in `CreateVm`.
    """

    template: str
    name: str
    group: str
    log_path: str
    added: dict[str, Component] = {}
    run: InstanceProperties | None = None
    typed: str = ""
    metric_addr: str | None = None


class VmForked(msgspec.Struct, frozen=True, kw_only=True):
    """A fork has started. It waits to be ensured with this spec, and run, unless that was asked for.

    :param boot: what its VM starts from when it is reset.
    :param session: the id of the read-eval loop that waits for commands in its guest.
    :param typed: whether it was given what was to be typed.
    :param took_s: how long the steps took, in seconds; empty for one that stood by.
    """

    id: str
    path: str
    spec: InstanceSpec
    boot: BootSource
    session: str
    typed: bool
    took_s: dict[str, float]

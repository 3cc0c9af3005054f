"""What a VM needs to know of its server."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..hosts.host import Host
from ..propolis_api.client import PropolisClient
from ..settings import ENGINE
from .migration import Report

__all__ = ["ServerHandle"]


class ServerHandle(msgspec.Struct, frozen=True, kw_only=True):
    """The server of one VM.

    :param host: where it is.
    :param vm_id: its VM's id there; empty where the VM becomes a template.
    :param program: what serves the VM, as `VmConfig.server` has it.
    :param migrations: asks it how migrations ended; None for one that only has the Propolis API.
    :param copies_disks: whether a migration to it copies disks.
    :param has_ports: whether its VM has guest ports.
    :param has_display: whether its VM has a display.
    """

    host: Host
    client: PropolisClient
    vm_id: str = ""
    program: str | Path = ENGINE
    migrations: Report | None = None
    copies_disks: bool = False
    has_ports: bool = False
    has_display: bool = False

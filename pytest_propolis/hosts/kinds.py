"""The registry of host kinds: a kind is a module beside this one, and an entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Final, cast

from ..settings import Settings
from .host import Host, HostSpec

__all__ = ["HOST_KINDS", "open_host"]

HostMaker = Callable[[HostSpec, Settings, str], Host]

HOST_KINDS: Final[Mapping[str, str]] = MappingProxyType({"local": "local", "ssh": "ssh_host"})
"""By kind, the module that has it. Its function ``open_host(spec, settings, run_id)`` makes the host.

What a module needs is imported when the first host of its kind is asked for."""


def open_host(spec: HostSpec, settings: Settings, run_id: str) -> Host:
    """Make a host of an inventory. Nothing is connected to.

    :param run_id: the id of the run on this host.
    """
    module = import_module(f".{HOST_KINDS[spec.kind]}", __package__)
    return cast(HostMaker, module.open_host)(spec, settings, run_id)

"""Locate the disks of a VM that migrates out."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...propolis_api import BlobStorageBackend, FileStorageBackend, InstanceSpec
from ..qemu.devices.disks import backend_nodes
from ..qemu.devices.host_file import HostFile
from ..qemu.machine import Machine
from .disks import DiskFacts, Layer

__all__ = ["describe_disks"]


async def describe_disks(machine: Machine, spec: InstanceSpec, blobs: Mapping[str, HostFile]) -> dict[str, DiskFacts]:
    """Return the locations of a VM's disks, by backend.

    :param blobs: the files of its blob backends.
    :raises MachineError: when QEMU does not report them.
    """
    nodes = {node["node-name"]: node for node in await machine.execute("query-named-block-nodes")}
    opened = _open_files(machine.pid)
    return {
        key: _described(nodes[name]["image"], blobs.get(key), opened)
        for key, name in backend_nodes(spec.components).items()
        if isinstance(spec.components[key].component, FileStorageBackend | BlobStorageBackend)
    }


def _described(image: Mapping[str, Any], blob: HostFile | None, opened: set[tuple[int, int]]) -> DiskFacts:
    layers = []
    below: Mapping[str, Any] | None = image
    while below is not None:
        layers.append(Layer(file=blob or _file(below["filename"], opened), format=below["format"]))
        below = below.get("backing-image")
    return DiskFacts(size_bytes=image["virtual-size"], layers=tuple(layers))


def _file(path: str, opened: set[tuple[int, int]]) -> HostFile:
    """Return the file at that path if QEMU still has it open; otherwise a path that does not exist."""
    with contextlib.suppress(OSError):
        file = HostFile.at(path)
        if (file.device, file.inode) in opened:
            return file
    return HostFile(path=path, device=0, inode=0)


def _open_files(pid: int | None) -> set[tuple[int, int]]:
    """Return device and inode of all files that a process has open."""
    found = set()
    with contextlib.suppress(FileNotFoundError):  # it has ended
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                status = entry.stat()
                found.add((status.st_dev, status.st_ino))
    return found

"""A part of a machine, described once: for QEMU's command line, and for the monitor of a running QEMU."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

__all__ = ["MachinePart", "PartKind", "part_arguments"]


class PartKind(Enum):
    """A kind of part: the QEMU option that creates it at the start, and the monitor command that adds it later."""

    BLOCK_NODE = ("-blockdev", "blockdev-add")
    NETWORK = ("-netdev", "netdev_add")
    DEVICE = ("-device", "device_add")

    def __init__(self, option: str, command: str) -> None:
        self.option = option
        self.command = command


class MachinePart(NamedTuple):
    """A block node, a network or a device.

    :param key: of its component.
    """

    key: str
    kind: PartKind
    properties: Mapping[str, Any]


def part_arguments(parts: Iterable[MachinePart]) -> Iterator[str]:
    """QEMU's arguments for some parts."""
    for part in parts:
        yield from (part.kind.option, json.dumps(part.properties))

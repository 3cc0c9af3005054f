"""What a VM that is a fork knows of how it came about."""

from __future__ import annotations

from dataclasses import dataclass

from ...agent_api.templates import VmForked
from ...console.shell_protocol import TypedCommand
from ...propolis_api import InstanceProperties
from ..timings import Timings

__all__ = ["ForkHandle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkHandle:
    """A fork, and how far its server has brought it.

    :param runs: whether it was created and run already.
    :param typed_identity: what was typed at it already so that it takes on its identity; None if nothing was.
    :param plugged: the PCI addresses of devices that its template has not.
    :param asked_s: when that was put into words, in the time of `time.monotonic`.
    """

    vm: VmForked
    properties: InstanceProperties
    phases: Timings
    runs: bool = False
    typed_identity: TypedCommand | None = None
    plugged: tuple[str, ...] = ()
    asked_s: float = 0.0

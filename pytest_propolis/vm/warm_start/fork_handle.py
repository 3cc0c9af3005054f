"""The handle of a VM's fork: how the agent started it."""

from __future__ import annotations

import msgspec

from ...agent_api.templates import VmForked
from ...console.shell_protocol import TypedCommand
from ...propolis_api import InstanceProperties
from ..timings import Timings

__all__ = ["ForkHandle"]


class ForkHandle(msgspec.Struct, frozen=True, kw_only=True):
    """A fork, and the steps that its server has completed.

    :param runs: whether the instance was already created and run.
    :param typed_identity: the identity command that was already typed; None if none was.
    :param plugged: the PCI addresses of devices that its template lacks.
    :param rendered_s: `time.monotonic` when the identity command was rendered.
    """

    vm: VmForked
    properties: InstanceProperties
    phases: Timings
    runs: bool = False
    typed_identity: TypedCommand | None = None
    plugged: tuple[str, ...] = ()
    rendered_s: float = 0.0

"""The processors of a board: CPU model, template and hypervisor interface in QEMU's syntax."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from ....propolis_api import Board, HyperVFeatureFlag, HyperVInterface
from ...invalid_spec import InvalidSpec
from ..accelerator.acceleration import acceleration_arguments
from ..accelerator.probe import AcceleratorName
from .cpuid import CPUID_MODEL, cpuid_properties

__all__ = ["cpu_arguments"]

# As propolis-server's: the interface itself has the hypercall page and the virtual processor index.
HYPER_V: Final = ("hv-vpindex=on",)
HYPER_V_FEATURES: Final = {HyperVFeatureFlag.REFERENCE_TSC: "hv-time=on"}


def cpu_arguments(board: Board, accelerator: AcceleratorName, available: Collection[str] | None) -> Iterator[str]:
    """The arguments for accelerator and processors.

    :param available: the names of the CPU features that the accelerator has; None if that is not known.
    :raises InvalidSpec: when the guest cannot be shown what the board asks for.
    """
    flags = _hyper_v(board, accelerator)
    if board.cpuid is None:
        yield from acceleration_arguments(accelerator, flags=flags)
    else:
        properties = cpuid_properties(board.cpuid, accelerator=accelerator, available=available)
        yield from acceleration_arguments(accelerator, model=CPUID_MODEL, flags=("enforce=on", *flags))
        for name, value in properties.items():
            # A value of -global may hold a comma, one of -cpu may not.
            yield from ("-global", f"{CPUID_MODEL}-x86_64-cpu.{name}={value}")
    yield from ("-smp", str(board.cpus))


def _hyper_v(board: Board, accelerator: AcceleratorName) -> tuple[str, ...]:
    interface = board.guest_hv_interface
    if not isinstance(interface, HyperVInterface):
        return ()
    if accelerator != "kvm":
        raise InvalidSpec(
            "board.guest_hv_interface: Hyper-V needs KVM: emulation, which this host uses, would ignore it silently"
        )
    return (*HYPER_V, *(HYPER_V_FEATURES[feature] for feature in sorted(interface.value.features)))

"""The mainboard of a VM: processors, memory, chipset and the hypervisor that the guest believes to run on."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import force_setattr

from .integers import Uint8, Uint32, Uint64, require_uint64

__all__ = [
    "BhyveInterface",
    "Board",
    "Chipset",
    "Cpuid",
    "CpuidEntry",
    "CpuidVendor",
    "GuestHypervisorInterface",
    "HyperVFeatureFlag",
    "HyperVFeatures",
    "HyperVInterface",
    "I440Fx",
]


class I440Fx(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A chipset like Intel's 440FX. `enable_pcie`: PCIe's extended configuration space works."""

    enable_pcie: bool


class Chipset(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The chipset; there is one kind.

    `type` is an ordinary field and no msgspec tag: msgspec lets the tag of a lone struct be absent, a server does not.
    """

    type: Literal["i440_fx"]
    value: I440Fx


class CpuidVendor(StrEnum):
    """The vendor that defines the extended CPUID leaves (0x80000000 and up)."""

    AMD = "amd"
    INTEL = "intel"


class CpuidEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One CPUID leaf, or one subleaf of it, and the registers that it returns."""

    leaf: Uint32
    subleaf: Uint32 | None = None
    eax: Uint32
    ebx: Uint32
    ecx: Uint32
    edx: Uint32


class Cpuid(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of the CPUID values that a guest sees. Leaves are standard (0 … 0xFFFF) or extended, each once."""

    entries: tuple[CpuidEntry, ...]
    vendor: CpuidVendor


class HyperVFeatureFlag(StrEnum):
    """A Hyper-V enlightenment that needs no parameters."""

    REFERENCE_TSC = "reference_tsc"


class HyperVFeatures(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The enlightenments that are switched on."""

    # A set on the wire, too: the document says uniqueItems.
    features: frozenset[HyperVFeatureFlag]


class BhyveInterface(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="bhyve"):
    """The guest sees bhyve, with no further features."""


class HyperVInterface(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="hyper_v"):
    """The guest sees Hyper-V, with the given features."""

    value: HyperVFeatures


GuestHypervisorInterface = BhyveInterface | HyperVInterface

_DEFAULT_INTERFACE: Final = BhyveInterface()


class Board(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A VM's mainboard.

    As in propolis-server, `cpuid` is left out of the JSON when there is none, and `guest_hv_interface` when it is the
    default, which servers that predate it understand.

    :param memory_mb: guest memory in MiB.
    :param cpuid: what the guest's CPUID instruction returns; None: derived from the host.
    """

    chipset: Chipset
    cpuid: Cpuid | None = None
    cpus: Uint8
    guest_hv_interface: GuestHypervisorInterface = _DEFAULT_INTERFACE
    memory_mb: Uint64

    def __post_init__(self) -> None:
        require_uint64(memory_mb=self.memory_mb)
        # omit_defaults compares identities: an equal value must be the default itself.
        if self.guest_hv_interface == _DEFAULT_INTERFACE:
            force_setattr(self, "guest_hv_interface", _DEFAULT_INTERFACE)

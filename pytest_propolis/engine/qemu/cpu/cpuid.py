"""Translate a CPUID template into a CPU model of QEMU.

QEMU does not accept values of whole leaves. It has a model without any features, ``base``, and properties: the highest
leaves, vendor, family, model, stepping, brand string, address width, and a name for each feature bit. So a template is
decomposed into these. What a processor answers differently on each core, QEMU fills in itself: the APIC id and the
counts of leaves 1 and 0x80000008, and whether the operating system has switched a feature on. A leaf that cannot be
decomposed is refused by name, unless QEMU returns the same value anyway: values that were read in a guest can be used
for another one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final

from ....propolis_api import Cpuid, CpuidEntry, CpuidVendor
from ...invalid_spec import InvalidSpec
from ..accelerator.probe import AcceleratorName
from .cpuid_bits import FEATURES, Register, RegisterName

__all__ = ["CPUID_MODEL", "cpuid_properties"]

CPUID_MODEL: Final = "base"

FIRST_EXTENDED: Final = 0x80000000
BRAND: Final = (0x80000002, 0x80000003, 0x80000004)
VENDORS: Final = {CpuidVendor.AMD: "AuthenticAMD", CpuidVendor.INTEL: "GenuineIntel"}
VENDOR_LENGTH: Final = 12
CACHE_LINE_QUADWORDS: Final = 8
TCG_ADDRESS_BITS: Final = 40

# What depends on the core, on the number of cores, or on what the operating system has switched on.
DYNAMIC: Final[Mapping[Register, int]] = {
    Register(1, 0, "ebx"): 0xFFFF0000,
    Register(1, 0, "ecx"): 1 << 27,
    Register(1, 0, "edx"): 1 << 28,
    Register(7, 0, "ecx"): 1 << 4,
    Register(0x80000008, 0, "ecx"): 0xF0FF,
}
# What QEMU answers whatever it is told: MWAIT has extensions, and interrupts end it.
OWN: Final[Mapping[Register, int]] = {Register(5, 0, "ecx"): 3}

# AMD repeats these bits of leaf 1 in leaf 0x80000001.
ALIASES: Final = 0x0183F3FF
ALIASED: Final = Register(0x80000001, 0, "edx")

REGISTERS: Final[tuple[RegisterName, ...]] = ("eax", "ebx", "ecx", "edx")


def cpuid_properties(
    cpuid: Cpuid, *, accelerator: AcceleratorName, available: Collection[str] | None
) -> dict[str, str]:
    """Return the properties that make the CPU model `CPUID_MODEL` return the template's values.

    :param available: the names of the features that the accelerator has; None if that is not known.
    :raises InvalidSpec: naming each leaf that QEMU cannot reproduce.
    """
    return _Template(cpuid, accelerator).properties(available)


class _Template:
    def __init__(self, cpuid: Cpuid, accelerator: AcceleratorName) -> None:
        self._values = dict(_registers(cpuid.entries))
        self._vendor = cpuid.vendor
        self._accelerator = accelerator
        self._read: set[Register] = set()
        self._faults: list[str] = []

    def properties(self, available: Collection[str] | None) -> dict[str, str]:
        properties = self._levels() | {"vendor": self._vendor_name()} | self._signature() | self._brand()
        properties |= self._address_bits()
        for name in self._features():
            if available is not None and name not in available:
                self._refuse(f"the accelerator {self._accelerator} has no feature {name!r}")
            properties[name] = "on"
        self._require_qemus_own()
        if self._faults:
            raise InvalidSpec(f"board.cpuid: {'; '.join(dict.fromkeys(self._faults))}")
        return properties

    def _refuse(self, fault: str) -> None:
        self._faults.append(fault)

    def _require_qemus_own(self) -> None:
        """Accept values that QEMU cannot be given if they are what it returns anyway."""
        own = {**OWN, Register(0x80000001, 0, "eax"): self._values.get(Register(1, 0, "eax"), 0)}
        for register, value in self._values.items():
            if value and register not in self._read and value != own.get(register):
                self._refuse(f"QEMU cannot be told what {register} returns")

    def _take(self, leaf: int, name: RegisterName, subleaf: int = 0) -> int:
        """A register's value without what is dynamic; 0 if the template does not have it."""
        register = Register(leaf, subleaf, name)
        self._read.add(register)
        return self._values.get(register, 0) & ~DYNAMIC.get(register, 0)

    def _levels(self) -> dict[str, str]:
        leaves = {register.leaf for register in self._values}
        standard = max((leaf for leaf in leaves if leaf < FIRST_EXTENDED), default=0)
        extended = max((leaf for leaf in leaves if leaf >= FIRST_EXTENDED), default=0)
        levels = {"level": self._take(0, "eax") or standard, "xlevel": self._take(FIRST_EXTENDED, "eax") or extended}
        levels["level-func7"] = self._take(7, "eax")
        return {name: str(value) for name, value in levels.items()}

    def _vendor_name(self) -> str:
        given = [self._text([(leaf, name) for name in ("ebx", "edx", "ecx")]) for leaf in (0, FIRST_EXTENDED)]
        names = {name for name in given if name} or {VENDORS[self._vendor]}
        if len(names) > 1:
            self._refuse(f"the vendor is {given[0]!r} in leaf 0x0 and {given[1]!r} in leaf 0x80000000")
        name = min(names)
        if len(name) != VENDOR_LENGTH:
            self._refuse(f"the vendor {name!r} is not {VENDOR_LENGTH} characters long")
        return name

    def _signature(self) -> dict[str, str]:
        eax = self._take(1, "eax")
        family, model = eax >> 8 & 0xF, eax >> 4 & 0xF | eax >> 12 & 0xF0
        if family == 0xF:
            family += eax >> 20 & 0xFF
        if _signature(family, model, eax & 0xF) != eax:
            self._refuse(f"leaf 0x1 eax is {eax:#x}, which is not a family, model and stepping")
        if (ebx := self._take(1, "ebx")) not in (0, CACHE_LINE_QUADWORDS << 8):
            self._refuse(f"leaf 0x1 ebx is {ebx:#x}: QEMU has cache lines of 64 bytes and no brand index")
        return {"family": str(family), "model": str(model), "stepping": str(eax & 0xF)}

    def _brand(self) -> dict[str, str]:
        brand = self._text([(leaf, name) for leaf in BRAND for name in REGISTERS])
        return {"model-id": brand} if brand else {}

    def _address_bits(self) -> dict[str, str]:
        eax = self._take(0x80000008, "eax")
        self._take(0x80000008, "ecx")
        if not eax:
            return {}
        physical, virtual = eax & 0xFF, eax >> 8
        if virtual != (57 if "la57" in self._features() else 48):
            self._refuse(f"leaf 0x80000008 eax is {eax:#x}: QEMU has 48 bits of linear address")
        if self._accelerator == "tcg" and physical != TCG_ADDRESS_BITS:
            self._refuse(f"leaf 0x80000008 eax is {eax:#x}: under TCG there are {TCG_ADDRESS_BITS} bits of address")
        return {"phys-bits": str(physical)}

    def _features(self) -> list[str]:
        found = []
        for register, names in FEATURES.items():
            value = self._take(register.leaf, register.name, register.subleaf)
            if register == ALIASED:
                value &= ~self._aliases(value)
            for bit in range(value.bit_length()):
                if value >> bit & 1 and bit in names:
                    found.append(names[bit])
                elif value >> bit & 1:
                    self._refuse(f"QEMU has no feature for {register} bit {bit}")
        return found

    def _aliases(self, value: int) -> int:
        expected = self._take(1, "edx") & ALIASES if self._vendor is CpuidVendor.AMD else 0
        if value & ALIASES != expected:
            self._refuse(f"{ALIASED} must repeat {expected:#x} of leaf 0x1, and has {value & ALIASES:#x}")
        return value & ALIASES

    def _text(self, places: list[tuple[int, RegisterName]]) -> str:
        data = b"".join(self._take(leaf, name).to_bytes(4, "little") for leaf, name in places)
        text = data.rstrip(b"\0")
        if not all(0x20 <= byte < 0x7F for byte in text):
            self._refuse(f"leaf {places[0][0]:#x} holds a text that is not printable ASCII")
        return text.decode("ascii", errors="replace")


def _registers(entries: tuple[CpuidEntry, ...]) -> Iterator[tuple[Register, int]]:
    seen: set[tuple[int, int]] = set()
    for entry in entries:
        place = entry.leaf, entry.subleaf or 0
        if place in seen:
            raise InvalidSpec(f"board.cpuid: leaf {entry.leaf:#x} subleaf {place[1]} is there twice")
        seen.add(place)
        if 0xFFFF < entry.leaf < FIRST_EXTENDED or entry.leaf > FIRST_EXTENDED + 0xFFFF:
            raise InvalidSpec(f"board.cpuid: leaf {entry.leaf:#x} is neither a standard nor an extended one")
        for name in REGISTERS:
            yield Register(*place, name), int(getattr(entry, name))


def _signature(family: int, model: int, stepping: int) -> int:
    """Return the signature as QEMU encodes it in leaf 1."""
    high = 0xF00 | family - 0xF << 20 if family > 0xF else family << 8
    return high | (model & 0xF) << 4 | (model >> 4) << 16 | stepping

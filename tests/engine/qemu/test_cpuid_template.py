"""CPUID templates as properties of QEMU's CPU model."""

from __future__ import annotations

import pytest

from pytest_propolis.engine.invalid_spec import InvalidSpec
from pytest_propolis.engine.qemu.cpu.cpuid import cpuid_properties
from pytest_propolis.propolis_api import Cpuid, CpuidEntry, CpuidVendor


def entry(leaf: int, subleaf: int | None = None, **registers: int) -> CpuidEntry:
    return CpuidEntry(leaf=leaf, subleaf=subleaf, **({"eax": 0, "ebx": 0, "ecx": 0, "edx": 0} | registers))


def properties(
    *entries: CpuidEntry, vendor: CpuidVendor = CpuidVendor.INTEL, available: frozenset[str] | None = None
) -> dict[str, str]:
    return cpuid_properties(Cpuid(entries=entries, vendor=vendor), accelerator="tcg", available=available)


def text(leaf: int, value: bytes) -> list[CpuidEntry]:
    """A text in leaves of 16 bytes each, as the brand string is."""
    value = value.ljust(-len(value) % 16 + len(value), b"\0")
    words = [int.from_bytes(value[place : place + 4], "little") for place in range(0, len(value), 4)]
    return [
        entry(leaf + n, eax=words[4 * n], ebx=words[4 * n + 1], ecx=words[4 * n + 2], edx=words[4 * n + 3])
        for n in range(len(words) // 4)
    ]


def test_an_empty_template_is_a_processor_without_features() -> None:
    assert properties(vendor=CpuidVendor.AMD) == {
        "level": "0",
        "xlevel": "0",
        "level-func7": "0",
        "vendor": "AuthenticAMD",
        "family": "0",
        "model": "0",
        "stepping": "0",
    }


def test_a_template_is_taken_apart_into_properties() -> None:
    given = properties(
        # "GenuineIntel" in ebx, edx, ecx
        entry(0, eax=7, ebx=0x756E6547, edx=0x49656E69, ecx=0x6C65746E),
        # family 6, model 0x1a, stepping 3; an APIC id and a count of processors, which are each core's own
        entry(1, eax=0x000106A3, ebx=0x05020800, ecx=1 << 0 | 1 << 27, edx=1 << 0 | 1 << 28),
        entry(7, 0, ebx=1 << 0, ecx=1 << 4 | 1 << 2),
        entry(0x80000000, eax=0x80000008),
        entry(0x80000001, ecx=1, edx=1 << 29),
        *text(0x80000002, b"Made, for a test"),
        entry(0x80000008, eax=40 | 48 << 8, ecx=7),
    )
    assert given == {
        "level": "7",
        "xlevel": str(0x80000008),
        "level-func7": "0",
        "vendor": "GenuineIntel",
        "family": "6",
        "model": "26",
        "stepping": "3",
        "model-id": "Made, for a test",
        "phys-bits": "40",
        **dict.fromkeys(("fpu", "pni", "fsgsbase", "umip", "lm", "lahf-lm"), "on"),
    }


def test_the_levels_are_the_highest_leaves_where_the_template_does_not_give_them() -> None:
    given = properties(entry(1, eax=0x00A20F12), entry(7, 0), entry(0x80000001))
    assert (given["level"], given["xlevel"]) == ("7", str(0x80000001))
    # An extended family: 0xf and 0xa.
    assert (given["family"], given["model"], given["stepping"]) == ("25", "33", "2")


def test_amd_repeats_bits_of_leaf_1() -> None:
    given = properties(entry(1, edx=1), entry(0x80000001, edx=1 | 1 << 11), vendor=CpuidVendor.AMD)
    assert (given["fpu"], given["syscall"]) == ("on", "on")


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ([entry(2, eax=1)], "QEMU cannot be told what leaf 0x2 eax returns"),
        ([entry(4, 1, ebx=7)], "QEMU cannot be told what leaf 0x4 subleaf 1 ebx returns"),
        ([entry(7, 1, eax=1 << 5)], "QEMU cannot be told what leaf 0x7 subleaf 1 eax returns"),
        ([entry(0x8000001D, eax=1)], "QEMU cannot be told what leaf 0x8000001d eax returns"),
        ([entry(1, edx=1 << 10)], "QEMU has no feature for leaf 0x1 edx bit 10"),
        ([entry(1, eax=1 << 31)], "leaf 0x1 eax is 0x80000000, which is not a family, model and stepping"),
        ([entry(1, ebx=1)], "leaf 0x1 ebx is 0x1"),
        ([entry(0, ebx=0xFF)], "leaf 0x0 holds a text that is not printable ASCII"),
        ([entry(0, ebx=0x41)], "the vendor 'A' is not 12 characters long"),
        ([entry(0x80000001, edx=1)], "leaf 0x80000001 edx must repeat 0x0 of leaf 0x1, and has 0x1"),
        ([entry(0x80000008, eax=46 | 48 << 8)], "under TCG there are 40 bits of address"),
        ([entry(0x80000008, eax=40 | 39 << 8)], "leaf 0x80000008 eax is 0x2728: QEMU has 48 bits of linear address"),
        ([entry(0x40000000, eax=1)], "leaf 0x40000000 is neither a standard nor an extended one"),
        ([entry(1), entry(1, 0)], "leaf 0x1 subleaf 0 is there twice"),
    ],
)
def test_what_qemu_cannot_answer_is_refused_by_leaf(entries: list[CpuidEntry], complaint: str) -> None:
    with pytest.raises(InvalidSpec, match=r"^board\.cpuid: ") as caught:
        properties(*entries)
    assert complaint in str(caught.value)


def test_a_feature_that_the_accelerator_lacks_is_refused_by_name() -> None:
    with pytest.raises(InvalidSpec, match="the accelerator tcg has no feature 'pcid'"):
        properties(entry(1, ecx=1 << 17), available=frozenset({"fpu"}))


def test_what_qemu_answers_anyway_is_taken() -> None:
    version = 0x000106A3
    given = properties(entry(1, eax=version), entry(5, ecx=3), entry(0x80000001, eax=version))
    assert given["model"] == "26"


@pytest.mark.parametrize(
    ("leaf", "registers"), [(5, {"ecx": 1}), (5, {"eax": 3}), (0x80000001, {"eax": 0x000106A4}), (2, {"eax": 1})]
)
def test_other_values_of_those_leaves_are_refused(leaf: int, registers: dict[str, int]) -> None:
    with pytest.raises(InvalidSpec, match=f"QEMU cannot be told what leaf {leaf:#x} {min(registers)} returns"):
        properties(entry(1, eax=0x000106A3), entry(leaf, **registers))


def test_every_fault_of_a_template_is_told_at_once() -> None:
    with pytest.raises(InvalidSpec) as caught:
        properties(entry(1, ebx=0x100, ecx=1 << 16), entry(2, eax=1), entry(4, eax=1), available=frozenset())
    for fault in ("leaf 0x1 ebx is 0x100", "leaf 0x1 ecx bit 16", "leaf 0x2 eax", "leaf 0x4 eax"):
        assert fault in str(caught.value)

"""QEMU's names for CPUID bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

__all__ = ["FEATURES", "Register", "RegisterName"]

RegisterName = Literal["eax", "ebx", "ecx", "edx"]


class Register(NamedTuple):
    """One register of one leaf; the subleaf is 0 where leaves have none."""

    leaf: int
    subleaf: int
    name: RegisterName

    def __str__(self) -> str:
        subleaf = f" subleaf {self.subleaf}" if self.subleaf else ""
        return f"leaf {self.leaf:#x}{subleaf} {self.name}"


def _bits(names: str) -> Mapping[int, str]:
    """From the names of bits 0 and up; a dash where QEMU has no name."""
    return {bit: name for bit, name in enumerate(names.split()) if name != "-"}


FEATURES: Final[Mapping[Register, Mapping[int, str]]] = {
    Register(1, 0, "edx"): _bits(
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov"
        " pat pse36 pn clflush - ds acpi mmx fxsr sse sse2 ss ht tm ia64 pbe"
    ),
    Register(1, 0, "ecx"): _bits(
        "pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid - fma cx16 xtpr pdcm"
        " - pcid dca sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes xsave - avx f16c rdrand hypervisor"
    ),
    Register(7, 0, "ebx"): _bits(
        "fsgsbase tsc-adjust - bmi1 hle avx2 - smep bmi2 erms invpcid rtm - - mpx -"
        " avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt"
        " clwb - avx512pf avx512er avx512cd sha-ni avx512bw avx512vl"
    ),
    Register(7, 0, "ecx"): _bits(
        "- avx512vbmi umip pku - waitpkg avx512vbmi2 - gfni vaes vpclmulqdq avx512vnni avx512bitalg - avx512-vpopcntdq"
        " - la57 - - - - - rdpid - bus-lock-detect cldemote - movdiri movdir64b - - pks"
    ),
    Register(7, 0, "edx"): _bits(
        "- - avx512-4vnniw avx512-4fmaps fsrm - - - avx512-vp2intersect - md-clear - - - serialize - tsx-ldtrk"
        " - - - - - amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl stibp - arch-capabilities core-capability ssbd"
    ),
    Register(0x80000001, 0, "edx"): _bits(
        "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr-opt pdpe1gb rdtscp - lm 3dnowext 3dnow"
    ),
    Register(0x80000001, 0, "ecx"): _bits(
        "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp"
        " fma4 tce - nodeid-msr - tbm topoext perfctr-core perfctr-nb"
    ),
    Register(0x80000007, 0, "edx"): _bits("- - - - - - - - invtsc"),
    Register(0x80000008, 0, "ebx"): _bits(
        "clzero - xsaveerptr - - - - - - wbnoinvd - - ibpb - ibrs amd-stibp"
        " - - - - - - - - amd-ssbd virt-ssbd amd-no-ssb"
    ),
}
"""The names that QEMU 7.2 has for features, by the register and the bit in which a guest finds them."""

"""How QEMU is told to run a guest's instructions: accelerator, threads, CPU model."""

from __future__ import annotations

from typing import Final

from .accelerator import AcceleratorName

__all__ = ["acceleration_arguments"]

# One thread for all virtual CPUs: with a thread each, Linux 6.18 now and then dies when it patches its own text on
# another CPU ("Oops: int3", seen once in 41 boots on a busy host), and other systems are reported to crash in the same
# mode on busy hosts up to QEMU 9.2. Tests in parallel use the other cores.
#
# A CPU model that is old enough: what newer ones add (SMAP, SMEP, ERMS) costs an emulator something. Alpine boots in
# 8.1 s on Nehalem, 9.5 s on Haswell, 9.2 s on "max" (QEMU 7.2; with mitigations=off and norandmaps, which matter more).
# RDRAND makes the guest's random numbers ready at once, and is the host's.
_ARGUMENTS: Final = {
    "kvm": ("-accel", "kvm", "-cpu", "host"),
    "tcg": ("-accel", "tcg,thread=single", "-cpu", "Nehalem,+rdrand"),
}


def acceleration_arguments(accelerator: AcceleratorName) -> tuple[str, ...]:
    """The words of QEMU's command line."""
    return _ARGUMENTS[accelerator]

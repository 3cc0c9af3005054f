"""QEMU's options for executing guest code: accelerator, threads, CPU model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .probe import AcceleratorName

__all__ = ["acceleration_arguments"]

# One thread for all virtual CPUs: with a thread each, Linux 6.18 occasionally crashes when it patches its own text on
# another CPU ("Oops: int3", seen once in 41 boots on a busy host), and other systems are reported to crash in the same
# mode on busy hosts up to QEMU 9.2. Tests in parallel use the other cores.
_ACCELERATORS: Final = {"kvm": "kvm", "tcg": "tcg,thread=single"}

# A CPU model that is old enough: the features of newer ones (SMAP, SMEP, ERMS) slow an emulator down. Alpine boots in
# 8.1 s on Nehalem, 9.5 s on Haswell, 9.2 s on "max" (QEMU 7.2; with mitigations=off and norandmaps, which matter more).
# RDRAND, which uses the host's generator, makes the guest's random numbers available at once.
_MODELS: Final = {"kvm": "host", "tcg": "Nehalem,+rdrand"}


def acceleration_arguments(
    accelerator: AcceleratorName, *, model: str | None = None, flags: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return QEMU's arguments.

    :param model: a CPU model other than the accelerator's default.
    :param flags: feature flags to append to the model.
    """
    cpu = ",".join([model or _MODELS[accelerator], *flags])
    return ("-accel", _ACCELERATORS[accelerator], "-cpu", cpu)

"""The choice of how a guest's memory is transferred to the target."""

from __future__ import annotations

from typing import Final

from ...agent_api.migration_report import MemoryTransfer
from ..qemu.accelerator.probe import AcceleratorName

__all__ = ["select_copy_transfer"]

# Before, QEMU's emulator loses track of the pages that a running guest writes: they arrive stale, in five tries of five
# with 7.2. With 10.0 none did in 170, from guests that had booted and from forks. KVM tracks them in hardware or in the
# kernel, and was never concerned.
LIVE_UNDER_TCG: Final = (10, 0, 0)


def select_copy_transfer(
    accelerator: AcceleratorName,
    qemu_version: tuple[int, int, int],
    *,
    between_files: bool = False,
    into_file: bool = False,
) -> MemoryTransfer:
    """Return the fastest transfer between two memories that is known to leave the content intact.

    :param between_files: whether each server can read or write its guest's memory in a file, and they are on two hosts.
    :param into_file: whether the target's server can do so, and the source's can only read its guest's in QEMU's
        process; and they are on two hosts.
    """
    if accelerator == "kvm" or qemu_version >= LIVE_UNDER_TCG:
        return MemoryTransfer.LIVE
    if between_files:
        return MemoryTransfer.COPIED_IN_PASSES
    return MemoryTransfer.COPIED_AHEAD if into_file else MemoryTransfer.STOP_AND_COPY

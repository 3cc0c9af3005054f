"""What a VM starts from: a kernel of the host's, or firmware.

`propolis-server` is given its boot ROM on its command line, not through the API; this is the engine's counterpart.
"""

from __future__ import annotations

import msgspec

__all__ = ["BootSource", "DirectKernel", "Firmware"]


class DirectKernel(msgspec.Struct, frozen=True, kw_only=True, tag="kernel", forbid_unknown_fields=True):
    """A Linux kernel that QEMU loads itself.

    :param kernel: path of the kernel image on the host.
    :param initrd: path of the initial RAM disk, if one is needed.
    :param command_line: the kernel's parameters.
    """

    kernel: str
    initrd: str | None = None
    command_line: str = ""


class Firmware(msgspec.Struct, frozen=True, kw_only=True, tag="firmware", forbid_unknown_fields=True):
    """Firmware that looks for a boot device itself: the server's BIOS, or its UEFI.

    :param uefi: UEFI, with variables of the VM's own.
    """

    uefi: bool = False


BootSource = DirectKernel | Firmware

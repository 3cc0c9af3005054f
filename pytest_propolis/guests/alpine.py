"""Alpine Linux 3.23: a small system with OpenRC and busybox."""

from __future__ import annotations

import re
from typing import ClassVar, Final

from ..agent_api.image_recipe import ImageRecipe
from ..console.console import Console
from ..storage.alpine import ALPINE_DISK, ALPINE_INITRD, ALPINE_KERNEL
from .adapter import EMULATED_KERNEL, GuestAdapter, GuestImage
from .prompts import log_in_at_prompts

__all__ = ["Alpine"]

ROOT_LABEL: Final = "propolis-root"
KERNEL_BASICS: Final = f"console=ttyS0,115200 modules=ext4,virtio_blk,nvme rootfstype=ext4 {EMULATED_KERNEL}"

# The published image has no login on the serial line and a locked root account, starts services that wait for a
# network, and assumes that it runs in a container, where OpenRC sets no host name. The kernel sets the clock already.
# The order of services, which the image computes at every boot, is computed here once.
PREPARE: Final = f"""stty -echo
mount -o remount,rw / && \\
sed -i -e '/^tty[0-9]/d' -e 's/^#ttyS0/ttyS0/' /etc/inittab && \\
sed -i -e 's/^root:[^:]*:/root::/' /etc/shadow && \\
cd /etc/runlevels && rm -f */networking */quicksand-guest-agent */setup-dns */hwclock && cd / && \\
sed -i -e 's/^rc_sys=.*/rc_sys=""/' /etc/rc.conf && \\
echo localhost > /etc/hostname && \\
sed -i -e '/^::sysinit:.*openrc boot/a ::sysinit:/sbin/ifconfig lo up' /etc/inittab && \\
sed -i -e '/^9p/d' /etc/modules && \\
mount -t tmpfs run /run && mkdir /run/openrc && rc-update -u && \\
mkdir -p /var/cache/rc && cp -p /run/openrc/dep* /var/cache/rc/ && umount /run && \\
e2label /dev/vda {ROOT_LABEL} && \\
mount -o remount,ro / && sync && echo image-is"-"prepared
"""


class Alpine(GuestAdapter):
    """Alpine Linux. Root logs in on ttyS0 without a password; the root file system is ext4, read-write."""

    name: ClassVar[str] = "alpine"
    image: ClassVar[GuestImage] = GuestImage(
        kernel=ALPINE_KERNEL,
        initrd=ALPINE_INITRD,
        command_line=f"{KERNEL_BASICS} root=LABEL={ROOT_LABEL} rootflags=rw quiet",
        disk=ALPINE_DISK,
        recipe=ImageRecipe(
            name="Alpine Linux 3.23",
            kernel=ALPINE_KERNEL.sha256 or "",
            initrd=ALPINE_INITRD.sha256 or "",
            disk=ALPINE_DISK.sha256 or "",
            command_line=f"{KERNEL_BASICS} root=/dev/vda rootflags=rw init=/bin/sh quiet",
            prompt="# ",
            script=PREPARE,
            done="image-is-prepared",
        ),
    )

    guest_ports: ClassVar[bool] = True

    async def log_in(self, console: Console) -> None:
        await log_in_at_prompts(console, user="root", prompt=re.compile(r"\S+:~# "))

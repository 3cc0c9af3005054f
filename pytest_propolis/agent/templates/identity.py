"""How a template is recognized: on its own host, and on every host."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ...agent_api.boot_source import BootSource, DirectKernel
from ...agent_api.disks import CreateDisk
from ...agent_api.templates import TemplateNeeded
from ...engine.invalid_spec import InvalidSpec, SpecUnsupported
from ...engine.templates.template import template_key
from ...errors import TemplateError
from ..hypervisor import Hypervisor
from ..sharing.files import digest_of_content

__all__ = ["identity_of", "key_of"]


def key_of(needed: TemplateNeeded, hypervisor: Hypervisor) -> str:
    """Return the name of a template on this host. Files count by path, size and time: that takes no reading.

    :raises TemplateError: when there can be no such template: a file that it is made of does not exist, say.
    """
    files = map(_fingerprint, _files(needed))
    facts = (hypervisor.qemu.identity, *(repr((disk.image, *_kind(disk))) for disk in needed.disks), *files)
    return _key(needed, needed.boot, hypervisor, facts)


async def identity_of(needed: TemplateNeeded, hypervisor: Hypervisor) -> str:
    """Return what the same template has on every host: QEMU and all files count by their contents, not by their paths.

    :raises TemplateError: when a file that it is made of cannot be read.
    """
    return await asyncio.to_thread(_identity, needed, hypervisor)


def _identity(needed: TemplateNeeded, hypervisor: Hypervisor) -> str:
    boot = needed.boot
    if isinstance(boot, DirectKernel):
        boot = msgspec.structs.replace(
            boot, kernel=digest_of_content(boot.kernel), initrd=digest_of_content(boot.initrd) if boot.initrd else None
        )
    program = digest_of_content(str(hypervisor.qemu.system.resolve()))
    disks = (repr((digest_of_content(disk.image) if disk.image else None, *_kind(disk))) for disk in needed.disks)
    return _key(needed, boot, hypervisor, (program, repr(hypervisor.qemu.version), *disks))


def _key(needed: TemplateNeeded, boot: BootSource, hypervisor: Hypervisor, facts: Sequence[str]) -> str:
    try:
        return template_key(
            spec=needed.spec,
            properties=needed.properties,
            boot=boot,
            accelerator=hypervisor.accelerator.name,
            guest_ports=needed.guest_ports,
            facts=(needed.guest, _processor(hypervisor), *facts),
        )
    except (InvalidSpec, SpecUnsupported) as error:
        raise TemplateError(str(error)) from None


def _kind(disk: CreateDisk) -> tuple[str | None, int | None, int]:
    return disk.image_format, disk.size_bytes, disk.block_size


def _files(needed: TemplateNeeded) -> list[str]:
    files = [disk.image for disk in needed.disks if disk.image]
    if isinstance(needed.boot, DirectKernel):
        files += [file for file in (needed.boot.kernel, needed.boot.initrd) if file]
    return files


def _fingerprint(file: str) -> str:
    """Fingerprint by path, size and mtime; the paths of files in the store contain a hash of their content."""
    try:
        status = Path(file).stat()
    except OSError:
        raise TemplateError(f"{file} does not exist") from None
    return repr((file, status.st_size, status.st_mtime_ns))


def _processor(hypervisor: Hypervisor) -> str:
    """Return a digest of the host's processor as a guest sees it; empty under emulation."""
    if hypervisor.accelerator.name != "kvm":
        return ""
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    relevant = [line for line in lines if line.startswith(("vendor_id", "cpu family", "model", "stepping", "flags"))]
    return hashlib.sha256("\n".join(relevant).encode()).hexdigest()

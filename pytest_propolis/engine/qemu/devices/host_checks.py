"""Check the host resources that a spec names before QEMU starts, which would silently start without them."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

from ....propolis_api import FileStorageBackend, InstanceSpec, VirtioNetworkBackend
from ....storage.images.image_headers import Qcow2Header
from ...invalid_spec import InvalidSpec

__all__ = ["require_host_resources"]

SECTOR_BYTES: Final = 512
_ACCEPTS_CONNECTIONS: Final = 1 << 16
"""The flag of a listening socket in ``/proc/net/unix`` (``__SO_ACCEPTCON``)."""


def require_host_resources(spec: InstanceSpec) -> None:
    """Check the files of file backends, and the switches that network cards are plugged into.

    :raises InvalidSpec: naming the component at fault, and what is wrong with the path that it names.
    """
    for key, wrapper in spec.components.items():
        component = wrapper.component
        if isinstance(component, FileStorageBackend):
            _require_file(key, component)
        elif isinstance(component, VirtioNetworkBackend) and component.vnic_name.startswith("unix:"):
            _require_switch(key, component.vnic_name.removeprefix("unix:"))


def _require_file(key: str, backend: FileStorageBackend) -> None:
    path = Path(backend.path)
    if not path.is_absolute():
        raise InvalidSpec(f"backend {key!r}: {backend.path!r} is a relative path, and means another file here")
    if backend.block_size <= SECTOR_BYTES or not path.is_file():
        return
    size_bytes = _disk_bytes(path)
    if size_bytes % backend.block_size:
        raise InvalidSpec(
            f"backend {key!r}: {path} has {size_bytes} bytes, which is not a multiple of its"
            f" block_size {backend.block_size}: the guest could not read its end"
        )


def _disk_bytes(path: Path) -> int:
    """Return the size of the disk as the guest sees it; the file's name determines the format."""
    header = Qcow2Header.read(path) if path.suffix == ".qcow2" else None
    return header.size_bytes if header else path.stat().st_size


def _require_switch(key: str, path: str) -> None:
    if not Path(path).is_absolute() or _is_listed_as_listening(path):
        return  # what is wrong with a path that is not absolute is said elsewhere
    try:
        # It may listen in another network namespace, whose sockets this process is not shown.
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except BlockingIOError:
        return  # it listens, and has much to do
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidSpec(f"backend {key!r}: no switch listens at {path}: {reason}") from None


def _is_listed_as_listening(path: str) -> bool:
    """Whether the kernel lists a listening socket of that path. Unlike a connection, this uses up no place there."""
    try:
        lines = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]
    except OSError:
        return False
    fields = (line.split(maxsplit=7) for line in lines)
    return any(len(f) == 8 and f[7] == path and int(f[3], 16) & _ACCEPTS_CONNECTIONS for f in fields)

"""The contents of blob backends: private memfds, which leave nothing behind."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Self

from ....propolis_api import BlobStorageBackend, InstanceSpec
from .disks import blob_contents
from .host_file import HostFile

__all__ = ["BlobFiles"]


class BlobFiles:
    """A file in memory for each blob backend of a spec. QEMU inherits them, and closing them takes nothing from it.

    Idempotent.

    :param shared: files of the source's VM, by the keys of backends with the same contents.
    :raises InvalidSpec: when a backend's contents are none.
    :raises OSError: when there is no memory for them, or a file of the other server is gone.
    """

    def __init__(self, spec: InstanceSpec, *, shared: Mapping[str, HostFile] = MappingProxyType({})) -> None:
        self._fds: dict[str, int] = {}
        try:
            for key, component in spec.components.items():
                if not isinstance(backend := component.component, BlobStorageBackend):
                    continue
                if key in shared:
                    self._share(key, shared[key])
                else:
                    self._fill(key, blob_contents(key, backend))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def fds(self) -> Mapping[str, int]:
        """The file descriptors. They are this object's."""
        return self._fds

    @property
    def paths(self) -> dict[str, str]:
        """Their paths in the QEMU process that inherits them."""
        return {key: f"/proc/self/fd/{fd}" for key, fd in self._fds.items()}

    @property
    def files(self) -> dict[str, HostFile]:
        """The files, for another server to open."""
        return {key: HostFile.of(fd) for key, fd in self._fds.items()}

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _share(self, key: str, file: HostFile) -> None:
        fd = file.open(os.O_RDWR)
        if fd is None:
            raise OSError(f"the contents of backend {key!r} are gone")
        self._fds[key] = fd

    def _fill(self, key: str, contents: bytes) -> None:
        fd = self._fds[key] = os.memfd_create("blob", os.MFD_CLOEXEC)
        view = memoryview(contents)
        while view:
            view = view[os.write(fd, view) :]

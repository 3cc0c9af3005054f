"""The contents of blob backends: files in memory, which nobody else can open and which leave nothing behind."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from ..propolis_api import BlobStorageBackend, InstanceSpec
from .disks import blob_contents

__all__ = ["BlobFiles"]


class BlobFiles:
    """A file in memory for each blob backend of a spec. QEMU inherits them, and closing them takes nothing from it.

    Closing twice is fine.

    :raises SpecRefused: when a backend's contents are none.
    :raises OSError: when there is no memory for them.
    """

    def __init__(self, spec: InstanceSpec) -> None:
        self._fds: dict[str, int] = {}
        try:
            for key, component in spec.components.items():
                if isinstance(backend := component.component, BlobStorageBackend):
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
        """How the QEMU that inherits them names them."""
        return {key: f"/proc/self/fd/{fd}" for key, fd in self._fds.items()}

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _fill(self, key: str, contents: bytes) -> None:
        fd = self._fds[key] = os.memfd_create("blob", os.MFD_CLOEXEC)
        view = memoryview(contents)
        while view:
            view = view[os.write(fd, view) :]

"""Block backends: serve the blocks of a disk that is not a file of this host, such as a replicated volume.

QEMU gets a block node for each of them before it starts, and the node becomes usable when the backend is up. That may
never happen, because it depends on other machines: so it is a step that can be cancelled, and corrected while in
progress.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from uuid import UUID

import msgspec

from ...propolis_api import Component, InstanceSpec, ReplaceResult, VolumeStatus
from ..qemu.machine import Machine
from ..qemu.monitor import MachineError
from ..request_queue import ReplaceVolume

__all__ = [
    "BackendError",
    "BackendFactory",
    "BackendMissing",
    "BlockBackend",
    "BlockBackends",
    "ReplacementRefused",
    "Reply",
    "VolumeGone",
]

REPLACE_TIMEOUT_S: Final = 60.0

Reply = asyncio.Future[ReplaceResult]
"""What a `ReplaceVolume` carries: where its result goes, or one of the exceptions of this module."""


class BackendError(Exception):
    """Raised when a backend can never be activated. The VM fails."""


class BackendMissing(Exception):
    """Raised when a VM has no block backend of that name that could be replaced."""


class ReplacementRefused(Exception):
    """Raised when a backend cannot apply a new volume construction request; the text gives the reason."""


class VolumeGone(Exception):
    """Raised when the VM ended before a replacement was served."""


class BlockBackend(Protocol):
    """The backend that serves one disk's blocks.

    It is made before QEMU runs, started once when the VM is, and closed when QEMU is gone, whether it was started or
    not. Everything is called in one event loop. `start` and `replace` may be cancelled at any time; what they have
    taken is then left to `close`.
    """

    @property
    def node(self) -> Mapping[str, Any]:
        """The block node that QEMU begins with, ``node-name`` included. Its size is the volume's."""

    async def start(self, machine: Machine) -> None:
        """Activate the volume and make QEMU's node serve it. May wait indefinitely for other machines.

        :raises BackendError: when it can never succeed.
        :raises MachineError: when QEMU does not take it.
        """

    async def replace(self, vcr_json: str) -> ReplaceResult:
        """Apply a new volume construction request, also while `start` is waiting, which then continues
        with the new one.

        Answers when the replacement is accepted, not when it is complete.

        :raises ReplacementRefused: when it cannot.
        """

    @property
    def status(self) -> VolumeStatus:
        """The volume's status as in the API."""

    async def replace_unchecked(self, vcr_json: str) -> ReplaceResult:
        """As `replace`, without propolis-server's rules; for faults that a test injects.

        :raises ReplacementRefused: when it is the request of another volume.
        """

    async def snapshot(self, machine: Machine, snapshot_id: UUID) -> None:
        """Snapshot the volume.

        :raises BackendError: when that cannot be done.
        """

    async def record_clean(self, *, clean: bool) -> None:
        """Record whether the stopped QEMU has no write in progress and will send none."""

    async def quiesce(self, machine: Machine) -> None:
        """The VM is about to end: stop its guest in a bounded time, so that no write is cut off half-way."""

    async def close(self) -> None:
        """Release all resources. QEMU is gone by now. Idempotent."""


class BackendFactory(Protocol):
    """Makes the backend for one component of an instance spec. Creates nothing outside of this process yet."""

    def __call__(self, *, key: str, component: Any, node_name: str) -> BlockBackend:
        """Make it.

        :param component: the component, unwrapped.
        :param node_name: what QEMU is to call the block node.
        :raises InvalidSpec: naming the component at fault.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockBackends:
    """The block backends of one VM, by their keys in its spec.

    :param on_replaced: called with the key and the new volume construction request when a backend has accepted one.
    """

    by_key: dict[str, BlockBackend] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    on_replaced: Callable[[str, str], None]

    @classmethod
    def of(
        cls, spec: InstanceSpec, factories: Mapping[type, BackendFactory], *, on_replaced: Callable[[str, str], None]
    ) -> BlockBackends:
        """Create the backends that a spec requires and that have a factory.

        :raises InvalidSpec: naming the component at fault.
        """
        made = cls(on_replaced=on_replaced)
        made.add(spec.components, factories)
        return made

    def add(self, components: Mapping[str, Component], factories: Mapping[type, BackendFactory]) -> None:
        """Create the backends that additional components require.

        :raises InvalidSpec: naming the component at fault.
        """
        for key, wrapper in components.items():
            if factory := factories.get(type(wrapper.component)):
                name = f"volume{next(self._numbers)}"
                self.by_key[key] = factory(key=key, component=wrapper.component, node_name=name)

    async def discard(self, machine: Machine, keys: Iterable[str]) -> None:
        """Close those that no device could be given, and remove their nodes."""
        for key in keys:
            if (backend := self.by_key.pop(key, None)) is not None:
                await backend.close()
                with contextlib.suppress(MachineError):  # there may be none yet
                    await machine.execute("blockdev-del", **{"node-name": backend.node["node-name"]})

    @property
    def nodes(self) -> dict[str, Mapping[str, Any]]:
        """The block nodes that QEMU begins with."""
        return {key: backend.node for key, backend in self.by_key.items()}

    async def start(self, machine: Machine) -> None:
        """Activate them, one after another, as propolis-server does.

        :raises BackendError: when one can never succeed.
        :raises MachineError: when QEMU does not take one.
        """
        for backend in self.by_key.values():
            await backend.start(machine)

    def find(self, key: str) -> BlockBackend:
        """
        :raises BackendMissing: when there is none of that name.
        """
        backend = self.by_key.get(key)
        if backend is None:
            raise BackendMissing(key)
        return backend

    async def replace(self, change: ReplaceVolume) -> ReplaceResult:
        """Give one of them a new volume construction request.

        :raises BackendMissing: when there is none of that name.
        :raises ReplacementRefused: when it does not accept it.
        """
        backend = self.find(change.backend_id)
        _require_json(change.vcr_json)
        replace = backend.replace if change.is_checked else backend.replace_unchecked
        try:
            async with asyncio.timeout(REPLACE_TIMEOUT_S):
                result = await replace(change.vcr_json)
        except (BackendError, MachineError) as error:
            raise ReplacementRefused(str(error)) from None
        except TimeoutError:
            raise ReplacementRefused(
                f"backend {change.backend_id!r} has not answered for {REPLACE_TIMEOUT_S:.0f} s"
            ) from None
        if result is ReplaceResult.MISSING:
            raise ReplacementRefused(f"backend {change.backend_id!r} has no such target")
        self.on_replaced(change.backend_id, change.vcr_json)
        return result

    async def record_clean(self, *, clean: bool) -> None:
        """Record at all backends whether writes may be in progress; the guest is stopped."""
        for backend in self.by_key.values():
            await backend.record_clean(clean=clean)

    async def quiesce(self, machine: Machine) -> None:
        """End the writes of all of them in order, as far as possible."""
        for backend in self.by_key.values():
            await backend.quiesce(machine)

    async def close(self) -> None:
        """Release all of them, each even if another fails.

        :raises Exception: the last that one of them raised.
        """
        async with contextlib.AsyncExitStack() as all_of_them:
            for backend in self.by_key.values():
                all_of_them.push_async_callback(backend.close)


def _require_json(text: str) -> None:
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ReplacementRefused(f"the volume construction request is not valid JSON: {error}") from None

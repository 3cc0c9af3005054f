"""A guest as a node of a group."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidHandshake

from ...coordination.group import NodeGroup
from ...coordination.node import Node
from ...errors import AgentError, CoordinationError, PropolisError, ShellError
from ...propolis_api.connection.endpoint import Endpoint
from ...propolis_api.connection.transport import open_websocket
from ...propolis_api.serial import NOTICES_HEADER, SerialConsoleMoved
from ..provisioning.servers import require_engine
from .commands import Answer, answer_command
from .relay import Relay
from .script import install_command, remove_command

if TYPE_CHECKING:
    from ..bootable import BootableVm
    from ..vm import TestVm

__all__ = ["GuestNode", "guest_node"]

START_TIMEOUT_S: Final = 60.0
PATH: Final = "/com2"


class GuestNode:
    """A guest that is a node. The guest may boot again, and migrate.

    :param vm: where the guest is; set again when it migrates.
    """

    def __init__(self, vm: BootableVm, node: Node) -> None:
        self.vm = vm
        self.node = node
        self._relay: Relay | None = None
        self._locks: set[str] = set()
        """Locks that programs of the guest hold."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer the guest's commands for the length of the block."""
        connection = await self._open(self.vm.endpoint, {})
        self._relay = Relay(connection, self._do, follow=self._follow, on_reset=self._release_locks)
        relaying = asyncio.create_task(self._answer(self._relay))
        self.vm.guest_nodes.append(self)
        try:
            await self.start()
            yield
        finally:
            with contextlib.suppress(PropolisError, ShellError):  # the guest may have gone
                await self.vm.run(remove_command(), check=False)
            self.vm.guest_nodes.remove(self)
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)

    async def start(self) -> None:
        """Install the commands in the running guest, and wait until their reader runs.

        :raises CoordinationError: when the guest does not use its second serial port.
        """
        assert self._relay is not None
        await self.vm.run(install_command())
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._relay.is_up.wait()
        except TimeoutError:
            raise CoordinationError(
                f"VM {self.vm.name!r}: its guest does not use its second serial port",
                hint="it needs /dev/ttyS1 and a POSIX shell",
                waited_s=START_TIMEOUT_S,
            ) from None

    def reset(self) -> None:
        """End the waits of the guest's programs, and release their locks: the guest boots again."""
        if self._relay is not None:
            self._relay.reset()

    async def _do(self, words: list[str], typed: bytes) -> Answer:
        answer = await answer_command(self.node, words, typed)
        if answer.status == 0 and words[:1] == ["lock"]:
            (self._locks.add if words[1] == "acquire" else self._locks.discard)(words[2])
        return answer

    def _release_locks(self) -> None:
        while self._locks:
            self.node.group.in_background(self.node.lock(self._locks.pop()).release())

    async def _answer(self, relay: Relay) -> None:
        """Answer the guest. When its VM ends, the node has failed."""
        reason = await relay.run()
        await self.node.fail(f"its VM has ended: {reason}")

    async def _follow(self, moved: SerialConsoleMoved) -> ClientConnection:
        try:
            endpoint = self.vm._successor_endpoint(moved.destination)
        except ValueError as error:
            raise AgentError(f"its new server cannot be determined: {error}", vm=self.vm.name) from None
        return await self._open(endpoint, {"from_start": moved.from_start})

    async def _open(self, endpoint: Endpoint, query: dict[str, int]) -> ClientConnection:
        try:
            return await open_websocket(endpoint, PATH, query, headers={NOTICES_HEADER: "1"})
        except (OSError, InvalidHandshake) as error:
            raise await self.vm.endpoint.lost_or(
                AgentError(f"VM {self.vm.name!r}: its second serial port cannot be opened: {error}")
            ) from None


@contextlib.asynccontextmanager
async def guest_node(
    vm: TestVm, group: NodeGroup, *, name: str | None, address: str, labels: Iterable[str], vital: bool
) -> AsyncIterator[Node]:
    """Register a guest as a node and let its programs take part, as long as the block takes.

    :raises CapabilityMissing: when the VM is served by something else than the engine: it has no second serial port.
    """
    require_engine("as_node", vm=vm.name, server=vm.server)
    async with (
        await group.join(name or vm.name, address=address, labels=labels, vital=vital) as node,
        GuestNode(vm, node).running(),
    ):
        yield node

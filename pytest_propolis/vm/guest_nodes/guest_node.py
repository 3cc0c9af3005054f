"""A guest as a node of a group."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Final

from websockets.exceptions import InvalidHandshake

from ...coordination.group import NodeGroup
from ...coordination.node import Node
from ...errors import AgentError, CoordinationError, PropolisError, ShellError
from ...propolis_api.connection.transport import open_websocket
from ..provisioning.servers import require_engine
from .commands import Answer, answer_command
from .relay import Relay
from .script import install_command, remove_command

if TYPE_CHECKING:
    from ..vm import TestVm

__all__ = ["guest_node"]

START_TIMEOUT_S: Final = 60.0


@contextlib.asynccontextmanager
async def guest_node(
    vm: TestVm, group: NodeGroup, *, name: str | None, address: str, labels: Iterable[str], vital: bool
) -> AsyncIterator[Node]:
    """Register a guest as a node and let its programs take part, as long as the block takes.

    :raises CapabilityMissing: when the VM is served by something else than the engine: it has no second serial port.
    """
    require_engine("as_node", vm=vm.name, server=vm.server)
    node = await group.join(name or vm.name, address=address, labels=labels, vital=vital)
    async with node, contextlib.AsyncExitStack() as stack:
        try:
            connection = await open_websocket(vm.endpoint, "/com2", {})
        except (OSError, InvalidHandshake) as error:
            raise await vm.endpoint.lost_or(
                AgentError(f"VM {vm.name!r}: its second serial port cannot be opened: {error}")
            ) from None
        stack.push_async_callback(connection.close)

        async def do(words: list[str], typed: bytes) -> Answer:
            return await answer_command(node, words, typed)

        relay = Relay(connection, do)
        running = asyncio.create_task(_relay(relay, node))
        stack.push_async_callback(_stop, running)
        await vm.run(install_command())
        stack.push_async_callback(_remove, vm)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await relay.is_up.wait()
        except TimeoutError:
            raise CoordinationError(
                f"VM {vm.name!r}: its guest does not use its second serial port",
                hint="it needs /dev/ttyS1 and a POSIX shell",
                waited_s=START_TIMEOUT_S,
            ) from None
        yield node


async def _relay(relay: Relay, node: Node) -> None:
    """Answer the guest. When its VM ends, the node has failed."""
    reason = await relay.run()
    await node.fail(f"its VM has ended: {reason}")


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _remove(vm: TestVm) -> None:
    with contextlib.suppress(PropolisError, ShellError):  # the guest may have gone
        await vm.run(remove_command(), check=False)

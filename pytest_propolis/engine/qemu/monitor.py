"""QEMU's monitor (QMP): commands, file descriptors, events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

__all__ = ["COMMAND_TIMEOUT_S", "MachineError", "Monitor"]

# The monitor's own log repeats what is raised as an error.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

COMMAND_TIMEOUT_S: Final = 60.0
"""How long QEMU may take to answer a command. Long operations are answered when they have started."""


class MachineError(Exception):
    """Raised when QEMU ends or refuses a command unexpectedly; the text is QEMU's own."""


class Monitor:
    """The connection to the monitor of one QEMU.

    :param how_qemu_ended: returns the error text for a command that QEMU's end left unanswered; empty if
        nothing is known of an end.
    """

    def __init__(self, *, how_qemu_ended: Callable[[], Awaitable[str]]) -> None:
        self._client = QMPClient("engine")
        self._how_qemu_ended = how_qemu_ended

    def register_listener(self, listener: EventListener) -> None:
        """Subscribe a listener to all events from now on."""
        self._client.register_listener(listener)

    def listener(self, names: tuple[str, ...]) -> contextlib.AbstractContextManager[EventListener]:
        """Subscribe to events of these names for the duration of the block."""
        return self._client.listener(names)

    async def connect(self, connection: socket.socket) -> None:
        """Negotiate with QEMU.

        :raises QMPError: when that fails.
        """
        await self._client.connect(connection)

    async def execute(self, command: str, arguments: dict[str, Any], *, oob: bool = False) -> Any:
        """Give QEMU a command.

        :param oob: execute it out of band: at once, even while another one hangs.
        :raises MachineError: when QEMU refuses it, is gone, or does not answer within `COMMAND_TIMEOUT_S`.
        """
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                return await self._client.execute(command, arguments or None, oob=oob)
        except TimeoutError:
            raise MachineError(f"QEMU: {command}: no answer for {COMMAND_TIMEOUT_S:.0f} s") from None
        except ExecuteError as error:
            raise MachineError(f"QEMU: {command}: {error}") from None
        except (QMPError, OSError) as error:
            raise MachineError(f"QEMU: {command}: {await self._how_qemu_ended() or error}") from None

    async def send_fd(self, name: str, fd: int) -> None:
        """Hand QEMU a duplicate of a file descriptor, which later commands call `name`."""
        self._client.send_fd_scm(fd)
        await self.execute("getfd", {"fdname": name})

    async def disconnect(self) -> None:
        """Close the connection, which may have failed."""
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self._client.disconnect()

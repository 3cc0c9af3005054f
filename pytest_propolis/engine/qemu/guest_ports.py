"""Guest ports: virtio-serial ports, streams of bytes between programs on this side and programs in the guest."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Final

__all__ = ["PORT_COUNT", "PORT_NAMES", "GuestPort", "GuestPorts", "port_devices"]

PORT_COUNT: Final = 8
PORT_NAMES: Final = tuple(f"org.propolis.{number}" for number in range(1, PORT_COUNT + 1))
"""By these names the guest finds them, below /sys/class/virtio-ports."""

READ_BYTES: Final = 1 << 18
BUFFER_BYTES: Final = 1 << 20


def port_devices(place: str) -> Iterator[str]:
    """QEMU's arguments for the controller of the ports and for the ports, whose character devices `GuestPorts` names.

    :param place: the words that put the controller on its bus.
    """
    # Port 0 is a console's.
    yield from ("-device", f"virtio-serial-pci,id=guest-ports,max_ports={PORT_COUNT + 1},{place}")
    for number, name in enumerate(PORT_NAMES, 1):
        yield from ("-device", f"virtserialport,bus=guest-ports.0,nr={number},chardev=port{number},name={name}")


class GuestPort:
    """One port: one client at a time. What neither side has read waits, and makes the other side wait."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair()
        for end in (self._ours, self.theirs):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self._turn = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Keep other clients waiting."""
        async with self._turn:
            yield

    async def read(self) -> bytes:
        """Return what the guest has written; nothing at the end of the machine."""
        try:
            return await asyncio.get_running_loop().sock_recv(self._ours, READ_BYTES)
        except OSError:
            return b""

    async def write(self, data: bytes) -> None:
        """Write to the guest. Waits while the guest reads nothing.

        :raises OSError: when the machine has ended.
        """
        await asyncio.get_running_loop().sock_sendall(self._ours, data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)  # ends what waits for it
        self._ours.close()
        self.theirs.close()


class GuestPorts:
    """The ports of a machine, if it has any."""

    def __init__(self, *, there: bool) -> None:
        self._ports = {f"port{number}": GuestPort() for number in range(1, PORT_COUNT + 1)} if there else {}

    @property
    def fds(self) -> dict[str, int]:
        """QEMU's ends, by the names of the character devices."""
        return {name: port.theirs.fileno() for name, port in self._ports.items()}

    def get(self, number: int) -> GuestPort | None:
        return self._ports.get(f"port{number}")

    def given(self) -> None:
        """QEMU has its ends: they are closed here, so that a port ends when QEMU does."""
        for port in self._ports.values():
            port.theirs.close()

    def close(self) -> None:
        """End every use. Closing twice is fine."""
        for port in self._ports.values():
            port.close()

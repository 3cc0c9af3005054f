"""Guest ports: virtio-serial ports, streams of bytes between programs on this side and programs in the guest."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

from ...agent_api.guest_ports import PORT_COUNT, SHELL_PORT

__all__ = ["PORT_COUNT", "PORT_NAMES", "GuestPort", "GuestPorts", "port_devices"]

PORT_NAMES: Final = tuple(f"org.propolis.{number}" for number in range(1, PORT_COUNT + 1))
"""The names of the ports in the guest, below /sys/class/virtio-ports."""

READ_BYTES: Final = 1 << 18
BUFFER_BYTES: Final = 1 << 20
FILLING_BYTES: Final = 512


def port_devices(place: str) -> Iterator[str]:
    """QEMU's arguments for the controller of the ports and for the ports, whose character devices `GuestPorts` names.

    :param place: the words that put the controller on its bus.
    """
    # Port 0 is a console's.
    yield from ("-device", f"virtio-serial-pci,id=guest-ports,max_ports={PORT_COUNT + 1},{place}")
    for number, name in enumerate(PORT_NAMES, 1):
        # Without an id, QEMU does not tell when the guest closes a port.
        device = f"virtserialport,id=port{number},bus=guest-ports.0,nr={number},chardev=port{number},name={name}"
        yield from ("-device", device)


class GuestPort:
    """One port, for one client at a time. Unread bytes are buffered, and then block the other side."""

    def __init__(self) -> None:
        self._ours, self.qemu_end = socket.socketpair()
        for end in (self._ours, self.qemu_end):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self._turn = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._flows = asyncio.Event()
        """Cleared while the port is held."""
        self._flows.set()
        self._taken_back = b""
        self._passed = 0
        self._left = b""
        self._filled = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self._on_readable: Callable[[], None] | None = None
        self.on_closed_by_guest: Callable[[], None] | None = None
        """Called when all programs in the guest that had the port open have closed it, or ended."""

    @property
    def taken(self) -> int:
        """How many bytes the machine has taken; of a held or closed port, without those that it has not read."""
        return self._passed - len(self._taken_back)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Make other clients wait."""
        async with self._turn:
            yield

    def watch(self, on_readable: Callable[[], None] | None) -> None:
        """Call a function whenever `try_read` has something to return; None ends that."""
        self._on_readable = on_readable
        self._update_watch()

    def try_read(self) -> bytes | None:
        """Return what the guest has written; nothing at the end of the machine; None if nothing has come yet."""
        if not self._flows.is_set():
            return None
        try:
            return self._ours.recv(READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            left, self._left = self._left, b""
            return left

    def try_write(self, data: bytes) -> int:
        """Write to the guest, and return how much it takes at once.

        :raises OSError: when the machine has ended.
        """
        if self._taken_back or not self._flows.is_set():
            return 0
        try:
            count = self._ours.send(data)
        except BlockingIOError:
            return 0
        self._passed += count
        return count

    async def read(self) -> bytes:
        """As `try_read`, but wait until something has come."""
        while True:
            await self._flows.wait()
            data = self.try_read()
            if data is not None:
                return data
            await self._until_ready(self._loop.add_reader, self._loop.remove_reader)

    async def write(self, data: bytes) -> None:
        """Write to the guest. Waits while the guest reads nothing.

        :raises OSError: when the machine has ended.
        """
        view = memoryview(data)
        while view:
            await self._flows.wait()
            try:
                if self._taken_back:
                    self._taken_back = self._taken_back[self._ours.send(self._taken_back) :]
                else:
                    count = self._ours.send(view)
                    self._passed += count
                    view = view[count:]
            except BlockingIOError:
                await self._until_ready(self._loop.add_writer, self._loop.remove_writer)

    def hold(self) -> None:
        """Pass no bytes until `release`: QEMU receives no more input, and stops when its end is full."""
        self._flows.clear()
        self._update_watch()
        with contextlib.suppress(OSError):
            while data := self.qemu_end.recv(READ_BYTES):
                self._taken_back += data

    def fill(self) -> None:
        """Hold a port that nothing has used yet, and let QEMU not write a byte until `release`."""
        self._flows.clear()
        self._update_watch()
        self.qemu_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)  # the least
        with contextlib.suppress(BlockingIOError):
            while True:
                self._filled += self.qemu_end.send(bytes(FILLING_BYTES))

    def release(self) -> None:
        """Pass bytes again. No effect on a port that is not held."""
        with contextlib.suppress(OSError):  # what was in the sockets has room there
            while self._filled and (read := self._ours.recv(self._filled)):
                self._filled -= len(read)
            self.qemu_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            while self._taken_back and not self._flows.is_set():
                self._taken_back = self._taken_back[self._ours.send(self._taken_back) :]
        self._flows.set()
        self._update_watch()

    def close(self) -> None:
        """End every use; what the machine has written before can still be read. Idempotent."""
        if self._ours.fileno() >= 0:
            self._settle()
            self._loop.remove_reader(self._ours)
            self._loop.remove_writer(self._ours)
        self._ours.close()
        self.qemu_end.close()
        self._flows.set()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._update_watch()

    def _update_watch(self) -> None:
        if self._ours.fileno() < 0:
            self._loop.call_soon(self._report_end)
        elif self._on_readable is not None and self._flows.is_set():
            self._loop.add_reader(self._ours, self._on_readable)
        else:
            self._loop.remove_reader(self._ours)

    def _report_end(self) -> None:
        """Let what is left be read, and then the end, which ends the watch."""
        if self._on_readable is not None:
            self._on_readable()
            self._loop.call_soon(self._report_end)

    def _settle(self) -> None:
        """Take what the machine has written, and take back what it has not read."""
        with contextlib.suppress(OSError):
            while data := self.qemu_end.recv(READ_BYTES, socket.MSG_DONTWAIT):
                self._taken_back += data
        with contextlib.suppress(OSError):
            while data := self._ours.recv(READ_BYTES):
                self._left += data
        self._left = self._left[self._filled :]

    async def _until_ready(
        self, add: Callable[[socket.socket, Callable[[], None]], None], remove: Callable[[socket.socket], object]
    ) -> None:
        ready = self._loop.create_future()

        def report() -> None:
            if not ready.done():
                ready.set_result(None)

        add(self._ours, report)
        self._waiting.add(ready)
        try:
            await ready
        finally:
            self._waiting.discard(ready)
            if self._ours.fileno() >= 0:
                remove(self._ours)


class GuestPorts:
    """The ports of a machine, if it has any."""

    def __init__(self, *, there: bool) -> None:
        self._ports = {f"port{number}": GuestPort() for number in range(1, PORT_COUNT + 1)} if there else {}
        self.opened: set[str] = set()
        """The devices that the guest has opened since its machine was last reset."""

    @property
    def fds(self) -> dict[str, int]:
        """QEMU's ends, by the names of the character devices."""
        return {name: port.qemu_end.fileno() for name, port in self._ports.items()}

    def get(self, number: int) -> GuestPort | None:
        return self._ports.get(f"port{number}")

    def closed_by_guest(self, device: str) -> None:
        """Tell the client of the shell's port that the guest has closed it.

        The other ports are closed after each use. QEMU reports that up to a second later, when it may be in use again.
        """
        self.opened.remove(device)
        port = self._ports.get(device)
        if port is not None and device == f"port{SHELL_PORT}" and port.on_closed_by_guest is not None:
            port.on_closed_by_guest()

    def hold(self) -> None:
        """Let nothing pass until `release`.

        QEMU serves the ports of a paused guest, too: that would change memory which another QEMU has mapped, and whose
        guest runs there.
        """
        for port in self._ports.values():
            port.hold()

    def fill(self) -> None:
        """Let not even what a guest was writing pass until `release`: QEMU goes on with it while it loads a state.

        An interrupt that it raises then is lost when the state of the interrupt controller is loaded later. And the
        guest still belongs to the other machine.
        """
        for port in self._ports.values():
            port.fill()

    def release(self) -> None:
        """Let all pass again. No effect on ports that are not held."""
        for port in self._ports.values():
            port.release()

    def close(self) -> None:
        """End every use. Idempotent."""
        for port in self._ports.values():
            port.close()

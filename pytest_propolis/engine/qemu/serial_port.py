"""A guest's serial port: QEMU's end of a socket pair, read into a history that any number of clients can follow."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import msgspec

from .serial_history import HistoryContent, SerialHistory

__all__ = ["SerialPort", "SerialState"]

READ_BYTES = 1 << 16
BUFFER_BYTES = 1 << 20


class SerialState(msgspec.Struct, frozen=True, kw_only=True):
    """A serial port in transfer to another server.

    :param typed: typed input that the guest has not read yet.
    """

    history: HistoryContent
    typed: bytes


class SerialPort:
    """One UART, as seen from the host.

    The pair of sockets exists before QEMU does, so that no output of the guest is lost.
    """

    def __init__(self) -> None:
        self.history = SerialHistory()
        self.moved_to: str | None = None
        """The server at which clients find the guest once it has migrated out."""
        self.end_reason = "VM stopped"
        """The close reason for clients when the port ends."""
        self.reset_listeners: set[Callable[[int], None]] = set()
        """Called when the guest has reset its machine, with the offset behind all that it wrote before."""
        self._held: bytearray | None = None
        self._settled = asyncio.Event()
        """Cleared while the port is in transfer to another server, and may still have to continue here."""
        self._settled.set()
        self._unsent = bytearray()
        self._sent = asyncio.Event()
        self._sent.set()
        self._broken: OSError | None = None
        self._ours, self.qemu_end = socket.socketpair()
        self._ours.setblocking(False)
        # QEMU writes each byte by itself, and each is charged with hundreds: by default 277 fill a socket. A guest's
        # firmware drops what its UART does not take within a second.
        self.qemu_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self._write_lock = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._ours, self._read)

    async def write(self, data: bytes) -> bool:
        """Type into the guest. Wait while the UART accepts no more, and while a migration is undecided.

        :return: False when the guest has moved: it gets nothing of this.
        :raises OSError: when QEMU is gone.
        """
        async with self._write_lock:
            await self._settled.wait()
            if self.moved_to is not None:
                return False
            if self._broken:
                raise self._broken
            if self._held is not None:
                self._held += data
                return True
            self._send(data)
            await self._sent.wait()
            if self._broken:
                raise self._broken
            return True

    def begin_anew(self, shown: bytes) -> None:
        """Replace all output so far with this. There must be no readers yet."""
        self.history = SerialHistory()
        self.history.append(shown)

    def hold(self) -> None:
        """Buffer input until `release` instead of passing it to the guest, which must be stopped."""
        self._held = bytearray(_taken_back(self.qemu_end)) + self._unsent
        self._forget_unsent()

    def state(self) -> SerialState:
        """Return the state with which another server can continue a held port. Later writes block until `release`,
        `move_to` or `close`."""
        assert self._held is not None, "hold the port first"
        self._settled.clear()
        self._drain()
        return SerialState(history=self.history.content(), typed=bytes(self._held))

    def release(self) -> None:
        """Pass the buffered input to the guest as it accepts it. No effect on a port that is not held."""
        held, self._held = self._held, None
        if held:
            self._send(held)
        self._settled.set()

    def restore(self, state: SerialState) -> None:
        """Continue another server's port, which is held."""
        self.history.restore(state.history)
        self._held = bytearray(state.typed)

    def move_to(self, address: str) -> None:
        """Redirect clients to another server, where the guest continues."""
        self.moved_to = address
        self._settled.set()
        self.history.finish()

    def announce_reset(self) -> None:
        """Notify all listeners that the guest has reset its machine, which must be stopped."""
        self._drain()
        for listener in tuple(self.reset_listeners):
            listener(self.history.end)

    def close(self) -> None:
        """Close the port; readers get `end_reason`."""
        if self._ours.fileno() >= 0:
            self._loop.remove_reader(self._ours)
            self._drain()
            self._forget_unsent()
            self._broken = self._broken or BrokenPipeError("the serial port is closed")
            self._settled.set()
            self._ours.close()
        self.qemu_end.close()
        self.history.finish()

    def _send(self, data: bytes | bytearray) -> None:
        self._unsent += data
        self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._ours.send(self._unsent)]
        except BlockingIOError:
            self._sent.clear()
            self._loop.add_writer(self._ours, self._flush)
        except OSError as error:
            self._broken = error
            self._forget_unsent()
        else:
            self._forget_unsent()

    def _forget_unsent(self) -> None:
        self._unsent.clear()
        self._sent.set()
        if self._ours.fileno() >= 0:
            self._loop.remove_writer(self._ours)

    def _read(self) -> None:
        try:
            data = self._ours.recv(READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if data:
            self.history.append(data)
        else:
            self._loop.remove_reader(self._ours)

    def _drain(self) -> None:
        """Take what QEMU had written before it ended."""
        try:
            while data := self._ours.recv(READ_BYTES):
                self.history.append(data)
        except OSError:
            pass


def _taken_back(qemu_end: socket.socket) -> bytes:
    """Return the bytes that QEMU has not read from its end, which both processes have open."""
    taken = bytearray()
    try:
        while data := qemu_end.recv(READ_BYTES, socket.MSG_DONTWAIT):
            taken += data
    except OSError:
        pass
    return bytes(taken)

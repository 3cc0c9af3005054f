"""A serial port of a guest: QEMU's end of a socket pair, read into a history that anyone may follow."""

from __future__ import annotations

import asyncio
import socket

from .serial_history import SerialHistory

__all__ = ["SerialPort"]

READ_BYTES = 1 << 16


class SerialPort:
    """One UART, as seen from the host.

    The pair of sockets exists before QEMU does, so that nothing that the guest writes can get lost.
    """

    def __init__(self) -> None:
        self.history = SerialHistory()
        self._ours, self.theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._write_lock = asyncio.Lock()
        self._takes_input = asyncio.Event()
        self._takes_input.set()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._ours, self._read)

    def handed_over(self) -> None:
        """Close our copy of QEMU's end, so that the end of QEMU is seen as the end of the stream."""
        self.theirs.close()

    async def write(self, data: bytes) -> None:
        """Type into the guest. Waits while the UART takes no more.

        :raises OSError: when QEMU is gone.
        """
        async with self._write_lock:
            await self._takes_input.wait()
            await self._loop.sock_sendall(self._ours, data)

    def begin_anew(self, shown: bytes) -> None:
        """Forget all output so far, and begin with this instead. Nobody may be reading yet."""
        self.history = SerialHistory()
        self.history.append(shown)

    def hold(self) -> None:
        """Let writes wait until `release`: what is typed at a guest between its restoring and its running is lost."""
        self._takes_input.clear()

    def release(self) -> None:
        self._takes_input.set()

    def close(self) -> None:
        self.release()
        if self._ours.fileno() >= 0:
            self._loop.remove_reader(self._ours)
            self._drain()
            self._ours.close()
        self.theirs.close()
        self.history.finish()

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

"""A program in the guest with streams of its own, over guest ports, beside all other commands."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Final

from ...errors import CommandTimeout, ConsoleError, PropolisError, ShellError, ShellLost
from ...propolis_api.connection.byte_stream import StreamEnded
from ..read_eval_loop import quoted
from ..shell import Shell
from ..shell_protocol import new_nonce
from .guest_ports import GuestPorts, MarkedStream, PortStream, open_ports
from .over_port import FEED

__all__ = ["GuestProcess", "ProcessInput", "ProcessOutput", "guest_process"]

START_TIMEOUT_S: Final = 60.0
END_TIMEOUT_S: Final = 10.0
PIECE_BYTES: Final = 1 << 20
KEPT_BYTES: Final = 1 << 20
"""How much of a stream `GuestProcess.wait` keeps for a later reader."""

# setsid forks where it leads a process group already: so the program does not stay a job of the shell that commands run
# in, which would have it ignore SIGINT as a job in the background.
_LAUNCH: Final = r"""(OPEN
setsid setsid sh -c SCRIPT </dev/null >/dev/null 2>&1)"""

_SCRIPT: Final = r"""{ while IFS= read -r _l <&8 && [ "$_l" != NONCE ]; do :; done
FEED
} 9>&- | {
setsid sh -c PROGRAM >&8 2>&9 8>&- 9>&-
_s=$?
printf 'ERRORS_END\004' >&9
printf 'OUTPUT_END%d\004' "$_s" >&8
}"""

_PROGRAM: Final = "printf 'ERRORS_BEGIN\\n' >&2; printf 'OUTPUT_BEGIN%d\\n' $$\n"


class ProcessInput:
    """The standard input of a program in the guest."""

    def __init__(self, port: PortStream) -> None:
        self._port = port
        self._closed = False

    async def write(self, data: bytes | str) -> None:
        """Write; wait while the program reads nothing.

        :raises ShellError: when it is closed.
        :raises ShellLost: when the machine has ended, or the guest has migrated.
        """
        if self._closed:
            raise ShellError("the standard input is closed")
        view = memoryview(data.encode() if isinstance(data, str) else data)
        with _lost():
            for start in range(0, len(view), PIECE_BYTES):
                piece = view[start : start + PIECE_BYTES]
                await self._port.send(b"%d\n" % len(piece))
                await self._port.send(piece)

    async def aclose(self) -> None:
        """Let the program read the end of the file. Idempotent."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(StreamEnded):
                await self._port.send(b"0\n")


class ProcessOutput:
    """What a program in the guest writes to one stream. It waits while nothing here reads.

    Iterate over it for lines as text, without their ends; each comes when it is complete.
    """

    def __init__(self, stream: MarkedStream) -> None:
        self._stream = stream
        self._turn = asyncio.Lock()
        self._ended = False
        self._kept: deque[bytes] = deque()
        """What has come while the end was waited for."""
        self._kept_bytes = 0

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the bytes that have not been read yet, as they come."""
        while True:
            async with self._turn:
                piece = self._kept.popleft() if self._kept else await self._next()
            if piece is None:
                return
            yield piece

    async def _next(self) -> bytes | None:
        with _lost():
            piece = None if self._ended else await self._stream.piece()
        self._ended = piece is None
        return piece

    async def read(self) -> bytes:
        """Return all that has not been read yet, when the stream has ended."""
        return b"".join([piece async for piece in self.pieces()])

    async def __aiter__(self) -> AsyncIterator[str]:
        rest = b""
        async for piece in self.pieces():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace")
        if rest:
            yield rest.decode(errors="replace")

    async def until_end(self) -> None:
        """Wait for the end. What comes meanwhile can be read later: `KEPT_BYTES` of it, and what follows is dropped."""
        while not self._ended:
            async with self._turn:
                piece = await self._next()
                if piece is not None and self._kept_bytes < KEPT_BYTES:
                    self._kept.append(piece)
                    self._kept_bytes += len(piece)


class GuestProcess:
    """A program that runs in the guest, with a process group of its own.

    :param pid: its process id in the guest.
    """

    def __init__(self, shell: Shell, pid: int, port: PortStream, output: MarkedStream, errors: MarkedStream) -> None:
        self.pid = pid
        self.stdin = ProcessInput(port)
        self.stdout = ProcessOutput(output)
        self.stderr = ProcessOutput(errors)
        self._shell = shell
        self._output = output

    @property
    def status(self) -> int | None:
        """The exit status, 128 plus the signal's number after a signal; None until `stdout` was read to its end."""
        return int(self._output.tail) if self._output.tail is not None else None

    async def signal(self, name: str) -> None:
        """Send a signal, such as ``"INT"``, to the program and to what it has started. After its end, nothing happens.

        It is a command of the shell: one that runs there is waited for.
        """
        if self.status is None:
            await self.signal_group(name)

    async def signal_group(self, name: str) -> None:
        """Send a signal to what is left of the program and of what it has started."""
        command = f"kill -{name} -{self.pid} 2>/dev/null"
        await self._shell.run(command, timeout_s=START_TIMEOUT_S, check=False, note=f"SIG{name} for {self.pid}")

    async def wait(self, *, timeout_s: float | None = None) -> int:
        """Wait for the end, and return the exit status. Of output that was not read yet, 1 MiB can be read later.

        Standard input stays open: a program that reads it to its end needs ``stdin.aclose()`` first.

        :raises CommandTimeout: when it does not end in time. It runs on.
        :raises ShellLost: when the machine has ended, or the guest has migrated.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(self.stdout.until_end(), self.stderr.until_end())
        except TimeoutError:
            raise CommandTimeout(f"the process {self.pid} did not end", waited_s=timeout_s) from None
        assert self.status is not None
        return self.status


@contextlib.asynccontextmanager
async def guest_process(command: str, shell: Shell, ports: GuestPorts) -> AsyncIterator[GuestProcess]:
    """Start a program in the guest; at the end of the block it is killed, if it still runs.

    :raises ShellError: when it cannot be started.
    :raises CapabilityMissing: when the VM has no guest ports.
    """
    async with ports.taken(2) as (port, errors_port):
        output, errors = MarkedStream(port), MarkedStream(errors_port)
        nonce = new_nonce()
        launch = _launch(command, nonce, (port.number, output), (errors_port.number, errors))
        started = await shell.run(launch, timeout_s=START_TIMEOUT_S, check=False, note=f"process: {command}")
        if started.status:
            raise ShellError(f"the process did not start: {started.text}")
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await port.send(b"\n%b\n" % nonce.encode())
                process = GuestProcess(shell, int(await output.head()), port, output, errors)
                await errors.head()
        except (StreamEnded, TimeoutError) as error:
            raise ShellLost("the process did not start: its ports are silent") from error
        try:
            yield process
        finally:
            await _end(process)


async def _end(process: GuestProcess) -> None:
    """Kill what still runs, and let the guest close its ports."""
    with contextlib.suppress(ConsoleError, PropolisError, TimeoutError):
        async with asyncio.timeout(END_TIMEOUT_S):
            await process.signal_group("KILL")  # what it has started may have outlived it, and holds its ports
            await process.stdin.aclose()
            await process.wait()


def _launch(command: str, nonce: str, output: tuple[int, MarkedStream], errors: tuple[int, MarkedStream]) -> str:
    program = _PROGRAM.replace("ERRORS_BEGIN", errors[1].begin).replace("OUTPUT_BEGIN", output[1].begin) + command
    script = _SCRIPT.replace("NONCE", nonce).replace("FEED", FEED)
    script = script.replace("ERRORS_END", errors[1].end).replace("OUTPUT_END", output[1].end)
    script = script.replace("PROGRAM", quoted(program))
    opened = open_ports({output[0]: 8, errors[0]: 9})
    return _LAUNCH.replace("OPEN", opened).replace("SCRIPT", quoted(script))


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except StreamEnded as error:
        raise ShellLost("its streams have ended: the VM has stopped, or its guest has migrated") from error

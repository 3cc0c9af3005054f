"""A file as a stream: without holes and blocks of zeros, resumable, checked at its end.

Both sides of a transfer run this module. A host's own Python runs its text, as that of the loader, so it imports only
the standard library.

A frame is an offset, a length and that many bytes, in the order of offsets; one of length 0 is the last. A length with
`COMPRESSED` set is that of zlib's output.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import struct
import sys
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Any

LINE_PREFIX = "propolis1 "
BLOCK_BYTES = 64 << 10
CHUNK_BYTES = 1 << 20
SAVE_BYTES = 64 << 20
COMPRESSED = 1 << 31
HEADER = struct.Struct(">QI")
ZEROS = bytes(BLOCK_BYTES)
TRIAL_BYTES = 8 << 20
SLOW_BYTES_PER_S = 25e6
BY_CONTENT = "content"
"""The key of files whose paths tell their content."""


def data_blocks(descriptor: int, size: int, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield what a file has from `start` on, without zeros, in chunks of aligned blocks.

    How the file is laid out on its disk does not matter: the same contents yield the same blocks.
    """
    at = start
    while at < size:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA) // BLOCK_BYTES * BLOCK_BYTES
        except OSError:  # only a hole is left
            return
        at = max(at, start)
        chunk = os.pread(descriptor, min(CHUNK_BYTES - at % CHUNK_BYTES, size - at), at)
        if not chunk:
            return
        yield from _without_zeros(at, chunk)
        at += len(chunk)


def _without_zeros(at: int, chunk: bytes) -> Iterator[tuple[int, bytes]]:
    begin = None
    for offset in range(0, len(chunk), BLOCK_BYTES):
        block = chunk[offset : offset + BLOCK_BYTES]
        if block != ZEROS[: len(block)]:
            begin = offset if begin is None else begin
        elif begin is not None:
            yield at + begin, chunk[begin:offset]
            begin = None
    if begin is not None:
        yield at + begin, chunk[begin:]


def digest(descriptor: int, size: int) -> str:
    """Return the SHA-256 of a file's blocks and where they are; a hole and zeros are the same."""
    total = hashlib.sha256(HEADER.pack(size, 0))
    for offset, data in data_blocks(descriptor, size):
        _add(total, offset, data)
    return total.hexdigest()


def _add(total: Any, offset: int, data: bytes) -> None:
    view = memoryview(data)
    for begin in range(0, len(data), BLOCK_BYTES):
        total.update(HEADER.pack(offset + begin, 0))
        total.update(view[begin : begin + BLOCK_BYTES])


def frames(descriptor: int, size: int, start: int = 0) -> Generator[bytes, None, None]:
    """Yield the frames of a file from `start` on; over a slow line, compressed ones after the first `TRIAL_BYTES`.

    A caller that takes one frame when the one before has been sent makes the speed of the line known.
    """
    began, sent, compress = time.monotonic(), 0, False
    for offset, data in data_blocks(descriptor, size, start):
        if compress:
            packed = zlib.compress(data, 1)
            yield HEADER.pack(offset, len(packed) | COMPRESSED) + packed
            continue
        yield HEADER.pack(offset, len(data)) + data
        sent += len(data)
        compress = sent >= TRIAL_BYTES and sent < SLOW_BYTES_PER_S * (time.monotonic() - began)
    yield HEADER.pack(size, 0)


def unpacked(length: int, payload: bytes) -> bytes:
    """Return the content of a frame of this length."""
    return zlib.decompress(payload) if length & COMPRESSED else payload


class PartialFile:
    """A partial file beside its final path; an interrupted transfer is resumed with it.

    :param key: what tells this content from an earlier one of the same name.
    :param wait: whether to wait while another transfer writes to it; otherwise `BlockingIOError` is raised.
    """

    def __init__(self, path: str, size: int, mode: int, key: str, *, wait: bool = True) -> None:
        directory, name = os.path.split(path)
        self.path, self.size, self.mode = path, size, mode
        self._part = os.path.join(directory, f".{name}.{key}.part")  # noqa: PTH118
        self._note = f"{self._part}.done"
        self._file = self._locked(fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.done = self._noted()
        self._saved = self.done
        os.ftruncate(self._file, self.done)  # what an earlier transfer has written behind it may be wrong
        os.ftruncate(self._file, size)
        self._total: Any = None

    def _locked(self, operation: int) -> int:
        """Open the part, when no other transfer writes to it."""
        while True:
            descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, operation)
            except BlockingIOError:
                os.close(descriptor)
                raise
            with contextlib.suppress(FileNotFoundError):  # another transfer has put it into its place meanwhile
                if os.path.samestat(os.fstat(descriptor), os.stat(self._part)):  # noqa: PTH116
                    return descriptor
            os.close(descriptor)

    def discard(self) -> None:
        """Remove what was received."""
        for path in (self._part, self._note):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108

    def write(self, offset: int, data: bytes) -> None:
        """Write one frame's data, and add it to the digest: it need not be read again in the end."""
        self._digest_of_earlier()
        _add(self._total, offset, data)
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, offset)
            offset, view = offset + written, view[written:]
        self.done = offset
        if self.done - self._saved >= SAVE_BYTES:
            self.save()

    def save(self) -> None:
        """Note how far the transfer came, for the next attempt."""
        os.fsync(self._file)
        with open(self._note, "w", encoding="ascii") as note:  # noqa: PTH123
            note.write(str(self.done))
        self._saved = self.done

    def finish(self, sha256: str) -> bool:
        """Move the file to its final path if it is complete and correct; remove it otherwise."""
        self._digest_of_earlier()
        good: bool = self._total.hexdigest() == sha256
        if good:
            os.fchmod(self._file, self.mode)
            os.fsync(self._file)
            os.replace(self._part, self.path)  # noqa: PTH105
        self.discard()
        return good

    def close(self) -> None:
        os.close(self._file)

    def _digest_of_earlier(self) -> None:
        """Begin the digest with what an earlier transfer has brought."""
        if self._total is None:
            self._total = hashlib.sha256(HEADER.pack(self.size, 0))
            for offset, data in data_blocks(self._file, self.done):
                _add(self._total, offset, data)

    def _noted(self) -> int:
        try:
            with open(self._note, encoding="ascii") as note:  # noqa: PTH123
                return min(int(note.read()), self.size)
        except (FileNotFoundError, ValueError):
            return 0


def source_key(descriptor: int) -> str:
    """Return a key of a file's content: its size and time of modification."""
    found = os.fstat(descriptor)
    return hashlib.sha256(f"{found.st_size} {found.st_mtime_ns}".encode()).hexdigest()[:16]


def receive(order: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> None:
    """Receive a file from standard input, on a host. With ``once`` an existing file is not sent again."""
    stream = sys.stdin.buffer
    if order["once"]:
        os.makedirs(os.path.dirname(order["path"]), 0o700, exist_ok=True)  # noqa: PTH103, PTH120
    if order["once"] and is_there(order["path"], order["size"]):
        return report({"done": order["size"], "is_there": True})
    part = PartialFile(order["path"], order["size"], order["mode"], order["key"])
    try:
        if order["once"] and is_there(order["path"], order["size"]):  # of another transfer, meanwhile
            part.discard()
            return report({"done": order["size"], "is_there": True})
        report({"done": part.done})
        while True:
            header = stream.read(HEADER.size)
            if len(header) < HEADER.size:
                return part.save()
            offset, length = HEADER.unpack(header)
            if length == 0:
                break
            payload = stream.read(length & ~COMPRESSED)
            if len(payload) < length & ~COMPRESSED:
                return part.save()
            part.write(offset, unpacked(length, payload))
        return report({"good": part.finish(json.loads(stream.readline())["sha256"])})
    finally:
        part.close()


def is_there(path: str, size: int) -> bool:
    """Return whether there is a file whose path tells its content."""
    try:
        found = os.stat(path)  # noqa: PTH116
        os.utime(os.path.dirname(path))  # noqa: PTH120 # it is in use: directories that are not are removed after a time
        return found.st_size == size
    except FileNotFoundError:
        return False


def send(order: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> None:
    """Send a file to standard output, from a host."""
    descriptor = os.open(order["path"], os.O_RDONLY)
    found = os.fstat(descriptor)
    report({"size": found.st_size, "mode": found.st_mode & 0o7777, "key": source_key(descriptor)})
    start = json.loads(sys.stdin.buffer.readline())["done"]
    for frame in frames(descriptor, found.st_size, start):
        sys.stdout.buffer.write(frame)
    sys.stdout.buffer.flush()
    report({"sha256": digest(descriptor, found.st_size)})


def main() -> None:
    """Carry out one order, on a host."""

    def report(message: dict[str, Any]) -> None:
        sys.stdout.write(f"{LINE_PREFIX}{json.dumps(message)}\n")
        sys.stdout.flush()

    order = json.loads(sys.stdin.buffer.readline())
    try:
        {"receive": receive, "send": send}[order["do"]](order, report)
    except OSError as error:
        report({"error": f"{error.filename or order['path']}: {error.strerror}", "full": error.errno in (28, 122)})


if __name__ == "__main__":
    main()

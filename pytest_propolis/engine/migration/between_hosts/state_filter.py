"""A filter for the state that QEMU sends, which leaves out the pages of memory that the target has."""

from __future__ import annotations

import struct
from collections.abc import Generator
from typing import Final

from ...qemu.memory import MEMORY_ID
from .memory_contents import KnownBlocks

__all__ = ["PAGE_BYTES", "StateFilter"]

PAGE_BYTES: Final = 4096
"""A guest's page, which QEMU sends as a whole."""

# From QEMU's migration/savevm.c and migration/ram.c.
START: Final = b"\x01"
PART: Final = 0x02
PARTS_END: Final = 0x03
FOOTER: Final = 0x7E
SECTION_BYTES: Final = 5
"""The type of a section, or that of its footer, and its number."""
MEMORY: Final = b"\x03ram\0\0\0\0\0\0\0\x04"

WORD: Final = struct.Struct(">Q")
ZEROS: Final = 0x02
SIZES: Final = 0x04
PAGE: Final = 0x08
RECORDS_END: Final = 0x10
SAME_BLOCK: Final = 0x20
FLAGS: Final = 0xFFF

LONGEST_START_BYTES: Final = 64 << 10

Steps = Generator[None, None, None]


class StateFilter:
    """Passes QEMU's state on, without the pages of the guest's memory that the target has.

    From what this does not know on, the stream is passed on as it is: that is always right, and takes longer.

    :param known: the digests of the pages that the target has.
    """

    def __init__(self, known: KnownBlocks) -> None:
        self._known = known
        self._data = bytearray()
        self._passed = bytearray()
        self._block = b""
        self._block_at_target = b""
        """The block of memory that the target takes the next record to be of, if that names none."""
        self._is_over = False
        self._steps = self._filter()

    def feed(self, data: bytes) -> bytes:
        """Take the stream's next part, and return what is to be passed on."""
        if self._is_over:
            return data
        self._data += data
        try:
            next(self._steps)
        except StopIteration:
            self._is_over = True
            self._pass(len(self._data))
        passed, self._passed = self._passed, bytearray()
        return bytes(passed)

    def _filter(self) -> Steps:
        """Handle the stream up to the end of the memory; each step wants more of it."""
        data = self._data
        while (found := data.find(MEMORY)) < 0:
            if len(data) > LONGEST_START_BYTES:
                return
            yield
        if data[found - SECTION_BYTES : found - SECTION_BYTES + 1] != START:
            return
        self._pass(found + len(MEMORY))
        kind = START[0]
        while (yield from self._records()) and (yield from self._header(FOOTER)) and kind != PARTS_END:
            if not (kind := (yield from self._header(PART, PARTS_END))):
                return

    def _records(self) -> Generator[None, None, bool]:
        """Handle the records of a section; return whether all of them are known here."""
        data = self._data
        while True:
            yield from self._have(WORD.size)
            (word,) = WORD.unpack_from(data)
            kind = word & FLAGS
            if kind == RECORDS_END:
                self._pass(WORD.size)
                return True
            if kind == SIZES:
                yield from self._sizes(word - kind)
            elif kind & ~SAME_BLOCK not in (ZEROS, PAGE):
                self._name_block(word)
                return False
            else:
                yield from self._pages()

    def _sizes(self, total: int) -> Steps:
        """Pass on the list of the blocks of memory."""
        self._pass(WORD.size)
        while total > 0:
            yield from self._have(1)
            length = 1 + self._data[0] + WORD.size
            yield from self._have(length)
            total -= WORD.unpack_from(self._data, length - WORD.size)[0]
            self._pass(length)

    def _pages(self) -> Steps:
        """Handle pages as far as they are there, at least one."""
        data, passed, at = self._data, self._passed, 0
        own = MEMORY_ID.encode()
        while len(data) - at >= WORD.size:
            (word,) = WORD.unpack_from(data, at)
            kind, offset, content = word & FLAGS, word & ~FLAGS, at + WORD.size
            if kind & ~SAME_BLOCK not in (ZEROS, PAGE):
                break
            block = self._block
            if not kind & SAME_BLOCK:
                length = data[content] if content < len(data) else 0
                block, content = bytes(data[content + 1 : content + 1 + length]), content + 1 + length
            end = content + (PAGE_BYTES if kind & PAGE else 1)
            if end > len(data):
                break
            self._block = block
            if block != own or self._is_new(kind, offset, content):
                same = block == self._block_at_target
                passed += WORD.pack(offset | kind & ~SAME_BLOCK | (SAME_BLOCK if same else 0))
                if not same:
                    passed += bytes((len(block),)) + block
                passed += data[content:end]
                self._block_at_target = block
            at = end
        del data[:at]
        if at == 0:
            yield

    def _is_new(self, kind: int, offset: int, content: int) -> bool:
        """Return whether the target does not have a page of the guest's memory; it gets it then."""
        if kind & PAGE:
            return self._known.take(offset, bytes(self._data[content : content + PAGE_BYTES]))
        return not self._known.has_zeros(offset) and self._known.take(offset, bytes(PAGE_BYTES))

    def _name_block(self, word: int) -> None:
        """Have a record that is passed on as it is refer to its block, if it leaves that to one that was left out."""
        if word & SAME_BLOCK and self._block != self._block_at_target:
            del self._data[: WORD.size]
            self._passed += WORD.pack(word & ~SAME_BLOCK) + bytes((len(self._block),)) + self._block

    def _header(self, *kinds: int) -> Generator[None, None, int]:
        """Pass on the header or footer of a section of one of these kinds, and return which; 0 if it is another."""
        yield from self._have(SECTION_BYTES)
        if (kind := self._data[0]) not in kinds:
            return 0
        self._pass(SECTION_BYTES)
        return kind

    def _have(self, length: int) -> Steps:
        while len(self._data) < length:
            yield

    def _pass(self, length: int) -> None:
        self._passed += self._data[:length]
        del self._data[:length]

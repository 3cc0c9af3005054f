"""The history of a serial port: which parts it keeps, and which bytes its readers receive."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_propolis.engine.qemu.serial_history import HistoryGap, SerialHistory

KEPT = 8

chunk_lists = st.lists(st.integers(0, 3 * KEPT), max_size=8)


def filled(sizes: list[int]) -> tuple[SerialHistory, bytes]:
    """A history of chunks of these sizes, and all that was written to it."""
    history = SerialHistory(KEPT)
    written = bytes(itertools.islice(itertools.cycle(range(251)), sum(sizes)))
    start = 0
    for size in sizes:
        history.append(written[start : start + size])
        start += size
    return history, written


def expected(written: bytes, offset: int, max_bytes: int) -> bytes | None:
    """Return the expected bytes by a naive model that keeps everything; None for a gap."""
    if offset < KEPT:
        return written[offset : min(KEPT, offset + max_bytes)]
    if offset < max(KEPT, len(written) - KEPT) and offset != len(written):
        return None
    return written[offset : offset + max_bytes]


@given(chunk_lists, st.integers(0, 80), st.integers(1, 30))
def test_a_read_gives_what_a_history_that_keeps_everything_would(sizes: list[int], offset: int, most: int) -> None:
    history, written = filled(sizes)
    assert history.end == len(written)
    wanted = expected(written, offset, most)
    if wanted is None:
        with pytest.raises(HistoryGap):
            history.read(offset, most)
    else:
        assert history.read(offset, most) == wanted


@given(chunk_lists, st.integers(0, 80))
def test_places_count_from_the_start_or_from_the_end(sizes: list[int], number: int) -> None:
    history, written = filled(sizes)
    assert history.offset_of(from_start=number, most_recent=None) == min(number, len(written))
    assert history.offset_of(from_start=None, most_recent=number) == max(0, len(written) - number)
    assert history.offset_of(from_start=None, most_recent=None) == len(written)


@given(chunk_lists, st.integers(1, 20))
def test_a_reader_that_keeps_up_sees_every_byte_once(sizes: list[int], frame: int) -> None:
    async def read_all() -> tuple[bytes, bytes]:
        history = SerialHistory(KEPT)
        written, seen = bytearray(), bytearray()
        for number, size in enumerate(sizes):
            chunk = bytes([number]) * min(size, KEPT)
            history.append(chunk)
            written += chunk
            while len(seen) < history.end:
                assert await history.wait_beyond(len(seen))
                seen += history.read(len(seen), frame)
        history.finish()
        assert not await history.wait_beyond(len(seen))
        return bytes(written), bytes(seen)

    written, seen = asyncio.run(read_all())
    assert seen == written


def test_a_read_that_starts_in_the_first_part_stops_at_its_end() -> None:
    history, written = filled([KEPT * 3])
    assert history.read(KEPT - 3, 100) == written[KEPT - 3 : KEPT]
    assert history.read(0, 100) == written[:KEPT]


def test_the_seam_of_the_two_parts_has_no_gap_while_both_touch() -> None:
    history, written = filled([KEPT, KEPT])
    assert history.read(KEPT, 100) == written[KEPT:]
    assert history.read(KEPT - 1, 100) == written[KEPT - 1 : KEPT]


def test_what_lies_between_the_two_parts_is_refused() -> None:
    history, written = filled([KEPT * 4])
    with pytest.raises(HistoryGap, match=f"offset {KEPT} is no longer kept"):
        history.read(KEPT, 1)
    with pytest.raises(HistoryGap):
        history.read(KEPT * 3 - 1, 1)
    assert history.read(KEPT * 3, 100) == written[-KEPT:]


def test_beyond_the_end_there_is_nothing() -> None:
    history, _ = filled([3])
    assert history.read(3, 10) == b""
    assert history.read(1000, 10) == b""


async def test_a_reader_waits_for_the_next_byte() -> None:
    history = SerialHistory(KEPT)
    wait = asyncio.create_task(history.wait_beyond(2))
    await asyncio.sleep(0)
    history.append(b"ab")
    await asyncio.sleep(0)
    assert not wait.done()
    history.append(b"c")
    assert await wait


async def test_the_end_of_the_port_ends_all_waits() -> None:
    history = SerialHistory(KEPT)
    waits = [asyncio.create_task(history.wait_beyond(offset)) for offset in range(3)]
    await asyncio.sleep(0)
    history.append(b"a")
    history.finish()
    assert await asyncio.gather(*waits) == [True, False, False]
    assert history.ended


async def test_a_reader_that_is_too_slow_falls_into_the_gap_and_not_behind_it() -> None:
    history, _ = filled([KEPT + 1])
    cursor = KEPT + 1
    history.append(bytes(3 * KEPT))
    assert await history.wait_beyond(cursor)
    with pytest.raises(HistoryGap):
        history.read(cursor, 1)

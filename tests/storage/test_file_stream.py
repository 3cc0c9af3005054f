"""Files as streams: sparse, resumable, checked."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

from pytest_propolis.storage.file_stream import (
    BLOCK_BYTES,
    COMPRESSED,
    HEADER,
    PartialFile,
    data_blocks,
    digest,
    frames,
    unpacked,
)

MIB = 1 << 20


def sparse_file(path: Path, size: int, contents: dict[int, bytes]) -> int:
    """Make a file with these contents and holes else; return its descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, size)
    for offset, data in contents.items():
        os.pwrite(descriptor, data, offset)
    return descriptor


CONTENTS = {
    "empty": (0, {}),
    "one byte": (1, {0: b"x"}),
    "only a hole": (10 * MIB, {}),
    "only zeros": (3 * MIB, {0: bytes(3 * MIB)}),
    "ends in a hole": (10 * MIB, {0: b"x" * 100}),
    "begins with a hole": (10 * MIB, {10 * MIB - 3: b"xyz"}),
    "data across blocks": (5 * MIB, {BLOCK_BYTES - 5: os.urandom(3 * BLOCK_BYTES + 17)}),
    "no multiple of a block": (2 * MIB + 12345, {MIB: os.urandom(MIB + 12345)}),
    "zeros in the middle": (4 * MIB, {0: b"a" * MIB + bytes(2 * MIB) + b"b" * MIB}),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_arrives_as_it_was_without_its_zeros(name: str, tmp_path: Path) -> None:
    size, contents = CONTENTS[name]
    source = sparse_file(tmp_path / "source", size, contents)
    received = receive(tmp_path / "target", source, frames(source, size))
    assert received == []
    assert (tmp_path / "target").read_bytes() == (tmp_path / "source").read_bytes()
    written = sum(len(data) for data in contents.values() if data.strip(b"\0"))
    assert (tmp_path / "target").stat().st_blocks * 512 <= written + 4 * BLOCK_BYTES


@pytest.mark.parametrize("name", CONTENTS)
def test_the_digest_tells_contents_and_not_their_layout(name: str, tmp_path: Path) -> None:
    size, contents = CONTENTS[name]
    sparse = sparse_file(tmp_path / "sparse", size, contents)
    dense = sparse_file(tmp_path / "dense", size, {0: (tmp_path / "sparse").read_bytes()})
    assert digest(sparse, size) == digest(dense, size)


def test_the_digest_changes_with_a_byte_and_with_the_length(tmp_path: Path) -> None:
    one = sparse_file(tmp_path / "one", MIB, {5: b"x"})
    moved = sparse_file(tmp_path / "moved", MIB, {6: b"x"})
    longer = sparse_file(tmp_path / "longer", MIB + 1, {5: b"x"})
    assert len({digest(one, MIB), digest(moved, MIB), digest(longer, MIB + 1)}) == 3


def test_a_broken_transfer_goes_on_where_it_ended(tmp_path: Path) -> None:
    size = 8 * MIB
    source = sparse_file(tmp_path / "source", size, {0: os.urandom(2 * MIB), 5 * MIB: os.urandom(2 * MIB)})
    whole = list(frames(source, size))
    receive(tmp_path / "target", source, iter(whole[:2]))
    assert not (tmp_path / "target").exists()
    rest = receive(tmp_path / "target", source, None)
    assert rest == whole[2:]
    assert (tmp_path / "target").read_bytes() == (tmp_path / "source").read_bytes()
    assert list(tmp_path.glob(".*")) == []


def broken_transfer(tmp_path: Path) -> tuple[int, Path]:
    """Receive the first of two parts of a file; return the source, and what there is of the target."""
    source = sparse_file(tmp_path / "source", 8 * MIB, {0: os.urandom(MIB), 5 * MIB: os.urandom(MIB)})
    receive(tmp_path / "target", source, iter(list(frames(source, 8 * MIB))[:1]))
    return source, tmp_path / ".target.key.part"


def test_what_was_damaged_since_a_broken_transfer_is_not_put_into_its_place(tmp_path: Path) -> None:
    source, part = broken_transfer(tmp_path)
    with part.open("r+b") as file:
        file.seek(1000)
        file.write(b"damaged")
    with pytest.raises(AssertionError):
        receive(tmp_path / "target", source, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_what_a_broken_transfer_has_written_behind_its_note_is_removed(tmp_path: Path) -> None:
    """It may be what a damaged source has sent, where the file has only a hole."""
    source, part = broken_transfer(tmp_path)
    with part.open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"of another file")
    receive(tmp_path / "target", source, None)
    assert (tmp_path / "target").read_bytes() == (tmp_path / "source").read_bytes()


def test_a_file_that_changed_on_its_way_is_not_put_into_its_place(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    part = PartialFile(str(tmp_path / "target"), MIB, 0o644, "key")
    part.write(0, b"x" * 100)
    assert not part.finish("0" * 64)
    part.close()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target").read_text() == "old"


def test_what_is_compressed_is_unpacked() -> None:
    packed = zlib.compress(b"x" * 1000, 1)
    assert unpacked(len(packed) | COMPRESSED, packed) == b"x" * 1000


def test_blocks_of_zeros_between_data_are_not_read_as_data(tmp_path: Path) -> None:
    descriptor = sparse_file(tmp_path / "file", MIB, {0: b"a" * BLOCK_BYTES, 5 * BLOCK_BYTES: b"b"})
    assert [offset for offset, _ in data_blocks(descriptor, MIB)] == [0, 5 * BLOCK_BYTES]


def receive(target: Path, source: int, stream: object) -> list[bytes]:
    """Write frames to a part of a file, and finish it if they end; return the frames if they were made here."""
    size = os.fstat(source).st_size
    part = PartialFile(str(target), size, 0o640, "key")
    made = [] if stream is not None else list(frames(source, size, part.done))
    try:
        for frame in stream if stream is not None else made:  # type: ignore[attr-defined]
            offset, length = HEADER.unpack(frame[: HEADER.size])
            if length == 0:
                assert part.finish(digest(source, size))
                return made
            part.write(offset, unpacked(length, frame[HEADER.size :]))
        part.save()
        return made
    finally:
        part.close()

"""FAT12 file systems, as the tools of Linux see them."""

from __future__ import annotations

import shutil
import string
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_propolis.errors import ConfigError
from pytest_propolis.storage.images.fat12 import LARGEST_BYTES, SMALLEST_BYTES, fat12_image

FSCK = shutil.which("fsck.fat") or shutil.which("fsck.fat", path="/usr/sbin:/sbin")
MCOPY = shutil.which("mcopy")

needs_tools = pytest.mark.skipif(not (FSCK and MCOPY), reason="dosfstools or mtools is not installed")

NAMES = st.text(string.ascii_letters + string.digits + " ._-+ü漢", min_size=1, max_size=60).filter(
    lambda name: name.strip(". ") and name[-1] not in ". " and name[0] != " "
)


def read_back(image: bytes, directory: Path) -> dict[str, bytes]:
    """Check the file system with fsck.fat, and return the files that mtools copies from it."""
    assert FSCK
    assert MCOPY
    file, target = directory / "fat.img", directory / "files"
    file.write_bytes(image)
    target.mkdir()
    checked = subprocess.run([FSCK, "-n", file], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    copy: list[str | Path] = [MCOPY, "-n", "-i", file, "::*", target]
    subprocess.run(copy, check=True, capture_output=True, env={"MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C.UTF-8"})
    return {path.name: path.read_bytes() for path in target.iterdir()}


@needs_tools
def test_names_and_contents_arrive(tmp_path: Path) -> None:
    files = {
        "README": b"short",
        "hello.txt": b"lower case",
        "HELLO~1.TXT": b"taken as a short name",
        "Hello World.text": b"long",
        "hello world and more.text": b"long, with the same beginning",
        "empty": b"",
        ".hidden": b"no stem",
        "n" * 255: b"the longest name",
        "sector": bytes(range(256)) * 2,
        "clusters": b"x" * 5000,
    }
    assert read_back(fat12_image(files, size_bytes=LARGEST_BYTES, label="TEST"), tmp_path) == files


@needs_tools
@settings(max_examples=30, deadline=None)
@given(files=st.dictionaries(NAMES, st.binary(max_size=2000), min_size=1, max_size=20))
def test_any_files_arrive(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    files = dict({name.casefold(): (name, contents) for name, contents in files.items()}.values())
    directory = tmp_path_factory.mktemp("fat")
    assert read_back(fat12_image(files, size_bytes=LARGEST_BYTES, label="TEST"), directory) == files


@needs_tools
@pytest.mark.parametrize(("size", "free"), [(SMALLEST_BYTES, 7 * 512), (LARGEST_BYTES, 2003 * 512)])
def test_it_is_filled_to_the_last_sector(tmp_path: Path, size: int, free: int) -> None:
    files = {"full": b"f" * free}
    assert read_back(fat12_image(files, size_bytes=size, label="FULL"), tmp_path) == files
    with pytest.raises(ConfigError, match=rf"need {free + 512} bytes in sectors of 512, and {free} are free"):
        fat12_image({"full": b"f" * (free + 1)}, size_bytes=size, label="FULL")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("a/b", "is in a directory"),
        ("", "is not a name"),
        ("..", "is not a name"),
        ("dot.", "is not a name"),
        ("a:b", "has ':'"),
        ("tab\t", r"has '\\t'"),
        ("l" * 256, "longer than 255"),
    ],
)
def test_a_name_that_cannot_be_is_refused(name: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        fat12_image({name: b""}, size_bytes=LARGEST_BYTES, label="TEST")


def test_two_names_that_are_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="'HELLO' and 'hello' are one name"):
        fat12_image({"hello": b"", "HELLO": b""}, size_bytes=LARGEST_BYTES, label="TEST")


def test_more_files_than_the_directory_holds_are_refused() -> None:
    with pytest.raises(ConfigError, match="fill more than the 512 entries"):
        fat12_image({f"F{n}": b"" for n in range(512)}, size_bytes=LARGEST_BYTES, label="TEST")
    assert fat12_image({f"F{n}": b"" for n in range(511)}, size_bytes=LARGEST_BYTES, label="TEST")


@pytest.mark.parametrize("label", ["", "twelve chars", "lower", "ÄÖ"])
def test_a_label_that_cannot_be_is_refused(label: str) -> None:
    with pytest.raises(ConfigError, match="label is"):
        fat12_image({}, size_bytes=LARGEST_BYTES, label=label)

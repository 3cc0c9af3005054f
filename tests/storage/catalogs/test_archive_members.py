"""Artifacts that are members of archives."""

from __future__ import annotations

import io
import random
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from pytest_propolis.errors import ArtifactError
from pytest_propolis.storage.catalogs.catalog import Catalog, read_catalogs
from pytest_propolis.storage.store import ArtifactStore


def tar(members: dict[str, bytes], *, compression: str = "gz", special: bytes = b"") -> bytes:
    """An archive; with a member ``special`` of another type, if one is given."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode=f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if special:
            info = tarfile.TarInfo("special")
            info.type, info.linkname = special, "/etc/passwd"
            archive.addfile(info)
    return written.getvalue()


def damaged_tar(compression: str) -> bytes:
    """An archive that is intact but for its last third, in which its only member ends."""
    content = bytearray(tar({"member": random.Random(1).randbytes(2 << 20)}, compression=compression))
    content[len(content) * 2 // 3 :] = bytes(len(content) - len(content) * 2 // 3)
    return bytes(content)


def zipped(info: zipfile.ZipInfo | str, *, flags: int = 0) -> bytes:
    """A zip file with one member, and these flags in its directory."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    content = bytearray(written.getvalue())
    content[content.index(b"PK\1\2") + 8] |= flags
    return bytes(content)


def zipped_link() -> bytes:
    info = zipfile.ZipInfo("special")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return zipped(info)


NOT_PLAIN = "special in server.tar.gz is not a regular file"
DAMAGED = "server.tar.gz is damaged"
MEMBER = """
[artifacts.server]
filename = "server.tar.gz"
kind = "propolis_server"
source = {{ local_path = {{ path = "." }} }}
untar = "{member}"
"""


def silent(_: str) -> None:
    """Ignore progress."""


def catalog_of(directory: Path, member: str) -> Catalog:
    """A catalog with this member of the directory's archive."""
    path = directory / "artifacts.toml"
    path.write_text(MEMBER.format(member=member))
    return read_catalogs([path])


async def test_a_member_of_an_archive_is_an_artifact(tmp_path: Path, store: ArtifactStore) -> None:
    (tmp_path / "server.tar.gz").write_bytes(tar({"./bin/propolis-server": b"program", "../out": b"no"}))
    catalog = catalog_of(tmp_path, "bin/propolis-server")
    path = await store.get(catalog.get("server"), silent)
    assert path.name == "propolis-server"
    assert path.read_bytes() == b"program"


async def test_a_member_of_a_zip_file_is_an_artifact(tmp_path: Path, store: ArtifactStore) -> None:
    with zipfile.ZipFile(tmp_path / "server.tar.gz", "w") as archive:
        archive.writestr("bin/propolis-server", "zipped")
    catalog = catalog_of(tmp_path, "bin/propolis-server")
    assert (await store.get(catalog.get("server"), silent)).read_bytes() == b"zipped"


ENCRYPTED = 1


@pytest.mark.parametrize(
    ("member", "archive", "complaint"),
    [
        pytest.param("nothing", tar({"something": b""}), "has no nothing", id="no such member"),
        pytest.param("special", tar({}, special=tarfile.SYMTYPE), NOT_PLAIN, id="a link"),
        pytest.param("special", tar({"etc": b""}, special=tarfile.LNKTYPE), NOT_PLAIN, id="a hard link"),
        pytest.param("special", tar({}, special=tarfile.CHRTYPE), NOT_PLAIN, id="a device"),
        pytest.param("special", tar({}, special=tarfile.FIFOTYPE), NOT_PLAIN, id="a pipe"),
        pytest.param("special", zipped_link(), NOT_PLAIN, id="a link in a zip file"),
        pytest.param("member", zipped("member", flags=ENCRYPTED), "is encrypted", id="an encrypted zip file"),
        pytest.param("member", b"not an archive", DAMAGED, id="no archive"),
        pytest.param("member", tar({"member": bytes(100_000)})[:80], DAMAGED, id="cut off"),
        pytest.param("member", damaged_tar("gz"), DAMAGED, id="damaged gz"),
        pytest.param("member", damaged_tar("bz2"), DAMAGED, id="damaged bz2"),
        pytest.param("member", damaged_tar("xz"), DAMAGED, id="damaged xz"),
    ],
)
async def test_an_archive_that_cannot_give_its_member_is_named(
    tmp_path: Path, store: ArtifactStore, member: str, archive: bytes, complaint: str
) -> None:
    (tmp_path / "server.tar.gz").write_bytes(archive)
    catalog = catalog_of(tmp_path, member)
    with pytest.raises(ArtifactError, match=complaint) as caught:
        await store.get(catalog.get("server"), silent)
    assert caught.value.operation == "getting artifact server"
    assert caught.value.hint
    assert not list(store.directory.rglob(member))


async def test_a_member_of_an_archive_stays_in_its_directory(tmp_path: Path, store: ArtifactStore) -> None:
    (tmp_path / "server.tar.gz").write_bytes(tar({"../../out": b"program"}))
    catalog = catalog_of(tmp_path, "../../out")
    path = await store.get(catalog.get("server"), silent)
    assert path.parent.parent == store.directory / "derived"
    assert list(tmp_path.rglob("out")) == [path]

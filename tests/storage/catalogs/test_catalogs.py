"""Catalogs of artifacts, and the servers that they name."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from propolis_command import propolis

from pytest_propolis.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing, ConfigError
from pytest_propolis.storage.artifacts import Artifact
from pytest_propolis.storage.catalogs import remote_file
from pytest_propolis.storage.catalogs.catalog import read_catalogs
from pytest_propolis.storage.catalogs.remote_file import RemoteFile
from pytest_propolis.storage.eviction import evict_fetched
from pytest_propolis.storage.store import ArtifactStore
from pytest_propolis.vm.factory import VmFactory

CONTENT = bytes(range(256)) * 4096
HASH = hashlib.sha256(CONTENT).hexdigest()

UPSTREAM = f"""
remote_server_uris = ["http://one.example/artifacts", "http://two.example/"]

[artifacts.alpine]
filename = "alpine.iso"

[artifacts.alpine.kind]
guest_os = "alpine"

[artifacts.alpine.source.remote_server]
sha256 = "{HASH}"

[artifacts.bootrom]
filename = "OVMF_CODE.fd"
kind = "bootrom"

[artifacts.bootrom.source.buildomat]
repo = "oxidecomputer/edk2"
series = "image_debug"
commit = "907a5fd1763ce5ddd74001261e5b52cd200a25f9"
sha256 = "{HASH}"

[artifacts.debian]
filename = "debian.tar.gz"
kind = {{ guest_os = "debian11nocloud" }}
source = {{ local_path = {{ path = "images" }} }}
untar = "disk/debian.raw"
"""


@dataclass
class Server:
    """An HTTP server whose next answers can be spoilt."""

    url: str
    contents: dict[str, bytes] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    requests: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote_file, "FIRST_PAUSE_S", 0.01)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.requests.append((self.path, self.headers.get("Range")))
            fault = made.faults.pop(0) if made.faults else ""
            content = made.contents.get(self.path)
            if fault == "redirect":
                made.faults.append("redirect")
                self.send_response(302)
                self.send_header("Location", self.path)
                self.end_headers()
                return
            if fault.isdigit() or content is None:
                self.send_error(int(fault or 404))
                return
            if fault == "garbage":
                content = b"garbage" * 100
            start = int(re.findall(r"\d+", self.headers["Range"])[0]) if self.headers.get("Range") else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            sent = content[start:]
            self.wfile.write(sent[: len(sent) // 2] if fault == "early end" else sent)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Server(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield made
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def artifact(*urls: str, sha256: str = HASH, wait_s: float = 0.0) -> Artifact:
    return Artifact("disk", "disk.raw", sha256, RemoteFile(urls, wait_s))


def silent(_: str) -> None:
    """Ignore progress."""


def catalog_file(directory: Path, text: str) -> Path:
    path = directory / "artifacts.toml"
    path.write_text(text)
    return path


def test_a_catalog_of_upstream_is_read_as_it_is(tmp_path: Path) -> None:
    catalog = read_catalogs([catalog_file(tmp_path, UPSTREAM)])
    assert {name: entry.kind for name, entry in catalog.entries.items()} == {
        "alpine": "guest_os: alpine",
        "bootrom": "bootrom",
        "debian": "guest_os: debian11nocloud",
    }
    assert str(catalog.get("alpine").source) == (
        "http://one.example/artifacts/alpine.iso or http://two.example/alpine.iso"
    )
    assert str(catalog.get("bootrom").source).endswith(
        "/oxidecomputer/edk2/image_debug/907a5fd1763ce5ddd74001261e5b52cd200a25f9/OVMF_CODE.fd"
    )
    assert catalog.get("debian").filename == "debian.raw"


async def test_a_download_is_verified_and_made_once(server: Server, store: ArtifactStore) -> None:
    server.contents["/disk.raw"] = CONTENT
    for _ in range(2):
        path = await store.get(artifact(f"{server.url}/disk.raw"), silent)
        assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1


async def test_a_download_that_ends_early_is_resumed(server: Server, store: ArtifactStore) -> None:
    server.contents["/disk.raw"] = CONTENT
    server.faults += ["early end", "early end"]
    path = await store.get(artifact(f"{server.url}/disk.raw"), silent)
    assert path.read_bytes() == CONTENT
    half, rest = len(CONTENT) // 2, len(CONTENT) * 3 // 4
    assert [given for _, given in server.requests] == [None, f"bytes={half}-", f"bytes={rest}-"]


async def test_what_a_failed_run_has_left_is_completed(server: Server, store: ArtifactStore) -> None:
    server.contents["/disk.raw"] = CONTENT
    server.faults += ["early end"] + ["500"] * 2
    with pytest.raises(ArtifactMissing, match="500"):
        await store.get(artifact(f"{server.url}/disk.raw"), silent)
    assert (await store.get(artifact(f"{server.url}/disk.raw"), silent)).read_bytes() == CONTENT
    assert server.requests[-1][1] == f"bytes={len(CONTENT) // 2}-"


async def test_servers_are_tried_in_turn(server: Server, store: ArtifactStore) -> None:
    server.contents["/there"] = CONTENT
    urls = ("http://127.0.0.1:1/gone", f"{server.url}/missing", f"{server.url}/there")
    path = await store.get(artifact(*urls), silent)
    assert path.read_bytes() == CONTENT


async def test_a_build_that_is_not_there_yet_is_waited_for(server: Server, store: ArtifactStore) -> None:
    server.contents["/disk.raw"] = CONTENT
    server.faults += ["404", "404"]
    assert (await store.get(artifact(f"{server.url}/disk.raw", wait_s=60), silent)).exists()


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [("404", "404 Not Found"), ("403", "403 Forbidden"), ("redirect", "redirect"), ("503", "503")],
)
async def test_a_server_that_gives_nothing_is_named(
    server: Server, store: ArtifactStore, fault: str, complaint: str
) -> None:
    server.contents["/disk.raw"] = CONTENT
    server.faults += [fault] * 3
    with pytest.raises(ArtifactMissing, match=rf"{server.url}/disk.raw.*{complaint}") as caught:
        await store.get(artifact(f"{server.url}/disk.raw"), silent)
    assert caught.value.operation == "getting artifact disk"
    assert caught.value.hint == "check the network and the URLs, or give a local file"
    assert not list(store.directory.glob("*/disk.raw"))


async def test_garbage_is_fetched_again_and_never_used(server: Server, store: ArtifactStore) -> None:
    server.contents["/disk.raw"] = CONTENT
    server.faults += ["garbage"]
    assert (await store.get(artifact(f"{server.url}/disk.raw"), silent)).read_bytes() == CONTENT
    server.contents["/other"] = b"wrong"
    with pytest.raises(ArtifactCorrupt, match="its SHA-256 is"):
        await store.get(artifact(f"{server.url}/other", sha256="0" * 64), silent)
    assert not (store.directory / ("0" * 64) / "disk.raw").exists()


ENTRY = """
[artifacts.disk]
filename = "disk.raw"
kind = "file"
"""


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[artifacts", "cannot be read"),
        ("artifacts = 3", r"Expected `object`, got `int` - at `\$.artifacts`"),
        (ENTRY, "missing required field `source`"),
        (ENTRY + "source = {}", "'disk': it has 0 sources"),
        (ENTRY + 'colour = "red"', "unknown field `colour`"),
        (ENTRY.replace('"file"', '"bootrum"') + 'source = { local_path = { path = "." } }', "its kind is 'bootrum'"),
        (ENTRY + f'source = {{ remote_server = {{ sha256 = "{HASH}" }} }}', "remote_server_uris names none"),
        (ENTRY + 'source = { url = { url = "http://a/b", sha256 = "12" } }', "is not a SHA-256"),
        (ENTRY + f'source = {{ url = {{ url = "htp://a/b", sha256 = "{HASH}" }} }}', "its URL is 'htp://a/b'"),
        (ENTRY + f'source = {{ url = {{ url = "http:///b", sha256 = "{HASH}" }} }}', "its URL is 'http:///b'"),
        (ENTRY + f'source = {{ url = {{ url = "http://a:x/b", sha256 = "{HASH}" }} }}', "its URL is 'http://a:x/b'"),
        (
            f'remote_server_uris = ["one.example"]{ENTRY}source = {{ remote_server = {{ sha256 = "{HASH}" }} }}',
            "its URL is 'one.example/disk.raw'",
        ),
        (ENTRY + 'untar = "a/.."\nsource = { local_path = { path = "." } }', "file name '..'"),
        (ENTRY.replace("disk.raw", "../disk") + 'source = { local_path = { path = "." } }', "file name"),
        (
            ENTRY + f'source = {{ buildomat = {{ repo = "r", series = "s", commit = "main", sha256 = "{HASH}" }} }}',
            "its commit is 'main'",
        ),
    ],
)
def test_a_catalog_that_is_wrong_is_refused_with_its_name(tmp_path: Path, text: str, complaint: str) -> None:
    path = catalog_file(tmp_path, text)
    with pytest.raises(ArtifactError, match=complaint) as caught:
        read_catalogs([path])
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_name_in_two_catalogs_is_refused(tmp_path: Path) -> None:
    text = ENTRY + 'source = { local_path = { path = "." } }'
    one = catalog_file(tmp_path, text)
    other = tmp_path / "other.toml"
    other.write_text(text)
    with pytest.raises(ArtifactError, match=f"{other}: the artifact 'disk' is also in {one}"):
        read_catalogs([one, other])


def test_an_unknown_name_is_refused_with_the_closest(tmp_path: Path) -> None:
    catalog = read_catalogs([catalog_file(tmp_path, UPSTREAM)])
    with pytest.raises(ConfigError, match="no artifact named 'alpin'") as caught:
        catalog.get("alpin")
    assert caught.value.hint == "did you mean 'alpine'?"


REMOTE = """
[artifacts.remote]
filename = "remote.raw"
kind = "file"
source = {{ url = {{ url = "{url}/remote.raw", sha256 = "{sha256}" }} }}
"""


def test_the_command_adds_lists_fetches_verifies_and_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    server.contents["/remote.raw"] = CONTENT
    catalog = catalog_file(tmp_path, REMOTE.format(url=server.url, sha256=HASH))
    monkeypatch.setenv("PROPOLIS_ARTIFACTS", str(catalog))
    monkeypatch.setenv("PROPOLIS_ARTIFACT_DIR", str(tmp_path / "store"))
    (tmp_path / "my-disk.raw").write_bytes(b"mine")
    said = propolis("artifacts", "add", "mine", str(tmp_path / "my-disk.raw"), "--catalog", str(catalog))
    assert hashlib.sha256(b"mine").hexdigest() in said
    assert "remote  file  not fetched  from" in propolis("artifacts", "list")
    assert str(tmp_path / "store" / HASH / "remote.raw") in propolis("artifacts", "fetch")
    assert propolis("artifacts", "verify").count(" is intact") == 2
    assert propolis("artifacts", "gc", "--dry-run") == ""
    stored = tmp_path / "store" / HASH / "remote.raw"
    stored.chmod(0o600)
    stored.write_bytes(b"damaged")
    assert "is damaged" in propolis("artifacts", "verify", status=1)
    monkeypatch.delenv("PROPOLIS_ARTIFACTS")
    assert f"would remove {stored.parent}" in propolis("artifacts", "gc", "--dry-run")
    assert stored.exists()


async def test_nothing_is_removed_while_a_run_is_active(
    vm_factory: VmFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await vm_factory.start(guest="micro")
    unused = tmp_path / "store" / HASH / "disk.raw"
    unused.parent.mkdir(parents=True)
    unused.write_bytes(CONTENT)
    monkeypatch.setenv("PROPOLIS_ARTIFACT_DIR", str(tmp_path / "store"))
    assert "runs are active" in await asyncio.to_thread(propolis, "artifacts", "gc", status=1)
    assert unused.exists()


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_only_what_nothing_needs_is_evicted(tmp_path: Path) -> None:
    store, disks = tmp_path / "store", tmp_path / "disks"
    wanted, backing, unused = (digit * 64 for digit in "abc")
    for name in (wanted, backing, unused, "derived"):
        (store / name).mkdir(parents=True)
        (store / name / "disk.qcow2").write_bytes(b"content")
    disks.mkdir()
    base = ("-u", "-F", "qcow2", "-b", str(store / backing / "disk.qcow2"))
    subprocess.run(("qemu-img", "create", "-q", "-f", "qcow2", *base, str(disks / "overlay.qcow2"), "1M"), check=True)
    (store / "shelf").mkdir()
    (store / "shelf/part.download").write_bytes(b"half")
    expected = {store / unused, store / "shelf/part.download"}
    for dry_run in (True, False):
        evicted = evict_fetched(store, wanted={wanted}, disks=disks, dry_run=dry_run)
        assert {entry.path for entry in evicted} == expected
    assert {path.name for path in store.iterdir()} == {wanted, backing, "derived", "shelf", "locks"}

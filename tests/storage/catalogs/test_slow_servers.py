"""Downloads from servers that accept connections and then send next to nothing."""

from __future__ import annotations

import re
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pytest_propolis.storage.catalogs import download
from pytest_propolis.storage.catalogs.download_messages import DownloadReport, DownloadRequest

DRIP_S = 0.01


@pytest.fixture
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that sends what the parameter says, and the last byte of it again and again."""
    beginning: bytes = request.param
    stop = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            try:
                self.wfile.write(beginning)
                while not stop.wait(DRIP_S):
                    self.wfile.write(beginning[-1:])
            except OSError:
                return  # the client has given up

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        stop.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("address", "shortened", "complaint"),
    [
        pytest.param(b"", "READ_TIMEOUT_S", "it sent nothing for 0.2 s", id="no answer"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: x", "ANSWER_TIMEOUT_S", "no complete answer in 0.2 s", id="slow headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\nx", "SLOW_WINDOW_S", r"it sent only \d+ bytes in 0.2 s", id="slow body"),
    ],
    indirect=["address"],
)
def test_a_server_that_is_slow_for_ever_is_given_up_and_named(
    address: str,
    shortened: str,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    monkeypatch.setattr(download, shortened, 0.2)
    url = f"http://{address}/disk.raw"
    download.main(DownloadRequest((url,), str(tmp_path / "disk.raw"), str(tmp_path), 0.0, 0.01))
    reports = [msgspec.json.decode(line, type=DownloadReport) for line in capfdbinary.readouterr().out.splitlines()]
    assert reports[-1].error == "ArtifactMissing"
    assert reports[-1].message.startswith(f"{url}: ")
    assert re.search(complaint, reports[-1].message)
    assert not (tmp_path / "disk.raw").exists()

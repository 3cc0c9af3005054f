"""An artifact from an HTTP server, downloaded and verified, against ``curl`` and ``sha256sum``."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Final

from pytest_propolis.storage.artifacts import Artifact
from pytest_propolis.storage.catalogs.remote_file import RemoteFile
from pytest_propolis.storage.store import ArtifactStore

from ..common.figure import Figure
from ..common.options import Options, say
from ..common.samples import spread

__all__ = ["measure"]

SIZE_MIB: Final = 512
REPEATS: Final = 5
BOUND: Final = 1.05
NAME: Final = "disk.raw"


def measure(options: Options) -> list[Figure]:
    repeats = options.repeated(REPEATS)
    say(f"downloads: {SIZE_MIB} MiB, {repeats} times")
    ours, floor = [], []
    with tempfile.TemporaryDirectory(prefix="propolis-benchmark-") as name:
        directory = Path(name)
        (directory / "served").mkdir()
        content = os.urandom(1 << 20) * SIZE_MIB
        (directory / "served" / NAME).write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        with _server(directory / "served") as url:
            for number in range(repeats):
                ours.append(_ours(directory / f"store-{number}", url, sha256))
                floor.append(_by_hand(directory / "by-hand", url))
    ratio = median(mine / theirs for mine, theirs in zip(ours, floor, strict=True))
    return [
        Figure(
            name=f"download and verify {SIZE_MIB} MiB, against curl and sha256sum, n={repeats}",
            measured=spread(ours),
            floor=spread(floor),
            ratio=f"{ratio:.2f}",
            bound=f"<= {BOUND} x",
            met=ratio <= BOUND,
        )
    ]


def _ours(directory: Path, url: str, sha256: str) -> float:
    artifact = Artifact("disk", NAME, sha256, RemoteFile((url,)))
    began = time.perf_counter()
    path = asyncio.run(ArtifactStore(directory).get(artifact, lambda text: None))
    took = time.perf_counter() - began
    path.unlink()
    return took


def _by_hand(path: Path, url: str) -> float:
    began = time.perf_counter()
    subprocess.run(["curl", "-sSfo", path, url], check=True)
    subprocess.run(["sync", path], check=True)  # as the store does
    subprocess.run(["sha256sum", path], check=True, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - began
    path.unlink()
    return took


@contextlib.contextmanager
def _server(directory: Path) -> Iterator[str]:
    """Serve a directory by a process of its own, and yield the URL of the file in it."""
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"]
    process = subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().split(" port ")[1].split()[0]
        yield f"http://127.0.0.1:{port}/{NAME}"
    finally:
        process.kill()
        process.wait()

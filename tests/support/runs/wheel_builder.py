"""Small wheels, and a configuration of pip that finds only these."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

DISTRIBUTION = "propolis-test-images"
VERSION = "1.2.3"


def build_wheel(directory: Path, members: Mapping[str, bytes]) -> Path:
    """Make a wheel of `DISTRIBUTION` that holds these members."""
    name = DISTRIBUTION.replace("-", "_")
    info = f"{name}-{VERSION}.dist-info"
    files = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {VERSION}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]).encode()
    directory.mkdir(exist_ok=True)
    wheel = directory / f"{name}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return wheel


def use_only(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip see the wheels in ``directory`` and no index."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)

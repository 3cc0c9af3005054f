"""Fixtures for tests of the plugin."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from inner_run import InnerRun
from ssh_rig import SshRig, inventory_of

# Found before pytester gives each test a home directory of its own: images are fetched and prepared once for all.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[InnerRun]:
    """Run pytest as a user does. Leftovers of such a run fail the test."""
    # Sockets lie below this directory, and their paths may not be long.
    runtime = Path(tempfile.mkdtemp(prefix="p-", dir="/tmp"))
    for name in [name for name in os.environ if name.startswith(("PROPOLIS_", "PYTEST_"))]:
        if name not in ("PYTEST_CURRENT_TEST", "PROPOLIS_ARTIFACT_DIR", "PROPOLIS_QEMU", "PROPOLIS_CHANNEL"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("XDG_CACHE_HOME", str(CACHE))
    monkeypatch.setenv("PROPOLIS_GUEST", "micro")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    run = InnerRun(pytester, runtime)
    try:
        yield run
        assert run.leavings() == []
    finally:
        shutil.rmtree(runtime, ignore_errors=True)


@pytest.fixture
def no_autoload(inner: InnerRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load no installed plugin that is not named in runs that a test starts by other means than `InnerRun.run`."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture
def hosts(rig: SshRig, inner: InnerRun) -> Path:
    """The inventory of a module's fixture ``rig``, where an inner run finds it."""
    path = inner.pytester.path / "hosts.toml"
    path.write_text(inventory_of(rig))
    return path

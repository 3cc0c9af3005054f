"""Fixtures for tests of hosts."""

from __future__ import annotations

import secrets
import select
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ssh_rig import MakeHost, SshRig, link_processes, options_of, require_rigs, ssh_rig

from pytest_propolis.hosts.host import HostSpec
from pytest_propolis.hosts.ssh_host import SshHost, open_host
from pytest_propolis.settings import Settings

ENDED_TIMEOUT_S = 60


@pytest.fixture(scope="session")
def rig_possible() -> None:
    """Skip where no SSH hosts can be made."""
    require_rigs()


@pytest.fixture
def rig(rig_possible: None) -> Iterator[SshRig]:
    """Two SSH hosts, which only this test has."""
    with ssh_rig("h1", "h2") as made:
        yield made


@pytest.fixture(scope="session")
def bundle_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def runtime(bundle_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This process's runtime directory; sockets lie below it, and their paths may not be long."""
    place = Path(tempfile.mkdtemp(prefix="p-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    monkeypatch.setenv("XDG_CACHE_HOME", str(bundle_cache))
    yield place
    deadline = time.monotonic() + ENDED_TIMEOUT_S
    while left := link_processes():  # a link process removes its files there when it ends
        assert time.monotonic() < deadline, left
        select.select([], [], [], 0.02)
    shutil.rmtree(place)


@pytest.fixture
def make_host(rig: SshRig, runtime: Path) -> Iterator[MakeHost]:
    """Create `SshHost`s on the rig's host h1, by default each for its own run, and close them."""
    made: list[SshHost] = []

    def make(*, name: str = "h1", run_id: str | None = None, **options: object) -> SshHost:
        spec = HostSpec(name=name, kind="ssh", address=name, options={**options_of(rig), **options})
        made.append(open_host(spec, Settings(), run_id or secrets.token_hex(8)))
        return made[-1]

    yield make
    for host in made:
        host.close()

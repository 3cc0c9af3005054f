"""Guests that migrate between SSH hosts, as a user's tests have them do it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from inner_run import InnerRun
from ssh_rig import SshRig, can_make_rigs, inventory_of, ssh_rig

EXAMPLE = Path(__file__).parents[2] / "example_tests/test_hosts.py"


@pytest.fixture(scope="module")
def rig() -> Iterator[SshRig]:
    if not can_make_rigs():
        pytest.skip("needs root, or the capabilities of a user namespace, and sshd, ip, nsenter, setpriv, unshare")
    with ssh_rig("h1", "h2") as made:
        yield made


@pytest.fixture
def hosts(rig: SshRig, inner: InnerRun) -> Path:
    path = inner.pytester.path / "hosts.toml"
    path.write_text(inventory_of(rig))
    return path


def test_the_example_of_a_guest_that_moves_between_hosts_passes(inner: InnerRun, rig: SshRig, hosts: Path) -> None:
    inner.write(test_it=EXAMPLE.read_text())
    inner.run("--propolis-hosts", str(hosts)).assert_outcomes(passed=3)
    assert {name: host.processes() for name, host in rig.hosts.items()} == {"h1": {}, "h2": {}}
    assert {host.run("ls", "/run/propolis") for host in rig.hosts.values()} == {""}

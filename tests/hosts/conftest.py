"""What the tests of hosts share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ssh_rig import SshRig, can_make_rigs, ssh_rig


@pytest.fixture(scope="session")
def rig_possible() -> None:
    """Skip where no SSH hosts can be made."""
    if not can_make_rigs():
        pytest.skip("needs root, or the capabilities of a user namespace, and sshd, ip, nsenter, setpriv, unshare")


@pytest.fixture
def rig(rig_possible: None) -> Iterator[SshRig]:
    """Two SSH hosts, which only this test has."""
    with ssh_rig("h1", "h2") as made:
        yield made

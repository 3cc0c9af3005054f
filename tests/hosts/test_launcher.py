"""Checks of an agent's directory before the agent starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_propolis.hosts.launcher import LONGEST_SOCKET, SOCKET_PATH_LIMIT, _require_short


@pytest.mark.parametrize("name", ["agent.sock", "vms/0123456789abcdef/vnc.sock", "vms/0123456789abcdef/disks.sock"])
def test_no_socket_of_an_agent_is_longer_than_the_one_looked_at(name: str) -> None:
    assert len(name) <= len(str(LONGEST_SOCKET))
    directory = Path("/") / ("x" * (SOCKET_PATH_LIMIT - len(str(LONGEST_SOCKET)) - 2))
    _require_short(directory / LONGEST_SOCKET)
    assert len(str(directory / name)) <= SOCKET_PATH_LIMIT

"""The address that volume construction requests name when they are not to be fulfilled."""

from __future__ import annotations

import socket

import pytest

from pytest_propolis.agent.disks.volumes import BlackHole


def test_connections_are_neither_accepted_nor_refused() -> None:
    hole = BlackHole()
    host, port = hole.address.split(":")
    try:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                socket.create_connection((host, int(port)), timeout=0.2)
    finally:
        hole.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=60.0)

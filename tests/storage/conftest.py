"""The guest with ZFS, for the tests of its pool."""

from __future__ import annotations

import pytest
from zfs_guest import DebianZfs

from pytest_propolis.guests.adapter import GuestAdapter


@pytest.hookimpl
def pytest_propolis_guests() -> list[GuestAdapter]:
    return [DebianZfs()]

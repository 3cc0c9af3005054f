"""The log of a console is a file of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_propolis.console.log import ConsoleLog
from pytest_propolis.errors import HostError


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("as it was")
    (tmp_path / "vm.serial.log").symlink_to(tmp_path / "precious")
    with pytest.raises(HostError, match=f"{tmp_path}/vm.serial.log cannot be written"):
        ConsoleLog(tmp_path / "vm.serial.log")
    assert (tmp_path / "precious").read_text() == "as it was"

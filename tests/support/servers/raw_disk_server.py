"""A server program that supports only raw disks, as `propolis-server` does, and refuses others."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pytest_propolis.operating_system.python_processes import write_python_script

__all__ = ["write_raw_disk_server"]

PROGRAM: Final = """\
import sys
if "--help" in sys.argv:
    sys.exit(print("options: --kernel --metric-addr"))

from pytest_propolis.cli.serve import main
from pytest_propolis.engine.invalid_spec import InvalidSpec
from pytest_propolis.engine.qemu.devices import disks

file_node = disks._file_node

def raw_file_node(path, node, *, readonly, qcow2):
    with open(path, "rb") as file:
        if file.read(4) == b"QFI\\xfb":
            raise InvalidSpec(f"{path} is no raw disk")
    return file_node(path, node, readonly=readonly, qcow2=False)

disks._file_node = raw_file_node
main()
"""


def write_raw_disk_server(directory: Path) -> Path:
    """Write the program into a directory, and return its path."""
    path = directory / "raw-disk-server"
    write_python_script(path, PROGRAM)
    return path

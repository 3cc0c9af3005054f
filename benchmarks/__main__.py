"""``python -m benchmarks [NAME...]``: measure, and print one table."""

from __future__ import annotations

import argparse
import compileall
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest_propolis

from .common.figure import Figure, table
from .common.options import Options
from .fleet import downloads, nodes, ssh_guests, ssh_hosts, ssh_migration, ssh_peers
from .runs import agent_start, collect, crowd, imports, inner_loop, interruption, labgrid, suite
from .scheduling import controller, makespan
from .vms import (
    api,
    boot,
    cpu_model,
    file_forks,
    files,
    fork,
    idle,
    migration,
    port_shell,
    round_trip,
    serial_throughput,
    server_program,
    volumes,
    zfs_fork,
)

BENCHMARKS: Final[dict[str, Callable[[Options], list[Figure]]]] = {
    "import": imports.measure,
    "collect": collect.measure,
    "inner_loop": inner_loop.measure,
    "agent_start": agent_start.measure,
    "api": api.measure,
    "round_trip": round_trip.measure,
    "server_program": server_program.measure,
    "serial_throughput": serial_throughput.measure,
    "downloads": downloads.measure,
    "files": files.measure,
    "port_shell": port_shell.measure,
    "idle": idle.measure,
    "boot": boot.measure,
    "fork": fork.measure,
    "suite": suite.measure,
    "labgrid": labgrid.measure,
    "volumes": volumes.measure,
    "file_forks": file_forks.measure,
    "zfs_fork": zfs_fork.measure,
    "crowd": crowd.measure,
    "migration": migration.measure,
    "nodes": nodes.measure,
    "interruption": interruption.measure,
    "ssh_hosts": ssh_hosts.measure,
    "ssh_guests": ssh_guests.measure,
    "ssh_migration": ssh_migration.measure,
    "ssh_peers": ssh_peers.measure,
    "cpu_model": cpu_model.measure,
    "scheduling": makespan.measure,
    "controller": controller.measure,
}
ON_REQUEST: Final = {"controller", "cpu_model", "labgrid", "scheduling"}
"""They explain a choice, take minutes or need what is not installed, and are measured when they are named."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--alpine", action="store_true", help="boot Alpine Linux, too: takes minutes")
    parser.add_argument("--repeats", type=int, metavar="N", help="repeat each measurement N times (or N blocks of 50)")
    parser.add_argument("--accelerator", choices=("auto", "kvm", "tcg"), default="tcg", help="default: tcg")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if given.repeats is not None and given.repeats < 1:
        parser.error("--repeats must be at least 1")
    options = Options(alpine=given.alpine, repeats=given.repeats, accelerator=given.accelerator)
    # As an installation has them. Else each process compiles them, where PYTHONDONTWRITEBYTECODE is set.
    compileall.compile_dir(Path(pytest_propolis.__file__).parent, quiet=2)
    names = given.names or [name for name in BENCHMARKS if name not in ON_REQUEST]
    figures: list[Figure] = []
    failed = []
    for name in names:
        try:
            figures += BENCHMARKS[name](options)
        except Exception:
            traceback.print_exc()
            failed.append(name)
    print(table(figures))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

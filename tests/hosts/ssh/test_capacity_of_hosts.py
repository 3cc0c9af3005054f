"""The capacity of hosts over SSH: as they tell it, where the inventory does not."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ssh_rig import SshRig

from pytest_propolis.hosts.inventory.probing import probed_inventory


def inventory(tmp_path: Path, **hosts: dict[str, object]) -> Path:
    path = tmp_path / "hosts.toml"
    tables = []
    for name, keys in hosts.items():
        config = keys.pop("config")
        lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        tables += [
            f"[hosts.{name}]",
            'kind = "ssh"',
            *lines,
            f"[hosts.{name}.options]",
            f"config = {json.dumps(config)}",
        ]
    path.write_text("\n".join(tables))
    return path


def test_a_host_is_asked_for_what_the_inventory_does_not_say(rig: SshRig, runtime: Path, tmp_path: Path) -> None:
    """The rig's hosts have this machine's processors; that another number of them counts is seen by a false nproc."""
    nproc = rig.hosts["h1"].home / "nproc"
    nproc.write_text("#!/bin/sh\necho 6\n")
    nproc.chmod(0o755)
    (rig.hosts["h1"].home / ".bashrc").write_text("PATH=~:$PATH; export PATH; echo welcome\n")
    config = str(rig.config)
    asked, told = probed_inventory(
        inventory(tmp_path, h1={"config": config}, h2={"config": config, "slots": 3, "cpus": 5, "memory_mib": 700})
    )
    total_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    assert (asked.slots, asked.cpus, asked.memory_mib) == (9, 24, int(0.75 * total_mib))
    assert (told.slots, told.cpus, told.memory_mib) == (3, 5, 700)


def test_a_host_that_does_not_answer_stays_unknown(rig: SshRig, runtime: Path, tmp_path: Path) -> None:
    path = inventory(tmp_path, gone={"config": str(rig.config), "address": "127.0.0.1"}, h1={"config": str(rig.config)})
    gone, there = probed_inventory(path)
    assert (gone.slots, gone.cpus, gone.memory_mib) == (None, None, None)
    assert there.slots

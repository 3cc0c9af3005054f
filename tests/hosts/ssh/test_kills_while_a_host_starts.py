"""Kills while an SSH host is being connected to: nothing is left on either machine."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import msgspec
from ssh_rig import SshRig, options_of, require_clean

from pytest_propolis.hosts.host import HostSpec
from pytest_propolis.hosts.run_directory import make_private_directory, run_token
from pytest_propolis.hosts.ssh.host_options import destination_of
from pytest_propolis.hosts.ssh.link_client import link_base, new_link_directory
from pytest_propolis.hosts.ssh.link_messages import LinkConfig

STARTING = ("import gc, runpy",)
ENDS_BEFORE_ANY_CLIENT_S = 25.0
"""Sooner than a link that waits for its first client."""


def started_link(rig: SshRig, cache: Path) -> subprocess.Popen[bytes]:
    """Start a link process that nothing listens to."""
    make_private_directory(link_base())
    run = run_token(None)
    options = options_of(rig)
    spec = HostSpec(name="h1", kind="ssh", address="h1", options=options)
    config = LinkConfig(
        destination=destination_of(spec),
        run=run,
        directory=str(new_link_directory(run)),
        bundle_cache=str(cache),
        python=options.get("python", "python3"),
    )
    make_private_directory(Path(config.directory))
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    command = [sys.executable, "-P", "-m", "pytest_propolis.hosts.ssh.link", msgspec.json.encode(config).decode()]
    try:
        return subprocess.Popen([*command, str(write_fd)], pass_fds=[write_fd], start_new_session=True)
    finally:
        os.close(write_fd)


def test_a_link_process_ends_when_its_starter_was_killed_before_it_was_ready(
    rig: SshRig, runtime: Path, bundle_cache: Path
) -> None:
    process = started_link(rig, bundle_cache)
    try:
        assert process.wait(ENDS_BEFORE_ANY_CLIENT_S) == 0
    finally:
        process.kill()
        process.wait()
    require_clean(rig)


def test_nothing_is_left_of_an_agent_whose_link_process_is_killed_while_it_starts(
    rig: SshRig, runtime: Path, bundle_cache: Path
) -> None:
    process = started_link(rig, bundle_cache)
    while not rig.hosts["h1"].find(*STARTING):
        assert process.poll() is None
        select.select([], [], [], 0.005)
    process.kill()
    process.wait()
    require_clean(rig)

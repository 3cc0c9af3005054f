"""Hosts over SSH that cannot be used: the errors name what is missing."""

from __future__ import annotations

import os
import signal

import pytest
from ssh_rig import MakeHost, SshRig

from pytest_propolis import CapabilityMissing, HostError, SettingsError
from pytest_propolis.hosts.host import HostSpec
from pytest_propolis.hosts.ssh_host import open_host
from pytest_propolis.settings import Settings


async def test_a_host_without_the_python_that_is_named_says_what_is_missing(make_host: MakeHost) -> None:
    with pytest.raises(CapabilityMissing, match=r"host h1: python3\.77 cannot be run there: .*not found"):
        await make_host(python="python3.77").run("true")


OLD_PYTHON = """#!/bin/sh
exec python3 -c 'import sys; sys.version_info = (3, 9, 2); exec(sys.argv[4])' "$@"
"""


async def test_a_host_with_an_old_python_says_its_version(make_host: MakeHost, rig: SshRig) -> None:
    program = rig.hosts["h1"].home / "old-python"
    program.write_text(OLD_PYTHON)
    program.chmod(0o755)
    with pytest.raises(CapabilityMissing, match=r"host h1: \./old-python there is Python 3\.9\.2, and 3\.11"):
        await make_host(python="./old-python").run("true")


async def test_a_host_that_cannot_be_reached_is_named(make_host: MakeHost, rig: SshRig) -> None:
    os.kill(rig.hosts["h1"].init, signal.SIGKILL)
    with pytest.raises(HostError, match=r"host h1: no SSH connection to h1: "):
        await make_host().run("true")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pyhton": "python3"}, "host 'h1' has no option 'pyhton'"),
        ({"python": 3}, "host 'h1': python must be a text, and is 3"),
        ({"silence_s": 0}, "host 'h1': silence_s must be a number above 0, and is 0"),
    ],
)
def test_an_option_that_is_wrong_is_named(options: dict[str, object], message: str) -> None:
    spec = HostSpec(name="h1", kind="ssh", address="h1", options=options)
    with pytest.raises(SettingsError, match=message):
        open_host(spec, Settings(), "a" * 16)

"""A host over SSH whose platform is not Linux is refused, before anything is brought there."""

from __future__ import annotations

import asyncio
import shlex
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import ClassVar, NoReturn, cast

import pytest

from pytest_propolis.errors import CapabilityMissing
from pytest_propolis.hosts.ssh.bootstrap import start_command
from pytest_propolis.hosts.ssh.distributions import HostPython
from pytest_propolis.hosts.ssh.transport.transport import Channel, Transport


class LocalTransport:
    """Runs the host's commands on this machine."""

    errors: ClassVar[tuple[type[Exception], ...]] = (OSError, EOFError)

    async def start(self, command: str) -> Channel:
        process = await asyncio.create_subprocess_shell(command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        self.process = process
        return Channel(process.stdin, process.stdout, process.stderr, process.wait, process.kill)


async def no_bundle(_python: HostPython) -> NoReturn:
    pytest.fail("nothing is brought there")


async def test_a_host_that_runs_illumos_is_refused_with_its_platform(tmp_path: Path) -> None:
    python = tmp_path / "python"
    before = "import os, sys; sys.platform = 'sunos5'; del os.sched_getaffinity"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -S -c "{before}; $4"\n')
    python.chmod(0o700)
    transport = LocalTransport()
    order = {"program": "a program", "arguments": [], "environment": {}}
    try:
        with pytest.raises(
            CapabilityMissing, match="host rack-1: its platform is sunos5, and hosts over SSH run Linux"
        ):
            await start_command(cast(Transport, transport), "rack-1", order, no_bundle, python=str(python))
    finally:
        transport.process.kill()
        await transport.process.communicate()

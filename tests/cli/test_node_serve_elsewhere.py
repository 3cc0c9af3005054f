"""A group that is served to programs of other machines: each is a network namespace with an address of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
from propolis_command import COMMAND
from ssh_rig import RigHost, SshRig, require_rigs, ssh_rig
from tls_files import make_certificate

from pytest_propolis.cli.nodes.attached import attached

pytestmark = pytest.mark.asyncio

HERE = "10.99.0.1"
TIMEOUT_S = 60.0


@pytest.fixture
def rig() -> Iterator[SshRig]:
    require_rigs()
    with ssh_rig("h1", "h2") as made:
        yield made


@dataclass
class Finished:
    status: int
    output: str


async def start(host: RigHost, *words: str, group: str) -> asyncio.subprocess.Process:
    """Start a command of this project in the network of a host."""
    return await asyncio.create_subprocess_exec(
        *("nsenter", "-t", str(host.init), "-n", *COMMAND, *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PROPOLIS_GROUP": group},
    )


async def finish(process: asyncio.subprocess.Process) -> Finished:
    async with asyncio.timeout(TIMEOUT_S):
        output, _ = await process.communicate()
    return Finished(process.returncode or 0, output.decode())


async def on(host: RigHost, *words: str, group: str) -> Finished:
    return await finish(await start(host, *words, group=group))


@contextlib.asynccontextmanager
async def served(rig: SshRig, listen: str, *options: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The process that serves a group, and the group's address."""
    chain, key = make_certificate(rig.directory, HERE)
    words = ("--listen", listen, "--certificate", str(chain), "--key", str(key), "--ca", str(chain), *options)
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "node", "serve", "--json", *words, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(TIMEOUT_S):
            group = json.loads(await process.stdout.readline())["group"]
        yield process, group
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


@pytest.mark.parametrize("listen", [(f"{HERE}:0",), ("0.0.0.0:0", "--advertise", HERE)])
async def test_programs_of_three_machines_meet(rig: SshRig, listen: tuple[str, ...]) -> None:
    async with served(rig, *listen) as (_, group):
        assert f"@{HERE}:" in group
        others = [asyncio.create_task(on(host, "barrier", "ready", "3", group=group)) for host in rig.hosts.values()]
        async with attached(group) as here, await here.join("here") as node:
            await here.kv.put("key", b"value")
            assert await node.barrier("ready", 3, timeout_s=TIMEOUT_S) == 1
            assert await asyncio.gather(*others) == [Finished(0, "1\n")] * 2
            assert await on(rig.hosts["h1"], "kv", "get", "key", group=group) == Finished(0, "value\n")


async def test_a_machine_needs_the_token_and_checks_the_certificate(rig: SshRig) -> None:
    async with served(rig, f"{HERE}:0") as (_, group):
        scheme, _, rest = group.partition("://")
        token, _, place = rest.partition("@")
        for address, reason in (
            (f"{scheme}://{token[:-1]}@{place}", "refuses the token"),
            (f"{scheme}://{place}", "refuses the token"),
            (f"{scheme}://{token}@{place.partition('?')[0]}#nodes", "certificate verify failed"),
            (f"embedded://{token}@{place.partition('?')[0]}#nodes", "cannot be reached"),
        ):
            done = await on(rig.hosts["h1"], "kv", "list", group=address)
            assert done.status == 5
            assert reason in done.output
            assert token not in done.output


async def test_a_machine_that_is_cut_off_poisons_the_others_and_ends_its_program(rig: SshRig) -> None:
    async with served(rig, f"{HERE}:0") as (_, group):
        program = ("sh", "-c", "trap 'echo put away; exit 1' TERM; sleep 1000")
        far = await start(rig.hosts["h1"], "node", "run", "--as", "far", "--ttl", "2", "--", *program, group=group)
        async with attached(group) as here:
            await here.find("far", timeout_s=TIMEOUT_S)
            waiting = await start(rig.hosts["h2"], "barrier", "ready", "3", group=group)
            await here.mirror.until(lambda: here.mirror.below("barriers/ready/at/1/") or None, on=("",))
            rig.cut("h1")
            cut_s = time.monotonic()
            ended = await finish(waiting)
            waited_s = time.monotonic() - cut_s
        assert ended.status == 4
        assert "node 'far' has vanished: it gave no sign of life for 2 s" in ended.output
        done = await finish(far)
        assert done.status == 5, done.output
        assert "put away" in done.output
        assert "it has not answered for 5 s" in done.output
        assert waited_s < 10


async def test_waits_on_other_machines_end_with_the_server(rig: SshRig) -> None:
    async with served(rig, f"{HERE}:0") as (process, group):
        waiting = await start(rig.hosts["h1"], "barrier", "ready", "2", group=group)
        async with attached(group) as here:
            await here.mirror.until(lambda: here.mirror.below("barriers/ready/at/1/") or None, on=("",))
            process.send_signal(signal.SIGTERM)
            done = await finish(waiting)
        assert done.status == 5
        await process.wait()

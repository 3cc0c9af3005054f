"""The commands of nodes, as shell scripts use them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from propolis_command import COMMAND
from store_rig import served_store

from pytest_propolis.coordination.backends.address import connect_store, socket_address
from pytest_propolis.coordination.group import NodeGroup

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Finished:
    status: int
    output: str
    errors: str


@pytest.fixture(scope="module", autouse=True)
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The command ``propolis`` on the path."""
    program = tmp_path_factory.mktemp("bin") / "propolis"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    program.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(program.parent), prepend=os.pathsep)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address() -> AsyncIterator[str]:
    async with served_store() as endpoint:
        assert endpoint.uds
        yield socket_address(endpoint.uds)


@pytest_asyncio.fixture(loop_scope="module")
async def group(address: str, request: pytest.FixtureRequest) -> AsyncIterator[NodeGroup]:
    name = re.sub(r"\W", "-", request.node.name)[:80]
    backend = await connect_store(address)
    async with await NodeGroup.open(backend, name) as opened:
        opened.address = f"{address}#{name}"
        yield opened
    await backend.aclose()


async def start(group: NodeGroup, script: str, *, shell: str = "sh", **variables: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    environment = {**os.environ, **group.environment(), **variables}
    return await asyncio.create_subprocess_exec(
        *shell.split(), "-c", script, stdin=pipe, stdout=pipe, stderr=pipe, env=environment
    )


async def finish(process: asyncio.subprocess.Process, typed: bytes = b"") -> Finished:
    async with asyncio.timeout(60):
        output, errors = await process.communicate(typed)
    return Finished(process.returncode or 0, output.decode(), errors.decode())


async def shell(group: NodeGroup, script: str, typed: bytes = b"") -> Finished:
    return await finish(await start(group, script), typed)


def shells() -> list[str]:
    return [shell for shell in ("dash", "bash", "busybox sh") if shutil.which(shell.split()[0])]


@pytest.mark.parametrize("kind", shells())
async def test_scripts_meet_at_a_barrier(group: NodeGroup, kind: str) -> None:
    script = 'n=$(propolis barrier ready 3 --timeout 50) && echo "passed $n"'
    waiting = [asyncio.create_task(finish(await start(group, script, shell=kind))) for _ in range(2)]
    node = await group.join("test")
    assert await node.barrier("ready", 3, timeout_s=60) == 1
    assert [(done.status, done.output) for done in await asyncio.gather(*waiting)] == [(0, "passed 1\n")] * 2


async def test_exit_statuses_tell_what_happened(group: NodeGroup) -> None:
    late = await shell(group, "propolis barrier ready 2 --timeout 0.2 --as early --json")
    assert late.status == 3
    told = json.loads(late.output)
    assert (told["status"], told["waited_s"]) == ("timed_out", 0.2)
    assert "propolis: group " in late.errors
    assert told["missing"] == ["1 that have not joined"]
    assert "it did not happen in time: missing are 1 that have not joined" in late.errors
    assert (await shell(group, "propolis barrier ready none")).status == 2
    assert (await shell(group, "unset PROPOLIS_GROUP; propolis kv list")).status == 2
    assert (await shell(group, "propolis kv list --group $PROPOLIS_GROUP-other")).status == 5
    assert (await shell(group, "propolis kv get none")).status == 1
    assert (await shell(group, "propolis baton take turn")).status == 1
    poisoned = await shell(group, "propolis node poison 'by hand'; propolis barrier ready 2")
    assert poisoned.status == 4
    assert "the group is poisoned: by hand" in poisoned.errors


async def test_key_values_of_scripts(group: NodeGroup) -> None:
    await group.kv.put("given", b"\xff\n")
    script = """
        propolis kv put a/b 'two words' && propolis kv get a/b && printf 'from input\\n' | propolis kv put a/c
        propolis kv add a/b other || echo "there: $?"
        propolis kv list a; propolis kv get a/c; propolis kv wait a/c --json; propolis kv delete a/c; propolis kv list
    """
    done = await shell(group, script)
    expected = [
        "two words",
        "there: 1",
        "a/b",
        "a/c",
        "from input",
        '{"key":"a/c","value":"from input"}',
        "a/b",
        "given",
    ]
    assert done.output.splitlines() == expected
    assert await group.kv.get("a/b") == b"two words"


async def test_a_program_is_a_node_as_long_as_it_runs(group: NodeGroup) -> None:
    body = "propolis barrier ready 2 >/dev/null; propolis kv wait end; propolis node list"
    options = "--as server --address 10.0.0.1:80 --label tcp"
    running = await start(group, f"propolis node run {options} -- sh -c '{body}'")
    info = await group.find("server", timeout_s=60)
    assert (info.address, info.labels) == ("10.0.0.1:80", ("tcp",))
    test = await group.join("test", vital=False)
    await test.barrier("ready", 2, timeout_s=60)
    found = await shell(group, "propolis node find server; propolis node discover --label tcp --json")
    assert found.output.splitlines()[0] == "10.0.0.1:80"
    assert json.loads(found.output.splitlines()[1])["server"]["labels"] == ["tcp"]
    await group.kv.put("end", b"now")
    done = await finish(running)
    assert (done.status, done.output) == (0, "now\nserver\t10.0.0.1:80\ttcp\ntest\t-\t-\n")
    assert group.ended()["server"].status == 0


async def test_a_program_that_fails_poisons_the_group_and_ends_the_others(group: NodeGroup) -> None:
    other = await start(group, "exec 2>&1; propolis node run --as other -- sleep 1000; echo $?")
    await group.find("other", timeout_s=60)
    failing = await shell(
        group, "propolis node run --as failing -- sh -c 'echo some output; echo the reason >&2; exit 3'"
    )
    assert (failing.status, failing.output) == (3, "some output\n")
    ended = await finish(other)
    assert ended.output.splitlines()[-1] == "4"
    assert "propolis: node 'failing' has failed: sh ended with status 3" in ended.output
    assert "    | the reason" in ended.output
    assert group.poisoned is not None
    assert set(group.poisoned.output) == {"some output", "the reason"}


async def test_a_program_that_is_killed_with_its_node_has_vanished(group: NodeGroup) -> None:
    running = await start(group, "exec propolis node run --as a --ttl 0.5 -- cat")
    await group.find("a", timeout_s=60)
    running.send_signal(signal.SIGKILL)
    async with asyncio.timeout(30):
        await group.mirror.until(lambda: group.poisoned, on=("poison",))
    assert group.poisoned is not None
    assert group.poisoned.reason == "has vanished: it gave no sign of life for 0.5 s"
    await finish(running)


async def test_a_signal_reaches_the_program(group: NodeGroup) -> None:
    trap = 'trap "echo ended; exit 0" TERM; echo up; while :; do sleep 0.05; done'
    running = await start(group, f"exec propolis node run --as a -- sh -c '{trap}'")
    assert running.stdout is not None
    assert await running.stdout.readline() == b"up\n"
    running.send_signal(signal.SIGTERM)
    done = await finish(running)
    assert (done.status, done.output) == (0, "ended\n")
    assert group.poisoned is None


async def test_batons_and_locks_of_scripts(group: NodeGroup) -> None:
    await group.join("a")
    b = await group.join("b")
    script = """
        propolis baton take turn --as a && propolis baton show turn && propolis baton pass turn b --as a --json
        propolis lock disk --as a -- sh -c 'echo inside; exit 7'; echo $?
    """
    done = await shell(group, script)
    assert done.output.splitlines() == ["a", '{"baton":"turn","holder":"b","line":[]}', "inside", "7"]
    assert b.baton("turn").holder == "b"
    await b.lock("disk").acquire()
    refused = await shell(group, "propolis lock disk --as a --timeout 0.2 -- echo never")
    assert (refused.status, refused.output) == (3, "")


async def test_nodes_are_discovered_by_name_and_by_label(group: NodeGroup) -> None:
    await group.join("b", address="10.0.0.2", labels=("tcp",))
    waiting = await start(group, "propolis node discover a; propolis node discover --label tcp --label udp --json")
    await group.join("a", labels=("tcp", "udp"))
    done = await finish(waiting)
    by_name, by_labels = done.output.splitlines()
    assert (by_name, list(json.loads(by_labels))) == ("a\t-", ["a"])
    assert (await shell(group, "propolis node discover")).output == "a\t-\nb\t10.0.0.2\n"
    late = await shell(group, "propolis node discover c --timeout 0.2 --json")
    assert (json.loads(late.output)["status"], late.status) == ("timed_out", 3)
    assert "waiting for node 'c'" in late.errors
    assert (await shell(group, "propolis node discover c --count 2")).status == 2


async def test_a_lock_has_permits(group: NodeGroup) -> None:
    a, b = await group.join("a"), await group.join("b")
    await a.semaphore("disk", 2).acquire()
    done = await shell(group, "propolis lock disk --permits 2 --as b --json -- sh -c 'exit 7'")
    assert (done.status, done.output) == (7, '{"lock":"disk","node":"b","status":7}\n')
    await b.semaphore("disk", 2).acquire()
    late = await shell(group, "propolis lock disk --permits 2 --timeout 0.2 --json -- echo never")
    told = json.loads(late.output)
    assert (late.status, told["status"], told["missing"]) == (3, "timed_out", ["a", "b"])
    waiting = await start(group, "propolis lock disk --permits 2 -- echo never")
    await group.mirror.until(lambda: len(group.mirror.below("locks/disk/")) == 3 or None, on=("",))
    await group.poison("by hand")
    ended = await finish(waiting)
    assert (ended.status, ended.output) == (4, "")
    assert (await shell(group, "propolis lock disk")).status == 2


async def test_passing_a_baton_waits_until_it_comes_back(group: NodeGroup) -> None:
    a, b = await group.join("a"), await group.join("b")
    await a.baton("turn").take()
    passing = await start(group, "propolis baton pass turn b --as a --wait --json")
    await b.baton("turn").take()
    await group.mirror.until(lambda: b.baton("turn").line == ["a"] or None, on=("",))
    await b.baton("turn").pass_on()
    done = await finish(passing)
    assert (done.status, done.output) == (0, '{"baton":"turn","holder":"a","line":[]}\n')
    late = await shell(group, "propolis baton pass turn b --as a --wait --timeout 0.2 --json")
    told = json.loads(late.output)
    assert (late.status, told["status"], told["missing"]) == (3, "timed_out", ["b"])
    assert (await shell(group, "propolis baton pass turn --as a")).status == 1
    await b.baton("turn").pass_on("a")
    passing = await start(group, "propolis baton pass turn b --as a --wait")
    await group.mirror.until(lambda: b.baton("turn").line == ["a"] or None, on=("",))
    await (await group.join("c")).fail("for a test")
    ended = await finish(passing)
    assert ended.status == 4
    assert "node 'c' has failed: for a test" in ended.errors

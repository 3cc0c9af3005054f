"""The commands of guests, by each shell that a guest may have."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import select
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from guest_script_rig import GuestScript, guest_script
from local_pty import SHELLS
from store_rig import served_store

from pytest_propolis.coordination.backends.embedded import EmbeddedBackend
from pytest_propolis.coordination.group import NodeGroup

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def group() -> AsyncIterator[NodeGroup]:
    async with served_store() as endpoint:
        backend = await EmbeddedBackend.connect(endpoint)
        async with await NodeGroup.open(backend, "group") as opened:
            yield opened
        await backend.aclose()


@pytest_asyncio.fixture(params=SHELLS)
async def guest(group: NodeGroup, request: pytest.FixtureRequest) -> AsyncIterator[GuestScript]:
    with tempfile.TemporaryDirectory(prefix="p-", dir="/tmp") as directory:
        async with (
            await group.join("guest", address="10.0.0.1", labels=("tcp",)) as node,
            guest_script(request.param, Path(directory), node) as script,
        ):
            yield script


async def test_a_barrier_opens_with_the_last_party(guest: GuestScript, group: NodeGroup) -> None:
    test = await group.join("test")
    running = asyncio.create_task(guest.run("barrier ready 2 && propolis barrier ready 2 --json --timeout 20"))
    assert [await test.barrier("ready", 2), await test.barrier("ready", 2)] == [1, 2]
    assert await running == (0, '1\n{"barrier":"ready","generation":2,"node":"guest"}\n', "")


async def test_a_barrier_that_times_out_names_the_nodes_that_are_missing(guest: GuestScript, group: NodeGroup) -> None:
    await group.join("late")
    status, output, errors = await guest.run("barrier ready 2 --timeout 0.1")
    assert (status, output) == (3, "")
    assert "it did not happen in time: missing are late" in errors
    status, output, errors = await guest.run("barrier ready 3 --timeout 0.1 --json")
    told = json.loads(output)
    assert (status, told["status"], told["missing"]) == (3, "timed_out", ["late"])
    assert "missing are late" in errors


async def test_waits_end_when_the_group_is_poisoned(guest: GuestScript, group: NodeGroup) -> None:
    waiting = asyncio.create_task(guest.run("barrier ready 2 --json"))
    other = await group.join("other")
    await group.mirror.until(lambda: group.mirror.below("barriers/ready/at/1/") or None, on=("",))
    await other.fail("for a test", output=["its last line"])
    status, output, errors = await waiting
    assert status == 4
    told = json.loads(output)
    assert (told["status"], told["node"], told["output"]) == ("poisoned", "other", ["its last line"])
    assert "node 'other' has failed: for a test" in errors


async def test_key_values_are_text_or_json(guest: GuestScript, group: NodeGroup) -> None:
    script = """
        kv put a 'two  words' && kv get a --json && kv add a other --json || echo "there: $?"
        printf 'from input\\n' | kv put b --json; kv wait b; kv list --json; kv get none --json || echo "none: $?"
        kv delete a --json; kv put c -- --json; kv list
    """
    assert (await guest.run(script))[:2] == (
        0,
        '{"key":"a","value":"two  words"}\n{"key":"a","done":false}\nthere: 1\n{"key":"b","done":true}\nfrom input\n'
        '{"a":"two  words","b":"from input"}\nnone: 1\n{"key":"a","done":true}\nb\nc\n',
    )
    assert await group.kv.get("c") == b"--json"


async def test_values_pass_to_the_byte(guest: GuestScript, group: NodeGroup) -> None:
    value = secrets.token_bytes(5000)
    assert await guest.run("kv put there && kv get there >/dev/null", value + b"\n") == (0, "", "")
    assert await group.kv.get("there") == value


async def test_nodes_are_found(guest: GuestScript, group: NodeGroup) -> None:
    script = "node discover test; node discover --label tcp --count 2 --json; node find guest --json; node list --json"
    running = asyncio.create_task(guest.run(script))
    await group.join("test", labels=("tcp",))
    status, output, _ = await running
    named, both, found, listed = output.splitlines()
    assert (status, named) == (0, "test\t-")
    assert sorted(json.loads(both)) == ["guest", "test"]
    assert json.loads(found)["guest"]["address"] == "10.0.0.1"
    assert sorted(json.loads(listed)["nodes"]) == ["guest", "test"]
    status, output, errors = await guest.run("node discover none --timeout 0.1 --json")
    assert (status, json.loads(output)["status"]) == (3, "timed_out")
    assert "waiting for node 'none'" in errors


async def test_locks_have_permits(guest: GuestScript, group: NodeGroup) -> None:
    a, b = await group.join("a"), await group.join("b")
    await a.semaphore("disk", 2).acquire()
    script = "lock disk --permits 2 -- sh -c 'echo inside; exit 7'; echo $?; lock --json disk --permits 2 true"
    assert await guest.run(script) == (0, 'inside\n7\n{"lock":"disk","node":"guest","status":0}\n', "")
    await b.semaphore("disk", 2).acquire()
    status, output, errors = await guest.run("lock disk --timeout 0.1 --permits 2 -- echo never")
    assert (status, output) == (3, "")
    assert "missing are a, b" in errors


async def test_a_baton_comes_back(guest: GuestScript, group: NodeGroup) -> None:
    test = await group.join("test")
    assert await guest.run("baton take turn") == (0, "", "")
    running = asyncio.create_task(guest.run("baton pass turn test --wait --json && baton show turn"))
    await test.baton("turn").take()
    await group.mirror.until(lambda: test.baton("turn").line or None, on=("",))
    await test.baton("turn").pass_on()
    assert await running == (0, '{"baton":"turn","holder":"guest","line":[]}\nguest\n', "")
    status, _, errors = await guest.run("baton pass turn test --wait --timeout 0.1")
    assert status == 3
    assert "missing are test" in errors


async def test_a_command_that_is_interrupted_takes_its_arrival_back(guest: GuestScript, group: NodeGroup) -> None:
    running = await guest.start("barrier ready 2")
    await group.mirror.until(lambda: group.mirror.below("barriers/ready/at/1/") or None, on=("",))
    os.killpg(running.pid, signal.SIGTERM)
    await guest.finish(running)
    await group.mirror.until(lambda: not group.mirror.below("barriers/ready/at/1/") or None, on=("",))
    assert (await guest.run("kv put still there"))[0] == 0


async def test_a_waiting_command_is_woken_to_look_for_signals(
    guest: GuestScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a shell that is not one: what it has not acknowledged is not followed by more."""
    monkeypatch.setattr("pytest_propolis.vm.guest_nodes.relay.REMINDER_S", 0.01)
    await guest.aclose()
    request = b"\0".join((b"barrier", b"ready", b"2", b"")).hex().encode()
    os.write(guest.port, b"7.r a %b\n7.r g -\n" % request)
    with open(guest.port, "rb", buffering=0, closefd=False) as port:
        for _ in range(3):
            assert await asyncio.to_thread(port.readline) == b"7.r w -\n"
            os.write(guest.port, b"0 k -\n")
            assert not select.select([port], [], [], 0.1)[0]
            os.write(guest.port, b"7.r k -\n")
    os.write(guest.port, b"7.r c -\n")


async def test_commands_run_at_once(guest: GuestScript, group: NodeGroup) -> None:
    script = 'for i in 1 2 3 4 5 6; do { kv wait go && kv put "done/$i" "$i"; } </dev/null & done; wait'
    running = asyncio.create_task(guest.run(script))
    await group.kv.put("go", b"x" * 3000)
    status, output, errors = await running
    assert (status, output.count("x"), output.count("\n"), errors) == (0, 6 * 3000, 6, "")  # they write in turns
    assert len(await group.kv.list("done")) == 6


async def test_bad_commands_tell_the_usage(guest: GuestScript) -> None:
    bad = (
        *("barrier", "barrier ready none", "barrier a 1 --timeout", "barrier a 1 --timeout soon", "kv put", "kv"),
        *("kv get a --timeout 1", "node discover a --count 2", "node discover --count 0", "node list x", "propolis"),
        *("baton pass a b c", "lock", "lock disk", "lock -- true"),
    )
    script = "\n".join(f"{command}; echo $?" for command in bad)
    _, output, errors = await guest.run(script)
    assert output.splitlines() == ["2"] * len(bad)
    assert errors.count("usage: barrier NAME PARTIES") == len(bad)


async def test_a_command_whose_output_is_not_read_holds_up_no_other(guest: GuestScript, group: NodeGroup) -> None:
    await group.kv.put("big", b"x" * 60_000 + b"\377" * 60_000)  # more than a FIFO and a pipe hold
    await group.kv.put("small", b"value")
    unread = await guest.start("kv get big | { printf 'begun\\n' >&2; exec sleep 1000; }")
    assert unread.stderr is not None
    assert await unread.stderr.readline() == b"begun\n"
    for _ in range(50):
        assert await guest.run("kv get small") == (0, "value\n", "")
    assert (await guest.run("kv get big | wc -c"))[:2] == (0, "120001\n")


async def test_what_a_reset_cuts_off_does_not_hide_the_next_reader(guest: GuestScript, group: NodeGroup) -> None:
    await guest.boot_again(while_writing=b"12.r a 6b7")
    await group.kv.put("small", b"value")
    assert await guest.run("kv get small") == (0, "value\n", "")

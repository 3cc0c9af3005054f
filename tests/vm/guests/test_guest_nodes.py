"""Programs in guests as nodes: over the second serial port, without a network."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from pytest_propolis import NodeGroup, Poisoned, TestVm
from pytest_propolis.session.run import Run

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.requires(server="engine")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vms(propolis: Run) -> AsyncIterator[list[TestVm]]:
    async with propolis.vm_factory(guest="micro") as factory:
        yield [*await asyncio.gather(*(factory.start(name) for name in ("a", "b")))]


@pytest_asyncio.fixture(loop_scope="module")
async def group(propolis: Run) -> AsyncIterator[NodeGroup]:
    async with propolis.node_group() as opened:
        yield opened


async def test_scripts_in_two_guests_meet_each_other_and_the_test(vms: list[TestVm], group: NodeGroup) -> None:
    a, b = vms
    script = "kv put from-{0} {0} && barrier ready 3 && kv get from-{1} && barrier ready 3 --timeout 100"
    async with a.as_node(group, address="10.0.0.1"), b.as_node(group), await group.join("test") as test:
        scripts = [asyncio.create_task(vm.run(script.format(*names))) for vm, names in ((a, "ab"), (b, "ba"))]
        assert [await test.barrier("ready", 3), await test.barrier("ready", 3)] == [1, 2]
        assert [*await asyncio.gather(*scripts)] == ["1\nb\n2", "1\na\n2"]
        assert await b.run("node find a; node list") == "10.0.0.1\na\t10.0.0.1\nb\t-\ntest\t-"
    assert (
        await a.run("ls -A /tmp; for name in barrier propolis; do test -e /usr/bin/$name || echo no; done") == "no\nno"
    )


async def test_several_programs_of_a_guest_use_it_at_once(vms: list[TestVm], group: NodeGroup) -> None:
    a, _ = vms
    test = await group.join("test")
    async with a.as_node(group):
        await a.run("for i in 1 2 3 4 5; do (kv wait go && kv put done/$i) </dev/null >/dev/null 2>&1 & done")
        await a.run("lock one -- sh -c 'kv put inside yes; kv get inside' | grep yes")
        await a.run("baton take turn; baton pass turn test")
        assert test.baton("turn").holder == "test"
        await group.kv.put("go", b"")
        await asyncio.gather(*(group.kv.wait(f"done/{number}") for number in range(1, 6)))


async def test_values_pass_to_the_byte(vms: list[TestVm], group: NodeGroup) -> None:
    a, _ = vms
    value = secrets.token_bytes(3000).replace(b"\n", b"")
    async with a.as_node(group):
        await group.kv.put("random", value)
        await a.run("kv get random >/tmp/value; kv put back </tmp/value; rm /tmp/value")
        await a.run("kv put words 'two  words' more", check=False)
        assert await group.kv.get("back") == value
        assert await group.kv.get("words") is None
        await a.run("kv put words 'two  words'; printf 'line\\n\\n' | kv put lines")
        assert await group.kv.list() == {"back": value, "random": value, "lines": b"line\n", "words": b"two  words"}


async def test_exit_statuses_in_a_guest(vms: list[TestVm], group: NodeGroup) -> None:
    a, _ = vms
    async with a.as_node(group, vital=False):
        early = await a.run_result("barrier ready 2 --timeout 0.2")
        assert early.status == 3
        assert "it did not happen in time" in early.text
        assert (await a.run_result("kv get none")).status == 1
        assert (await a.run_result("barrier ready")).status == 2
        assert "usage: barrier NAME PARTIES" in (await a.run_result("barrier")).text
        interrupted = asyncio.create_task(a.run("barrier ready 2"))
        other = await group.join("other")
        await group.mirror.until(lambda: group.mirror.below("barriers/ready/at/1/") or None, on=("",))
        await other.fail("for a test", output=["its last line"])
        with pytest.raises(Exception, match="node 'other' has failed: for a test") as caught:
            await interrupted
        assert "ended with status 4" in str(caught.value)
        assert "its last line" in str(caught.value)


async def test_a_vm_that_ends_has_failed_as_a_node(propolis: Run, group: NodeGroup) -> None:
    test = await group.join("test")
    async with propolis.vm_factory(guest="micro") as factory:
        vm = await factory.start("dying")
        async with vm.as_node(group):
            wait = asyncio.create_task(test.barrier("ready", 2))
            await vm.stop()
            with pytest.raises(Poisoned, match="node 'dying' has failed: its VM has ended"):
                await wait

"""A test session outlives its agent: the tests after the agent's death have another one."""

from __future__ import annotations

from inner_run import InnerRun

TESTS = """
import asyncio, os, signal
import pytest
from pytest_propolis.ledger.identity import ProcessIdentity

async def test_before(vm_factory):
    await vm_factory.create()

async def test_that_kills_the_agent(propolis):
    client = await propolis.host.client()
    agent = ProcessIdentity.of((await client.info()).pid)
    await client.aclose()
    os.kill(agent.pid, signal.SIGKILL)
    assert await asyncio.to_thread(agent.wait_gone, 30)

@pytest.mark.parametrize("number", range(2))
async def test_after(vm_factory, number):
    await vm_factory.create()
"""

TWO_AT_ONCE = """
import asyncio

async def test_it(propolis):
    first, second = await asyncio.gather(propolis.host.client(), propolis.host.client())
    assert await first.info() == await second.info()
    await asyncio.sleep(0)
    await first.aclose()
    await second.aclose()

async def test_next(vm_factory):
    await vm_factory.create()
"""


def test_the_tests_after_the_death_of_an_agent_pass(inner: InnerRun) -> None:
    inner.write(test_it=TESTS)
    result = inner.run("--propolis-accelerator=tcg", "--asyncio-mode=auto", "--log-cli-level=warning")
    result.assert_outcomes(passed=4)
    result.stdout.no_fnmatch_line("*left something behind*")
    assert result.stdout.str().count("has ended: another one is started") == 1


def test_two_tasks_that_ask_first_share_one_agent(inner: InnerRun) -> None:
    inner.write(test_it=TWO_AT_ONCE)
    inner.run("--propolis-accelerator=tcg", "--asyncio-mode=auto").assert_outcomes(passed=2)

"""The kinds of tests that can use the fixtures, by the plugin that runs them, and the errors of the others."""

from __future__ import annotations

import pytest
from inner_run import InnerRun
from pytest_asyncio import plugin as asyncio_plugin

HYPOTHESIS = """
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

@given(number=st.integers(0, 255))
@settings(max_examples=3, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_echo(test_vm, number):
    assert await test_vm.run(f"echo {number}") == str(number)

class TestMethods:
    @settings(max_examples=2, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(number=st.integers(0, 255))
    async def test_echo(self, vm_factory, number):
        vm = await vm_factory.start(f"vm-{len(vm_factory.vms)}")
        assert await vm.run(f"echo {number}") == str(number)
"""

LOOP_FACTORIES = """
import asyncio

def pytest_asyncio_loop_factories(config, item):
    return {"first": asyncio.SelectorEventLoop, "second": asyncio.SelectorEventLoop}
"""

UNITTEST = """
import unittest
import pytest

class TestGuest(unittest.IsolatedAsyncioTestCase):
    @pytest.fixture(autouse=True)
    def take(self, test_vm):
        self.vm = test_vm

    async def test_it(self):
        await self.vm.run("true")
"""

DECORATED = """
import functools

def traced(test):
    @functools.wraps(test)
    def call(*args, **kwargs):
        return test(*args, **kwargs)
    return call

@traced
async def test_it(test_vm): ...
"""

ANYIO = """
import pytest

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_it(test_vm): ...
"""

ANOTHER_PLUGINS = """
import pytest

@pytest.mark.trio
async def test_it(vm_factory): ...
"""

SCENARIO = """
def test_it(request):
    request.getfixturevalue("test_vm")

test_it.__module__ = "pytest_bdd.scenario"  # where pytest-bdd makes functions of scenarios
"""

GENERATOR = """
async def test_it(test_vm):
    yield
"""

OTHERS_ADVICE = "write `async def"


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_an_asynchronous_test_under_hypothesis_runs(inner: InnerRun, mode: str) -> None:
    inner.write(test_it=HYPOTHESIS)
    inner.run(f"--asyncio-mode={mode}").assert_outcomes(passed=2)


@pytest.mark.skipif(
    not hasattr(asyncio_plugin, "PytestAsyncioSpecs"),
    reason="this version of pytest-asyncio has no loop factories",
)
@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_a_test_runs_once_in_the_loop_of_each_factory(inner: InnerRun, mode: str) -> None:
    inner.write(conftest=LOOP_FACTORIES, test_it="async def test_it(test_vm):\n    await test_vm.run('true')")
    result = inner.run(f"--asyncio-mode={mode}", "-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*::test_it[[]first] PASSED*", "*::test_it[[]second] PASSED*"])


def refused(inner: InnerRun, mode: str, advice: str) -> str:
    """Run tests that must end in one error with this advice, and return the output."""
    result = inner.run("-panyio", f"--asyncio-mode={mode}", "-omarkers=trio")
    outcomes = result.parseoutcomes()
    assert outcomes in ({"errors": 1}, {"failed": 1})  # the latter where the test asks for the fixture while it runs
    result.stdout.fnmatch_lines([f"*::test_it* uses the fixture '*', whose methods are awaited: {advice}"])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*is marked with*")
    assert not (inner.runtime / "propolis").exists()
    return result.stdout.str()


@pytest.mark.parametrize("mode", ["strict", "auto"])
@pytest.mark.parametrize("fixture", ["test_vm", "vm_factory"])
def test_a_synchronous_test_is_told_how_to_become_asynchronous(inner: InnerRun, mode: str, fixture: str) -> None:
    inner.write(test_it=f"def test_it({fixture}): ...")
    refused(inner, mode, f"{OTHERS_ADVICE} test_it(...)`")


@pytest.mark.parametrize("mode", ["strict", "auto"])
@pytest.mark.parametrize(
    ("source", "advice"),
    [
        (UNITTEST, "unittest runs its methods by itself*use the fixture in an `async def` test function*"),
        (
            SCENARIO,
            "pytest-bdd calls its steps synchronously; use the fixture in an `async def`*propolis_sync*",
        ),
        (DECORATED, "a decorator makes it a synchronous function; make the function that the decorator returns*"),
        (ANYIO, "anyio's plugin runs the fixtures of this test in an event loop of its own; *without*anyio*"),
    ],
    ids=["unittest", "scenario", "decorated", "anyio"],
)
def test_a_test_that_cannot_await_the_fixtures_is_told_why_and_what_helps(
    inner: InnerRun, mode: str, source: str, advice: str
) -> None:
    inner.write(test_it=source)
    assert OTHERS_ADVICE not in refused(inner, mode, advice)


def test_a_test_that_another_plugin_marks_is_left_to_it(inner: InnerRun) -> None:
    inner.write(test_it=ANOTHER_PLUGINS)
    refused(inner, "strict", "pytest-asyncio does not run it; mark it with `@pytest.mark.asyncio`, and with no other*")


def test_an_asynchronous_generator_is_told_to_remove_its_yield(inner: InnerRun) -> None:
    inner.write(test_it=GENERATOR)
    refused(inner, "strict", "it is an asynchronous generator; remove its `yield`")


def test_a_doctest_is_told_that_it_cannot_await(inner: InnerRun) -> None:
    inner.write(module='"""\n>>> getfixture("test_vm")\n"""\n')
    result = inner.run("--doctest-modules")
    result.stdout.fnmatch_lines(["*module.py::module uses the fixture *, whose methods are awaited: a DoctestItem *"])
    assert not (inner.runtime / "propolis").exists()

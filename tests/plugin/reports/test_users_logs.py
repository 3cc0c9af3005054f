"""The logs of a test are its own: none of the plugin's requests, whatever the level, and all of its own."""

from __future__ import annotations

import pytest
from inner_run import InnerRun

CONFTEST = """
import logging
import pytest

@pytest.fixture
def own_lines(caplog):
    caplog.set_level(logging.INFO)
    return caplog
"""

ASKS_FOR_ALL = """
import logging
from pytest_propolis import InstanceState

async def test_logs(own_lines, vm_factory):
    vm = await vm_factory.start()
    await vm.run("echo hello")
    await vm.wait_for_state(InstanceState.RUNNING)
    await vm.get_spec()
    await vm.stop()
    logging.getLogger("mine").info("one line of my own")
    assert own_lines.messages == ["one line of my own"]
    assert own_lines.get_records("setup") == []
"""

COLLECTS_METRICS = """
import logging

async def test_logs(own_lines, metrics, test_vm):
    own_lines.set_level(logging.DEBUG)
    assert (await metrics.poll(test_vm)).resets == 0
    assert own_lines.messages == []
    assert own_lines.get_records("setup") == []
"""

USERS_HTTPX = """
import logging
import httpx

async def test_logs(own_lines, test_vm):
    await test_vm.run("echo hello")
    answer = httpx.Response(200, request=httpx.Request("GET", "http://users.example/"))
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda request: answer)) as client:
        await client.get("http://users.example/")
    assert own_lines.messages == ['HTTP Request: GET http://users.example/ "HTTP/1.1 200 OK"']
"""


@pytest.mark.parametrize("boot", ["warm", "cold"])
def test_no_request_of_the_plugins_own_is_in_a_tests_logs(inner: InnerRun, boot: str) -> None:
    inner.write(conftest=CONFTEST, test_it=ASKS_FOR_ALL)
    inner.run(f"--propolis-boot={boot}").assert_outcomes(passed=1)


def test_the_requests_of_metrics_are_in_no_tests_logs(inner: InnerRun) -> None:
    inner.write(conftest=CONFTEST, test_it=COLLECTS_METRICS)
    inner.run().assert_outcomes(passed=1)


def test_the_requests_of_a_tests_own_httpx_stay_in_its_logs(inner: InnerRun) -> None:
    inner.write(conftest=CONFTEST, test_it=USERS_HTTPX)
    inner.run().assert_outcomes(passed=1)


def test_a_failed_test_shows_none_of_the_plugins_requests_at_any_level(inner: InnerRun) -> None:
    inner.write(test_it="async def test_fails(test_vm):\n    assert await test_vm.run('echo one') == 'two'\n")
    result = inner.run("--log-level=DEBUG", "-o", "log_cli=true")
    result.assert_outcomes(failed=1)
    for name in ("httpx", "httpcore"):
        result.stdout.no_fnmatch_line(f"*{name}*")

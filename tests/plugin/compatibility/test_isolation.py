"""The plugin apart from the test: what a test fakes does not reach the plugin's own requests, clocks and reports."""

from __future__ import annotations

import sys
import textwrap

import pytest
from click import Context
from inner_run import InnerRun

from pytest_propolis.cli.main import propolis as group

FAKES = {
    "httpx_transports": """
        def refuse(*args, **kwargs):
            raise AssertionError("not mocked")
        monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", refuse)
        monkeypatch.setattr(httpx.HTTPTransport, "handle_request", refuse)
    """,
    "httpcore_pools": """
        def refuse(*args, **kwargs):
            raise AssertionError("not mocked")
        monkeypatch.setattr(httpcore.AsyncConnectionPool, "handle_async_request", refuse)
        monkeypatch.setattr(httpcore.ConnectionPool, "handle_request", refuse)
    """,
    "httpx_clients": """
        monkeypatch.setattr(httpx, "AsyncClient", None)
        monkeypatch.setattr(httpx, "Client", None)
    """,
    "sockets": """
        class Guarded(socket.socket):
            def __new__(cls, *args, **kwargs):
                raise RuntimeError("a test tried to use socket.socket")
        monkeypatch.setattr(socket, "socket", Guarded)
    """,
}

CONFTEST = """
import socket, time
import httpcore, httpx, pytest

@pytest.fixture
def fake(monkeypatch):
{body}
"""


def write_fake(inner: InnerRun, body: str, test: str) -> None:
    inner.write(conftest=CONFTEST.format(body=textwrap.indent(textwrap.dedent(body).strip(), "    ")), test_it=test)


@pytest.mark.parametrize("fake", sorted(FAKES))
def test_a_vm_is_driven_while_the_users_network_is_faked(inner: InnerRun, fake: str) -> None:
    write_fake(
        inner,
        FAKES[fake],
        "from pytest_propolis import InstanceState\n"
        "async def test_the_vm_comes_first(test_vm, fake):\n"
        "    await test_vm.wait_for_state(InstanceState.RUNNING)\n"
        "    assert await test_vm.run('echo hello') == 'hello'\n"
        + (
            # An agent that is to be started needs more of the standard library than a fake of sockets leaves.
            ""
            if fake == "sockets"
            else "async def test_the_fake_comes_first(fake, test_vm):\n"
            "    assert await test_vm.run('echo hello') == 'hello'\n"
        ),
    )
    inner.with_all_plugins().assert_outcomes(passed=1 if fake == "sockets" else 2)


@pytest.mark.parametrize("fake", sorted(FAKES))
def test_a_failure_is_reported_with_the_vms_state_while_the_network_is_faked(inner: InnerRun, fake: str) -> None:
    write_fake(
        inner,
        FAKES[fake],
        "async def test_fails(test_vm, fake):\n    assert await test_vm.run('echo one') == 'two'\n"
        "def test_other():\n    pass\n",
    )
    result = inner.with_all_plugins()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*propolis VM 'test-vm'*", "state: *Running"])


def test_a_fork_has_the_real_time_under_a_made_up_clock(inner: InnerRun) -> None:
    write_fake(
        inner,
        """
        real = time.time
        monkeypatch.setattr(time, "time", lambda: 0.0)
        monkeypatch.setattr(time, "time_ns", lambda: 0)
        return real
        """,
        "async def test_it(fake, test_vm):\n    assert abs(int(await test_vm.run('date +%s')) - fake()) < 60\n",
    )
    inner.with_all_plugins().assert_outcomes(passed=1)


BROKEN_DESCRIPTION = """
import pytest

async def test_fails(test_vm, monkeypatch):
    type(test_vm).console_tail = None
    assert False

def test_other():
    pass
"""


def test_an_error_of_the_plugins_own_report_ends_no_session_and_is_shown(inner: InnerRun) -> None:
    inner.write(test_it=BROKEN_DESCRIPTION)
    result = inner.with_all_plugins()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.no_fnmatch_line("INTERNALERROR*")
    result.stdout.fnmatch_lines(["propolis: error while describing VM 'test-vm' of*", "*TypeError*"])


BROKEN_HOOK = """
from pytest_propolis.session.{module} import {name}

def broken(*_args, **_options):
    raise RuntimeError("a defect of the plugin")

{name}.{method} = broken
"""

USES_VMS = """
async def test_fails(test_vm):
    assert False

async def test_passes(test_vm):
    pass
"""


@pytest.mark.parametrize(
    ("module", "name", "method", "purpose"),
    [
        ("retention", "RetentionPolicy", "_keep_or_remove_all", "removing the VMs of a test"),
        ("teardown", "RunTeardown", "_summarize", "summing up the run"),
    ],
)
def test_a_defect_in_a_hook_ends_no_session_and_is_shown(
    inner: InnerRun, module: str, name: str, method: str, purpose: str
) -> None:
    inner.write(conftest=BROKEN_HOOK.format(module=module, name=name, method=method), test_it=USES_VMS)
    result = inner.run()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.no_fnmatch_line("INTERNALERROR*")
    result.stdout.fnmatch_lines([f"propolis: error while {purpose}; the tests' own results stand:", "*a defect of*"])
    inner.wait_until_clean()  # what was not removed goes with the agent, which ends after the run


LISTENERS = """
from pytest_propolis.distribution.run_events import run_events

def broken(event):
    raise RuntimeError("a defect of the plugin")

def pytest_sessionstart(session):
    events = run_events(session.config)
    for listeners in (events.on_start, events.on_report, events.on_finish):
        listeners.insert(0, broken)
"""


def test_a_defect_in_what_follows_a_run_ends_no_session_and_is_shown(inner: InnerRun) -> None:
    inner.write(conftest=LISTENERS, test_it=USES_VMS)
    result = inner.run()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.no_fnmatch_line("INTERNALERROR*")
    result.stdout.fnmatch_lines(["propolis: error while following the run's tests; *", "*a defect of the plugin*"])


WITHOUT_HOME = """
import os, pathlib

def _no_home():
    raise RuntimeError("Could not determine home directory.")

os.geteuid = lambda: 54321
pathlib.Path.home = staticmethod(_no_home)
for name in ("XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "HOME"):
    os.environ.pop(name, None)
"""


def test_a_user_without_a_home_gets_an_error_that_names_the_variables_and_a_summary(inner: InnerRun) -> None:
    inner.write(
        conftest=WITHOUT_HOME,
        test_it="def test_other():\n    pass\nasync def test_guest(test_vm):\n    await test_vm.run('true')\n",
    )
    result = inner.with_all_plugins()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["E*no home directory*XDG_CACHE_HOME and XDG_RUNTIME_DIR are not set*", "E*hint: set HOME*"]
    )
    assert "Traceback (most recent call last)" not in result.stderr.str()


NEED_DIRECTORIES = [
    "artifacts list",
    "artifacts verify",
    "console vm",
    "cp file vm:/tmp",
    "doctor",
    "exec vm true",
    "gc",
    "job job.toml",
    "ps",
    "run true",
    "setup micro",
    "top",
]
NEED_NONE = {"barrier", "baton", "durations", "join", "kv", "lock", "node", "serve"}
"""Commands that keep no files: they work without a home."""


def test_every_command_is_tried_without_a_home() -> None:
    assert {command.split()[0] for command in NEED_DIRECTORIES} | NEED_NONE == set(group.list_commands(Context(group)))


@pytest.mark.parametrize("command", NEED_DIRECTORIES)
def test_commands_without_a_home_name_the_variables(inner: InnerRun, command: str) -> None:
    inner.write(commands=f"{WITHOUT_HOME}\nfrom pytest_propolis.cli import main\nmain()\n")
    inner.pytester.path.joinpath("job.toml").write_text('[[node]]\nname = "a"\ncommand = "true"\n')
    done = inner.pytester.run(sys.executable, "commands.py", *command.split())
    assert done.ret != 0
    done.stderr.fnmatch_lines(["propolis: *no home directory*XDG_*", "*hint: set HOME*"])
    assert "Traceback" not in done.stderr.str()


@pytest.mark.parametrize("arguments", [("-p", "propolis"), ("-p", "propolis", "-p", "pytest_asyncio")])
def test_pytest_asyncio_is_loaded_where_no_plugin_is_loaded_by_itself(
    inner: InnerRun, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    inner.write(test_it="async def test_it(test_vm):\n    assert await test_vm.run('echo hello') == 'hello'\n")
    inner.plain(*arguments).assert_outcomes(passed=1)


def test_a_synchronous_test_that_wants_a_vm_breaks_no_later_test(inner: InnerRun) -> None:
    inner.write(
        test_it="def test_sync(test_vm):\n    pass\n"
        "def test_indirect(request):\n    request.getfixturevalue('test_vm')\n"
        "async def test_later(test_vm):\n    assert await test_vm.run('echo hello') == 'hello'\n"
    )
    result = inner.with_all_plugins()
    result.assert_outcomes(errors=1, failed=1, passed=1)
    result.stdout.fnmatch_lines(["*test_sync uses the fixture 'test_vm'*write `async def test_sync(...)`*"])


def test_a_run_on_a_busy_machine_leaves_no_socket_to_the_garbage_collector(inner: InnerRun) -> None:
    # An agent that has left is asked once more: the connection fails, and its socket must be closed all the same.
    inner.write(
        test_it="""
        import warnings, pytest
        from pathlib import Path
        from pytest_propolis import AgentError
        from pytest_propolis.hosts.agent_clients.synchronous import AgentClient

        def test_it(tmp_path):
            import gc
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(AgentError):
                    AgentClient(tmp_path / "gone").vms()
                gc.collect()
        """
    )
    inner.with_all_plugins("-W", "error", "-o", "asyncio_default_fixture_loop_scope=function").assert_outcomes(passed=1)

"""The private interfaces of other packages that `session/internals.py` uses: each test names one that is gone."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from xdist import workermanage

import pytest_propolis
from pytest_propolis.session import internals

ROOT: Final = Path(pytest_propolis.__file__).parent

NAMES: Final = [
    ("skip_reason", "_pytest.skipping", "evaluate_skip_marks"),
    ("run_phases", "_pytest.runner", "runtestprotocol"),
    ("prepare_again", "_pytest.python", "Function._initrequest"),
    ("tear_down_everything", "_pytest.runner", "SetupState.teardown_exact"),
    ("add_section_to_failure", "_pytest._code.code", "ExceptionRepr.addsection"),
    ("load_pytest_asyncio", "pytest_asyncio.plugin", "pytest_fixture_setup"),
    ("numbers_of_workers", "xdist.plugin", "pytest_xdist_auto_num_workers"),
    ("collection_difference", "xdist.report", "report_collection_diff"),
    ("terminal_reporter", "_pytest.terminal", "TerminalReporter.ensure_newline"),
    ("terminal_reporter", "_pytest.terminal", "TerminalReporter.write_line"),
    ("terminal_reporter", "_pytest.terminal", "TerminalReporter.flush"),
    ("without_capture", "_pytest.capture", "CaptureManager.global_and_fixture_disabled"),
    ("with_standard_input", "_pytest.capture", "CaptureManager.suspend_global_capture"),
    ("with_standard_input", "_pytest.capture", "CaptureManager.resume_global_capture"),
]


@pytest.mark.parametrize(("user", "module", "name"), NAMES, ids=[name for _, _, name in NAMES])
def test_a_function_or_class_is_there(user: str, module: str, name: str) -> None:
    assert hasattr(internals, user)
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        assert hasattr(found, part), f"{module}.{name} is gone, which internals.{user} uses"
        found = getattr(found, part)


OBJECTS: Final[list[tuple[str, str, Callable[[pytest.FixtureRequest], object]]]] = [
    ("tear_down_everything", "Session._setupstate", lambda request: request.session._setupstate.stack),
    ("test_of", "FixtureRequest._pyfuncitem", lambda request: request._pyfuncitem.nodeid),
    ("fixture_functions", "Function._fixtureinfo", lambda request: request._pyfuncitem._fixtureinfo.name2fixturedefs),
    ("base_temporary_directory", "Config._tmp_path_factory", lambda request: _config(request)._tmp_path_factory),
    ("number_of_tests", "the plugin 'session'", lambda request: _plugin(request, "session").testscollected),
    ("terminal_reporter", "the plugin 'terminalreporter'", lambda request: _plugin(request, "terminalreporter").config),
    ("without_capture", "the plugin 'capturemanager'", lambda request: _plugin(request, "capturemanager").is_capturing),
]


def _config(request: pytest.FixtureRequest) -> Any:
    return request.config


def _plugin(request: pytest.FixtureRequest, name: str) -> Any:
    return request.config.pluginmanager.get_plugin(name)


@pytest.mark.parametrize(("user", "name", "read"), OBJECTS, ids=[name for _, name, _ in OBJECTS])
def test_an_attribute_of_pytest_is_there(
    request: pytest.FixtureRequest, user: str, name: str, read: Callable[[pytest.FixtureRequest], object]
) -> None:
    assert hasattr(internals, user)
    try:
        assert read(request)
    except AttributeError as error:
        pytest.fail(f"{name} has changed, which internals.{user} uses: {error}")


def test_a_fixture_definition_has_its_function(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    functions = dict(internals.fixture_functions(request._pyfuncitem))
    assert inspect.unwrap(functions["tmp_path"]).__name__ == "tmp_path"
    assert internals.test_of(request).name == request.node.name


@pytest.mark.parametrize("value", [7])
def test_a_parametrized_test_has_its_parameters(request: pytest.FixtureRequest, value: int) -> None:
    found = internals.parameter_of(request._pyfuncitem, "value")
    assert found == value, "Function.callspec.params is gone, which internals.parameter_of uses"
    assert internals.parameter_of(request._pyfuncitem, "other") is None


def test_a_test_has_the_names_of_its_fixtures(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    assert "tmp_path" in request._pyfuncitem.fixturenames, "Function.fixturenames is gone, which hooks and markers use"


def test_xdist_describes_collections_that_differ() -> None:
    found = internals.collection_difference(["test_a"], ["test_b"], workers=("gw0", "gw1"))
    assert found is not None
    assert "gw1" in found
    assert internals.collection_difference(["test_a"], ["test_a"], workers=("gw0", "gw1")) is None


def test_asyncio_handles_ctrl_c_by_a_method_of_its_runner() -> None:
    async def handler() -> object:
        return signal.getsignal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a run may have been started with it ignored
    try:
        with asyncio.Runner() as runner:
            bound = getattr(runner.run(handler()), "func", None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert getattr(bound, "__self__", None) is runner, "is_cancelling_a_test does not find asyncio's Runner"
    assert hasattr(runner, "_interrupt_count"), "asyncio.Runner._interrupt_count is gone: is_cancelling_a_test"


def test_pytest_asyncio_reads_a_fixtures_loop_scope_from_its_function() -> None:
    @pytest_asyncio.fixture(loop_scope="module")
    async def anything() -> None:
        """Nothing."""

    function = getattr(anything, "_fixture_function", None) or inspect.unwrap(anything)
    assert vars(function).get("_loop_scope") == "module", "set_loop_scope has no effect on pytest-asyncio"


def test_xdist_parses_the_specification_of_workers() -> None:
    names = "parse_tx_spec_config", "parse_spec_config"
    assert any(hasattr(workermanage, name) for name in names), f"number_of_workers: xdist has none of {names}"


RUN_OF_A_WORKER: Final = """
import pytest
from pytest_propolis.session import internals

def pytest_configure(config):
    if internals.is_worker(config):
        assert internals.worker_name(config) == "gw0", "workerinput['workerid'] of xdist has changed"
        assert internals.shared_run_id(config), "workerinput['testrunuid'] of xdist is gone"
        assert internals.worker_count(config) == 1, "workerinput['workercount'] of xdist is gone"
        given = internals.worker_input(config)
        assert given.get("given") == 5, "xdist does not send what was added to node.workerinput"
        given["channel"].send("sent by the worker")
    else:
        assert internals.is_controller(config), "the options tx and dist of xdist have changed"

def pytest_configure_node(node):
    assert internals.run_id_of(node), "node.workerinput['testrunuid'] of xdist is gone"
    internals.set_worker_input(node, "given", 5)
    channel = internals.open_channel(node, "channel")
    channel.setcallback(print)
    for name in ("shutdown", "send_runtest_some", "shutting_down"):
        assert hasattr(node, name), f"a worker of xdist has no {name}, which HostScheduling uses"
    for name in ("id", "via"):
        assert hasattr(node.gateway.spec, name), f"a specification of execnet has no {name}, which HostScheduling uses"

@pytest.hookimpl(tryfirst=True)
def pytest_xdist_node_collection_finished(node):
    assert internals.local_process(node), "gateway._io.popen of execnet is gone"
    called = lambda: print("called by the controller")
    assert internals.call_in_controller(node.config, called, delay_s=0), "xdist's plugin 'dsession' is gone"

@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session):
    if internals.is_worker(session.config):
        internals.set_worker_output(session.config, "result", 6)
    return (yield)

def pytest_testnodedown(node):
    assert internals.worker_output(node).get("result") == 6, "xdist does not send what was added to workeroutput"
    print("the worker has sent its output")
"""


def test_a_run_with_a_worker_has_what_is_used_of_xdist_and_execnet(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(RUN_OF_A_WORKER)
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_subprocess("-p", "no:propolis", "-p", "xdist", "-n", "1", "-s")
    result.assert_outcomes(passed=1)
    for line in ("called by the controller", "sent by the worker", "the worker has sent its output"):
        result.stdout.fnmatch_lines(f"*{line}*")


PRIVATE: Final = (
    *(f"{verb} {package}" for verb in ("import", "from") for package in ("_pytest", "execnet", "xdist")),
    *("workerinput", "workeroutput", "newchannel", "callspec", "get_plugin(", "getplugin("),
)


@pytest.mark.parametrize("text", PRIVATE)
def test_no_other_module_uses_private_interfaces(text: str) -> None:
    modules = [path for path in ROOT.rglob("*.py") if path != Path(str(internals.__file__))]
    assert [path for path in modules if text in path.read_text()] == []

"""Private interfaces of pytest, pytest-asyncio, pytest-xdist and execnet that this plugin uses.

All of them are here, so that an upgrade that removes one breaks one module, and its tests name the interface.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from subprocess import Popen
from typing import Any, Final, cast

import pytest

__all__ = [
    "add_section_to_failure",
    "base_temporary_directory",
    "call_in_controller",
    "collection_difference",
    "dist_was_chosen",
    "distribute_over_places",
    "drop_missing_basetemp",
    "fixture_functions",
    "has_pytest_asyncio",
    "is_cancelling_a_test",
    "is_controller",
    "is_worker",
    "load_pytest_asyncio",
    "local_process",
    "number_of_tests",
    "number_of_workers",
    "numbers_of_workers",
    "open_channel",
    "parameter_of",
    "prepare_again",
    "quick_imports",
    "run_id_of",
    "run_phases",
    "set_loop_scope",
    "set_worker_input",
    "set_worker_output",
    "shared_run_id",
    "skip_reason",
    "tear_down_everything",
    "terminal_reporter",
    "test_of",
    "uses_fixture",
    "with_standard_input",
    "without_capture",
    "worker_count",
    "worker_input",
    "worker_name",
    "worker_output",
]

ASYNCIO_MODULE: Final = "pytest_asyncio.plugin"
REWRITING_MODULE: Final = "_pytest.assertion.rewrite"


def has_pytest_asyncio(plugins: pytest.PytestPluginManager) -> bool:
    """Return whether pytest-asyncio is loaded, under any name."""
    return any(getattr(plugin, "__name__", "") == ASYNCIO_MODULE for plugin in plugins.get_plugins())


def load_pytest_asyncio(plugins: pytest.PytestPluginManager) -> None:
    """Load pytest-asyncio if it is neither loaded nor blocked, as with ``PYTEST_DISABLE_PLUGIN_AUTOLOAD``.

    It gets the name of its entry point, so that ``-p no:asyncio`` keeps its meaning.
    """
    if has_pytest_asyncio(plugins) or any(map(plugins.is_blocked, ("asyncio", "pytest_asyncio", ASYNCIO_MODULE))):
        return
    plugins.register(importlib.import_module(ASYNCIO_MODULE), "asyncio")


def is_worker(config: pytest.Config) -> bool:
    """Return whether this process is a worker of pytest-xdist."""
    return hasattr(config, "workerinput")


def is_controller(config: pytest.Config) -> bool:
    """Return whether this process is the controller of pytest-xdist."""
    if is_worker(config) or not config.pluginmanager.hasplugin("xdist"):
        return False
    return bool(config.getoption("tx", None)) and config.getoption("dist", "no") != "no"


def dist_was_chosen(config: pytest.Config) -> bool:
    """Return whether the user chose a distribution mode: ``-n`` alone sets one, too."""
    arguments = (*config.invocation_params.args, *shlex.split(os.environ.get("PYTEST_ADDOPTS", "")))
    arguments += tuple(config.getini("addopts"))
    return any(argument == "-d" or argument.startswith("--dist") for argument in map(str, arguments))


def distribute_over_places(config: pytest.Config) -> None:
    """Make xdist start the workers that ``--tx`` names, for which it also requires ``--dist``."""
    if is_worker(config):  # it has the option, too, and would start workers of its own
        return
    if config.getoption("tx", None) and config.getoption("dist", "no") == "no" and not dist_was_chosen(config):
        config.option.dist = "load"


def skip_reason(item: pytest.Item) -> str | None:
    """Return the reason of pytest's markers ``skip`` and ``skipif``; None if they do not skip the test."""
    from _pytest.skipping import evaluate_skip_marks

    try:
        found = evaluate_skip_marks(item)
    except pytest.fail.Exception:  # its condition is invalid: the test will fail
        return None
    return found.reason if found else None


def add_section_to_failure(failure: object, title: str, content: str) -> bool:
    """Add a section to the text of a failure, as `report.longrepr` has it. Return False if it is no such text."""
    from _pytest._code.code import ExceptionRepr

    if not isinstance(failure, ExceptionRepr):
        return False
    failure.addsection(title, content)
    return True


def worker_input(config: pytest.Config) -> Mapping[str, Any]:
    """Return the input of this worker from xdist's controller; empty in any other process."""
    return cast(Mapping[str, Any], getattr(config, "workerinput", {}))


def set_worker_input(node: Any, key: str, value: object) -> None:
    """Give a worker that has not been started yet a value, which `worker_input` returns there."""
    node.workerinput[key] = value


def open_channel(node: Any, key: str) -> Any:
    """Open a channel of execnet's to a worker that has not been started yet. `worker_input` returns its other end."""
    channel = node.workerinput[key] = node.gateway.newchannel()
    return channel


def set_worker_output(config: pytest.Config, key: str, value: object) -> None:
    """Send a value with the last message of this worker."""
    cast(Any, config).workeroutput[key] = value


def worker_output(node: Any) -> Mapping[str, Any]:
    """Return what a worker that has ended has sent with its last message; empty if it has crashed."""
    return cast(Mapping[str, Any], getattr(node, "workeroutput", {}))


def worker_name(config: pytest.Config) -> str | None:
    """Return the name of this worker, such as ``gw0``; None in any other process."""
    return str(cast(Any, config).workerinput["workerid"]) if is_worker(config) else None


def shared_run_id(config: pytest.Config) -> str | None:
    """Return xdist's run id, which all workers share; None in any other process."""
    return str(cast(Any, config).workerinput["testrunuid"]) if is_worker(config) else None


def run_id_of(node: Any) -> str:
    """Return xdist's run id, which a controller gives this worker and all others."""
    return str(node.workerinput["testrunuid"])


def worker_count(config: pytest.Config) -> int:
    """Return the number of workers in the run of this worker."""
    return int(worker_input(config)["workercount"])


def number_of_workers(config: pytest.Config) -> int:
    """Return the number of workers that this controller starts."""
    from xdist import workermanage

    # Before version 3.7 it had another name.
    parse = getattr(workermanage, "parse_tx_spec_config", None) or workermanage.parse_spec_config
    return len(parse(config))


def numbers_of_workers(config: pytest.Config) -> tuple[int | None, int]:
    """Return how many workers ``-n auto`` starts by a hook of the user's, if there is one, and by xdist.

    Hooks that wrap others do so where xdist asks, as that of VS Code, which starts no more workers than tests.
    """
    xdist, ours = sys.modules["xdist.plugin"], sys.modules["pytest_propolis.plugin"]
    implementations = config.hook.pytest_xdist_auto_num_workers.get_hookimpls()
    wrapping = [each.plugin for each in implementations if each.wrapper or each.hookwrapper]
    hook = config.pluginmanager.subset_hook_caller("pytest_xdist_auto_num_workers", [xdist, ours, *wrapping])
    return hook(config=config), xdist.pytest_xdist_auto_num_workers(config)


def collection_difference(expected: Sequence[str], found: Sequence[str], *, workers: tuple[str, str]) -> str | None:
    """Return xdist's message about two workers that have collected different tests; None if they are the same."""
    from xdist.report import report_collection_diff

    return cast("str | None", report_collection_diff(expected, found, *workers))


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import many modules of this project, and of what it requires, in less time; none of the user's.

    For each module, pytest's import hook compares its path with the patterns of test files. And the garbage collector
    looks through everything several times, although modules stay.
    """
    hooks = [(index, hook) for index, hook in enumerate(sys.meta_path) if type(hook).__module__ == REWRITING_MODULE]
    was_collecting = gc.isenabled()
    gc.disable()
    for _, hook in hooks:
        sys.meta_path.remove(hook)
    try:
        yield
    finally:
        for index, hook in hooks:
            sys.meta_path.insert(index, hook)
        if was_collecting:
            gc.enable()


def drop_missing_basetemp(config: pytest.Config) -> None:
    """Let a worker on another machine have temporary directories of its own, before pytest looks for them.

    Behind a proxy, xdist names it a directory below the controller's, which that machine has not.
    """
    if is_worker(config) and config.option.basetemp and not Path(config.option.basetemp).parent.is_dir():
        config.option.basetemp = None


def terminal_reporter(config: pytest.Config) -> pytest.TerminalReporter | None:
    """Return what writes to the terminal; None if there is nothing, as with ``-p no:terminal``."""
    return cast("pytest.TerminalReporter | None", config.pluginmanager.get_plugin("terminalreporter"))


def without_capture(config: pytest.Config) -> AbstractContextManager[None]:
    """Let output through that pytest would capture, for the length of a block."""
    capture = config.pluginmanager.get_plugin("capturemanager")
    return cast("AbstractContextManager[None]", capture.global_and_fixture_disabled()) if capture else nullcontext()


@contextlib.contextmanager
def with_standard_input(config: pytest.Config) -> Iterator[None]:
    """Open the terminal's own standard input, which pytest's capturing replaces, for the length of a block."""
    capture = config.pluginmanager.get_plugin("capturemanager")
    if capture is None:
        yield
        return
    capture.suspend_global_capture(in_=True)
    try:
        yield
    finally:
        capture.resume_global_capture()


def number_of_tests(config: pytest.Config) -> int:
    """Return how many tests this process has collected; 0 before the session starts."""
    return int(getattr(config.pluginmanager.get_plugin("session"), "testscollected", 0))


def parameter_of(item: pytest.Item, name: str) -> Any:
    """Return the value of a test's parameter; None if it has no such parameter."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get(name) if callspec else None


def base_temporary_directory(config: pytest.Config) -> Path:
    """Return the parent of pytest's ``tmp_path`` directories, in a process without fixtures."""
    return cast(Path, cast(Any, config)._tmp_path_factory.getbasetemp())


def call_in_controller(config: pytest.Config, function: Callable[[], None], *, delay_s: float) -> bool:
    """Call a function in the thread of xdist's controller, between two events, after a delay.

    Its loop waits only for events of workers, so this adds one. Return False if there is no such loop.
    """
    session = config.pluginmanager.get_plugin("dsession")
    if session is None:
        return False
    session.worker_propolis_call = lambda function: function()
    event = ("propolis_call", {"function": function})
    if not delay_s:  # in the order in which events come
        session.queue.put(event)
        return True
    timer = threading.Timer(delay_s, session.queue.put, [event])
    timer.daemon = True
    timer.start()
    return True


def local_process(node: Any) -> Popen[bytes] | None:
    """Return the process of one of xdist's workers; None for a worker on another machine.

    execnet exposes it only through the gateway's input and output.
    """
    return cast("Popen[bytes] | None", getattr(getattr(node.gateway, "_io", None), "popen", None))


def run_phases(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    """Run a test with its fixtures, and return the reports of its phases without passing them to pytest."""
    from _pytest.runner import runtestprotocol

    return runtestprotocol(item, log=False, nextitem=nextitem)


def prepare_again(item: pytest.Item) -> None:
    """Prepare a test that has run to run once more, with new fixtures."""
    cast(Any, item)._initrequest()


def tear_down_everything(session: pytest.Session) -> None:
    """Run all pending finalizers. Raise the error of the first one that fails."""
    session._setupstate.teardown_exact(None)


def is_cancelling_a_test() -> bool:
    """Return whether Ctrl-C is currently cancelling a test in its event loop: another one would not let it finish.

    A Ctrl-C at the terminal reaches a worker of xdist's directly, and then once more through the controller. That it
    has come is known to `asyncio.Runner` alone, whose handler takes the place of Python's own.
    """
    runner = getattr(getattr(signal.getsignal(signal.SIGINT), "func", None), "__self__", None)
    return bool(getattr(runner, "_interrupt_count", 0))


def fixture_functions(item: pytest.Function) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Return the names and functions of all fixtures that a test is known at collection to use."""
    for name, definitions in item._fixtureinfo.name2fixturedefs.items():
        yield name, definitions[-1].func


def uses_fixture(item: pytest.Item, name: str, function: Callable[..., Any]) -> bool:
    """Return whether a test is known to use this function's fixture, possibly through fixtures that override it."""
    info = getattr(item, "_fixtureinfo", None)
    for definition in reversed(info.name2fixturedefs.get(name, ()) if info else ()):
        if inspect.unwrap(definition.func) is function:
            return True
        if name not in definition.argnames:
            return False
    return False


def test_of(request: pytest.FixtureRequest) -> pytest.Item:
    """Return the test for which a fixture of any scope is set up. For a wider scope `request.node` is no test."""
    return request._pyfuncitem


def set_loop_scope(fixture_function: Callable[..., Any], scope: str) -> None:
    """Make pytest-asyncio run a fixture in the event loop of this scope.

    It reads the scope from the fixture function when the fixture is set up.
    """
    vars(fixture_function)["_loop_scope"] = scope

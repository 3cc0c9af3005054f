"""The pytest plugin: every hook calls one function elsewhere. Nothing but the standard library, pluggy and pytest is
imported with this module, because pytest imports it before every run and every discovery."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from . import hookspecs
from .errors import SettingsError
from .settings import OPTIONS, Settings


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("propolis", "virtual machines (pytest-propolis)")
    for option in OPTIONS:
        takes: dict[str, Any] = {"metavar": option.metavar}
        if not option.metavar:
            takes = {"action": "store_const", "const": "yes"}
        group.addoption(option.flag, dest=option.ini_key, default=None, help=option.help, **takes)
        parser.addini(option.ini_key, help=option.help, default="")


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("asyncio"):
        raise pytest.UsageError("pytest-propolis needs the plugin pytest-asyncio: do not block it, or give -p asyncio")
    try:
        settings = Settings.resolve(
            command_line={option.name: config.getoption(option.ini_key) for option in OPTIONS},
            ini={option.name: config.getini(option.ini_key) for option in OPTIONS},
        )
    except SettingsError as error:
        raise pytest.UsageError(str(error)) from None
    from .fixtures import disks, test_vm, vm_factory
    from .markers import cold_boot
    from .session import run

    config.addinivalue_line("markers", cold_boot.DESCRIPTION)

    config.stash[run.SETTINGS] = settings
    for module in (run, disks, vm_factory, test_vm):
        config.pluginmanager.register(module, f"propolis-{module.__name__.rpartition('.')[2]}")
    from .session.end_of_run import EndOfRun, WorkersEnd

    in_worker = hasattr(config, "workerinput")
    config.pluginmanager.register(WorkersEnd() if in_worker else EndOfRun(), "propolis-end-of-run")
    distributed = config.getoption("numprocesses", None) or config.getoption("dist", "no") != "no"
    if settings.pause_on_failure and distributed and not in_worker:
        raise pytest.UsageError("--propolis-pause-on-failure needs a terminal, which the workers of -n have not")
    _prepare_for_interruption(config)


def _prepare_for_interruption(config: pytest.Config) -> None:
    from .session.progress import line_printer
    from .session.signals import INTERRUPTION, Interruption

    interruption = config.stash[INTERRUPTION] = Interruption(line_printer(config))
    interruption.letting_go.append(_leave_to_agents)
    config.add_cleanup(interruption.restore)
    if hasattr(config, "workerinput"):
        from .distribution.interruption import CONTROLLER_PATIENCE_S

        interruption.patience_s = CONTROLLER_PATIENCE_S
    elif config.getoption("numprocesses", None):
        from .distribution.interruption import WorkerInterrupter

        workers = WorkerInterrupter()
        config.pluginmanager.register(workers, "propolis-interruption")
        interruption.letting_go.append(workers.let_go)
        interruption.breaks_waits = False


def _leave_to_agents() -> int:
    from .hosts.abandonment import abandon_to_agents

    return abandon_to_agents()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    from .session.signals import INTERRUPTION

    with session.config.stash[INTERRUPTION].listening():
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, Any, Any]:
    """Inside the wrapper that writes the summary, and round what tears the fixtures down."""
    from .session.signals import INTERRUPTION

    return (yield from session.config.stash[INTERRUPTION].finish(session))


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, name: str, obj: object
) -> Generator[None, Any, Any]:
    """Inside pytest-asyncio's own wrapper, which turns the marked functions into its items."""
    made = yield
    from .fixtures.event_loops import mark_async_tests

    mark_async_tests(made if isinstance(made, list) else [made])
    return made


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    from .fixtures.event_loops import follow_test_loop

    follow_test_loop(fixturedef, request)
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Outermost, so that it is known whether a failure was expected."""
    from .report.traceback import shorten

    if call.excinfo and not item.config.getoption("fulltrace"):
        shorten(call.excinfo)
    report = yield
    from .report.failure import add_sections
    from .session.retention import RETENTION_POLICY

    if keeper := item.config.stash.get(RETENTION_POLICY, None):
        keeper.note(item, report)
    add_sections(item, call.excinfo, report)
    return report

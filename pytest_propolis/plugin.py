"""The pytest plugin: every hook calls one function elsewhere. Nothing but the standard library, pluggy and pytest is
imported with this module, because pytest imports it before every run and every discovery."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

from . import hookspecs
from .settings import OPTIONS, Settings


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("propolis", "virtual machines (pytest-propolis)")
    for option in OPTIONS:
        takes: dict[str, Any] = {"metavar": option.metavar}
        if not option.metavar:
            takes = {"action": "store_const", "const": "yes"}
        group.addoption(option.flag, dest=option.ini_key, default=None, help=option.description, **takes)
        parser.addini(option.ini_key, help=option.description, default="")


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Run before pytest parses the whole command line, so that plugins loaded here can add options."""
    from .session.internals import load_pytest_asyncio

    load_pytest_asyncio(early_config.pluginmanager)


def pytest_configure(config: pytest.Config) -> None:
    from .session.internals import drop_missing_basetemp, has_pytest_asyncio, is_controller, is_worker

    drop_missing_basetemp(config)
    if not has_pytest_asyncio(config.pluginmanager):
        raise pytest.UsageError(
            "pytest-propolis needs the plugin pytest-asyncio: do not block it (-p no:asyncio), "
            "or give -p pytest_asyncio.plugin where this plugin is loaded by a conftest.py"
        )
    settings = _settings(config)
    if settings.pause_on_failure and is_controller(config):
        raise pytest.UsageError("--propolis-pause-on-failure needs a terminal, which the workers of xdist have not")
    from .distribution.interruption import interruption_for
    from .fixtures import plugin as fixtures
    from .markers.declarations import descriptions
    from .session.stash import INTERRUPTION, SETTINGS
    from .session.teardown import RunTeardown, WorkerTeardown

    for description in descriptions():
        config.addinivalue_line("markers", description)
    config.stash[SETTINGS] = settings
    config.pluginmanager.register(fixtures, "propolis-fixtures")
    config.pluginmanager.register(WorkerTeardown() if is_worker(config) else RunTeardown(), "propolis-teardown")
    if settings.linger:
        from .session.internals import quick_imports

        with quick_imports():
            from .session.lingering import PinnedEnvironment

        config.pluginmanager.register(PinnedEnvironment(), "propolis-lingering")
    if settings.hosts is not None:
        from .distribution.placing import place_tests

        place_tests(config)
    if settings.shard is not None:
        from .distribution.sharding import shard_tests

        shard_tests(config)
    if not is_worker(config) and not config.option.collectonly:
        _configure_run(config, settings)
    interruption = config.stash[INTERRUPTION] = interruption_for(config)
    config.add_cleanup(interruption.restore)


def _configure_run(config: pytest.Config, settings: Settings) -> None:
    """Register what a run has once, in the process that has the terminal."""
    if settings.hosts is not None or settings.listen is not None:
        from .session.joining import JoinedHosts

        JoinedHosts.register(config, settings)
    if settings.leases is not None:
        from .distribution.leases.host_leases import HostLeases

        config.pluginmanager.register(HostLeases(config, settings.leases), "propolis-leases")
    if settings.write_durations is not None:
        from .distribution.durations_recorder import DurationsRecorder

        config.pluginmanager.register(DurationsRecorder(settings.write_durations), "propolis-durations")
    from .distribution.status_activation import publish_status

    publish_status(config)


def pytest_report_header(config: pytest.Config) -> str | None:
    from .session.stash import SETTINGS
    from .settings import ENGINE

    server = config.stash[SETTINGS].server
    return None if server == ENGINE else f"propolis: VMs are served by {server}: all of them boot from cold"


def _settings(config: pytest.Config) -> Settings:
    from .session.ini_file import ini_directory, ini_values

    try:
        return Settings.resolve(
            command_line={option.name: config.getoption(option.ini_key) for option in OPTIONS},
            ini=ini_values(config),
            ini_directory=ini_directory(config),
        )
    except Exception as error:
        from .errors import SettingsError  # here, because most runs have none

        if isinstance(error, SettingsError):
            raise pytest.UsageError(str(error)) from None
        raise


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Before the plugin is configured."""
    if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return None
    from .distribution.placing import wanted_workers

    return wanted_workers(config, _settings(config))


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Before xdist looks whether it distributes tests."""
    from .session.internals import distribute_over_places

    if _settings(config).hosts is not None:
        distribute_over_places(config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    from .session.stash import INTERRUPTION

    with session.config.stash[INTERRUPTION].listening():
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, Any, Any]:
    """Inside the wrapper that writes the summary, and round what tears the fixtures down."""
    from .session.stash import INTERRUPTION

    return (yield from session.config.stash[INTERRUPTION].finish(session))


@pytest.hookimpl(wrapper=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Generator[None, None, None]:
    """Before pytest-asyncio, which parametrizes the tests that are marked by then with their loop factories."""
    from .markers.declarations import MARKERS

    if any(marker.name in MARKERS for marker in metafunc.definition.iter_markers()):
        from .markers.requirements import parametrize_guests

        parametrize_guests(metafunc)
    from .fixtures.event_loops import mark_async_tests

    mark_async_tests([metafunc.definition])
    return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, name: str, obj: object
) -> Generator[None, Any, Any]:
    """Inside pytest-asyncio's own wrapper, which turns the marked functions into its items."""
    made = yield
    from .fixtures.event_loops import mark_async_tests

    mark_async_tests(made if isinstance(made, list) else [made])
    return made


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture: a test that no host can run, or that cannot await its VMs, starts nothing."""
    from .session.stash import FAILURE, RUNNING_TEST

    item.config.stash[RUNNING_TEST] = item.nodeid
    if FAILURE in item.stash:  # of an attempt before this one
        del item.stash[FAILURE]
    if "propolis" in getattr(item, "fixturenames", ()):
        from .markers.requirements import unmet

        if obstacle := unmet(item):
            pytest.skip(str(obstacle))
        from .fixtures.event_loops import require_async_user

        require_async_user(item)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    from .fixtures.event_loops import follow_test_loop

    follow_test_loop(fixturedef, request)
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    """Before pytest's own, which enters the debugger."""
    from .session.guard import guarded

    with guarded(node.config, "showing the VMs of a failed test"):
        from .report.failure import print_vms_for_debugger

        print_vms_for_debugger(node)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Outermost, so that it is known whether a failure was expected."""
    from .session.guard import guarded

    if call.excinfo and not item.config.getoption("fulltrace"):
        from .report.traceback import shorten

        with guarded(item.config, "shortening a traceback"):
            shorten(call.excinfo)
    report = yield
    from .session.stash import FAILURE, FORKS, HOSTS, KERNEL_WATCH, RETENTION_POLICY, VMS

    if call.excinfo and report.failed:
        item.stash[FAILURE] = call.excinfo.exconly(tryshort=True).partition("\n")[0]

    if any(host.was_up for host in item.config.stash.get(HOSTS, ())):
        from .distribution.run_events import VMS_ATTRIBUTE
        from .distribution.status_activation import FORKS_ATTRIBUTE
        from .session.internals import worker_name

        setattr(report, VMS_ATTRIBUTE, True)
        setattr(report, FORKS_ATTRIBUTE, (worker_name(item.config) or "", item.config.stash.get(FORKS, 0)))
    if policy := item.config.stash.get(RETENTION_POLICY, None):
        with guarded(item.config, "deciding which VMs stay"):
            policy.note(item, report)
    if watch := item.config.stash.get(KERNEL_WATCH, None):
        with guarded(item.config, "collecting failures of kernels"):
            watch.collect(item)
    if VMS in item.stash or watch:
        from .session.internals import quick_imports

        with quick_imports():
            from .report.failure import add_sections

        with guarded(item.config, "describing the VMs of a failed test"):
            add_sections(item, call.excinfo, report)
    return report

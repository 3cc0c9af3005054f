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
        group.addoption(option.flag, dest=option.ini_key, metavar=option.metavar, default=None, help=option.help)
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
    from .fixtures import run, test_vm, vm_factory
    from .markers import cold_boot

    config.addinivalue_line("markers", cold_boot.DESCRIPTION)

    config.stash[run.SETTINGS] = settings
    for module in (run, vm_factory, test_vm):
        config.pluginmanager.register(module, f"propolis-{module.__name__.rpartition('.')[2]}")
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        from .distribution.interruption import WorkerInterrupter

        config.pluginmanager.register(WorkerInterrupter(), "propolis-interruption")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    from .report.signals import interrupting

    with interrupting():
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, name: str, obj: object
) -> Generator[None, Any, Any]:
    """Inside pytest-asyncio's own wrapper, which turns the marked functions into its items."""
    made = yield
    from .fixtures.async_tests import mark_async_tests

    mark_async_tests(made if isinstance(made, list) else [made])
    return made


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    from .fixtures.async_tests import follow_test_loop

    follow_test_loop(fixturedef, request)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    from .report.failure import add_sections

    add_sections(item, report)
    return report

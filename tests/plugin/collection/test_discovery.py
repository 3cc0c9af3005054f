"""Discovery, as an IDE does it on every keystroke: it starts nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from inner_run import InnerRun

TESTS = """
import pytest

async def test_plain(test_vm): ...

def test_synchronous(): ...

class TestMany:
    @pytest.mark.parametrize("count", [1, 2])
    async def test_parametrized(self, vm_factory, count): ...

@pytest.mark.asyncio(loop_scope="module")
async def test_marked(test_vm): ...
"""

# Loaded before all else: says what the run does to the machine, beyond reading files, and which packages it imports.
AUDIT = """
import json, pathlib, sys

WATCHED = ("subprocess.", "os.posix_spawn", "os.fork", "os.exec", "os.system", "socket.", "os.mkdir")
events = []

def watch(event, arguments):
    if event.startswith(WATCHED):
        events.append(f"{event} {arguments}")

sys.addaudithook(watch)

def pytest_unconfigure():
    packages = {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names - {"pytest_propolis"}
    events.extend(f"import {name}" for name in sorted(packages))
    pathlib.Path("audit.json").write_text(json.dumps(events))
"""

FOREIGN = """
import pytest

collected = []

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    collected.extend(items)

@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    assert [item.nodeid for item in collected] == [item.nodeid for item in session.items]
"""


def discover(inner: InnerRun, *arguments: str) -> tuple[list[str], list[str]]:
    """Return the collected node ids, and the changes to the machine."""
    result = inner.plain("-p", "audit", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments)
    assert result.ret == 0
    ids = [line for line in result.outlines if "::" in line]
    return ids, json.loads((inner.pytester.path / "audit.json").read_text())


@pytest.mark.parametrize("autoload", [True, False], ids=["autoload", "no-autoload"])
@pytest.mark.parametrize("first", [(), ("-p", "foreign")], ids=["alone", "foreign-plugin-first"])
def test_discovery_touches_nothing_and_changes_no_node_id(
    inner: InnerRun, monkeypatch: pytest.MonkeyPatch, first: tuple[str, ...], autoload: bool
) -> None:
    inner.write(test_it=TESTS, audit=AUDIT, foreign=FOREIGN)
    if not autoload:
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    with_plugin, done_with = discover(inner, *first, "-p", "no:randomly", "-p", "asyncio", "-p", "propolis")
    without, done_without = discover(inner, *first, "-p", "no:randomly", "-p", "asyncio", "-p", "no:propolis")
    assert len(with_plugin) == 5
    assert with_plugin == without
    assert done_with == done_without
    assert not (inner.runtime / "propolis").exists()


def test_the_audit_sees_a_directory_and_a_process(inner: InnerRun) -> None:
    inner.write(
        test_it="import os, subprocess\nos.mkdir('made')\nsubprocess.run(['true'])\ndef test_one(): ...", audit=AUDIT
    )
    _, done = discover(inner)
    assert any(event.startswith("os.mkdir ('made'") for event in done)
    assert any(event.startswith("subprocess.Popen") for event in done)


def test_importing_the_plugin_imports_nothing_heavy() -> None:
    script = (
        "import sys, json, pluggy, pytest; before = set(sys.modules); import pytest_propolis.plugin;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    roots = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert "pytest_propolis" in roots
    assert roots - sys.stdlib_module_names == {"pytest_propolis"}


def test_without_pytest_asyncio_the_run_says_what_is_missing(inner: InnerRun) -> None:
    inner.write(test_it="def test_one(): ...")
    result = inner.run("-p", "no:asyncio")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *needs the plugin pytest-asyncio*"])


WHILE_STARTING = """
import sys

async def test_it(propolis):
    assert "pytest_propolis.vm.factory" not in sys.modules
    await propolis.start_agent()
    assert "pytest_propolis.vm.factory" in sys.modules
    assert propolis.host.is_up
"""


def test_the_modules_for_vms_are_imported_while_the_agent_starts(inner: InnerRun) -> None:
    inner.write(test_it=WHILE_STARTING)
    inner.run("-p", "asyncio", "--asyncio-mode=auto").assert_outcomes(passed=1)


# Says for which modules pytest's import hook was asked.
HOOKED = """
import pathlib

from _pytest.assertion.rewrite import AssertionRewritingHook

find, asked = AssertionRewritingHook.find_spec, []

def find_spec(self, name, path=None, target=None):
    asked.append(name)
    return find(self, name, path, target)

AssertionRewritingHook.find_spec = find_spec

def pytest_unconfigure():
    pathlib.Path("asked").write_text(" ".join(asked))
"""


def test_the_modules_for_vms_are_imported_without_pytests_import_hook(inner: InnerRun) -> None:
    inner.write(conftest=HOOKED, test_it="async def test_it(vm_factory): ...")
    inner.run("-p", "asyncio", "--asyncio-mode=auto").assert_outcomes(passed=1)
    asked = Path("asked").read_text().split()
    assert "test_it" in asked
    packages = {".".join(name.split(".")[:2]) for name in asked}
    layers = ("agent_api", "console", "guests", "hosts", "ledger", "propolis_api", "report", "storage", "vm")
    assert packages & {"h11", "msgspec", "websockets", *(f"pytest_propolis.{layer}" for layer in layers)} == set()

"""The documentation covers every public name."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import click
import pytest

from pytest_propolis import errors, hookspecs
from pytest_propolis.cli.main import propolis
from pytest_propolis.settings import OPTIONS, Option, Settings
from pytest_propolis.vm.config import FirmwareKind

ROOT = Path(__file__).parents[2]
PACKAGE = "pytest_propolis"
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
HOOKS = (ROOT / "docs" / "plugin_hooks.md").read_text()
HARDWARE = (ROOT / "docs" / "hardware.md").read_text()
GUESTS = (ROOT / "docs" / "guests.md").read_text()
ERRORS = (ROOT / "docs" / "errors.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def hooks() -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("pytest_")]


@pytest.mark.parametrize("name", hooks())
def test_a_hook_is_documented_under_its_exact_signature(name: str) -> None:
    signature = str(inspect.signature(getattr(hookspecs, name))).replace("'", "")
    assert f"\n## `{name}{signature}`\n" in HOOKS


def test_every_documented_hook_exists() -> None:
    assert re.findall(r"^## `(\w+)", HOOKS, re.MULTILINE) == hooks()


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_an_option_is_in_the_reference_with_its_default(option: Option) -> None:
    row = f"| `{option.usage}` | `{option.ini_key}` | `{option.variable}` | "
    default = getattr(Settings(), option.name)
    assert row + ("" if default is None else f"`{default}` |") in REFERENCE


def test_every_fixture_is_in_the_reference() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "propolis", "--fixtures", "-q", ROOT / "docs"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    ).stdout
    fixtures = re.findall(r"^(\w+)(?: \[\w+ scope\])? -- \S*pytest_propolis/", listed, re.MULTILINE)
    assert {"test_vm", "vm_factory", "propolis"} <= set(fixtures)
    assert [name for name in fixtures if f"| `{name}` |" not in REFERENCE] == []


@pytest.mark.parametrize("name", propolis.list_commands(click.Context(propolis)))
def test_a_command_is_in_the_reference(name: str) -> None:
    assert f"`propolis {name}" in REFERENCE


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_is_documented(name: str) -> None:
    assert re.search(rf"^[│├└─ ]*{name}\b", ERRORS, re.MULTILINE)


@pytest.mark.parametrize("kind", get_args(FirmwareKind))
def test_a_firmware_has_a_row_that_says_what_boots_the_guest(kind: str) -> None:
    assert re.search(rf'^\| `"{kind}"` \| .+ \|$', HARDWARE, re.MULTILINE)


@pytest.mark.parametrize("state", ["/etc/machine-id", "/proc/sys/kernel/random/boot_id"])
def test_the_state_that_forks_share_is_documented(state: str) -> None:
    _, _, shared = GUESTS.partition("\n## Shared state of forks\n")
    assert f"`{state}`" in shared.partition("\n## ")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_architecture_lists_the_layers_in_the_order_that_import_linter_checks() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    checked = [name for layer in contracts[0]["layers"] for name in layer.split(" | ")]
    _, _, table = ARCHITECTURE.partition("| layer | what it does |\n|---|---|\n")
    rows = table.partition("\n\n")[0].splitlines()
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])] == checked


def test_modules_that_the_architecture_names_exist() -> None:
    named = set(re.findall(r"`([a-z_/]+\.py)`", ARCHITECTURE))
    assert [path for path in sorted(named) if not any((ROOT / base / path).exists() for base in (".", PACKAGE))] == []


@pytest.mark.parametrize(
    ("name", "path"), re.findall(r"`(\w+)` in `([a-z_/]+\.py)`", ARCHITECTURE.partition("## Where to add what")[2])
)
def test_a_registry_that_the_architecture_names_is_defined_there(name: str, path: str) -> None:
    assert re.search(rf"^(class )?{name}\b", (ROOT / PACKAGE / path).read_text(), re.MULTILINE)


def test_an_installation_without_extras_can_read_the_configuration_of_a_clone() -> None:
    """``./run examples`` does: `propolis setup` has pytest load it."""
    for path in ("conftest.py", "tests/conftest.py", "example_tests/conftest.py"):
        body = ast.parse((ROOT / path).read_text()).body if (ROOT / path).exists() else []
        imported = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
        imported += [node.module or "" for node in body if isinstance(node, ast.ImportFrom)]
        roots = {name.partition(".")[0] for name in imported}
        assert roots <= {*sys.stdlib_module_names, "pytest", "pytest_asyncio", "pytest_propolis"}, path

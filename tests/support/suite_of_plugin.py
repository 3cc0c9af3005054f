"""Run the own tests of pytest-xdist or pytest-asyncio without this plugin, with it, and with hosts.

The tests are those of the source distribution of the installed version. They take some minutes for each of the three.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple
from xml.etree import ElementTree

VARIANTS: Final[dict[str, dict[str, str]]] = {
    "without the plugin": {},
    "with the plugin": {},
    "with hosts": {"PROPOLIS_HOSTS": "local:2"},
}
"""What is in the environment, which the runs of pytest inside the tests inherit. The first one has a Python of its own:
pytest's ``pytester`` forgets what would block a plugin that is installed."""


class Suite(NamedTuple):
    """The tests of another plugin: their directory in its source distribution, and what they need."""

    directory: str
    requirements: tuple[str, ...]


SUITES: Final[dict[str, Suite]] = {
    "pytest-asyncio": Suite("tests", ("pytest", "pytest-asyncio", "hypothesis")),
    "pytest-xdist": Suite("testing", ("pytest", "pytest-xdist", "execnet", "filelock")),
}
TIMEOUT_S: Final = 3600.0

MEANT: Final = frozenset(
    {
        ("with hosts", "testing.test_plugin::test_auto_detect_cpus"),
        ("with hosts", "testing.test_plugin::test_auto_detect_cpus_os"),
        ("with hosts", "testing.test_plugin::test_hook_auto_num_workers_none"),
    }
)
"""Tests that are to fail: with an inventory, ``-n auto`` starts a worker per slot (docs/hosts.md)."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Other arguments are for pytest, such as -k EXPRESSION."
    )
    parser.add_argument("plugin", choices=sorted(SUITES))
    parser.add_argument("--directory", type=Path, help="of the source distribution, kept; default: temporary")
    parser.add_argument("--only", choices=sorted(VARIANTS), action="append", help="default: all")
    given, arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="suite-of-plugin-") as temporary:
        source = unpacked(given.plugin, given.directory or Path(temporary))
        outcomes = {name: run(source, SUITES[given.plugin], name, arguments) for name in given.only or VARIANTS}
    return compare(outcomes)


def unpacked(plugin: str, directory: Path) -> Path:
    """Return the directory of the source distribution, which is fetched if it is not there."""
    name = f"{plugin.replace('-', '_')}-{version(plugin)}"
    if not (directory / name).is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        fetch = [
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            plugin,
            "-d",
            str(directory),
            f"{plugin}=={version(plugin)}",
        ]
        subprocess.run([sys.executable, "-m", "pip", *fetch], check=True)
        with tarfile.open(directory / f"{name}.tar.gz") as archive:
            archive.extractall(directory, filter="data")
    return directory / name


def python(directory: Path, suite: Suite, variant: str) -> str:
    """Return the Python that runs the tests: this one, or one with the same versions and without the plugin."""
    if variant != "without the plugin":
        return sys.executable
    environment = directory / "environment"
    if not environment.is_dir():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        pinned = [f"{name}=={version(name)}" for name in suite.requirements]
        subprocess.run([environment / "bin/python", "-m", "pip", "install", "-q", *pinned], check=True)
    return str(environment / "bin/python")


def run(source: Path, suite: Suite, variant: str, arguments: list[str]) -> dict[str, str]:
    """Run the tests, and return the outcome of each."""
    report = source.parent / f"{variant.replace(' ', '-')}.xml"
    # Without compiled modules, each of the hundreds of runs would compile the plugin anew.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    # The default directory is one of those that other runs of pytest remove.
    options = [f"--junitxml={report}", f"--basetemp={report.with_suffix('.tmp')}", *arguments]
    subprocess.run(
        [python(source.parent, suite, variant), "-m", "pytest", "-q", suite.directory, *options],
        cwd=source,
        env={**environment, **VARIANTS[variant]},
        check=False,
        timeout=TIMEOUT_S,
    )
    return {
        f"{case.get('classname')}::{case.get('name')}": next(
            (child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed"
        )
        for case in ElementTree.parse(report).iter("testcase")
    }


def compare(outcomes: dict[str, dict[str, str]]) -> int:
    """Write how many tests passed, and which pass in the first variant alone unmeant; return 1 if there are any."""
    base, *others = outcomes
    lines = []
    for name, found in outcomes.items():
        counts = Counter(found.values())
        lines.append(f"{name}: " + ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())))
    for name in others:
        for test, outcome in outcomes[name].items():
            if outcome != "passed" and outcomes[base].get(test) == "passed" and (name, test) not in MEANT:
                lines.append(f"{name}, {outcome}: {test}")
    sys.stdout.write("\n".join([*lines, ""]))
    return 1 if len(lines) > len(outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())

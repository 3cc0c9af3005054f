"""The agent can import every module that pytest's process can, however it was made importable."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from inner_run import InnerRun

import pytest_propolis

pytestmark = pytest.mark.usefixtures("no_autoload")

BARE = sys._base_executable  # type: ignore[attr-defined]
ARGUMENTS = ["-q", "-p", "propolis", "-p", "no:cacheprovider", "test_it.py"]

CHANGES_DIRECTORY = """
async def test_it(tmp_path, monkeypatch, test_vm):
    monkeypatch.chdir(tmp_path)
    assert await test_vm.run("echo hello") == "hello"
"""

STARTS_ELSEWHERE = """
import os, pytest

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

async def test_it(vm_factory):
    assert await (await vm_factory.start()).run("echo hello") == "hello"
"""


@pytest.fixture
def project(inner: InnerRun, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose modules lie in ``vendor0`` and ``vendor1``, and not where an interpreter finds them itself."""
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        monkeypatch.delenv(name, raising=False)
    if (
        subprocess.run([BARE, "-c", "import pytest_propolis"], cwd="/", capture_output=True, check=False).returncode
        == 0
    ):
        pytest.skip("needs a virtual environment whose base interpreter lacks the plugin")
    inner.pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    for number, module in enumerate((pytest_propolis, pytest)):
        (inner.pytester.path / f"vendor{number}").symlink_to(Path(str(module.__file__)).parents[1])
    return inner.pytester.path


def run(command: list[str], **environment: str) -> None:
    variables = {**os.environ, **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_a_relative_search_path(inner: InnerRun, project: Path) -> None:
    inner.write(test_it=CHANGES_DIRECTORY)
    run([BARE, "-m", "pytest", *ARGUMENTS], PYTHONPATH="vendor0:vendor1")


def test_a_relative_search_path_and_a_test_that_works_elsewhere(inner: InnerRun, project: Path) -> None:
    inner.write(test_it=STARTS_ELSEWHERE)
    run([BARE, "-m", "pytest", *ARGUMENTS], PYTHONPATH="vendor0:vendor1")


def test_a_launcher_that_fills_the_search_path_itself(inner: InnerRun, project: Path) -> None:
    inner.write(
        test_it=CHANGES_DIRECTORY,
        launch="import sys\nsys.path[:0] = ['vendor0', 'vendor1']\nimport pytest\n"
        f"sys.exit(pytest.main({ARGUMENTS!r}))\n",
    )
    run([BARE, "launch.py"])


APPLICATION = """
import sys
sys.path.append("vendor1")
import pytest, pytest_propolis
assert "app.pyz" in pytest_propolis.__file__
sys.exit(pytest.main())
"""


def test_a_zip_application_and_its_workers(inner: InnerRun, project: Path) -> None:
    inner.write(test_it=CHANGES_DIRECTORY)
    with zipfile.ZipFile(project / "app.pyz", "w") as archive:
        archive.writestr("__main__.py", APPLICATION)
        package = Path(str(pytest_propolis.__file__)).parent
        for file in package.rglob("*"):
            if "__pycache__" not in file.parts:
                archive.write(file, file.relative_to(package.parent))
    run([BARE, "app.pyz", *ARGUMENTS, "-p", "xdist", "-n1"])

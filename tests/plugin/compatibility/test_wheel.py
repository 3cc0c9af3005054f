"""The wheel, as a user installs it: in an environment that has nothing of this directory."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import pytest
from environments import NoEnvironment, make_environment
from inner_run import InnerRun

ROOT: Final = Path(__file__).parents[3]

TEST: Final = """
import pytest_propolis

async def test_hello(test_vm):
    assert "site-packages" in pytest_propolis.__file__
    assert await test_vm.run("echo hello") == "hello"
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    try:
        builder = make_environment(tmp_path / "builder", ["build"])
    except NoEnvironment as error:
        pytest.skip(f"the wheel cannot be built: {error}")
    subprocess.run([builder, "-m", "build", "--outdir", tmp_path, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    return make_environment(tmp_path / "environment", [str(wheel)])


def test_a_vm_runs_from_the_installed_wheel(python: Path, inner: InnerRun) -> None:
    inner.write(test_hello=TEST)
    (inner.pytester.path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    inner.pytester.run(str(python), "-m", "pytest", "-p", "propolis").assert_outcomes(passed=1)
    version = inner.pytester.run(str(python.with_name("propolis")), "--version")
    assert version.ret == 0
    assert inner.leavings() == []

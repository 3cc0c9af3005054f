"""Run tests with the lowest and the newest versions of all dependencies, on each Python of this machine.

``python tests/support/dependency_versions.py [--only WORD] [PYTEST ARGUMENT...]``, for example
``--only 3.13-lowest tests/package``. Without arguments of pytest it runs what needs no particular machine.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

from environments import NoEnvironment, make_environment
from packaging.requirements import Requirement

ROOT: Final = Path(__file__).parents[2]
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
PACKAGES: Final = ("package", "session", "console", "agent", "storage", "plugin")
TESTS: Final = ("-n", "auto", *(f"tests/{package}" for package in PACKAGES))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD", help="such as 3.12, lowest or 3.13-newest")
    parser.add_argument(
        "--directory", type=Path, default=ROOT / ".venv" / "versions", help="where environments are made"
    )
    options, arguments = parser.parse_known_args()
    results = {
        name: _run(name, options.directory / name, arguments or list(TESTS))
        for version in PYTHONS
        for name in (f"{version}-lowest", f"{version}-newest")
        if options.only in name
    }
    for name, result in results.items():
        print(f"{name:14} {result}")
    return int(any(result not in ("passed", "no such Python") for result in results.values()))


def _run(name: str, directory: Path, arguments: list[str]) -> str:
    version, _, end = name.partition("-")
    python = _find_python(version)
    if python is None:
        return "no such Python"
    requirements = ["--editable", f"{ROOT}[ssh,iso,test]", *(_lowest_versions() if end == "lowest" else ())]
    try:
        program = make_environment(directory, requirements, python=python)
    except NoEnvironment as error:
        return f"no environment: {error}"
    status = subprocess.run([program, "-m", "pytest", *arguments], cwd=ROOT, check=False).returncode
    return "passed" if status == 0 else f"failed (status {status})"


def _lowest_versions() -> list[str]:
    """Return the lower bounds of all direct dependencies, as exact versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = map(Requirement, (*project["dependencies"], *extras["ssh"], *extras["iso"], *extras["test"]))
    return [
        f"{requirement.name}=={bound.version}"
        for requirement in requirements
        for bound in requirement.specifier
        if bound.operator == ">="
    ]


def _find_python(version: str) -> str | None:
    """Find a Python of this version that runs, including those of pyenv that are not selected."""
    versions = Path.home() / ".pyenv/versions"
    candidates = [shutil.which(f"python{version}"), *(str(path) for path in versions.glob(f"{version}.*/bin/python3"))]
    for candidate in candidates:
        if candidate and subprocess.run([candidate, "-V"], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


if __name__ == "__main__":
    sys.exit(main())

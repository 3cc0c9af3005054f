"""Schemathesis against a running engine: requests made from the OpenAPI document, right and wrong ones.

It is in a virtual environment of its own, because its dependencies are many. ``PROPOLIS_FUZZ_SECONDS`` is how long it
goes on.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Final

import openapi_document
import pytest
from environments import kept_environment
from unix_forwarder import forwarder

from pytest_propolis.vm.factory import VmFactory

openapi_document.document()  # skips where there is none

REQUIREMENT: Final = "schemathesis>=4.32,<5"
DEFAULT_S: Final = 25
DEFAULT_PROGRAM_S: Final = 10
MARGIN_S: Final = 120
ATTEMPTS: Final = 3
BROKEN_OFF: Final = "Failed to generate test cases for this API operation. Schemathesis does not support"
"""What Schemathesis says when it has come, at random, to a mutation of the document that it makes no requests of. That
tells nothing of the engine, and it begins again, with another seed."""
CHECKS: Final = (
    "nothing_unexpected_failed,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method,allow_header_conformance"
)


@pytest.fixture(scope="module")
def schemathesis(pytestconfig: pytest.Config) -> Path:
    """The program, in an environment that is made once and kept in pytest's cache."""
    return kept_environment(pytestconfig, "schemathesis-environment", [REQUIREMENT]).with_name("schemathesis")


async def test_the_engine_keeps_to_the_document_whatever_it_is_asked(
    schemathesis: Path, vm_factory: VmFactory, tmp_path: Path
) -> None:
    vm = await vm_factory.create(guest="micro", cpus=1, memory_mib=128)
    assert vm.endpoint.uds is not None
    async with forwarder(vm.endpoint.uds) as port:
        base_url = vm.endpoint.base_url.replace("http://agent", f"http://127.0.0.1:{port}")
        await _ask(schemathesis, base_url, tmp_path, seconds=DEFAULT_S)


@pytest.mark.slow
async def test_the_engine_as_a_program_keeps_to_it_over_tcp(
    schemathesis: Path, vm_factory: VmFactory, tmp_path: Path
) -> None:
    vm = await vm_factory.create(guest="micro", cpus=1, memory_mib=128, server="propolis-server-qemu")
    assert vm.endpoint.uds is None
    await _ask(schemathesis, vm.endpoint.base_url, tmp_path, seconds=DEFAULT_PROGRAM_S)


async def _ask(program: Path, base_url: str, directory: Path, *, seconds: int) -> None:
    disk = directory / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    for _ in range(ATTEMPTS):
        status, output = await _run(program, base_url, disk, seconds=seconds)
        if status == 0 or BROKEN_OFF not in output or "FAILURES" in output:
            break
    assert status == 0, output


async def _run(program: Path, base_url: str, disk: Path, *, seconds: int) -> tuple[int, str]:
    """Exit status and output of one run of Schemathesis."""
    seconds = int(os.environ.get("PROPOLIS_FUZZ_SECONDS", seconds))
    process = await asyncio.create_subprocess_exec(
        *(program, "run", openapi_document.PATH, "--url", base_url, "--no-color", "--checks", CHECKS),
        *("--max-time", str(seconds), "--request-timeout", "30", "--continue-on-failure", "--no-shrink"),
        *("--generation-database", "none", "--suppress-health-check", "all", "--phases", "coverage,fuzzing"),
        cwd=disk.parent,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
            "PYTHONPATH": str(Path(__file__).parent),
            "PROPOLIS_FUZZED_DISK": str(disk),
            "PROPOLIS_FUZZED_SERVER": base_url,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(seconds + MARGIN_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace")

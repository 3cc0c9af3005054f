"""Runs under a low limit of open files: a VM with guest ports takes many of its agent."""

from __future__ import annotations

import pytest
from inner_run import InnerRun

CONFTEST = """
import resource

soft, hard = {soft}, {hard}
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard or resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
"""

VMS = """
async def test_vms(vm_factory):
    for number in range(6):
        vm = await vm_factory.start(f"vm-{number}", memory_mib=128, cpus=1, channel="port")
        assert await vm.run("echo up") == "up"
"""


@pytest.mark.requires(server="engine")
def test_the_agent_takes_as_many_open_files_as_the_system_allows(inner: InnerRun) -> None:
    inner.write(conftest=CONFTEST.format(soft=150, hard=None), test_vms=VMS)
    inner.run("--propolis-standby", "0").assert_outcomes(passed=1)


COLD_VMS = """
async def test_vms(vm_factory):
    for number in range(6):
        vm = await vm_factory.create(f"vm-{number}", memory_mib=128, cpus=1, channel="port")
        await vm.launch()
"""


@pytest.mark.requires(server="engine")
@pytest.mark.parametrize("vms", [VMS, COLD_VMS], ids=["forks", "boots"])
def test_too_few_open_files_are_an_error_that_names_the_limit(inner: InnerRun, vms: str) -> None:
    inner.write(conftest=CONFTEST.format(soft=150, hard=150), test_vms=vms)
    inner.fails_with("*open files as it may have: 150*", arguments=("--propolis-standby", "0"))

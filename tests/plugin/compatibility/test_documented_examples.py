"""The Python blocks of the documentation behave as the surrounding text describes."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import textwrap
from pathlib import Path

import pytest
from inner_run import InnerRun

from pytest_propolis import Artifact
from pytest_propolis.guests.micro import Micro
from pytest_propolis.storage.store import ArtifactStore
from pytest_propolis.storage.user_directories import default_artifact_dir

ROOT = Path(__file__).parents[3]

SHARED_VM = """
import re
import pytest
import pytest_asyncio
from pytest_propolis import CommandTimeout

pytestmark = pytest.mark.asyncio(loop_scope="module")

@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vm(propolis):
    async with propolis.vm_factory() as factory:
        yield await factory.start(channel="auto")  # the page has examples that need guest ports
"""


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_readme_pass_but_for_the_one_that_shows_a_failure(inner: InnerRun) -> None:
    examples = blocks("README.md")
    inner.write(**{f"test_block_{number}": block for number, block in enumerate(examples)})
    result = inner.run("--tb=short")
    result.assert_outcomes(passed=7, failed=1)
    result.stdout.fnmatch_lines(
        [
            "E *CommandFailed: VM 'test-vm': 'cat /etc/motd-of-the-day' ended with status 1",
            "E *| cat: can't open '/etc/motd-of-the-day': No such file or directory",
            "*propolis VM 'test-vm'*",
            "state: *Running",
            "spec: *micro, 2 CPUs, 512 MiB, disks: none",
            "log: *test-vm.serial.log",
        ]
    )


def test_the_examples_of_the_page_on_files_pass(inner: InnerRun) -> None:
    put_and_get, error, progress = blocks("docs/files.md")
    inner.write(
        test_files_page=f"""
import pytest
from pytest_propolis import FileTransferError

async def test_page(test_vm, vm_factory, tmp_path, monkeypatch):
    vm, image = test_vm, tmp_path / "image"
    image.write_bytes(b"image")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests/data").mkdir(parents=True)
    (tmp_path / "tests/data/config.toml").write_text("")
    await vm.run("mkdir -p /etc /var/log; echo up >/var/log/messages")
{textwrap.indent(put_and_get + error + progress, "    ")}
"""
    )
    inner.run().assert_outcomes(passed=1)


def test_the_examples_of_the_shell_page_pass(inner: InnerRun) -> None:
    examples = blocks("docs/shell.md")
    tests = [
        f"async def test_block_{number}(vm, vm_factory):\n{textwrap.indent(block, '    ')}"
        for number, block in enumerate(examples)
    ]
    inner.write(test_shell_page="\n\n".join([SHARED_VM, *tests]))
    inner.run().assert_outcomes(passed=len(examples))


@pytest.mark.slow
def test_the_examples_of_the_migration_page_pass(inner: InnerRun) -> None:
    examples = blocks("docs/migration.md")
    inner.write(**{f"test_block_{number}": block for number, block in enumerate(examples)})
    inner.run().assert_outcomes(passed=len(examples))


def test_the_examples_of_the_networks_page_pass(inner: InnerRun) -> None:
    examples = blocks("docs/networks.md")
    inner.write(**{f"test_block_{number}": block for number, block in enumerate(examples)})
    inner.run().assert_outcomes(passed=len(examples))


@pytest.mark.slow
def test_the_examples_of_the_metrics_page_pass(inner: InnerRun) -> None:
    tests, fixture = blocks("docs/metrics.md")
    use = """
import pytest

@pytest.mark.asyncio(loop_scope="module")
async def test_shared(observed):
    metrics, vm = observed
    assert (await metrics.poll(vm)).resets == 0
"""
    inner.write(test_metrics_page=tests + fixture + use)
    inner.run().assert_outcomes(passed=3)


@pytest.mark.slow
def test_the_examples_of_the_hardware_page_pass(inner: InnerRun) -> None:
    examples = blocks("docs/hardware.md")
    inner.write(**{f"test_block_{number}": block for number, block in enumerate(examples)})
    inner.run().assert_outcomes(passed=len(examples))


def test_the_examples_of_the_artifacts_page_that_need_no_catalog_pass(inner: InnerRun) -> None:
    fork, disk, *_ = blocks("docs/artifacts.md")
    inner.write(test_fork=fork, test_disk=disk)
    inner.run("--propolis-guest", "alpine").assert_outcomes(passed=2)


def test_the_examples_of_the_nodes_page_pass(inner: InnerRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # where `propolis` is
    examples = blocks("docs/nodes.md")
    inner.write(**{f"test_block_{number}": block for number, block in enumerate(examples)})
    inner.run().assert_outcomes(passed=len(examples))


@pytest.mark.slow
def test_the_examples_of_the_guests_and_hooks_pages_boot_a_guest(inner: InnerRun) -> None:
    adapter, test = blocks("docs/guests.md")
    *_, vm_created = blocks("docs/plugin_hooks.md")
    files = inner.pytester.mkdir("guest_files")
    for artifact, name in ((Micro.image.kernel, "vmlinuz"), (Micro.image.initrd, "initramfs")):
        assert artifact is not None
        (files / name).symlink_to(stored(artifact))
    inner.write(conftest=f"{adapter}\n\n{vm_created}", test_tiny=test)
    result = inner.run("-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*vm boots tiny; its console goes to *vm.serial.log*"])


def stored(artifact: Artifact) -> Path:
    return asyncio.run(ArtifactStore(default_artifact_dir()).get(artifact, lambda line: None))


def test_the_examples_of_replicated_disks_pass(inner: InnerRun) -> None:
    attached, shared = blocks("docs/crucible_disks.md")
    use = "\n\nasync def test_it(disk):\n    assert disk.size_bytes == 64 << 20\n"
    module = "import pytest\nimport pytest_asyncio\n\npytestmark = pytest.mark.asyncio(loop_scope='module')\n\n"
    inner.write(test_attached=attached, test_shared=module + shared + use)
    inner.run().assert_outcomes(passed=2)

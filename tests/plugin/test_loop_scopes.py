"""The fixtures under every mode and loop scope of pytest-asyncio."""

from __future__ import annotations

import pytest
from inner_run import InnerRun

SCOPES = ("function", "class", "module", "package", "session")

USES_BOTH = """
class TestIt:
    async def test_it(self, test_vm, vm_factory):
        assert await test_vm.run("echo hello") == "hello"
        other = await vm_factory.create("other")
        await other.ensure()
        assert (await other.get_state()).value == "Creating"
"""

WIDER = """
import pytest_asyncio

@pytest_asyncio.fixture(scope="{scope}", loop_scope="{scope}")
async def vm_factory(propolis):
    async with propolis.vm_factory() as factory:
        yield factory

@pytest_asyncio.fixture(scope="{scope}", loop_scope="{scope}")
async def test_vm(vm_factory):
    return await vm_factory.start()
"""

USES_WIDER = """
import pytest

pytestmark = pytest.mark.asyncio(loop_scope="{scope}")

async def test_first(test_vm):
    await test_vm.run("touch seen")

async def test_second(test_vm, vm_factory):
    await test_vm.run("test -e seen")
    assert (await vm_factory.create("other")).name == "other"
"""


def marked(scope: str) -> str:
    return f'import pytest\npytestmark = pytest.mark.asyncio(loop_scope="{scope}")\n{USES_BOTH}'


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_every_loop_scope_of_a_marker_works(inner: InnerRun, mode: str) -> None:
    inner.pytester.mkpydir("package")
    for scope in SCOPES:
        (inner.pytester.path / "package" / f"test_{scope}.py").write_text(marked(scope))
    result = inner.run(f"--asyncio-mode={mode}")
    result.assert_outcomes(passed=len(SCOPES))


@pytest.mark.parametrize(
    ("mode", "scope"), [(("strict", "auto")[number % 2], scope) for number, scope in enumerate(SCOPES)]
)
def test_every_default_loop_scope_works_without_a_marker(inner: InnerRun, mode: str, scope: str) -> None:
    inner.write(test_it=USES_BOTH)
    inner.run(f"--asyncio-mode={mode}", "-o", f"asyncio_default_test_loop_scope={scope}").assert_outcomes(passed=1)


@pytest.mark.parametrize(("mode", "scope"), [("strict", "module"), ("auto", "session")])
def test_a_user_may_override_the_fixtures_with_a_wider_scope(inner: InnerRun, mode: str, scope: str) -> None:
    inner.write(conftest=WIDER.format(scope=scope), test_it=USES_WIDER.format(scope=scope))
    inner.run(f"--asyncio-mode={mode}").assert_outcomes(passed=2)


def test_a_vm_used_in_another_loop_than_its_own_says_how_to_mark_the_test(inner: InnerRun) -> None:
    inner.write(
        conftest=WIDER.format(scope="module"), test_it="async def test_it(test_vm):\n    await test_vm.run('true')"
    )
    inner.fails_with(
        "ConfigError: VM 'vm': it was made in another event loop than this test runs in",
        'hint: mark the test with the loop scope of the fixture*@pytest.mark.asyncio(loop_scope="module")',
        arguments=("--asyncio-mode=auto",),
    )

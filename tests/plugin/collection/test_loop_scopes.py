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


@pytest.mark.parametrize("mode", [pytest.param("strict", marks=pytest.mark.slow), "auto"])
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


VM_FIXTURE = """
from pytest_propolis import vm_fixture

web = vm_fixture("web", scope="{scope}", memory_mib=128)
"""

USES_VM_FIXTURE = """
class TestIt:
    async def test_first(self, web):
        await web.run("touch seen")

    async def test_second(self, web, test_vm):
        assert await web.run("test -e seen; echo $?") == "{status}"
        assert await test_vm.run("echo other") == "other"
"""


@pytest.mark.parametrize(
    ("mode", "scope"), [(("strict", "auto")[number % 2], scope) for number, scope in enumerate(SCOPES)]
)
def test_a_vm_fixture_of_any_scope_needs_no_marker(inner: InnerRun, mode: str, scope: str) -> None:
    status = 1 if scope == "function" else 0
    inner.write(conftest=VM_FIXTURE.format(scope=scope), test_it=USES_VM_FIXTURE.format(status=status))
    inner.run(f"--asyncio-mode={mode}").assert_outcomes(passed=2)


def test_a_vm_fixture_follows_a_marker_that_declares_a_loop_scope(inner: InnerRun) -> None:
    marker = 'import pytest\npytestmark = pytest.mark.asyncio(loop_scope="module")\n'
    inner.write(conftest=VM_FIXTURE.format(scope="class"), test_it=marker + USES_VM_FIXTURE.format(status=0))
    inner.run().assert_outcomes(passed=2)


def test_vm_fixtures_of_different_scopes_share_a_loop(inner: InnerRun) -> None:
    fixtures = VM_FIXTURE.format(scope="module") + 'database = vm_fixture("database", scope="session")\n'
    inner.write(
        conftest=fixtures,
        test_it="async def test_both(web, database):\n    await web.run('true')\n    await database.run('true')\n\n"
        "async def test_one(web):\n    await web.run('true')\n",
    )
    inner.run().assert_outcomes(passed=2)


def test_a_vm_fixture_is_listed_with_its_scope_and_configuration(inner: InnerRun) -> None:
    inner.write(conftest=VM_FIXTURE.format(scope="module"), test_it="def test_it(): pass")
    inner.run("--fixtures").stdout.fnmatch_lines(
        [
            "web ?module scope? -- *",
            "*The VM 'web', memory_mib=128, booted and logged in. The tests of a module share it.*",
        ]
    )


def test_a_synchronous_test_with_a_vm_fixture_is_told_to_be_asynchronous(inner: InnerRun) -> None:
    uses = "def test_it(web):\n    web.run('true')\n\nasync def test_later(web):\n    await web.run('true')\n"
    inner.write(conftest=VM_FIXTURE.format(scope="module"), test_it=uses)
    result = inner.run()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines("*uses the fixture 'web', whose methods are awaited: write `async def test_it(...)`")

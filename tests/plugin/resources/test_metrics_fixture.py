"""The fixture `metrics` in runs of pytest: in any order, overridden, requested late."""

from __future__ import annotations

from inner_run import InnerRun


def test_the_order_of_fixtures_does_not_matter(inner: InnerRun) -> None:
    inner.write(
        conftest="""
import pytest

@pytest.fixture
def resets(metrics):
    async def count(vm):
        return (await metrics.poll(vm)).resets
    return count
""",
        test_order="""
import pytest

async def test_before(metrics, test_vm):
    assert (await metrics.poll(test_vm)).resets == 0

async def test_after(test_vm, metrics):
    assert (await metrics.poll(test_vm)).resets == 0

async def test_of_another_fixture(test_vm, resets):
    assert await resets(test_vm) == 0

class TestOverride:
    @pytest.fixture
    def metrics(self, metrics):
        return metrics

    async def test_override(self, test_vm, metrics):
        assert (await metrics.poll(test_vm)).resets == 0
""",
    )
    inner.run("--propolis-cpus=1").assert_outcomes(passed=4)


def test_a_users_own_fixture_of_that_name_has_nothing_to_do_with_it(inner: InnerRun) -> None:
    inner.write(
        test_own="""
import pytest

@pytest.fixture
def metrics():
    return 42

async def test_own(vm_factory, metrics, _propolis_metrics):
    assert metrics == 42
    assert _propolis_metrics is None
"""
    )
    inner.run().assert_outcomes(passed=1)


def test_what_cannot_have_metrics_is_told_how(inner: InnerRun) -> None:
    inner.write(
        test_late="""
async def test_late(test_vm, request):
    request.getfixturevalue("metrics")

def test_sync(metrics):
    pass
"""
    )
    result = inner.run()
    result.assert_outcomes(failed=1, errors=1)
    result.stdout.fnmatch_lines_random(
        [
            "*the fixture 'metrics' must be known before the test starts: make it an argument of the test*",
            "*test_sync uses the fixture 'metrics', whose methods are awaited: write `async def test_sync(...)`*",
        ]
    )

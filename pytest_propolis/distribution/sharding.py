"""Shards: disjoint parts of a suite, for jobs that know nothing of each other."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Generator, Iterable, Mapping

import pytest

from ..errors import SettingsError
from ..option_values import Shard
from ..session.stash import SETTINGS
from .durations_file import read_durations

__all__ = ["Sharding", "shard_tests", "shards_of"]


def shards_of(tests: Iterable[str], count: int, durations: Mapping[str, float]) -> dict[str, int]:
    """Divide tests into shards, numbered from 0 on. The order of the tests does not matter.

    Tests of known duration go to the shard with the least work, the longest first. The others go by a hash of their
    node ids, and so do all where nothing is known: then a test stays in its shard whatever is added or removed.
    """
    loads = [(0.0, shard) for shard in range(count)]
    found = {}
    for test in sorted(set(tests), key=lambda test: (-durations.get(test, -1.0), test)):
        if test in durations:
            load_s, found[test] = loads[0]
            heapq.heapreplace(loads, (load_s + durations[test], found[test]))
        else:
            found[test] = int.from_bytes(hashlib.sha256(test.encode(errors="surrogatepass")).digest()[:8]) % count
    return found


class Sharding:
    """A plugin that deselects the tests of other shards, in each process that collects.

    :raises SettingsError: when the file of durations cannot be read: with another file, or none, the shards would not
        fit together.
    """

    def __init__(self, config: pytest.Config, shard: Shard) -> None:
        self._number, self._count = shard.number, shard.total
        path = config.stash[SETTINGS].durations
        self._durations = read_durations(path) if path else {}
        self._by = f"by the durations in {path}" if path else "by a hash of the node ids"

    def pytest_report_header(self) -> str:
        return f"propolis: shard {self._number} of {self._count}, {self._by}"

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Last, so that ``-k``, ``-m`` and other plugins have chosen already: they choose the same in all shards."""
        shards = shards_of((item.nodeid for item in items), self._count, self._durations)
        others = [item for item in items if shards[item.nodeid] != self._number - 1]
        if others:
            items[:] = [item for item in items if shards[item.nodeid] == self._number - 1]
            config.hook.pytest_deselected(items=others)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        """A shard may be empty: that is no failure of its job."""
        yield
        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK


def shard_tests(config: pytest.Config) -> None:
    """Have this process run the tests of its shard alone, if it has one."""
    shard = config.stash[SETTINGS].shard
    if shard is not None:
        try:
            config.pluginmanager.register(Sharding(config, shard), "propolis-sharding")
        except SettingsError as error:
            raise pytest.UsageError(str(error)) from None

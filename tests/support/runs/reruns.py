"""A conftest that runs failed tests again, in the way of pytest-rerunfailures."""

from __future__ import annotations

__all__ = ["RERUNS_ONCE"]

RERUNS_ONCE = """
import pytest
from _pytest.runner import runtestprotocol

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    for attempt in (1, 2):
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        is_repeated = attempt == 1 and any(report.failed for report in reports)
        for report in reports:
            if is_repeated and report.failed:
                report.outcome = "rerun"
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if not is_repeated:
            return True
        for definitions in item._fixtureinfo.name2fixturedefs.values():
            for definition in definitions:
                if definition.cached_result is not None and definition.cached_result[2]:
                    definition.cached_result = None
                    definition._finalizers.clear()
        item.session._setupstate.stack.pop(item, None)
"""

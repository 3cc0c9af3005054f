"""A few rounds of the leak fuzzer; its README says how many were run by hand."""

from __future__ import annotations

from fuzz import fuzz

ROUNDS = 6
LIMIT_S = 120


def test_random_signals_at_random_moments_leave_nothing() -> None:
    rounds = list(fuzz(rounds=ROUNDS, seed=1, limit_s=LIMIT_S))
    assert rounds
    assert [str(done) for done in rounds if done.leaks] == []

"""A few rounds of the leak fuzzer at SSH hosts; its README says how many were run by hand."""

from __future__ import annotations

from ssh_fuzz import fuzz_ssh_hosts
from ssh_rig import require_rigs

ROUNDS = 4
LIMIT_S = 60


def test_random_kills_and_cuts_at_ssh_hosts_leave_nothing() -> None:
    require_rigs()
    rounds = list(fuzz_ssh_hosts(rounds=ROUNDS, seed=1, limit_s=LIMIT_S))
    assert rounds
    assert [str(done) for done in rounds if done.leaks] == []

"""The leak fuzzer: random signals at random moments to random processes of a real run, then an audit.

``python tests/hazards/fuzz.py --rounds 1000 --seed 1``, with the directories of ``tests/support`` in PYTHONPATH
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzz_round import DISTRIBUTIONS, Kind, Round, one_round, unhit_run
from victims import VICTIMS

__all__ = ["fuzz"]

GROWTH = 1.03
ATTEMPTS = 3
BATCH = 50


class Campaign:
    """State that all rounds share: the current durations of runs on this machine, by kind.

    An estimate grows with each run that is hit in time, and comes back when one has ended before.

    :param deadline: of `time.monotonic`; no round begins later.
    """

    def __init__(self, seed: int, deadline: float, lengths_s: dict[tuple[str, ...], float]) -> None:
        self._seed = seed
        self._deadline = deadline
        self._lengths_s = {
            Kind(victim, arguments): length_s for arguments, length_s in lengths_s.items() for victim in VICTIMS
        }

    def round(self, number: int) -> Round | None:
        """One round, unless it is too late to begin. A run that has ended before it was hit is followed by another."""
        if time.monotonic() > self._deadline:
            return None
        for _ in range(ATTEMPTS):
            chance = random.Random(f"{self._seed}-{number}")
            kind = Kind(chance.choice(VICTIMS), chance.choice(DISTRIBUTIONS))
            done = one_round(number, kind, chance, length_s=self._lengths_s[kind])
            if done.hits or done.leaks:
                self._lengths_s[kind] *= GROWTH
                break
            self._lengths_s[kind] = done.length_s
        return done


def fuzz(*, rounds: int, seed: int, first: int = 1, limit_s: float = float("inf"), at_once: int = 2) -> Iterator[Round]:
    """Rounds, in order; each depends on the seed and its number alone, but for the machine's moods.

    :param limit_s: no round begins later.
    :param at_once: so many rounds go on at the same time.
    """
    deadline = time.monotonic() + limit_s
    with ThreadPoolExecutor(at_once) as pool:
        measured = pool.map(unhit_run, (Kind(VICTIMS[0], arguments) for arguments in DISTRIBUTIONS))
        campaign = Campaign(seed, deadline, dict(zip(DISTRIBUTIONS, measured, strict=True)))
        try:
            for done in pool.map(campaign.round, range(first, first + rounds)):
                if done is not None:
                    yield done
        finally:
            pool.shutdown(cancel_futures=True)


def _note(results: Path | None, seed: int, found: Counter[str], first: int, last: int) -> None:
    """Print the findings since the last note, and append them to the results."""
    line = f"seed {seed}, rounds {first} to {last}: {dict(found)}\n"
    sys.stdout.write(line)
    sys.stdout.flush()
    if results:
        with results.open("a") as file:
            file.write(line)


def _campaign(options: argparse.Namespace) -> int:
    """All rounds, with a note after each batch and at the end; returns how many leaked."""
    found: Counter[str] = Counter()
    leaks, first, last = 0, options.first, options.first - 1
    rounds = fuzz(
        rounds=options.rounds,
        seed=options.seed,
        first=options.first,
        limit_s=options.minutes * 60,
        at_once=options.at_once,
    )
    try:
        for done in rounds:
            sys.stdout.write(f"{done}\n")
            sys.stdout.flush()
            last = done.number
            leaks += bool(done.leaks)
            found.update(rounds=1, leaks=bool(done.leaks), collected=done.was_collected, unhit=not done.hits)
            if found["rounds"] == BATCH:
                _note(options.results, options.seed, found, first, last)
                found, first = Counter(), last + 1
    finally:
        if found:
            _note(options.results, options.seed, found, first, last)
    return leaks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=1, help="the number of the first round, to go on or repeat one")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no round later than this")
    parser.add_argument("--at-once", type=int, default=2, help="so many rounds go on at the same time")
    parser.add_argument("--results", type=Path, help=f"a file that gets a line after every {BATCH} rounds")
    return 1 if _campaign(parser.parse_args()) else 0


if __name__ == "__main__":
    sys.exit(main())

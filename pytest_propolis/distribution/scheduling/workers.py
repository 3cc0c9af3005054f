"""The workers of a run: pytest processes that run one test at a time."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from operator import itemgetter

__all__ = ["Workers"]


@dataclass(slots=True)
class Workers:
    """Which workers are idle, and what they hold.

    An idle worker holds nothing, or a test that it received while it ran another one (`Start.following`).
    """

    following: dict[str, int] = field(default_factory=dict)
    """Worker that runs a test -> the test that it holds as its next."""
    holders: dict[int, str] = field(default_factory=dict)
    """Test that an idle worker holds -> the worker."""
    alive: set[str] = field(default_factory=set)
    _empty: dict[str | None, list[tuple[int, str]]] = field(default_factory=dict)
    """Idle workers that hold nothing, by the host that they run on themselves: those that came first last."""
    _own_hosts: dict[str, str] = field(default_factory=dict)
    _order: dict[str, int] = field(default_factory=dict)
    _ending: set[str] = field(default_factory=set)

    def join(self, worker: str, own_host: str | None) -> None:
        """Let a worker join, which runs on a host itself or on none."""
        if own_host is not None:
            self._own_hosts[worker] = own_host
        self.ready(worker)

    def ready(self, worker: str) -> None:
        """Let a worker be idle again without a test."""
        self.alive.add(worker)
        order = self._order
        if worker not in order:
            order[worker] = -len(order)
        own_host = self._own_hosts.get(worker)
        if own_host not in self._empty:
            self._empty[own_host] = []
        insort(self._empty[own_host], (order[worker], worker))

    @property
    def empty(self) -> bool:
        """Whether there is an idle worker that holds nothing."""
        return any(self._empty.values())

    @property
    def staying(self) -> int:
        """How many workers there are but for those that end after what they run."""
        return len(self.alive) - len(self._ending)

    @property
    def on_hosts(self) -> bool:
        """Whether there is, or was, a worker that runs on a host itself."""
        return bool(self._own_hosts)

    def is_near(self, worker: str, host: str) -> bool:
        """Return whether a worker runs on this host itself, or on none."""
        return self._own_hosts.get(worker, host) == host

    def empty_near(self, host: str) -> bool:
        """Return whether there is an idle worker that holds nothing, and runs on this host itself or on none."""
        return bool(self._empty.get(host) or self._empty.get(None))

    def take(self, host: str | None = None) -> str:
        """Take an idle worker that holds nothing, those that came first first.

        :param host: where its test will run. A worker that runs there itself is taken rather than one that runs on no
            host, and such a one rather than a worker of another host.
        """
        for own_host in (host, None):
            if self._empty.get(own_host):
                return self._empty[own_host].pop()[1]
        return max(filter(None, self._empty.values()), key=itemgetter(-1)).pop()[1]

    def end_after_this(self, worker: str) -> None:
        """Let a worker end when it has run what it is given now."""
        self._ending.add(worker)

    def idle(self, worker: str) -> int | None:
        """Let a worker be idle again.

        :returns: the test that it holds.
        """
        index = self.following.pop(worker, None)
        if index is not None:
            self.holders[index] = worker
        elif worker in self._ending:
            self._forget(worker)
        else:
            self.ready(worker)
        return index

    def dismiss(self) -> list[str]:
        """Let all workers go that hold nothing, and return them."""
        workers = []
        while self.empty:
            workers.append(self.take())
            self._forget(workers[-1])
        return workers

    def lose(self, worker: str) -> int | None:
        """Let a worker go.

        :returns: the test that it held as its next.
        """
        held = self.following.pop(worker, None)
        if held is None:
            held = next((index for index, holder in self.holders.items() if holder == worker), None)
        self._forget(worker)
        idle = self._empty.get(self._own_hosts.get(worker), [])
        entry = (self._order.get(worker, 0), worker)
        position = bisect_left(idle, entry)
        if idle[position : position + 1] == [entry]:
            del idle[position]
        return held

    def _forget(self, worker: str) -> None:
        self.alive.discard(worker)
        self._ending.discard(worker)

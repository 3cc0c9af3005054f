"""The samples of a VM that one poll has brought."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ...errors import MetricsMissing
from ...oximeter.samples import MetricsError, ProducerError, ProducerResults, Sample
from ...oximeter.virtual_machine import RESET, VCPU_USAGE, VcpuState

__all__ = ["Samples"]

HINT = "docs/metrics.md says which metrics a server has"


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples from one poll of a VM's server.

    A server may send several samples of one timeseries at once: the latest counts.

    :param vm: the name of the VM.
    :param samples: the samples in the order in which they came.
    :param errors: why parts of the server have none.
    """

    vm: str
    samples: tuple[Sample, ...]
    errors: tuple[MetricsError, ...] = ()

    @classmethod
    def of(cls, vm: str, results: ProducerResults) -> Samples:
        errors = tuple(result.info for result in results if isinstance(result, ProducerError))
        samples = (sample for result in results if not isinstance(result, ProducerError) for sample in result.info)
        return cls(vm, tuple(samples), errors)

    def named(self, timeseries: str) -> list[Sample]:
        """Return the latest samples of a timeseries such as ``virtual_machine:vcpu_usage``, one for each set of fields.

        :raises MetricsMissing: when there are none.
        """
        latest: dict[frozenset[tuple[str, object]], Sample] = {}
        for sample in self.samples:
            if sample.timeseries_name != timeseries:
                continue
            key = frozenset(sample.fields.items())
            if key not in latest or latest[key].measurement.timestamp <= sample.measurement.timestamp:
                latest[key] = sample
        if not latest:
            raise self._missing(f"samples of {timeseries}")
        return list(latest.values())

    def vcpu_ns(self, state: VcpuState | str, vcpu: int | None = None) -> int:
        """Return the time that vCPUs have spent in a state since the VM was created at its server, in nanoseconds.

        :param vcpu: the number of one of them; by default all are added up.
        :raises MetricsMissing: when the server has sent no such samples.
        :raises ValueError: when there is no such state.
        """
        state = VcpuState(state)
        times = [
            int(sample.measurement.datum.cumulative.value)
            for sample in self.named(VCPU_USAGE)
            if sample.fields["state"] == state and vcpu in (None, sample.fields["vcpu_id"])
        ]
        if not times:
            which = "a vCPU" if vcpu is None else f"the vCPU {vcpu}"
            raise self._missing(f"samples of the time that {which} has been in the state {state.value!r}")
        return sum(times)

    @property
    def resets(self) -> int:
        """The number of resets since the VM was created at its server.

        :raises MetricsMissing: when the server has not sent it.
        """
        (sample,) = self.named(RESET)
        return int(sample.measurement.datum.cumulative.value)

    def oldest(self, timeseries: str) -> datetime:
        """Return when the oldest of the latest samples of a timeseries was measured.

        :raises MetricsMissing: when there are none.
        """
        return min(sample.measurement.timestamp for sample in self.named(timeseries))

    def __str__(self) -> str:
        names = sorted({sample.timeseries_name for sample in self.samples})
        return "; ".join([f"it sent {', '.join(names) or 'no samples'}", *(str(error) for error in self.errors)])

    def _missing(self, what: str) -> MetricsMissing:
        return MetricsMissing(f"its server has sent no {what}: {self}", vm=self.vm, hint=HINT)

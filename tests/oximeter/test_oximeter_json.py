"""Our types against JSON as Rust's serde writes omicron's: `oximeter/types/versions/src/initial/types.rs`."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
import pytest

from pytest_propolis.errors import MetricsMissing
from pytest_propolis.oximeter.registration import Duration, ProducerEndpoint, ProducerKind
from pytest_propolis.oximeter.samples import MetricsError, ProducerError, ProducerResults, ProducerSamples
from pytest_propolis.oximeter.virtual_machine import RESET, VCPU_USAGE, VcpuState, reset, target_of, vcpu_usage
from pytest_propolis.propolis_api import InstanceMetadata, InstanceProperties
from pytest_propolis.vm.metrics.samples import Samples

INSTANCE: Final = uuid.UUID("96d6ec78-543a-4188-830e-37e2a0eeff16")
START: Final = datetime(2026, 11, 29, 1, 0, tzinfo=UTC)

VCPU_SAMPLE: Final = """{
  "measurement": {
    "timestamp": "2026-11-29T01:00:05.123456789Z",
    "datum": {"type": "cumulative_u64", "datum": {"start_time": "2026-11-29T01:00:00Z", "value": 18446744073709551615}}
  },
  "timeseries_name": "virtual_machine:vcpu_usage",
  "timeseries_version": 1,
  "target": {
    "name": "virtual_machine",
    "fields": {
      "instance_id": {
        "name": "instance_id", "value": {"type": "uuid", "value": "96d6ec78-543a-4188-830e-37e2a0eeff16"}
      },
      "sled_revision": {"name": "sled_revision", "value": {"type": "u32", "value": 1}}
    }
  },
  "metric": {
    "name": "vcpu_usage",
    "fields": {
      "state": {"name": "state", "value": {"type": "string", "value": "emulation"}},
      "vcpu_id": {"name": "vcpu_id", "value": {"type": "u32", "value": 0}}
    }
  }
}"""

DISK_SAMPLE: Final = """{
  "measurement": {
    "timestamp": "2026-11-29T01:00:05Z",
    "datum": {"type": "histogram_u64", "datum": {
      "start_time": "2026-11-29T01:00:00Z", "bins": [{"range": {"type": "range_to", "end": 512}, "count": 3}],
      "n_samples": 3, "min": 1, "max": 500, "sum_of_samples": 700, "squared_mean": 1.5,
      "p50": {"p": 0.5}, "p90": {"p": 0.9}, "p99": {"p": 0.99}
    }}
  },
  "timeseries_name": "virtual_disk:io_size",
  "timeseries_version": 1,
  "target": {"name": "virtual_disk", "fields": {}},
  "metric": {"name": "io_size", "fields": {}}
}"""

ANSWER: Final = f"""[
  {{"status": "ok", "info": [{VCPU_SAMPLE}, {DISK_SAMPLE}]}},
  {{"status": "ok", "info": []}},
  {{"status": "err", "info": {{"type": "datum_error", "content": "the kstat is gone"}}}},
  {{"status": "err", "info": {{"type": "invalid_timeseries_name"}}}}
]"""


@pytest.fixture
def properties() -> InstanceProperties:
    metadata = InstanceMetadata(
        project_id=uuid.uuid4(),
        silo_id=uuid.uuid4(),
        sled_id=uuid.uuid4(),
        sled_model="gimlet",
        sled_revision=3,
        sled_serial="abcd",
    )
    return InstanceProperties(id=INSTANCE, name="vm", description="", metadata=metadata)


def test_an_answer_of_propolis_server_is_read() -> None:
    results = msgspec.json.decode(ANSWER, type=ProducerResults)
    first = results[0]
    assert isinstance(first, ProducerSamples)
    vcpu, disk = first.info
    assert vcpu.fields == {"instance_id": str(INSTANCE), "sled_revision": 1, "state": "emulation", "vcpu_id": 0}
    assert vcpu.measurement.datum.cumulative.value == (1 << 64) - 1
    with pytest.raises(TypeError, match="histogram_u64 is no counter"):
        _ = disk.measurement.datum.cumulative
    samples = Samples.of("vm", results)
    assert samples.vcpu_ns("emulation") == (1 << 64) - 1
    assert [str(error) for error in samples.errors] == [
        "datum_error: the kstat is gone",
        "invalid_timeseries_name",
    ]


def test_what_is_produced_has_the_fields_and_types_of_the_schema(properties: InstanceProperties) -> None:
    sample = vcpu_usage(target_of(properties), 1, VcpuState.RUN, 5, since=START, at=START + timedelta(seconds=1))
    told = msgspec.json.decode(msgspec.json.encode([ProducerSamples([sample])]))
    (only,) = told[0]["info"]
    assert told[0]["status"] == "ok"
    assert only["timeseries_name"] == VCPU_USAGE
    assert only["timeseries_version"] == 1
    assert only["measurement"] == {
        "timestamp": "2026-11-29T01:00:01Z",
        "datum": {"type": "cumulative_u64", "datum": {"start_time": "2026-11-29T01:00:00Z", "value": 5}},
    }
    types = {
        name: field["value"]["type"] for name, field in (only["target"]["fields"] | only["metric"]["fields"]).items()
    }
    assert types == {
        "instance_id": "uuid",
        "project_id": "uuid",
        "silo_id": "uuid",
        "sled_id": "uuid",
        "sled_model": "string",
        "sled_revision": "u32",
        "sled_serial": "string",
        "state": "string",
        "vcpu_id": "u32",
    }
    assert all(field["name"] == name for name, field in only["target"]["fields"].items())
    assert only["metric"]["fields"]["vcpu_id"] == {"name": "vcpu_id", "value": {"type": "u32", "value": 1}}


def test_the_latest_of_several_samples_of_a_timeseries_counts(properties: InstanceProperties) -> None:
    target = target_of(properties)
    times = [(0, 7, 2), (0, 5, 1), (1, 30, 1)]  # propolis-server samples by itself, and keeps some for the next poll
    sent = [
        vcpu_usage(target, vcpu, VcpuState.RUN, time_ns, since=START, at=START + timedelta(seconds=second))
        for vcpu, time_ns, second in times
    ]
    samples = Samples.of("vm", [ProducerSamples(sent), ProducerSamples([reset(target, 2, since=START, at=START)])])
    assert samples.vcpu_ns(VcpuState.RUN) == 37
    assert samples.vcpu_ns("run", 0) == 7
    assert samples.resets == 2
    assert samples.oldest(VCPU_USAGE) == START + timedelta(seconds=1)


def test_what_was_not_sent_is_an_error_that_says_what_was(properties: InstanceProperties) -> None:
    one = reset(target_of(properties), 0, since=START, at=START)
    failed = ProducerError(MetricsError(type="datum_error", content="no account"))
    samples = Samples.of("web", [ProducerSamples([one]), failed])
    with pytest.raises(
        MetricsMissing,
        match=r"VM 'web': its server has sent no samples of virtual_machine:vcpu_usage: it sent "
        r"virtual_machine:reset; datum_error: no account",
    ):
        samples.vcpu_ns("run")
    with pytest.raises(ValueError, match="'sleeping' is not a valid VcpuState"):
        samples.vcpu_ns("sleeping")
    with pytest.raises(MetricsMissing, match=f"no samples of {RESET}: it sent no samples"):
        _ = Samples.of("web", []).resets


def test_a_registration_is_written_as_nexus_reads_it() -> None:
    endpoint = ProducerEndpoint(
        id=INSTANCE, kind=ProducerKind.INSTANCE, address="[::1]:12400", interval=Duration.of(10.5)
    )
    assert msgspec.json.decode(msgspec.json.encode(endpoint)) == {
        "id": str(INSTANCE),
        "kind": "instance",
        "address": "[::1]:12400",
        "interval": {"secs": 10, "nanos": 500_000_000},
    }

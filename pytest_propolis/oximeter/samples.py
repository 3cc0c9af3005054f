"""Samples as a producer sends them: omicron's `oximeter/types/versions/src/initial/types.rs`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

__all__ = [
    "Cumulative",
    "Datum",
    "Field",
    "FieldSet",
    "FieldValue",
    "Measurement",
    "MetricsError",
    "ProducerError",
    "ProducerResult",
    "ProducerResults",
    "ProducerSamples",
    "Sample",
]


class FieldValue(msgspec.Struct, frozen=True, kw_only=True):
    """The value of a field.

    :param type: ``string``, ``uuid``, ``bool``, ``ip_addr``, or an integer type as ``u32``.
    """

    type: str
    value: str | int | bool


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """A named property of a target or of a metric."""

    name: str
    value: FieldValue


class FieldSet(msgspec.Struct, frozen=True, kw_only=True):
    """A target or a metric: its name, and its fields by their names."""

    name: str
    fields: dict[str, Field]

    @classmethod
    def of(cls, name: str, **fields: FieldValue) -> FieldSet:
        return cls(name=name, fields={key: Field(name=key, value=fields[key]) for key in sorted(fields)})


class Cumulative(msgspec.Struct, frozen=True, kw_only=True):
    """A counter, and the time at which it was 0."""

    start_time: datetime
    value: int | float


class Datum(msgspec.Struct, frozen=True, kw_only=True):
    """A data point.

    :param type: as ``cumulative_u64``; a producer may send types that nothing here knows.
    :param datum: what the type says it is: a number, an object.
    """

    type: str
    datum: Any

    @classmethod
    def count(cls, value: int, *, since: datetime) -> Datum:
        """Return a ``cumulative_u64``."""
        return cls(type="cumulative_u64", datum=msgspec.to_builtins(Cumulative(start_time=since, value=value)))

    @property
    def cumulative(self) -> Cumulative:
        """The counter's value.

        :raises TypeError: when it is of another type.
        """
        if not self.type.startswith("cumulative_"):
            raise TypeError(f"a datum of the type {self.type} is no counter")
        return msgspec.convert(self.datum, Cumulative)


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """A data point, and when it was measured."""

    timestamp: datetime
    datum: Datum


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement of a timeseries.

    :param timeseries_name: the names of target and metric with a colon between them: ``virtual_machine:vcpu_usage``.
    """

    measurement: Measurement
    timeseries_name: str
    timeseries_version: int = 1
    target: FieldSet
    metric: FieldSet

    @classmethod
    def of(cls, target: FieldSet, metric: FieldSet, datum: Datum, *, at: datetime) -> Sample:
        return cls(
            measurement=Measurement(timestamp=at, datum=datum),
            timeseries_name=f"{target.name}:{metric.name}",
            target=target,
            metric=metric,
        )

    @property
    def fields(self) -> dict[str, str | int | bool]:
        """The values of the target's and the metric's fields, by name."""
        return {name: field.value.value for name, field in (self.target.fields | self.metric.fields).items()}


class MetricsError(msgspec.Struct, frozen=True, kw_only=True):
    """The reason why a producer has no samples.

    :param type: as ``datum_error``.
    :param content: what the type says it is; a text in most.
    """

    type: str
    content: Any = None

    def __str__(self) -> str:
        return self.type if self.content is None else f"{self.type}: {self.content}"


class ProducerSamples(msgspec.Struct, frozen=True, tag_field="status", tag="ok"):
    """The samples of one part of a producer."""

    info: list[Sample]


class ProducerError(msgspec.Struct, frozen=True, tag_field="status", tag="err"):
    """The error of a part of a producer that has no samples."""

    info: MetricsError


ProducerResult = ProducerSamples | ProducerError

ProducerResults = list[ProducerResult]
"""What a producer answers: one result for each of its parts."""

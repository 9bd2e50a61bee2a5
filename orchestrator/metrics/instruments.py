"""Counters, gauges and histograms of Ray, declared without importing it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

__all__ = ["Counter", "Gauge", "Histogram", "Instrument"]


@dataclass(frozen=True)
class Instrument:
    """A metric by Prometheus' conventions: the base unit ends the name, "_total" that of a counter.

    Args:
        name: without Ray's prefix. description: one sentence. labels: names; values must be few, never a job's.
    """

    kind: ClassVar[str] = ""
    name: str
    description: str
    labels: tuple[str, ...] = ()

    @property
    def exported_name(self) -> str:
        """As Prometheus sees it; a histogram has _bucket, _sum and _count after it."""
        return f"ray_{self.name}"

    @cached_property
    def _metric(self) -> Any:
        from ray.util import metrics

        return getattr(metrics, self.kind)(self.name, self.description, tag_keys=self.labels, **self._arguments())

    def _arguments(self) -> dict[str, Any]:
        return {}


class Counter(Instrument):
    """Only rises; starts anew with its process."""

    kind = "Counter"

    def add(self, amount: float = 1.0, **labels: str) -> None:
        """Nothing happens for zero."""
        if amount > 0:
            self._metric.inc(amount, tags=labels)


class Gauge(Instrument):
    """Holds the last value."""

    kind = "Gauge"

    def set(self, value: float, **labels: str) -> None:
        """Replace it."""
        self._metric.set(value, tags=labels)


@dataclass(frozen=True)
class Histogram(Instrument):
    """Counts values by size. buckets: upper bounds."""

    kind = "Histogram"
    buckets: tuple[float, ...] = ()

    def observe(self, value: float, **labels: str) -> None:
        """One more value."""
        self._metric.observe(value, tags=labels)

    def _arguments(self) -> dict[str, Any]:
        return {"boundaries": list(self.buckets)}

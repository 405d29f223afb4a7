"""What counts and measures, cheaply: for one event loop, and in bulk.

prometheus_client's own instruments lock at every call and take one observation at a time, which a batch of
thousands of events would pay for. These hold plain numbers and are collectors of its registry. Observe and
collect in the event loop's thread.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from telemetry.metric_names import OTHER, Metric

Labels = tuple[str | int, ...]
"""Label values, in the order of the metric's labels."""


class Counter(Collector):
    """A number that only grows, for each combination of label values."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._values: dict[Labels, float] = {} if metric.labels else {(): 0}

    def add(self, amount: float, *labels: str | int) -> None:
        """Add to the number with these label values."""
        self._values[labels] = self._values.get(labels, 0) + amount

    def declare(self, values: Iterable[str]) -> None:
        """Begin at 0 for these values of the only label: the first increase is then seen as one."""
        for value in values:
            self._values.setdefault((value,), 0)

    def collect(self) -> Iterator[Family]:
        family = CounterMetricFamily(self._metric.name, self._metric.meaning, labels=self._metric.labels)
        for labels, value in self._values.items():
            family.add_metric(_texts(labels), value)
        yield family


class Gauge(Collector):
    """A number that goes up and down; series exist from being set until being removed."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._values: dict[Labels, float] = {}
        self._read: Callable[[], Mapping[Labels, float]] = lambda: self._values

    def set(self, value: float, *labels: str | int) -> None:
        self._values[labels] = value

    def clear(self) -> None:
        """Have no series."""
        self._values.clear()

    def follow(self, read: Callable[[], Mapping[Labels, float]]) -> None:
        """Ask a function for all series, at each collection. It answers from memory, at once."""
        self._read = read

    def collect(self) -> Iterator[Family]:
        family = GaugeMetricFamily(self._metric.name, self._metric.meaning, labels=self._metric.labels)
        for labels, value in self._read().items():
            family.add_metric(_texts(labels), value)
        yield family


class _Buckets:
    """Observations of one combination of label values. `counts` are per bucket, the last one unbounded."""

    __slots__ = ("counts", "total")

    def __init__(self, bounds: int) -> None:
        self.counts = [0] * (bounds + 1)
        self.total = 0.0


class Histogram(Collector):
    """Numbers by size."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._bounds: Final = metric.buckets
        self._series: dict[Labels, _Buckets] = {} if metric.labels else {(): _Buckets(len(metric.buckets))}

    def observe(self, value: float, *labels: str | int) -> None:
        """Count one number."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Buckets(len(self._bounds))
        series.counts[bisect_left(self._bounds, value)] += 1
        series.total += value

    def observe_all(self, values: Collection[float], *labels: str | int) -> None:
        """Count many numbers, at the cost of sorting them."""
        if len(values) < 2:
            for value in values:
                self.observe(value, *labels)
            return
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Buckets(len(self._bounds))
        ordered = sorted(values)
        below = 0
        for index, bound in enumerate(self._bounds):
            reached = bisect_right(ordered, bound, below)
            series.counts[index] += reached - below
            below = reached
        series.counts[-1] += len(ordered) - below
        series.total += sum(ordered)

    def collect(self) -> Iterator[Family]:
        family = HistogramMetricFamily(self._metric.name, self._metric.meaning, labels=self._metric.labels)
        for labels, series in self._series.items():
            buckets, reached = [], 0
            for bound, count in zip((*self._bounds, None), series.counts, strict=True):
                reached += count
                buckets.append(("+Inf" if bound is None else str(float(bound)), float(reached)))
            family.add_metric(_texts(labels), buckets, series.total)
        yield family


class CappedLabel:
    """Lets the first values through as they are, and calls all later ones `other`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        if value in self._known:
            return value
        if not value or len(self._known) >= self._most:
            return OTHER
        self._known.add(value)
        return value


def _texts(labels: Labels) -> list[str]:
    return [str(label) for label in labels]

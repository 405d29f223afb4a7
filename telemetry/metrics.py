"""The metrics of one process, and how they are read.

A process makes one `Metrics`; its components register what they measure (`ingest_api.metrics`,
`stream_worker.metrics`). Reading them touches neither log nor database.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from telemetry.instruments import Counter, Gauge, Histogram
from telemetry.metric_names import BUILD_INFO, HTTP_REQUEST_DURATION, OTHER, Metric
from telemetry.settings import TelemetrySettings
from telemetry.version import product_version

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLIENT_LEFT: Final = 499


class Metrics:
    """A registry of its own, with what every role has: the build, the process, the HTTP requests.

    Used by one event loop.
    """

    def __init__(self, settings: TelemetrySettings | None = None) -> None:
        self.settings = settings or TelemetrySettings()
        self._registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self._registry)
        self.gauge(BUILD_INFO).set(1, product_version(), self.settings.revision)
        self._requests = self.histogram(HTTP_REQUEST_DURATION)

    def counter(self, metric: Metric) -> Counter:
        """Register a counter. Raises ValueError if its name is taken."""
        counter = Counter(metric)
        self._registry.register(counter)
        return counter

    def gauge(self, metric: Metric) -> Gauge:
        """Register a gauge. Raises ValueError if its name is taken."""
        gauge = Gauge(metric)
        self._registry.register(gauge)
        return gauge

    def histogram(self, metric: Metric) -> Histogram:
        """Register a histogram. Raises ValueError if its name is taken."""
        histogram = Histogram(metric)
        self._registry.register(histogram)
        return histogram

    def request_answered(self, method: str, route: str | None, status: int | None, duration: float) -> None:
        """Note a request.

        Args:
            route: the template of its route; None if there was none.
            status: None if nobody was left to answer.
            duration: seconds.
        """
        self._requests.observe(
            duration, method if method in _METHODS else OTHER, route or OTHER, status or _CLIENT_LEFT
        )

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Everything, and its content type: Prometheus' text format, or OpenMetrics where it is accepted."""
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type

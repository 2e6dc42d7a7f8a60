"""What Prometheus reads at /metrics. Counters are of this process; the ledger has all that ever was."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from threading import Lock
from typing import TYPE_CHECKING, Any

from flawmap.errors import MissingExtra

if TYPE_CHECKING:
    from flawmap.station.line import Line

try:
    from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.exposition import generate_latest
    from prometheus_client.registry import CollectorRegistry
except ImportError as error:
    raise MissingExtra("prometheus_client", "serve", "the station") from error

MEDIA = CONTENT_TYPE_PLAIN_0_0_4
BUCKETS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Measures:
    """Counts from now on how long parts take, since a histogram may only grow, and tells that and the line's state."""

    def __init__(self, line: Line) -> None:
        self.line, self._lock = line, Lock()
        self._times, self._sum = [0] * (len(BUCKETS_S) + 1), 0.0
        line.listen(self._heard)

    def text(self) -> str:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)  # pyright: ignore[reportArgumentType]
        return generate_latest(registry).decode()

    def _heard(self, what: str, row: Any) -> None:
        if what == "part" and row["latency_ms"] is not None:
            seconds = row["latency_ms"] / 1000
            with self._lock:
                self._times[bisect_left(BUCKETS_S, seconds)] += 1
                self._sum += seconds

    def _histogram(self) -> HistogramMetricFamily:
        with self._lock:
            times, total = list(self._times), self._sum
        edges = [*map(str, BUCKETS_S), "+Inf"]
        buckets = [(edge, float(sum(times[: n + 1]))) for n, edge in enumerate(edges)]
        said = "From acceptance to the row in the ledger"
        found = HistogramMetricFamily("flawmap_latency_seconds", said)
        found.add_metric([], buckets, total)
        return found

    def collect(self) -> Iterator[Any]:
        line = self.line
        parts = CounterMetricFamily("flawmap_parts", "Parts by verdict; ERROR: no verdict", labels=["verdict"])
        for verdict in ("OK", "NOK", "REVIEW", "ERROR"):
            parts.add_metric([verdict], line.counts.get(verdict, 0))
        yield parts
        yield CounterMetricFamily("flawmap_refused", "Parts that were not accepted", value=line.refused)
        yield GaugeMetricFamily("flawmap_inside", "Parts accepted and not answered yet", value=line.inside)
        yield GaugeMetricFamily("flawmap_ready", "1: parts are judged", value=float(line.ready))
        yield GaugeMetricFamily(
            "flawmap_blocked", "1: challenge parts have to pass first", value=float(bool(line.blocked))
        )
        yield GaugeMetricFamily("flawmap_fault", "1: the last row could not be written", value=float(bool(line.fault)))
        drift = GaugeMetricFamily("flawmap_drift", "1: the scores are not those of the calibration", labels=["what"])
        for what in ("alarm", "signal"):
            drift.add_metric([what], float(bool(line.drift and getattr(line.drift, f"{what}_at"))))
        yield drift
        yield GaugeMetricFamily("flawmap_ledger_rows", "Number of the newest row", value=line.last_seq)
        yield self._histogram()
        info = GaugeMetricFamily("flawmap_recipe", "1: the recipe in use", labels=["recipe", "bundle"])
        info.add_metric([line.recipes.active.name, line.recipes.active.bundle], 1.0)
        yield info

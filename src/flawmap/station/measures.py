"""What Prometheus reads at /metrics. Counters are of this process; the ledger has all that ever was."""

from __future__ import annotations

from collections.abc import Iterator
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
BUCKETS_MS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


def text(line: Line) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Of(line))  # pyright: ignore[reportArgumentType]
    return generate_latest(registry).decode()


class _Of:
    def __init__(self, line: Line) -> None:
        self.line = line

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
        times = HistogramMetricFamily("flawmap_latency_ms", "From acceptance to the row, of the last 1,000 parts")
        taken = list(line.times_ms)
        buckets = [(str(most), float(sum(t <= most for t in taken))) for most in BUCKETS_MS]
        times.add_metric([], [*buckets, ("+Inf", float(len(taken)))], sum(taken))
        yield times
        info = GaugeMetricFamily("flawmap_recipe", "1: the recipe in use", labels=["recipe", "bundle"])
        info.add_metric([line.recipes.active.name, line.recipes.active.bundle], 1.0)
        yield info

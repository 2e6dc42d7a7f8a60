"""The runs of a benchmark as facts: cells of a table with their mean and deviation, and one flat line a run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flawmap.images.protocol import protocol
from flawmap.run.benchmark import METRICS, Plan
from flawmap.run.reproduce import Row
from flawmap.run.table import Job

TITLES = {
    "i_auroc": "I-AUROC",
    "part_auroc": "part AUROC",
    "p_auroc": "P-AUROC",
    "p_ap": "P-AP",
    "pro": "PRO",
    "spro": "sPRO",
    "aupimo": "AUPIMO",
}
RATES = ("false_alarms", "escapes")
PLAIN = (
    *("i_auroc", "i_auroc_low", "i_auroc_high", "part_auroc", "p_auroc", "p_ap", "pro", "spro", "aupimo"),
    *("f1_max_oracle", "p_f1_max_oracle", "iou_max_oracle", "best_on_test", "best_on_test_step"),
    *("threshold", "promise", "calibrated_on", "pictures", "fitted_on", "lost_defects", "cut_defects"),
    *("seconds_per_picture", "fit_s", "peak_mb", "bundle_mb", "steps", "date", "commit", "machine", "why"),
)
NOT_RUN, FAILED, UNDEFINED = "not run", "failed", "—"


@dataclass(frozen=True)
class Cell:
    """A method on a category: its runs over seeds and draws."""

    rows: Sequence[Mapping[str, Any]]
    failed: int
    of: int

    def mean(self, metric: str) -> float | None:
        values = self.values(metric)
        return statistics.mean(values) if values else None

    def sd(self, metric: str) -> float | None:
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else None

    def values(self, metric: str) -> list[float]:
        return [row[metric] for row in self.rows if row.get(metric) is not None]

    def text(self, metric: str, plus: str = " ± ") -> str:
        """Mean ± sd over the runs; or why there is none."""
        if not self.of:
            return UNDEFINED
        if not self.rows:
            return FAILED if self.failed else NOT_RUN
        mean, sd = self.mean(metric), self.sd(metric)
        if mean is None:
            return UNDEFINED
        words = f"{mean:.3f}" + (f"{plus}{sd:.3f}" if sd is not None else "")
        return words if self.whole(metric) else f"{words} ({len(self.values(metric))} of {self.of})"

    def whole(self, metric: str) -> bool:
        """Whether every run that was planned has this figure."""
        return len(self.values(metric)) == self.of


@dataclass(frozen=True)
class Facts:
    """All runs of a plan, and what the tables ask of them."""

    plan: Plan
    pairs: Sequence[tuple[Row, Job]]
    rows: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, Mapping[str, Any]]

    @property
    def categories(self) -> list[str]:
        return list(dict.fromkeys(job.data for _, job in self.pairs))

    @property
    def shots(self) -> list[int | None]:
        return list(dict.fromkeys(job.shots for _, job in self.pairs))

    @property
    def methods(self) -> list[str]:
        return [row.name for row in self.plan.methods]

    @property
    def metrics(self) -> list[str]:
        """Those that any run has a figure of."""
        return [m for m in METRICS if any(row.get(m) is not None for row in self.rows.values())]

    def cell(self, method: str, category: str | None, shots: int | None) -> Cell:
        """`category` None: all of them."""
        jobs = [
            job for row, job in self.pairs if row.name == method and category in (None, job.data) and job.shots == shots
        ]
        rows = [self.rows[job.key] for job in jobs if job.key in self.rows]
        return Cell(rows, sum(job.key in self.failed for job in jobs), len(jobs))

    def average(self, method: str, metric: str, shots: int | None) -> float | None:
        """Over the categories that count for a metric; None while one of them lacks it."""
        means = [self.cell(method, c, shots).mean(metric) for c in self.counted(metric)]
        return None if not means or None in means else statistics.mean(m for m in means if m is not None)

    def whole(self, method: str, metric: str, shots: int | None) -> bool:
        """Whether its average is over every run that was planned."""
        return all(self.cell(method, category, shots).whole(metric) for category in self.counted(metric))

    def counted(self, metric: str) -> list[str]:
        """Categories in a mean: not left out by the plan, and with a figure of that kind for any method."""
        out = self.plan.leave_out.get(metric, ())
        names = [c for c in self.categories if c not in out and c.rpartition("/")[2] not in out]
        return [c for c in names if any(r.get(metric) is not None for r in self.rows.values() if r["data"] == c)]

    def lines(self) -> Iterator[dict[str, Any]]:
        """One a run that was done or failed, flat."""
        for row, job in self.pairs:
            found = self.rows.get(job.key) or self.failed.get(job.key)
            if found is not None:
                yield _line(row, job, found)


def _line(row: Row, job: Job, found: Mapping[str, Any]) -> dict[str, Any]:
    line: dict[str, Any] = {"name": row.name, "method": job.method, "category": job.data, "seed": job.seed}
    line |= {"shots": job.shots, "draw": job.draw if job.shots else None, "held_out": job.held_out}
    line |= {"protocol": protocol(job.protocol).name, "failed": found.get("failed")}
    line |= {"threshold_source": threshold_source(found)}
    line |= {name: found.get(name) for name in PLAIN}
    for rate in RATES:
        counts = found.get(rate) or {}
        line |= {rate: counts.get("count"), f"{rate}_of": counts.get("n")}
        line |= {f"{rate}_{end}": counts.get(end) for end in ("low", "high")}
    line["fpr_at_no_escape_oracle"] = (found.get("fpr_at_no_escape_oracle") or {}).get("rate")
    line |= {"options": json.dumps(found["options"], sort_keys=True), "support": json.dumps(found.get("support"))}
    return {**line, "data_sha256": found.get("data_sha256"), "key": job.key}


def threshold_source(row: Mapping[str, Any]) -> str:
    """Where the threshold of a run's verdicts came from: never from the test set."""
    if "failed" in row:
        return ""
    if row.get("threshold") is None:
        return "none"
    how = "good parts, cross-fitted" if row.get("cross_fitted") else "good parts held out of fitting"
    return f"{row['calibrated_on']} {how}"

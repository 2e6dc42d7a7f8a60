"""The run table: one line of JSON for every run that is done, so that work goes on where it stopped.

A run is decided by its job: method, options, pictures, seed, shots. What has a row is not run again; several processes
with one table share the work, since a job is claimed by a lock on its file. Trained models, and the scores of every
run's test pictures, are kept beside the table.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flawmap.errors import DataError, FlawmapError, UsageError
from flawmap.images.protocol import protocol
from flawmap.run.claim import claimed
from flawmap.run.model import Model, load
from flawmap.run.progress import say
from flawmap.run.recipe import Log, digest, peak_mb, truth
from flawmap.types import Sample

METRICS = ("i_auroc", "part_auroc", "i_auroc_low", "i_auroc_high", "f1_max_oracle", "fpr_at_no_escape_oracle")
METRICS += ("p_auroc", "p_ap", "pro", "spro", "aupimo", "p_f1_max_oracle", "iou_max_oracle", "why")
METRICS += ("false_alarms", "escapes", "lost_defects", "cut_defects", "seconds_per_picture")
CURVE = 20  # points of a loss curve
FILES = ("weights", "teacher")  # options that name a file of this machine
KEEP_S = 60  # a model that took longer to fit is kept, for figures that may want it


@dataclass(frozen=True)
class Job:
    method: str
    data: str  # name of the category
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    shots: int | None = None
    draw: int = 0
    held_out: float = 0.0  # of the good parts, for calibration; 0 as in the papers: none
    protocol: str | Mapping[str, Any] = "plain"
    looks: int = 0  # at the test set while it trains (run/watch.py)

    @property
    def key(self) -> str:
        values = asdict(self) | {"options": portable(self.options)}
        for name, usual in (("protocol", "plain"), ("looks", 0)):  # rows of before these were there keep their key
            if values[name] == usual:
                del values[name]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        words = [self.method, self.data, *(f"{key} {value}" for key, value in portable(self.options).items())]
        words += [f"{self.shots} shots, draw {self.draw}"] if self.shots else []
        words += [protocol(self.protocol).name] if self.protocol != "plain" else []
        return ", ".join([*words, f"seed {self.seed}"])


class Score(NamedTuple):
    """What a run said of one test picture."""

    name: str
    part: str
    kind: str
    score: float


class Table:
    """`root` holds table.jsonl, models, scores, and the runs that are not finished.

    `wanted` are the keys of the jobs that may be run now, on `device`, by a page that runs its own. A `part` writes a
    file of its own, table-PART.jsonl, for machines that share a folder whose appends may mix; all files are read.
    """

    def __init__(self, root: Path, wanted: Iterable[str] = (), device: str = "auto", part: str = "") -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.path, self.part = root, root / (f"table-{part}.jsonl" if part else "table.jsonl"), part
        self.wanted, self.device = frozenset(wanted), device

    def rows(self) -> dict[str, dict[str, Any]]:
        """By the job's key; of two rows the later one. Those of other defaults than today's do not count."""
        return {row["key"]: row for row in self._lines() if "failed" not in row and _as_today(row)}

    def failures(self) -> Counter[str]:
        """How often each run has failed, by key."""
        return Counter(row["key"] for row in self._lines() if "failed" in row)

    def failed(self) -> dict[str, dict[str, Any]]:
        """Runs that failed and have not been done since, with the reason."""
        done = self.rows()
        return {row["key"]: row for row in self._lines() if "failed" in row and row["key"] not in done}

    def take(self, job: Job, row: Mapping[str, Any], scores: str) -> None:
        """A row that was made elsewhere, with its scores.csv."""
        path = self._scores(job)
        path.parent.mkdir(exist_ok=True)
        path.write_text(scores, encoding="utf-8", errors="surrogateescape")
        self._add(row)

    def fail(self, job: Job, reason: str) -> None:
        self._add({"key": job.key, **asdict(job), "options": portable(job.options), "failed": reason, **made()})

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Of all files, in the order in which they were written."""
        paths = [self.root / "table.jsonl", *sorted(self.root.glob("table-*-of-*.jsonl"))]
        lines = (line for path in paths if path.exists() for line in path.read_text().splitlines())
        return iter(sorted(filter(None, map(_parsed, lines)), key=lambda row: row.get("at", 0.0)))

    def model(self, job: Job) -> Path | None:
        path = self.root / "models" / f"{job.key}.flaw"
        return path if path.exists() and job.key in self.rows() else None

    def scores(self, job: Job) -> list[Score] | None:
        """Of every test picture; None: they were not kept, or the row is not of today's defaults."""
        path = self._scores(job)
        if not path.exists() or job.key not in self.rows():
            return None
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return [Score(r["name"], r["part"], r["kind"], float(r["score"])) for r in csv.DictReader(file)]

    def check(self, category: str, samples: Sequence[Sample]) -> None:
        """DataError: what is in the table was made from other pictures of that name, or judged by other answers."""
        today = {"data_sha256": digest(samples), "truth_sha256": truth(samples)}
        for row in self.rows().values():
            for name, what in (("data_sha256", "other pictures"), ("truth_sha256", "other labels or masks")):
                if row["data"] == category and row.get(name, today[name]) != today[name]:
                    raise DataError(f"{self.path}: its rows of {category} were made from {what}; take another --out")

    def fill(
        self,
        jobs: Iterable[Job],
        samples_of: Callable[[str], Sequence[Sample]],
        device: str = "auto",
        *,
        keep: bool = False,
        scores: bool = False,
    ) -> int:
        """Runs what has no row yet, in order. `samples_of(name)` are the pictures of a category.

        With `keep` a run whose model is wanted and was not kept is done again, with `scores` one whose scores were
        not, from its model where there is one. A run that fails does not stop the others; its error is raised after
        them. How many runs are in the hands of other processes.
        """
        failed: list[FlawmapError] = []
        elsewhere = 0
        for job in jobs:
            if self.done(job, keep, scores):
                continue
            with claimed(self.root / "claims" / job.key) as mine:
                if mine and not self.done(job, keep, scores):
                    say(f"== {job}")
                    try:
                        if self.model(job):
                            self._score(job, samples_of(job.data))
                        else:
                            self._run(job, samples_of(job.data), device, keep)
                    except FlawmapError as error:
                        say(f"failed, and left as it is: {error}")
                        failed.append(error)
                elif not mine:
                    say(f"in the hands of another process: {job}")
                    elsewhere += 1
        if failed:
            raise failed[0]
        return elsewhere

    def _run(self, job: Job, samples: Sequence[Sample], device: str, keep: bool) -> None:
        row, bundle = run(job, samples, self.root, device)
        path = self.root / "models" / f"{job.key}.flaw"
        path.unlink(missing_ok=True)  # a model of an older row
        if keep or row["fit_s"] > KEEP_S:
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_suffix(".new")
            shutil.copyfile(bundle, temporary)
            os.replace(temporary, path)
        self._keep_scores(job)
        self._add(row)
        shutil.rmtree(self.root / "runs" / job.key)

    def _score(self, job: Job, samples: Sequence[Sample]) -> None:
        """The scores alone, by the model that was kept."""
        from flawmap.run.evaluate import evaluate

        model, rules = load(self.root / "models" / f"{job.key}.flaw"), protocol(job.protocol)
        evaluate(model, samples, self._evaluation(job), name=job.data, protocol=rules)
        self._keep_scores(job)
        shutil.rmtree(self.root / "runs" / job.key)

    def _keep_scores(self, job: Job) -> None:
        path = self._scores(job)
        path.parent.mkdir(exist_ok=True)
        os.replace(self._evaluation(job) / "scores.csv", path)

    def _scores(self, job: Job) -> Path:
        return self.root / "scores" / f"{job.key}.csv"

    def _evaluation(self, job: Job) -> Path:
        return self.root / "runs" / job.key / "evaluation"

    def done(self, job: Job, keep: bool = False, scores: bool = False) -> bool:
        """Whether it has a row, of the weights that it names."""
        from flawmap.run.weights import embedded_sha256, file_sha256

        row = self.rows().get(job.key)
        lacking = (keep and self.model(job) is None) or (scores and not self._scores(job).exists())
        if row is None or lacking:
            return False
        file = file_sha256(job.options)
        if file is None:
            return not (row.get("given") and embedded_sha256(job.method, job.options))
        return row.get("weights_sha256") in (None, file)

    def _add(self, row: Mapping[str, Any]) -> None:
        """After half a line of a process that was killed, a new line is begun."""
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as file:
            file.write("\n" * torn + json.dumps({**row, "at": round(time.time(), 3)}, default=str) + "\n")
            file.flush()
            os.fsync(file.fileno())


def run(job: Job, samples: Sequence[Sample], root: Path, device: str) -> tuple[dict[str, Any], Path]:
    """Fits, judges the test pictures once, and says what it took; and the bundle's file. What was stopped goes on."""
    from flawmap.run.evaluate import evaluate
    from flawmap.run.roles import CROSSED, FIT
    from flawmap.run.weights import file_sha256

    out, begun = root / "runs" / job.key, time.monotonic()
    if not any(s.split == "test" and s.kind is not None for s in samples):
        raise DataError(f"{job.data}: no test pictures of a known kind, so there is nothing to judge")
    _begin(out, job, samples)
    watch = _watch(job, samples, out)
    model = _finished(job, out) or _fit(job, samples, out, device, watch)
    assert model.run is not None
    fitted = time.monotonic() - begun
    found = evaluate(model, samples, out / "evaluation", name=job.data, protocol=protocol(job.protocol))
    entries = Log(model.run / "train.jsonl").entries()
    data = [json.loads(line) for line in (model.run / "data.jsonl").read_text().splitlines()]
    row = {
        "key": job.key,
        **asdict(job),
        "options": portable(job.options),
        **{key: found.metrics.get(key) for key in METRICS},
        "data_sha256": digest(samples),
        "truth_sha256": truth(samples),
        "given": file_sha256(job.options) is not None,
        "pictures": found.metrics["pictures"],
        "fitted_on": sum(entry.get("role") in (FIT, CROSSED) for entry in data),
        "support": [entry["name"] for entry in data if "role" in entry] if job.shots else None,
        "curve": curve([entry["loss"] for entry in entries if entry["event"] == "step"]),
        "steps": sum(entry["event"] == "step" for entry in entries),
        "fit_s": round(sum(entry.get("seconds", 0) for entry in entries if entry["event"] == "done"), 1),
        "evaluate_s": round(time.monotonic() - begun - fitted, 1),
        "peak_mb": peak_mb(),  # of this process: of this run, where a run has a process of its own
        "bundle_mb": round((model.run / "bundle.flaw").stat().st_size / 2**20, 1),
        "config": portable(model.bundle.config["options"]),
        "weights_sha256": model.bundle.config.get("backbone_sha256") or model.bundle.config.get("teacher_sha256"),
        **dict(zip(("best_on_test", "best_on_test_step"), watch.best() if watch else (None, None), strict=True)),
        **_calibrated(model),
        **made(),
    }
    return row, model.run / "bundle.flaw"


def _begin(out: Path, job: Job, samples: Sequence[Sample]) -> None:
    """What a stopped run has left counts only for the same pictures, answers, weights and rules."""
    from flawmap.run.weights import embedded_sha256, file_sha256

    weights = file_sha256(job.options) or embedded_sha256(job.method, job.options)
    stamp = json.dumps([digest(samples), truth(samples), weights, protocol(job.protocol).sentence])
    path = out / "stamp.json"
    if out.exists() and not (path.exists() and path.read_text() == stamp):
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(stamp)


def _watch(job: Job, samples: Sequence[Sample], out: Path) -> Any:
    from flawmap.run.watch import Watch

    return Watch(samples, job.looks, out) if job.looks else None


def _fit(job: Job, samples: Sequence[Sample], out: Path, device: str, watch: Any) -> Model:
    from flawmap.run.fit import fit

    return fit(
        samples,
        job.method,
        options=job.options,
        seed=job.seed,
        held_out=job.held_out,
        shots=job.shots,
        draw=job.draw,
        out=out,
        device=device,
        resume=True,
        name=job.data,
        protocol=protocol(job.protocol),
        watch=watch,
    )


def _calibrated(model: Model) -> dict[str, Any]:
    """Threshold and promise, or None of each."""
    names, calibration = ("threshold", "promise", "bound", "parts", "cross_fitted"), model.calibration
    found = {name: None if calibration is None else getattr(calibration, name) for name in names}
    return {("calibrated_on" if name == "parts" else name): value for name, value in found.items()}


def portable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without this machine's paths; a row knows what a file of weights held by its SHA-256."""
    return {key: value for key, value in options.items() if key not in FILES}


def _finished(job: Job, out: Path) -> Model | None:
    """A fit that had ended when its process was stopped, of today's defaults."""
    for path in sorted(out.rglob("bundle.flaw")):
        model = load(path)
        if _as_today({**asdict(job), "config": model.bundle.config["options"]}):
            model.run = path.parent
            return model
    return None


def _parsed(line: str) -> dict[str, Any] | None:
    """None: half a line, of a process that was killed while it wrote."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _as_today(row: Mapping[str, Any]) -> bool:
    from flawmap.detectors import detector_class

    try:
        options = protocol(row.get("protocol", "plain")).options(row["options"])
        today = asdict(detector_class(row["method"]).configure({"seed": row["seed"], **options}))
    except UsageError:  # a method or an option that is no more
        return False
    from flawmap.run.weights import embedded_sha256

    own, used = embedded_sha256(row["method"], row["options"]), row.get("weights_sha256")
    if (
        own and used and own != used and not row.get("given")
    ):  # made with other weights than come with the package today
        return False
    today, then = portable(today), portable(row["config"])
    return all(_plain(today.get(name)) == value for name, value in then.items())


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def curve(losses: Sequence[float]) -> list[float]:
    """The mean loss of each twentieth of the steps."""
    return [round(float(part.mean()), 5) for part in np.array_split(np.array(losses), CURVE) if part.size]


def falling(points: Sequence[float]) -> float | None:
    """By which share the loss still fell before the learning rate did: the third fifth against the fourth."""
    if len(points) < CURVE:
        return None
    third, fourth = (float(np.mean(points[CURVE * i // 5 : CURVE * (i + 1) // 5])) for i in (2, 3))
    return (third - fourth) / third


def made() -> dict[str, str]:
    """When, on what and from which commit."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        commit = ""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit or "unknown",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }

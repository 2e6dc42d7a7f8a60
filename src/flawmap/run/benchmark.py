"""Methods x categories x seeds x shots: a plan becomes jobs, jobs become rows of a run table, rows become tables.

Each job has a process of its own: a crash or a want of memory is a row with its reason, and the rest goes on. What has
a row is not run again, so a benchmark may be stopped at any point.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from flawmap.detectors import detector_class
from flawmap.errors import DataError, FlawmapError, UsageError
from flawmap.images.datasets import DataSet, dataset
from flawmap.images.protocol import protocol
from flawmap.run.progress import say
from flawmap.run.reproduce import Row
from flawmap.run.table import Job, Table, run

METRICS = ("i_auroc", "part_auroc", "p_auroc", "p_ap", "pro", "spro", "aupimo")


@dataclass(frozen=True)
class Plan:
    """What is to be compared. As a recipe: a TOML file of these names, methods under [[methods]]."""

    methods: tuple[Row, ...]
    title: str = "Benchmark"
    categories: tuple[str, ...] = ()  # empty: all of the data set
    seeds: tuple[int, ...] = (0,)
    shots: tuple[int, ...] = ()  # good parts; 0: all
    draws: int = 1
    draw: int | None = None  # this one only
    held_out: float = 0.2  # of the good parts, for the threshold
    looks: int = 0  # at the test set while a network trains, for the columns BEST ON TEST
    protocol: str | Mapping[str, Any] = "plain"
    limits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by name: categories, seeds, held_out
    leave_out: Mapping[str, Sequence[str]] = field(default_factory=dict)  # metric -> categories kept out of its means
    notes: tuple[str, ...] = ()  # below the tables

    def __post_init__(self) -> None:
        for name, of in LISTS.items():
            _check(name, getattr(self, name), tuple)
            for each in getattr(self, name):
                _check(name, each, of)
        for name, of in PLAIN.items():
            _check(name, getattr(self, name), of)
        rules = protocol(self.protocol)
        if not self.methods:
            raise UsageError("a benchmark needs a method: --methods patchcore padim, or [[methods]] in the recipe")
        names = [row.name for row in self.methods]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UsageError(f"two methods are called {twice.pop()}; give each a name of its own")
        for row in self.methods:
            detector_class(row.method).configure(rules.options(row.options))
        keys = [
            (replace(Job(row.method, "", row.options), protocol=self.protocol).key, row.name) for row in self.methods
        ]
        for key, name in keys:
            if same := [other for of, other in keys if of == key and other != name]:
                raise UsageError(
                    f"{name} and {same[0]} are the same run for a run table, which knows files of weights by their "
                    "content alone: give each a benchmark of its own --out"
                )
        if unknown := set(self.limits) - set(names):
            raise UsageError(f"limits: no method is called {unknown.pop()!r}; there are {', '.join(names)}")
        if unknown := set(self.leave_out) - set(METRICS):
            raise UsageError(f"leave_out: no metric {unknown.pop()!r}; there are {', '.join(METRICS)}")
        for name, limit in self.limits.items():
            _check(f"limits of {name}", limit, Mapping)
            if unknown := set(limit) - set(LIMITS):
                raise UsageError(f"limits of {name}: no {unknown.pop()!r}; there are {', '.join(LIMITS)}")
            for key, value in limit.items():
                _check(f"limits of {name}: {key}", value, LIMITS[key])
        for metric, left_out in self.leave_out.items():
            _check(f"leave_out of {metric}", left_out, (list, tuple))
        least = min((0, self.draws - 1, self.draw or 0, self.looks, *self.seeds, *self.shots))
        if least < 0 or not 0 <= self.held_out < 1:
            raise UsageError(
                "draws is at least 1; draw, looks, seeds and shots are at least 0; held_out is from 0 to below 1"
            )

    def check(self, categories: Sequence[str]) -> None:
        """DataError: limits or leave_out name a category that is not there."""
        known = {name for each in categories for name in (each, each.rpartition("/")[2])}
        named = {name: limit["categories"] for name, limit in self.limits.items() if "categories" in limit}
        for what, names in [*named.items(), *self.leave_out.items()]:
            if unknown := set(names) - known:
                raise DataError(f"{what}: no category is called {unknown.pop()!r}; there are {', '.join(categories)}")

    def jobs(self, categories: Sequence[str]) -> list[tuple[Row, Job]]:
        """Seeds and draws outermost, so that a first row of every method is there early; limited methods last."""
        draws = range(self.draws) if self.draw is None else [self.draw]
        every = itertools.product(draws, self.seeds, categories, self.shots or (0,), self.methods)
        found = {}
        for draw, seed, category, shots, row in every:
            # All parts are one draw.
            held_out = self.limits.get(row.name, {}).get("held_out", self.held_out)
            job = Job(row.method, category, row.options, seed, shots or None, draw if shots else 0, held_out)
            if self._wants(row, job):
                found[row.name, job.key] = row, replace(job, protocol=self.protocol, looks=self.looks)
        return sorted(found.values(), key=lambda pair: pair[0].name in self.limits)

    def _wants(self, row: Row, job: Job) -> bool:
        limit = self.limits.get(row.name, {})
        names = limit.get("categories", [job.data])
        return (job.data in names or job.data.rpartition("/")[2] in names) and job.seed in limit.get(
            "seeds", [job.seed]
        )


LISTS: dict[str, Any] = {"categories": str, "seeds": int, "shots": int, "notes": str}
PLAIN: dict[str, Any] = {"title": str, "draws": int, "draw": (int, type(None)), "held_out": (int, float), "looks": int}
PLAIN |= {"limits": Mapping, "leave_out": Mapping}
LIMITS: dict[str, Any] = {"categories": (list, tuple), "seeds": (list, tuple), "held_out": (int, float)}


def _check(name: str, value: Any, of: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, of):
        kinds = of if isinstance(of, tuple) else (of,)
        raise UsageError(f"{name} is {value!r}; give {' or '.join(WORDS[kind] for kind in kinds if kind in WORDS)}")


WORDS = {str: "a text", int: "a whole number", float: "a number", tuple: "a list", list: "a list", Mapping: "a table"}


def read(path: Path) -> Plan:
    """A recipe's plan. UsageError: it says what cannot be."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a recipe of a benchmark ({error})") from error
    known = {each.name for each in fields(Plan)}
    if wrong := values.keys() - known:
        raise UsageError(f"{path}: unknown {', '.join(sorted(wrong))}; known are {', '.join(sorted(known))}")
    _check("methods", values.get("methods", []), list)
    methods = tuple(_row(given, path) for given in values.pop("methods", []))
    return Plan(methods, **{name: _fixed(value) for name, value in values.items()})


FLAGS = ("categories", "seeds", "shots", "draws", "draw", "held_out", "looks", "protocol")


def plan_of(recipe: Path | None, flags: Mapping[str, Any]) -> Plan:
    """From a recipe, or from flags. UsageError: from both."""
    usual = Plan((named("patchcore"),))
    given = {name: _fixed(flags[name]) for name in FLAGS}
    if recipe is None:
        return Plan(tuple(map(named, flags["methods"] or ())), **given)
    if both := [name for name in FLAGS if given[name] != getattr(usual, name)] + ["methods"] * bool(flags["methods"]):
        raise UsageError(
            f"{recipe} says what is compared: leave out --{both[0].replace('_', '-')}, or change the recipe"
        )
    return read(recipe)


def shard_of(word: str) -> tuple[int, int]:
    """I/N as numbers."""
    this, _, of = word.partition("/")
    if not (this.isdecimal() and of.isdecimal()):
        raise UsageError(f"--shard {word}: give I/N, such as 1/4")
    return int(this), int(of)


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _row(given: Any, path: Path) -> Row:
    if isinstance(given, str):
        return named(given)
    if not isinstance(given, Mapping) or "method" not in given or given.keys() - {"name", "method", "options"}:
        raise UsageError(f"{path}: a method is a name such as 'pouta:small', or has method, and may have name, options")
    name, options = given.get("name", given["method"]), given.get("options", {})
    _check("a method's name", name, str)
    _check(f"options of {name}", options, Mapping)
    return Row(" ".join(name.split()) or given["method"], given["method"], options)


def named(word: str) -> Row:
    """METHOD, or METHOD:PRESET."""
    method, _, preset = word.partition(":")
    return Row(word, method, {"preset": preset} if preset else {})


@dataclass(frozen=True)
class How:
    """On what a plan is run."""

    workers: int = 1
    gpus: tuple[str, ...] = ()  # ids; a worker has one, several may share one
    shard: tuple[int, int] = (1, 1)  # this one of so many
    engine: str = "local"
    address: str = ""  # of a Ray cluster; empty: one is started here
    gpu_share: float = 0.0  # of a GPU, a job on a Ray cluster
    retry: bool = False  # what failed is run again
    train: bool = True
    device: str = "auto"

    def __post_init__(self) -> None:
        this, of = self.shard
        if self.workers < 1 or not 1 <= this <= of:
            raise UsageError("workers is at least 1, a shard is I/N with I from 1 to N")
        if self.engine not in ("local", "ray"):
            raise UsageError(f"no engine {self.engine!r}; there are: local, ray")


def benchmark(plan: Plan, data: Path, out: Path, how: How = How()) -> dict[str, Any]:
    """Runs what has no row yet, then writes OUT/benchmark.{csv,parquet,md,tex,html}. Counts of runs, and the files.

    DataError: no such categories, or the table was made from other pictures.
    """
    pictures = dataset(data)
    categories = _categories(plan, pictures)
    this, of = how.shard
    table = Table(out, device=how.device, part=f"{this}-of-{of}" if of > 1 else "")
    plan.check(categories)
    pairs = plan.jobs(categories)
    for category in categories:
        table.check(category, pictures.samples(category))
    if how.train:
        mine = [job for place, (_, job) in enumerate(pairs) if place % of == this - 1]
        _run(mine, table, data, how)
    from flawmap.run.tables import write

    return write(plan, pairs, table, out)


def _categories(plan: Plan, pictures: DataSet) -> list[str]:
    """Of the plan, or all; `bottle` may also be `mvtec/bottle`."""
    found = []
    for name in plan.categories or pictures.categories:
        places = [each for each in pictures.categories if name in (each, each.rpartition("/")[2])]
        if len(places) != 1:
            there = ", ".join(pictures.categories)
            raise DataError(f"{pictures.root}: {'several are' if places else 'none is'} called {name!r}: {there}")
        found.append(places[0])
    return list(dict.fromkeys(found))


def _run(jobs: Sequence[Job], table: Table, data: Path, how: How) -> None:
    failed = {} if how.retry else table.failed()
    waiting = [job for job in jobs if not table.done(job) and job.key not in failed]
    say(f"{len(jobs)} runs, {len(waiting)} of them to do")
    if not waiting:
        return
    if how.engine == "ray":
        from flawmap.run import cluster

        work = partial(remote, str(data.resolve()), how.device)
        for job, found in cluster.fill(work, waiting, how.address, how.gpu_share):
            if isinstance(found, str):
                table.fail(job, found)
            else:
                table.take(job, *found)
        return
    from flawmap.run.isolate import fill

    fill(waiting, table, data, how.workers, how.gpus, how.device)


def remote(data: str, device: str, job: Job) -> tuple[dict[str, Any], str] | str:
    """On a node of a cluster, which sees the pictures at the same path: the row, and the scores as CSV; or why not."""
    os.environ.setdefault("FLAWMAP_THREADS", os.environ.get("OMP_NUM_THREADS", "0"))  # Ray's share of the node
    with tempfile.TemporaryDirectory() as folder:
        try:
            row, _ = run(job, dataset(Path(data)).samples(job.data), Path(folder), device)
        except FlawmapError as error:  # it would come again on every node
            return reason(error)
        scores = Path(folder) / "runs" / job.key / "evaluation" / "scores.csv"
        return row, scores.read_text(encoding="utf-8", errors="surrogateescape")


def reason(error: BaseException) -> str:
    """What a table says of a run that failed."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if isinstance(error, FlawmapError) else f"{type(error).__name__}: {words}"

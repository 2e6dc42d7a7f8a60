"""The tables and figures of a paper as commands: a recipe says which runs they take, the run table holds what is done.

A recipe is a file of flawmap/recipes: `full` are the paper's settings, which want a GPU and the data set's folder,
`small` is what a CPU can do. What has not been run is shown as not run.
"""

from __future__ import annotations

import importlib
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from flawmap.errors import DataError, UsageError
from flawmap.images.datasets import DataSet, dataset, layout
from flawmap.images.decode import decode
from flawmap.run.progress import say
from flawmap.run.table import Job, Table
from flawmap.types import Sample

# Kind of page -> "module:function" of flawmap/run; the function has the signature of `figures.figure`.
KINDS = {
    "table": "pages:table",
    "shots": "pages:shots",
    **dict.fromkeys(("strips", "levels", "gradcam", "tsne"), "figures:figure"),
    "cost": "cost:page",
    "bars": "bars:page",
    "few": "few:page",
    "roc": "roc:page",
    "escape": "roc:escape",
    "epochs": "epochs:page",
    "coarse": "coarse:page",
    "spread": "spread:page",
    "book": "book:book",
}
MODELS = {"strips", "levels", "gradcam", "tsne", "coarse", "spread"}  # kinds that show models: they are kept
SCORES = {"roc", "escape"}  # kinds that show the scores of single pictures
OWN = {"epochs"}  # kinds that run by themselves those jobs whose key is in `table.wanted`
TITLES = {"i_auroc": "I-AUROC", "part_auroc": "part AUROC", "p_auroc": "P-AUROC", "p_ap": "P-AP", "pro": "PRO"}
GREY = " (grey)"  # after a category's name: the same pictures without their colours
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Row:
    name: str
    method: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    group: str = ""  # rows of one group stand together


@dataclass(frozen=True)
class Size:
    """Of a recipe: full or small."""

    data: str = ""  # the kind of data set that is asked for
    categories: tuple[str, ...] = ()  # empty: all
    seeds: tuple[int, ...] = (0,)
    shots: tuple[int, ...] = ()  # parts; 0: all
    draws: int = 1
    held_out: float = 0.0  # of the good parts, for a calibrated threshold
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by method, for all rows
    protocols: Mapping[str, str] = field(default_factory=dict)  # by method; else plain
    limits: Mapping[str, Any] = field(default_factory=dict)  # by method: on these categories alone, or a `Limit`
    figure: Mapping[str, Any] = field(default_factory=dict)  # what the figure takes

    def wants(self, job: Job) -> bool:
        """Whether it is within what its method is limited to, which makes a slow method's share smaller.

        A limit is a list of categories, or a table of any of categories, seeds, shots and draws.
        """
        limit = self.limits.get(job.method, {})
        limit = limit if isinstance(limit, Mapping) else {"categories": limit}
        return (
            job.data in limit.get("categories", [job.data])
            and job.seed in limit.get("seeds", [job.seed])
            and (job.shots or 0) in limit.get("shots", [job.shots or 0])
            and job.draw < limit.get("draws", self.draws)
        )


@dataclass(frozen=True)
class Recipe:
    name: str
    title: str
    source: str
    kind: str
    rows: tuple[Row, ...]
    full: Size
    small: Size
    metrics: tuple[str, ...] = ()
    paper_is: str = ""
    paper_on: str = ""  # the category that the paper's values are of, where it is one of ours
    says: str = ""  # what is to be known of the paper's values, for below the table
    pages: tuple[str, ...] = ()  # of a book

    def jobs(
        self, size: Size, categories: Sequence[str], textures: str = "", weights: Path | None = None
    ) -> Iterator[tuple[Row, Job]]:
        """Seeds and draws outermost, so that a first row of every method is there early."""
        for draw in range(size.draws):
            for seed in size.seeds:
                for category in size.categories or categories:
                    for shots in size.shots or (None,):
                        for row in self.rows:
                            if not row.method:
                                continue
                            options = _options(row, size, textures, weights)
                            job = Job(row.method, category, options, seed, shots or None, draw, size.held_out)
                            job = replace(job, protocol=size.protocols.get(row.method, "plain"))
                            if size.wants(job):
                                # All parts are one draw: another seed tells more.
                                yield row, job if job.shots else replace(job, seed=seed + draw, draw=0)


def _options(row: Row, size: Size, textures: str, weights: Path | None) -> dict[str, Any]:
    from flawmap.detectors import describe
    from flawmap.run.weights import given

    options = {**size.options.get(row.method, {}), **row.options}
    if textures and "textures" in describe(row.method)["options"]:
        options["textures"] = textures
    return options | (given(row.method, options, weights) if weights else {})


def names() -> list[str]:
    return sorted(path.name.removesuffix(".toml") for path in _folder().iterdir() if path.name.endswith(".toml"))


def read(name: str) -> Recipe:
    path = _folder() / f"{name}.toml"
    if name not in names():
        raise UsageError(f"nothing to reproduce is called {name!r}; there are: {', '.join(names())}")
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    sizes = {key: Size(**{k: _fixed(v) for k, v in values.pop(key, {}).items()}) for key in ("full", "small")}
    rows = tuple(Row(**row) for row in values.pop("rows", []))
    return Recipe(name=name, rows=rows, **sizes, **{key: _fixed(value) for key, value in values.items()})


class NothingCalled(UsageError):
    """--only or --seeds match no run of a page."""


@dataclass(frozen=True)
class Wish:
    """What is asked for of a recipe."""

    data: Path | None
    out: Path
    full: bool = False
    only: str = ""
    seeds: Sequence[int] | None = None
    textures: str = ""
    weights: Path | None = None  # a folder of BACKBONE.safetensors
    train: bool = True
    device: str = "auto"


def reproduce(name: str, data: Path | None, out: Path, **wishes: Any) -> dict[str, str]:
    """Runs what is missing of an experiment, and writes its page, OUT/NAME.md, with figures beside it.

    `wishes` are the fields of a Wish.
    """
    recipe, wish = read(name), Wish(data, out, **wishes)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("reproduce is not started by torchrun: start it several times with one --out instead")
    if wish.weights is not None and not wish.weights.is_dir():
        raise UsageError(f"{wish.weights}: there is no such folder; --weights holds files BACKBONE.safetensors")
    if recipe.kind == "book":
        from flawmap.run.book import book

        return book(recipe, wish)
    return one(recipe, wish)


def one(recipe: Recipe, wish: Wish) -> dict[str, str]:
    """One page. UsageError: nothing of it is called as the wish says."""
    size, page = recipe.full if wish.full else recipe.small, _page(recipe.kind)
    if recipe.kind == "cost":
        if not wish.train or wish.only or wish.seeds:
            raise UsageError(f"{recipe.name} measures anew each time: it takes no --no-run, --only or --seeds")
        return _write(recipe, wish.out, "", page(recipe, size, [], Table(wish.out), lambda name: [], wish.out))
    if wish.data is None:
        raise UsageError(f"{recipe.name} wants pictures: name their folder with --data\n{layout(size.data or 'mvtec')}")
    pictures, places = _places(size, wish.data)
    pairs = list(recipe.jobs(size, list(places), wish.textures, wish.weights))
    pairs = [(row, job) for row, job in pairs if job.data in places]

    @cache
    def samples_of(category: str) -> Sequence[Sample]:
        found = pictures.samples(places[category])
        return [_in_grey(sample) for sample in found] if category.endswith(GREY) else found

    wanted = _wanted(recipe, wish, pairs) if wish.train else []
    table = Table(wish.out, (job.key for job in wanted), wish.device)
    for category in places:
        table.check(category, samples_of(category))
    if recipe.kind not in OWN:
        table.fill(wanted, samples_of, wish.device, keep=recipe.kind in MODELS, scores=recipe.kind in SCORES)
    kind = "full recipe: the paper's settings" if wish.full else "small recipe: for a CPU, not the paper's settings"
    return _write(recipe, wish.out, kind, page(recipe, size, pairs, table, samples_of, wish.out))


def _wanted(recipe: Recipe, wish: Wish, pairs: Pairs) -> list[Job]:
    """The jobs that the wish names and whose weights are there; the others are told."""
    from flawmap.run.weights import lacking

    named = [(row, job) for row, job in pairs if wish.only in f"{row.name}, {job}"]
    named = [(row, job) for row, job in named if not wish.seeds or job.seed in wish.seeds]
    if not named and pairs:
        there = "\n".join(f"  {row.name}, {job}" for row, job in pairs)
        raise NothingCalled(f"nothing of {recipe.name} is called so; there are:\n{there}")
    for words in dict.fromkeys(f"{row.name}: not run: {why}" for row, job in named if (why := lacking(job))):
        say(words)
    return [job for _, job in named if not lacking(job)]


def _places(size: Size, data: Path) -> tuple[DataSet, dict[str, str]]:
    """The data set, and where in it the recipe's categories are: mvtec/bottle may also be bottle."""
    pictures = dataset(data, size.data)
    places = {}
    for category in size.categories or pictures.categories:
        plain = category.removesuffix(GREY)
        for name in (plain, plain.rpartition("/")[2]):
            if name in pictures.categories:
                places.setdefault(category, name)
    if left_out := [category for category in size.categories if category not in places]:
        say(f"not in {data}, so not run: {', '.join(left_out)}")
    if not places:
        raise DataError(f"{data}: none of {', '.join(size.categories)}\n{layout(size.data or 'mvtec')}")
    return pictures, places


def _in_grey(sample: Sample) -> Sample:
    """Its luma, one value a pixel, which a detector gets three times."""
    pixels = decode(sample.source)
    return replace(sample, source=np.rint(pixels @ np.array(LUMA, np.float32)).astype(pixels.dtype))


def _write(recipe: Recipe, out: Path, kind: str, lines: Iterable[str]) -> dict[str, str]:
    made_by = f"Made by `flawmap reproduce {recipe.name}`" + (f", {kind}." if kind else ".")
    title = [f"## {recipe.title}", "", f"{recipe.source}. {made_by}", ""]
    path = out / f"{recipe.name}.md"
    out.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.new")
    temporary.write_text("\n".join([*title, *lines, ""]), encoding="utf-8")
    os.replace(temporary, path)
    return {"page": str(path)}


Pairs = Sequence[tuple[Row, Job]]
Rows = Mapping[str, Mapping[str, Any]]
SamplesOf = Callable[[str], Sequence[Sample]]
Page = Callable[[Recipe, Size, Pairs, Table, SamplesOf, Path], Iterator[str]]


def _page(kind: str) -> Page:
    module, function = KINDS[kind].split(":")
    return getattr(importlib.import_module(f"flawmap.run.{module}"), function)


def head(columns: Sequence[str]) -> list[str]:
    line = f"| {' | '.join(columns)} |"
    return [line, "|" + "---|" * (line.count("|") - 1)]


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _folder() -> Any:
    return resources.files("flawmap") / "recipes"

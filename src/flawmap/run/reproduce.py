"""The tables and figures of a paper as commands: a recipe says which runs they take, the run table holds what is done.

A recipe is a file of flawmap/recipes: `full` are the paper's settings, which want a GPU and the data set's folder,
`small` is what a CPU can do. What has not been run is shown as not run.
"""

from __future__ import annotations

import os
import statistics
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from flawmap.errors import DataError, UsageError
from flawmap.images.datasets import DataSet, dataset, layout
from flawmap.run.progress import say
from flawmap.run.recipe import digest
from flawmap.run.table import Job, Table, falling, made
from flawmap.types import Sample

TITLES = {"i_auroc": "I-AUROC", "part_auroc": "part AUROC", "p_auroc": "P-AUROC", "p_ap": "P-AP", "pro": "PRO"}
NOT_RUN = "not run"
FALLS = 0.05  # a loss that still fell by this share has not converged
NOTHING = 0.01  # unless so little of it is left


@dataclass(frozen=True)
class Row:
    name: str
    method: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Size:
    """Of a recipe: full or small."""

    data: str = ""  # the kind of data set that is asked for
    categories: tuple[str, ...] = ()  # empty: all
    seeds: tuple[int, ...] = (0,)
    shots: tuple[int, ...] = ()  # 0: all
    draws: int = 1
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by method, for all rows
    limits: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by method: on these categories alone
    figure: Mapping[str, Any] = field(default_factory=dict)  # what the figure takes


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

    def jobs(self, size: Size, categories: Sequence[str], textures: str = "") -> Iterator[tuple[Row, Job]]:
        """Seeds and draws outermost, so that a first row of every method is there early."""
        for draw in range(size.draws):
            for seed in size.seeds:
                for category in size.categories or categories:
                    for shots in size.shots or (None,):
                        for row in self.rows:
                            if row.method and category in size.limits.get(row.method, [category]):
                                yield row, self._job(row, size, category, seed, shots or None, draw, textures)

    def _job(self, row: Row, size: Size, category: str, seed: int, shots: int | None, draw: int, textures: str) -> Job:
        from flawmap.detectors import describe

        options = {**size.options.get(row.method, {}), **row.options}
        if textures and "textures" in describe(row.method)["options"]:
            options["textures"] = textures
        return Job(row.method, category, options, seed, shots, draw)


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


def reproduce(
    name: str,
    data: Path | None,
    out: Path,
    *,
    full: bool = False,
    only: str = "",
    seeds: Sequence[int] | None = None,
    textures: str = "",
    train: bool = True,
    device: str = "auto",
) -> dict[str, str]:
    """Runs what is missing of an experiment, and writes its page, OUT/NAME.md, with figures beside it."""
    recipe = read(name)
    size = recipe.full if full else recipe.small
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("reproduce is not started by torchrun: start it several times with one --out instead")
    if recipe.kind == "cost":
        from flawmap.run.cost import cost_table

        if not train or only or seeds:
            raise UsageError(f"{name} measures anew each time: it takes no --no-run, --only or --seeds")
        return _write(recipe, out, "", cost_table(recipe, size))
    if data is None:
        raise UsageError(f"{name} wants pictures: name their folder with --data\n{layout(size.data or 'mvtec')}")
    pictures, places = _places(size, data)
    table = Table(out)
    pairs = list(recipe.jobs(size, list(places), textures))
    pairs = [(row, job) for row, job in pairs if job.data in places]

    def samples_of(category: str) -> Sequence[Sample]:
        return pictures.samples(places[category])

    for category in places:
        table.check(category, digest(samples_of(category)))
    if train:
        wanted = [job for row, job in pairs if only in f"{row.name}, {job}" and (not seeds or job.seed in seeds)]
        if not wanted:
            there = "\n".join(f"  {row.name}, {job}" for row, job in pairs)
            raise UsageError(f"nothing of {name} is called so; there are:\n{there}")
        table.fill(wanted, samples_of, device, keep=recipe.kind not in PAGES)
    kind = "full recipe: the paper's settings" if full else "small recipe: for a CPU, not the paper's settings"
    if recipe.kind in PAGES:
        return _write(recipe, out, kind, PAGES[recipe.kind](recipe, size, pairs, table.rows()))
    from flawmap.run.figures import figure

    return _write(recipe, out, kind, figure(recipe, size, pairs, table, samples_of, out))


def _places(size: Size, data: Path) -> tuple[DataSet, dict[str, str]]:
    """The data set, and where in it the recipe's categories are: mvtec/bottle may also be bottle."""
    pictures = dataset(data, size.data)
    places = {}
    for category in size.categories or pictures.categories:
        for name in (category, category.rpartition("/")[2]):
            if name in pictures.categories:
                places.setdefault(category, name)
    if left_out := [category for category in size.categories if category not in places]:
        say(f"not in {data}, so not run: {', '.join(left_out)}")
    if not places:
        raise DataError(f"{data}: none of {', '.join(size.categories)}\n{layout(size.data or 'mvtec')}")
    return pictures, places


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


def _table_page(recipe: Recipe, size: Size, pairs: Pairs, rows: Rows) -> Iterator[str]:
    """A table a category, and their mean beside the paper's."""
    categories = list(dict.fromkeys(job.data for _, job in pairs))
    columns = ["method", "px", "seeds", *(TITLES[m] for m in recipe.metrics)]
    columns += ["steps", "loss, last 5 %", "it still fell by"]
    for category in categories:
        yield from (f"**{category}**", "", *head(columns))
        for row in recipe.rows:
            found = _done(pairs, rows, row, category)
            px = str(found[0]["config"]["size"]) if found else "—"
            cells = [row.name, px, str(len(found)), *_figures(recipe, found), *_training(found)]
            yield f"| {' | '.join(cells)} |"
        yield ""
    yield from (f"**mean of {len(categories)}, beside the paper's ({recipe.paper_is})**", "")
    yield from head(["method", *(f"{TITLES[m]} here | paper" for m in recipe.metrics)])
    for row in recipe.rows:
        cells = [row.name]
        for metric in recipe.metrics:
            each = [_done(pairs, rows, row, category) for category in categories]
            means = [mean for found in each if (mean := _mean(found, metric)) is not None]
            cells.append(NOT_RUN if [] in each else f"{statistics.mean(means):.3f}" if means else "—")
            cells.append(f"{row.paper[metric]:.3f}" if metric in row.paper else "—")
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield from _notes(recipe, pairs, rows)
    yield from ("", *_protocol(recipe, [row for row in rows.values() if row["key"] in {job.key for _, job in pairs}]))


def _shots_page(recipe: Recipe, size: Size, pairs: Pairs, rows: Rows) -> Iterator[str]:
    """I-AUROC over the number of good pictures, mean and deviation over the draws."""
    categories = list(dict.fromkeys(job.data for _, job in pairs))
    yield from head(["category", "method", "draws", *(f"k = {k}" for k in size.shots)])
    for category in categories:
        for row in recipe.rows:
            if not row.method:
                continue
            cells, draws = [], []
            for k in size.shots:
                jobs = [job for r, job in pairs if r is row and job.data == category and job.shots == k]
                found = [rows[job.key]["i_auroc"] for job in jobs if job.key in rows]
                draws.append(len(found))
                cells.append(_spread(found) if found else NOT_RUN)
            yield f"| {category} | {row.name} | {'/'.join(map(str, draws))} | {' | '.join(cells)} |"
    for row in recipe.rows:
        if row.paper:
            cells = [f"{row.paper[str(k)]:.3f}" if str(k) in row.paper else "—" for k in size.shots]
            yield f"| *{recipe.paper_is}* | {row.name}, paper | — | {' | '.join(cells)} |"
    yield ""
    yield from _notes(recipe, pairs, rows)
    mine = [rows[job.key] for _, job in pairs if job.key in rows]
    yield from ("", *_protocol(recipe, mine), "", "Support pictures, by part, the same for every method:", "")
    for row in {(r["data"], r["shots"], r["draw"]): r for r in mine}.values():
        yield f"- {row['data']}, k = {row['shots']}, draw {row['draw']}: {', '.join(row['support'])}"


PAGES: dict[str, Callable[[Recipe, Size, Pairs, Rows], Iterator[str]]] = {"table": _table_page, "shots": _shots_page}


def _notes(recipe: Recipe, pairs: Pairs, rows: Rows) -> Iterator[str]:
    """What each row was run with, and what is to be said of it."""
    for row in recipe.rows:
        words = []
        for job in (job for r, job in pairs if r is row):
            options = [f"{key} {value}" for key, value in job.options.items()] or ["defaults"]
            words = [f"{job.method}, {', '.join(options)}"]
            if job.key in rows and "backbone" in rows[job.key]["config"]:
                words[0] += f" ({rows[job.key]['config']['backbone']})"
        words += [row.note] if row.note else []
        if words:
            yield f"- {row.name}: {'; '.join(words)}."


def _done(pairs: Pairs, rows: Rows, row: Row, category: str) -> list[Mapping[str, Any]]:
    return [rows[job.key] for r, job in pairs if r is row and job.data == category and job.key in rows]


def _figures(recipe: Recipe, found: Sequence[Mapping[str, Any]]) -> list[str]:
    if not found:
        return [NOT_RUN] * len(recipe.metrics)
    values = ([row[metric] for row in found if row[metric] is not None] for metric in recipe.metrics)
    return [_spread(value) if value else "—" for value in values]


def _training(found: Sequence[Mapping[str, Any]]) -> list[str]:
    if not found or not found[0]["curve"]:
        return ["—"] * 3
    fell = [share for row in found if (share := falling(row["curve"])) is not None]
    words = "—" if not fell else f"{statistics.mean(fell):.0%}"
    if fell and max(fell) > FALLS and max(row["curve"][-1] / row["curve"][0] for row in found) > NOTHING:
        words += ", not converged"
    return [str(found[0]["steps"]), _spread([row["curve"][-1] for row in found]), words]


def _mean(found: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    values = [row[metric] for row in found if row[metric] is not None]
    return statistics.mean(values) if values else None


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def _protocol(recipe: Recipe, mine: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    said = mine or [made()]
    places = [", ".join(sorted({str(row[key]) for row in said})) for key in ("date", "commit", "machine")]
    yield (
        f"Dates {places[0]}; commits {places[1]}; {places[2]}. Pictures squashed to the network's size, no crop; maps "
        "brought to the picture's own size, masks as given, labels from the folder; last step of training; the test "
        "pictures judged once a row. Mean ± standard deviation over what the second or third column counts. *It still "
        "fell by*: the mean loss of the fourth fifth of the steps against the third, before the learning rate falls; "
        f"above {FALLS:.0%} the run has not converged, unless less than {NOTHING:.0%} of the first loss is left."
    )


def head(columns: Sequence[str]) -> list[str]:
    line = f"| {' | '.join(columns)} |"
    return [line, "|" + "---|" * (line.count("|") - 1)]


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _folder() -> Any:
    return resources.files("flawmap") / "recipes"

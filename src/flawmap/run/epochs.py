"""SimpleNet's figures on the test set at every meta-epoch of its training: how soon it settles, and what is gained on
paper by keeping the meta-epoch that the test set likes best, as its authors' code does.

A study, and nothing else: a model of this package is that of its last step, and no test picture ever chooses one.

A meta-epoch is some steps of training: in the paper 4 epochs of the pictures in batches of 8, and there are 40 of them.
Pixel figures are taken at the network's size: the map as the network gives it, in half precision, against the mask
brought to that size; a pixel is a defect where more than half of it is.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flawmap.detectors import create, detector_class
from flawmap.detectors.base import Detector
from flawmap.errors import DataError
from flawmap.images.decode import size_of
from flawmap.images.intake import Intake
from flawmap.images.masks.levels import Marks, read_mask
from flawmap.report import charts
from flawmap.run.claim import claimed
from flawmap.run.engine import device_named
from flawmap.run.feed import Feed
from flawmap.run.pages import NOT_RUN, notes
from flawmap.run.progress import progress, say
from flawmap.run.recipe import Log, digest, write_json
from flawmap.run.reproduce import TITLES, Pairs, Recipe, SamplesOf, Size, head
from flawmap.run.table import Job, Table, made, portable
from flawmap.run.train import train
from flawmap.types import Sample
from flawmap.verdict.metrics import auroc
from flawmap.verdict.pixels import PixelMetrics

METRICS = ("i_auroc", "p_auroc", "pro", "p_ap")
EPOCHS, META_EPOCHS, BATCH = 4, 40, 8  # epochs of a meta-epoch, and how many of these, as in the paper; pictures a step
POINT = 0.01  # a point of a figure between 0 and 1
SHOWN = (1, 2, 5, 10, 15, 20, 30, 40)  # meta-epochs in the table
STABLE = 15  # the meta-epoch from which the report calls the training stable
PIXEL_BINS = 2**16  # more distinct values than half precision has: nothing is rounded twice


@dataclass(frozen=True)
class Study:
    """One training: figures at the end of every meta-epoch, in order."""

    job: Job
    every: int  # steps of a meta-epoch
    points: Mapping[str, Sequence[float]]
    made: Mapping[str, str]

    @property
    def best(self) -> int:
        """The place that the authors' code would keep: the best I-AUROC on the test set, ties by P-AUROC."""
        return max(range(len(self.points["i_auroc"])), key=lambda i: tuple(self.points[m][i] for m in METRICS[:2]))

    def moves(self, metric: str, since: int = STABLE) -> float:
        """How far apart the largest and the smallest value are from a meta-epoch on."""
        return float(np.ptp(self.points[metric][since - 1 :]))


def settled(values: Sequence[float] | np.ndarray, within: float = POINT) -> int:
    """The first meta-epoch, counted from 1, from which on a figure stays as near to its last value."""
    away = np.flatnonzero(np.abs(np.asarray(values) - values[-1]) > within + 1e-9)
    return int(away[-1]) + 2 if away.size else 1


def page(recipe: Recipe, size: Size, pairs: Pairs, table: Table, samples_of: SamplesOf, out: Path) -> Iterator[str]:
    """Trains what is wanted and has no file in OUT/epochs yet; `figure.shows` of the recipe is "curves" or "best"."""
    meta_epochs, every = int(size.figure.get("meta_epochs", META_EPOCHS)), int(size.figure.get("every", 0))
    found: dict[str, list[Study]] = {}
    for category in dict.fromkeys(job.data for _, job in pairs):
        jobs, samples = [job for _, job in pairs if job.data == category], samples_of(category)
        mine = studies(jobs, samples, table, every or _steps(samples), meta_epochs)
        if mine:
            found[category] = mine
        if lacking := {job.seed for job in jobs} - {study.job.seed for study in mine}:
            yield from (f"{category}: {NOT_RUN}: seed {', '.join(map(str, sorted(lacking)))}.", "")
    if not found:
        return
    yield from _said(found, meta_epochs)
    yield from PAGES[size.figure["shows"]](recipe, found, out)
    yield from notes(recipe, pairs, {})
    every_study = [study for mine in found.values() for study in mine]
    where = [", ".join(sorted({s.made[key] for s in every_study})) for key in ("date", "commit", "machine")]
    yield from ("", f"Dates {where[0]}; commits {where[1]}; {where[2]}.")


def studies(jobs: Sequence[Job], samples: Sequence[Sample], table: Table, every: int, meta_epochs: int) -> list[Study]:
    """One a job: read from its file, or made now where it is wanted. Features are shared by all seeds."""
    folder, data_sha256 = table.root / "epochs", digest(samples)
    folder.mkdir(exist_ok=True)
    found, benches = [], dict[str, Bench]()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".work-") as work:
        for job in jobs:
            whole = replace(job, options={**job.options, "steps": every * meta_epochs})
            path = folder / f"{whole.key}-{meta_epochs}.json"
            study = _read(path, whole, every, data_sha256)
            if study is None and job.key in table.wanted:
                with claimed(table.root / "claims" / path.stem) as mine:
                    study = _read(path, whole, every, data_sha256)  # made by another process in the meantime
                    if not mine:
                        say(f"in the hands of another process: {whole}")
                    elif study is None:
                        key = json.dumps(job.options, sort_keys=True)
                        if key not in benches:
                            benches[key] = Bench(whole, samples, Path(work) / f"{len(benches)}", table.device)
                        study = _made(whole, benches[key], every, meta_epochs, path, data_sha256)
            if study is not None:
                found.append(study)
    return found


def _made(whole: Job, bench: Bench, every: int, meta_epochs: int, path: Path, data_sha256: str) -> Study:
    """Trained and scored now, and written; a study that is stopped is made anew, from its first step."""
    say(f"== {whole}, its test pictures scored {meta_epochs} times while it trains")
    begun = time.monotonic()
    study = Study(whole, every, watched(whole, bench, every)[1], made())
    write_json(path, {**_kept(study), "data_sha256": data_sha256, "seconds": round(time.monotonic() - begun, 1)})
    return study


class Bench:
    """The pictures of a category with what no seed changes: their features, and the masks at the network's size."""

    def __init__(self, job: Job, samples: Sequence[Sample], work: Path, device: str = "auto") -> None:
        fitted = [s for s in samples if s.split == "train" and s.good]
        self.tested = [s for s in samples if s.split == "test" and s.kind is not None]
        if not fitted or len({s.good for s in self.tested}) < 2:
            raise DataError(f"{job.data}: good pictures to train on, and good and defective ones to test on are needed")
        self.work, self.device = work, device_named(device)
        detector = create(job.method, dict(job.options)).to(self.device)
        size = (detector.config.size, detector.config.size)
        intake = Intake.fit((s.source for s in fitted), size)
        self.feed = Feed(detector, [*fitted, *self.tested], intake, work / "features", self.device)
        self.feed.prepare(detector)
        self.masks = [small_mask(s, size) for s in self.tested]
        self.fitted = list(range(len(fitted)))

    def figures(self, detector: Detector) -> dict[str, float]:
        """Of the test pictures, with the weights of this moment; the detector is in eval mode afterwards."""
        pixels, scores = PixelMetrics(PIXEL_BINS), []
        rows = range(len(self.fitted), len(self.fitted) + len(self.tested))
        predictions = self.feed.predict(detector, rows)
        for sample, marks, (_, found) in zip(self.tested, self.masks, predictions, strict=True):
            scores.append(found.score)
            pixels.add(found.map.astype(np.float16), marks.defect, good=sample.good, ignored=marks.ignored)
        found = {**pixels.result(), "i_auroc": auroc(scores, [not s.good for s in self.tested])}
        return {metric: found[metric] for metric in METRICS}


def watched(job: Job, bench: Bench, every: int) -> tuple[Detector, dict[str, list[float]]]:
    """The detector as a plain fit on all good pictures would make it, and its figures after every so many steps."""
    detector = create(job.method, {"seed": job.seed, **job.options}).to(bench.device)
    rows, steps = np.array(bench.fitted), detector.steps
    points: dict[str, list[float]] = {metric: [] for metric in METRICS}
    torch.manual_seed(job.seed)
    with torch.no_grad():
        detector.begin(bench.feed.one_pass(bench.fitted))
    with progress("training", steps) as tick, tempfile.TemporaryDirectory(dir=bench.work) as work:

        def look(done: int, loss: float) -> None:
            tick(done, loss)
            if done % every == 0:
                for metric, value in bench.figures(detector).items():
                    points[metric].append(value)
                detector.train()

        train(
            detector,
            lambda start: bench.feed.steps(rows, detector.batch_size, job.seed, start, steps),
            seed=job.seed,
            checkpoint=Path(work) / "checkpoint",
            log=Log(Path(work) / "train.jsonl"),
            tick=look,
        )
    return detector, points


def small_mask(sample: Sample, size: tuple[int, int]) -> Marks:
    """(H, W) at another size: a defect where it covers more than half of a pixel; never nothing where there was one.

    A pixel is ignored where any part of it is, and is no defect then.
    """
    if sample.mask is None and not sample.good:
        raise DataError(f"{sample.name}: a defect without a mask; pixel figures need one of every defect")
    if sample.mask is None:
        return Marks(np.zeros(size, bool), None)
    defect, ignored = read_mask(sample.mask, size_of(sample.source), of=sample.name)
    share, left = _shares(defect, size), None if ignored is None else _shares(ignored, size) > 0
    small = share > min(0.5, 0.999 * float(share.max()))
    return Marks(small if left is None else small & ~left, left)


def _shares(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) float32: how much of each pixel it covers."""
    small = Image.fromarray(mask.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BOX)
    return np.asarray(small)


def curves_page(recipe: Recipe, found: Mapping[str, Sequence[Study]], out: Path) -> Iterator[str]:
    """Figures over meta-epochs, mean and deviation over the seeds, and from when on they stay."""
    for category, mine in found.items():
        last = len(mine[0].points["i_auroc"])
        x = list(range(1, last + 1))
        panels = []
        for metric in METRICS[:3]:
            values = np.array([s.points[metric] for s in mine])
            spread = values.std(axis=0, ddof=1).tolist() if len(mine) > 1 else None
            mean = charts.Line("mean", x, values.mean(axis=0).tolist(), spread)
            seeds = [charts.Line("", x, list(s.points[metric])) for s in mine]
            panels.append(charts.Panel(TITLES[metric], "meta-epoch", "", [mean, *seeds]))
        path = out / f"{recipe.name}-{category.replace('/', '-')}.svg"
        path.write_bytes(
            charts.lines(
                panels, f"{category}: mean of {len(mine)} seeds; band: one standard deviation; thin: single seeds"
            )
        )
        yield from (f"**{category}**", "", f"![{recipe.title}]({path.name})", "")
        shown = [m for m in SHOWN if m <= last]
        yield from head(["after meta-epoch", *map(str, shown)])
        for metric in METRICS:
            cells = [_spread([s.points[metric][m - 1] for s in mine]) for m in shown]
            yield f"| {TITLES[metric]} | {' | '.join(cells)} |"
        yield ""
        yield from head(["seed", *(f"{TITLES[m]} stays within a point of its last from" for m in METRICS)])
        for study in mine:
            yield f"| {study.job.seed} | {' | '.join(str(settled(study.points[m])) for m in METRICS)} |"
        if len(mine) > 1:
            means = [np.mean([s.points[m] for s in mine], axis=0) for m in METRICS]
            yield f"| *their mean* | {' | '.join(str(settled(mean)) for mean in means)} |"
            cells = [f"{np.argmax(mean) + 1} ({mean.max():.3f})" for mean in means]
            yield f"| *largest mean, at meta-epoch* | {' | '.join(cells)} |"
        yield from ("", _stable(category, mine), "")


def best_page(recipe: Recipe, found: Mapping[str, Sequence[Study]], out: Path) -> Iterator[str]:
    """The last meta-epoch beside the best of the test set, and what that choice alone brings."""
    columns = [f"{TITLES[m]}, {word}" for m in METRICS[:2] for word in ("last", "BEST ON TEST", "gained by choosing")]
    yield from head(["category", "seeds", *columns, "meta-epochs chosen"])
    bars: dict[str, dict[str, list[float]]] = {"last meta-epoch": {}, "BEST ON TEST": {}}
    for category, mine in found.items():
        cells = [category, str(len(mine))]
        for metric in METRICS[:2]:
            last = [s.points[metric][-1] for s in mine]
            best = [s.points[metric][s.best] for s in mine]
            gained = [b - a for a, b in zip(last, best, strict=True)]
            cells += [_spread(last), _spread(best), _spread(gained, "+.3f")]
            if metric == METRICS[0]:
                bars["last meta-epoch"][category], bars["BEST ON TEST"][category] = last, best
        cells.append(", ".join(str(s.best + 1) for s in mine))
        yield f"| {' | '.join(cells)} |"
    low = np.floor(10 * min(min(v) for each in bars.values() for v in each.values())) / 10 - 0.1
    content = charts.bars(
        list(found),
        {name: [float(np.mean(v)) for v in each.values()] for name, each in bars.items()},
        "I-AUROC",
        spread={name: [_deviation(v) for v in each.values()] for name, each in bars.items()},
        low=max(0.0, float(low)),
        caption="The best on the test set is no result: the test set has chosen it.",
    )
    path = out / f"{recipe.name}.svg"
    path.write_bytes(content)
    yield from ("", f"![{recipe.title}]({path.name})", "", _answer([s for mine in found.values() for s in mine]), "")


PAGES: dict[str, Callable[[Recipe, Mapping[str, Sequence[Study]], Path], Iterator[str]]] = {
    "curves": curves_page,
    "best": best_page,
}


def _said(found: Mapping[str, Sequence[Study]], meta_epochs: int) -> Iterator[str]:
    """What was done, before what came of it."""
    steps = "; ".join(f"{category} {mine[0].every}" for category, mine in found.items())
    yield (
        "**A study: test pictures are scored while the network trains, and nothing is chosen by what they say.** The "
        f"models of this package are those of the last step. {meta_epochs} meta-epochs; steps of each, of 8 pictures: "
        f"{steps}; in the paper a meta-epoch is {EPOCHS} epochs. All good training pictures are fitted. Pixel figures "
        "at the network's size, the mask brought to it (a pixel is a defect where more than half of it is), maps in "
        "half precision."
    )
    yield ""


def _stable(category: str, mine: Sequence[Study]) -> str:
    from_when = [settled(s.points["i_auroc"]) for s in mine]
    mean = np.mean([s.points["i_auroc"] for s in mine], axis=0)
    last = len(mine[0].points["i_auroc"])
    words = (
        f"*The report: stable after about {STABLE} meta-epochs.* {category}: I-AUROC stays within one point of its "
        f"last value from meta-epoch {', '.join(map(str, from_when))} (by seed; median "
        f"{np.median(from_when):g} of {last}), their mean from {settled(mean)}"
    )
    if last <= STABLE:
        return words + "."
    since = [s.moves("i_auroc") for s in mine]
    before = [float(np.ptp(s.points["i_auroc"][:STABLE])) for s in mine]
    share = sum(m <= STABLE for m in from_when)
    return (
        f"{words}. By meta-epoch {STABLE} it does so in {share} of {len(mine)} seeds. From there on the mean "
        f"changes by {mean[-1] - mean[STABLE - 1]:+.3f} to the last, and I-AUROC of a seed still moves over "
        f"{_spread(since)} (largest less smallest; before, over {_spread(before)}), P-AUROC over "
        f"{_spread([s.moves('p_auroc') for s in mine])}."
    )


def _answer(every: Sequence[Study]) -> str:
    """What choosing by the test set brings, over all trainings."""
    image, pixel = ([s.points[m][s.best] - s.points[m][-1] for s in every] for m in METRICS[:2])
    none = sum(gain == 0 for gain in image)
    return (
        f"Keeping the best meta-epoch of the test set instead of the last one shows an I-AUROC higher by "
        f"{_spread(image, '.3f')} (mean ± standard deviation over {len(every)} trainings; at most {max(image):.3f}, "
        f"nothing in {none} of them) and a P-AUROC that differs by {_spread(pixel, '+.3f')}: that much is chosen, "
        "not learned."
    )


def _steps(samples: Sequence[Sample]) -> int:
    return max(1, EPOCHS * sum(s.split == "train" and s.good for s in samples) // BATCH)


def _kept(study: Study) -> dict[str, Any]:
    """What a file holds; paths of this machine are left out."""
    job = {**asdict(study.job), "options": portable(study.job.options)}
    return {**asdict(study), "job": job, "config": _config(study.job)}


def _config(job: Job) -> dict[str, Any]:
    config = detector_class(job.method).configure({"seed": job.seed, **job.options})
    return json.loads(json.dumps(portable(asdict(config))))


def _read(path: Path, job: Job, every: int, data_sha256: str) -> Study | None:
    """None: not there, or made from other pictures or with other defaults than today's."""
    if not path.exists():
        return None
    values = json.loads(path.read_text())
    if (values["data_sha256"], values["config"], values["every"]) != (data_sha256, _config(job), every):
        return None
    return Study(job, every, values["points"], values["made"])


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _spread(values: Sequence[float], form: str = ".3f") -> str:
    mean = format(float(np.mean(values)), form)
    return f"{mean} ± {_deviation(values):.3f}" if len(values) > 1 else mean

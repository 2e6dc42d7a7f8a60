"""One fit on its way through its stages, which leave their result on disk, so that a run can go on.

data -> features -> begin, train, end -> graph -> calibration -> bundle -> report. A stage whose result is there is not
repeated.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flawmap.detectors import create
from flawmap.detectors.base import Detector
from flawmap.images import folder as _folder
from flawmap.images.intake import Intake, tuples
from flawmap.images.split import folds as _folds
from flawmap.images.tiles import enlarge
from flawmap.run import export, parallel
from flawmap.run.bundle import Bundle, card
from flawmap.run.engine import OnnxEngine, TorchEngine
from flawmap.run.estimate import advice, estimate
from flawmap.run.feed import Feed
from flawmap.run.graph import described
from flawmap.run.look import look
from flawmap.run.model import Model
from flawmap.run.nearest import sizes
from flawmap.run.progress import progress, say
from flawmap.run.recipe import Log, Recipe, environment, peak_mb, write_csv, write_data, write_json
from flawmap.run.roles import CALIBRATION, roles
from flawmap.run.train import train
from flawmap.run.watch import Watch
from flawmap.types import Prediction, Sample
from flawmap.verdict.calibration import Calibration

KEPT_MAPS = 12  # of the calibration, for the report: the strangest and the most usual
MOST_MAP = 512  # pixels of their longer side
TILES = 4000  # that are learnt from, at most: as many of each picture, drawn at random
SEEN_FOR_SEAMS = 4  # pictures


class Calibrated(NamedTuple):
    """What a model said of a good picture that it had not seen."""

    sample: Sample
    score: float
    peak: float


class Fitting:
    """One fit on its way through the stages. `work` holds their results until the bundle is written.

    What cannot be fitted as asked is refused before there is a run.
    """

    def __init__(
        self,
        recipe: Recipe,
        detector: Detector,
        samples: Sequence[Sample],
        left_out: Sequence[tuple[str, str]],
        watch: Watch | None = None,
    ) -> None:
        self.watch = watch
        self.recipe, self.device = recipe, parallel.own_device(recipe.device)
        self.detector = detector.to(self.device)
        self.samples, self.left_out = samples, left_out
        self.hashes = [_folder.sha256(sample) for sample in samples]
        self.roles = roles(samples, recipe, detector)
        size = detector.config.size
        self.intake = Intake.fit((s.source for s in samples), (size, size), resize=recipe.resize, **seen(recipe))
        self.calibrated: list[Calibrated] = []

    def go(self, run: Path) -> Model:
        begun = time.monotonic()
        self.run, self.work = run, run / "work"
        self.work.mkdir(exist_ok=True)
        self.log = Log(run / "train.jsonl")
        write_data(run / "data.jsonl", self.samples, self.hashes, self.roles.of, self.left_out)
        self.feed = self._feed()
        if note := self.detector.memory_note(len(self.feed.of(self.roles.fitted))):
            say(note)
        with self._stage("features"):
            self.feed.prepare(self.detector)
        parallel.wait()
        self._foretell()
        with self._stage("fit"):
            self._learn(self.detector, self.roles.fitted, self.work / "model.safetensors")
        with self._stage("graph"):
            self._export()
        with self._stage("calibration"):
            calibration = self._calibrate()
        with self._stage("bundle"):
            bundle = self._bundle(calibration)
        model = Model(bundle)
        model.run = self.run
        from flawmap.run.show import fit_report

        with self._stage("report"):
            fit_report(model, self)
        self.log.add(event="end", seconds=round(time.monotonic() - begun, 2), peak_mb=peak_mb())
        bundle.write(self.run / "bundle.flaw")
        bundle.origin = str(self.run / "bundle.flaw")
        shutil.rmtree(self.work)
        return model

    def help(self, run: Path) -> None:
        """What a process beside the first one does: its share of every step."""
        self.run, self.work = run, run / "work"
        parallel.wait()  # the first one makes the pictures ready
        self.feed = self._feed()
        if not (self.work / "model.safetensors").exists():
            self._train(self.detector, self.roles.fitted, self.work / "model.checkpoint", None)

    def _feed(self) -> Feed:
        """Of what is learnt from. What is only judged goes through the graph, picture by picture."""
        rows = sorted({*self.roles.fitted, *self.roles.scaling})
        most = None if self.roles.crossed else TILES  # a picture is judged by all its tiles
        return Feed(self.detector, self.samples, self.intake, self.work / "features", self.device, rows, most)

    def _foretell(self) -> None:
        """Says what training will take, and what makes no sense on a CPU."""
        if self.feed.frozen or not self.detector.steps or (self.work / "model.safetensors").exists():
            return
        found = estimate(self.detector, self.feed.lesson([0], [(self.recipe.seed,)]))
        say(found.sentence(self.detector.batch_size) + advice(self.detector, found, self.device))

    def _learn(self, detector: Detector, rows: Sequence[int], result: Path) -> None:
        """begin, the steps, end; the result is the detector's state."""
        import torch
        from safetensors.torch import load_file, save_file

        if result.exists():
            detector.load_state_dict(load_file(result))
            return
        checkpoint = result.with_suffix(".checkpoint")
        if not checkpoint.exists():
            torch.manual_seed(self.recipe.seed)
            with torch.no_grad():
                detector.begin(self.feed.one_pass(rows))
        if detector.steps:
            self._train(detector, rows, checkpoint, self.log)
        self._end(detector)
        temporary = result.with_suffix(".new")
        save_file({key: value.contiguous() for key, value in detector.state_dict().items()}, temporary)
        temporary.replace(result)

    def _train(self, detector: Detector, rows: Sequence[int], checkpoint: Path, log: Log | None) -> None:
        steps, array, seed = detector.steps, np.array(rows), self.recipe.seed
        with progress("training", steps) as tick:

            def step(done: int, loss: float) -> None:
                tick(done, loss)
                if self.watch is not None and detector is self.detector and self.watch.due(done, steps):
                    self._end(detector)
                    self.watch.look(detector, done, self.intake, self.device)
                    detector.train()

            train(
                detector,
                lambda start: self.feed.steps(array, detector.batch_size, seed, start, steps),
                seed=seed,
                checkpoint=checkpoint,
                log=log,
                tick=step,
            )

    def _end(self, detector: Detector) -> None:
        import torch

        if detector.needs_end:
            with torch.no_grad():
                detector.end(self.feed.one_pass(self.roles.scaling))

    def _calibrate(self) -> Calibration | None:
        if self.roles.crossed:
            engine, rows = TorchEngine(self.detector, self.device).name, list(range(len(self.samples)))
            found = self._cross_fitted()
        else:
            engine, rows = self.exported.name, self.roles.rows(CALIBRATION)
            found = self._scores(lambda: self._judged(rows), self.work / "calibration") if rows else {}
        if not found:
            why = "one good part only" if self.recipe.held_out else "no part is held out"
            say(f"{why}: the model is not calibrated and gives no verdict")
            return None
        self.calibrated = [Calibrated(self.samples[i], *found[i]) for i in rows]
        write_csv(
            self.run / "calibration.csv",
            ["name", "part", "score", "peak"],
            [[c.sample.name, c.sample.part, repr(c.score), repr(c.peak)] for c in self.calibrated],
        )
        return Calibration.from_good(
            [c.sample.part for c in self.calibrated],
            [c.score for c in self.calibrated],
            [c.peak for c in self.calibrated],
            false_alarm=self.recipe.false_alarm,
            confidence=self.recipe.confidence,
            cross_fitted=self.roles.crossed,
            data_sha256=self.recipe.data_sha256,
            engine=engine,
            created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        )

    def _cross_fitted(self) -> dict[int, tuple[float, float]]:
        """Every part scored by a detector that was fitted without it."""
        parts = len({s.part for s in self.samples})
        groups = _folds(self.samples, min(self.recipe.folds, parts), self.recipe.seed)
        found: dict[int, tuple[float, float]] = {}
        with progress("calibration", len(groups)) as tick:
            for number, group in enumerate(groups):
                names = {s.name for s in group}
                inside = [i for i, s in enumerate(self.samples) if s.name not in names]
                outside = [i for i, s in enumerate(self.samples) if s.name in names]
                result = self.work / f"fold{number}"
                if not result.with_suffix(".json").exists():
                    fold = create(self.recipe.method, dict(self.recipe.options), pretrained=False)
                    fold = fold.to(self.device)
                    self._learn(fold, inside, result.with_suffix(".safetensors"))
                    self._scores(partial(self.feed.predict, fold, outside), result)
                    result.with_suffix(".safetensors").unlink()
                found |= self._scores(list, result)
                tick(number + 1)
        return found

    def _export(self) -> None:
        """The graph that will judge, in the engine that will judge."""
        self.detector = self.detector.to("cpu").eval()
        file = self.work / "model.onnx"
        if not file.exists():
            temporary = file.with_suffix(".new")
            temporary.write_bytes(export.to_onnx(self.detector))
            temporary.replace(file)
        self.graph = file.read_bytes()
        self.exported = OnnxEngine(self.graph)

    def _judged(self, rows: Sequence[int]) -> Iterator[tuple[int, Prediction]]:
        """Row and prediction of single pictures, by the engine that will judge at the line."""
        with progress("calibration", len(rows)) as tick:
            for number, row in enumerate(rows):
                found = look(self.exported, self.intake, self.samples[row].source)
                yield row, Prediction(found.map, found.score)
                tick(number + 1)

    def _scores(
        self, predictions: Callable[[], Iterable[tuple[int, Prediction]]], result: Path
    ) -> dict[int, tuple[float, float]]:
        """Score and map peak by row; kept on disk, with the maps of the strangest and the most usual pictures."""
        file = result.with_suffix(".json")
        if not file.exists():
            scores: dict[int, tuple[float, float]] = {}
            maps: dict[int, np.ndarray] = {}
            for row, found in predictions():
                scores[row] = (float(found.score), float(found.map.max()))
                maps[row] = thumbnail(found.map)
                if len(maps) > 2 * KEPT_MAPS:
                    order = sorted(maps, key=lambda r: scores[r][0])
                    kept = order[: KEPT_MAPS // 2] + order[-KEPT_MAPS:]
                    maps = {r: maps[r] for r in kept}
            np.savez(result.with_suffix(".npz"), **{str(row): map for row, map in maps.items()})  # pyright: ignore[reportArgumentType]
            write_json(file, scores)
        return {int(row): (pair[0], pair[1]) for row, pair in json.loads(file.read_text()).items()}

    def kept_maps(self) -> dict[str, np.ndarray]:
        """Maps by picture name: of the strangest and the most usual of the calibration."""
        maps = {}
        for path in self.work.glob("*.npz"):
            with np.load(path, allow_pickle=False) as file:
                maps |= {self.samples[int(row)].name: file[row] for row in file.files}
        return maps

    def _bundle(self, calibration: Calibration | None) -> Bundle:
        from safetensors.torch import save

        detector = self.detector
        order = sorted(range(len(self.samples)), key=lambda i: self.hashes[i])
        sources = [self.samples[i].source for i in order[:3]]
        golden = export.golden(sources, self.exported, self.intake, calibration)
        parity = export.gate(TorchEngine(detector), self.exported, self.intake, golden, calibration)
        peaks = [c.peak for c in self.calibrated] or [picture["peak"] for picture in parity["pictures"]]
        config = {
            "method": self.recipe.method,
            "title": detector.title,
            "paper": detector.paper,
            "options": self.recipe.options,
            "intake": self.intake.to_dict(),
            "map_typical": float(np.median(peaks)) if peaks else 0.0,
            **detector.given(),
            **self._about_pictures(),
            "recipe": {**asdict(self.recipe), "data": Path(self.recipe.data).name},
            "environment": environment(),
            "parity": {key: value for key, value in parity.items() if key != "pictures"},
            "graph": described(self.graph),
        }
        files = {
            "model.onnx": self.graph,
            "weights.safetensors": save({k: v.contiguous() for k, v in detector.state_dict().items()}),
            "config.json": json.dumps(config, indent=1).encode(),
            "data.jsonl": (self.run / "data.jsonl").read_bytes(),
            "golden.json": json.dumps(parity["pictures"], indent=1).encode(),
            **export.entries_of(golden),
        }
        if calibration:
            files["calibration.json"] = json.dumps(calibration.to_dict(), indent=1).encode()
        files["card.md"] = card(config, calibration, len(self.samples)).encode()
        return Bundle(files, str(self.run / "bundle.flaw"))

    def _about_pictures(self) -> dict[str, Any]:
        sources = [self.samples[i].source for i in self.roles.fitted]
        if self.intake.tile is None:
            return sizes(self.detector, sources)
        return {"tiles": seams(self.exported, self.intake, sources[:SEEN_FOR_SEAMS])}

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        self.log.add(event="start", stage=name)
        yield
        self.log.add(event="done", stage=name, seconds=round(time.monotonic() - begun, 2))


def seen(recipe: Recipe) -> dict[str, Any]:
    """What the recipe says of the part of a picture that is looked at, for the intake."""
    return {name: tuples(getattr(recipe, name)) for name in ("tile", "overlap", "scales", "roi", "ignore")}


def seams(engine: OnnxEngine, intake: Intake, sources: Sequence[Any]) -> dict[str, float]:
    """How far maps of tiles are from the blended map where another tile covers the pixel too, as shares of the largest
    value in the maps: the mean, and the 99 % quantile. Of the first scale of a few good pictures."""
    gaps, largest = [], 1e-12
    for source in sources:
        view = intake.view(source)
        grid, numbers = view.layout.grids[0].part(4, 4)  # a few: all of a large picture would not fit into memory
        maps = [engine(view.tile(number)[None]).map[0] for number in numbers]
        gaps.append(grid.seam(maps))
        largest = max(largest, *(float(map.max()) for map in maps))
    found = np.concatenate(gaps) / largest
    if not len(found):
        return {"seam_mean": 0.0, "seam_99": 0.0}
    return {"seam_mean": float(found.mean()), "seam_99": float(np.quantile(found, 0.99))}


def thumbnail(map: np.ndarray) -> np.ndarray:
    """A map for the report, float16, its longer side at most 512."""
    most = max(map.shape) / MOST_MAP
    small = map if most <= 1 else enlarge(map, (round(map.shape[0] / most), round(map.shape[1] / most)))
    return small.astype(np.float16)

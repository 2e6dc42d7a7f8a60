"""Fit: good pictures in, a calibrated bundle out. Stages that leave their result on disk, so that a run can go on.

data -> features -> begin, train, end -> calibration -> bundle -> report. A stage whose result is there is not repeated.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flawmap.detectors import create
from flawmap.detectors.base import Detector, SynthesisDetector
from flawmap.errors import DataError, UsageError
from flawmap.images import folder as _folder
from flawmap.images.decode import Intake
from flawmap.images.protocol import Protocol
from flawmap.images.protocol import protocol as chosen
from flawmap.images.split import folds as _folds
from flawmap.images.split import shots as _shots
from flawmap.run import export, parallel
from flawmap.run.bundle import Bundle, card
from flawmap.run.engine import OnnxEngine, TorchEngine, device_named
from flawmap.run.estimate import advice, estimate
from flawmap.run.feed import Feed, folders_of, generic_of, synthesis_of
from flawmap.run.model import Model, load
from flawmap.run.nearest import sizes
from flawmap.run.progress import progress, say
from flawmap.run.recipe import Log, Recipe, digest, environment, peak_mb, run_folder, write_csv, write_data, write_json
from flawmap.run.roles import CALIBRATION, roles
from flawmap.run.train import train
from flawmap.run.watch import Watch
from flawmap.types import Prediction, Sample
from flawmap.verdict.calibration import Calibration

KEPT_MAPS = 12  # of the calibration, for the report: the strangest and the most usual


def fit(
    source: Any,
    method: str = "patchcore",
    *,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    false_alarm: float | None = None,
    confidence: float | None = None,
    held_out: float = 0.2,
    folds: int = 5,
    shots: int | None = None,
    draw: int = 0,
    out: str | Path = "runs",
    part_pattern: str | None = None,
    skip_bad: bool = False,
    device: str = "auto",
    resume: bool | str | Path = False,
    name: str = "",
    protocol: str | Protocol = "plain",
    watch: Watch | None = None,
) -> Model:
    """A calibrated model from good pictures: a folder, a list (.csv, .jsonl), files or arrays.

    Of a data set only the good pictures of train are used; with `shots` so many of their parts. `held_out` is the share
    of the parts that calibrate: with 0 there is no verdict. `resume` goes on with the newest unfinished run of the same
    recipe, or with the run folder it names. `name` is what the pictures are called where `source` is no path.
    """
    if not 0 <= held_out < 1 or folds < 2:
        raise UsageError("held_out is a share from 0 to below 1, folds are at least 2")
    detector = create(method, {"seed": seed, **chosen(protocol).options(options or {})})
    parallel.check(detector, isinstance(detector, SynthesisDetector))
    _ = synthesis_of(detector), generic_of(detector)  # their folders are read before there is a run
    samples, left_out = _pictures(source, part_pattern, shots, draw, skip_bad)
    recipe = Recipe(
        data=name or (str(source) if isinstance(source, (str, Path)) else "pictures"),
        data_sha256=digest(samples),
        method=method,
        options=asdict(detector.config),
        given={**detector.given(), **folders_of(detector)},
        seed=seed,
        held_out=held_out,
        folds=folds,
        shots=shots,
        draw=draw if shots is not None else None,
        resize=chosen(protocol).resize,
        false_alarm=false_alarm,
        confidence=confidence,
        device=device_named(device),
    )
    return _together(Fitting(recipe, detector, samples, left_out, watch), Path(out), resume)


def _together(fitting: Fitting, out: Path, resume: bool | str | Path) -> Model:
    """The run, by as many processes as torchrun has started."""
    with parallel.group(fitting.device):
        if parallel.rank() == 0:
            run = run_folder(out, fitting.recipe, resume)
            parallel.same_path(run, fitting.device)
            model = fitting.go(run)
            parallel.wait()
            return model
        run = parallel.same_path(None, fitting.device)
        fitting.help(run)
        parallel.wait()
    return load(run / "bundle.flaw")


def _pictures(
    source: Any, part_pattern: str | None, shots: int | None, draw: int, skip_bad: bool
) -> tuple[list[Sample], list[tuple[str, str]]]:
    """Good pictures that can be used, and those left out with the reason."""
    samples = [s for s in _folder.find(source, part_pattern=part_pattern) if s.split == "train" and s.good]
    if not samples:
        raise DataError(f"{source}: no good pictures to fit on")
    if shots is not None:
        samples = _shots(samples, shots, draw)
    say(f"checking {len(samples)} pictures")
    samples, left_out = _folder.check(samples, skip_bad=skip_bad)
    for picture, reason in left_out:
        say(f"left out: {picture}: {reason}")
    return samples, left_out


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
        self.intake = Intake.fit((s.source for s in samples), (size, size), resize=recipe.resize)
        self.calibrated: list[Calibrated] = []

    def go(self, run: Path) -> Model:
        begun = time.monotonic()
        self.run, self.work = run, run / "work"
        self.work.mkdir(exist_ok=True)
        self.log = Log(run / "train.jsonl")
        write_data(run / "data.jsonl", self.samples, self.hashes, self.roles.of, self.left_out)
        self.feed = Feed(self.detector, self.samples, self.intake, self.work / "features", self.device)
        if note := self.detector.memory_note(len(self.samples)):
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
        self.feed = Feed(self.detector, self.samples, self.intake, self.work / "features", self.device)
        if not (self.work / "model.safetensors").exists():
            self._train(self.detector, self.roles.fitted, self.work / "model.checkpoint", None)

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
                found = self.exported(self.feed.image(row)[None])
                yield row, Prediction(found.map[0], float(found.score[0]))
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
                maps[row] = found.map.astype(np.float16)
                if len(maps) > 2 * KEPT_MAPS:
                    order = sorted(maps, key=lambda r: scores[r][0])
                    kept = order[: KEPT_MAPS // 2] + order[-KEPT_MAPS:]
                    maps = {r: maps[r] for r in kept}
            rows_kept = np.array(list(maps))
            np.savez(result.with_suffix(".npz"), rows=rows_kept, maps=np.stack(list(maps.values())))
            write_json(file, scores)
        return {int(row): (pair[0], pair[1]) for row, pair in json.loads(file.read_text()).items()}

    def kept_maps(self) -> dict[str, np.ndarray]:
        """Maps by picture name: of the strangest and the most usual of the calibration."""
        maps = {}
        for path in self.work.glob("*.npz"):
            with np.load(path, allow_pickle=False) as file:
                maps |= {self.samples[row].name: map for row, map in zip(file["rows"], file["maps"], strict=True)}
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
            **sizes(detector, (self.samples[i].source for i in self.roles.fitted)),
            "recipe": {**asdict(self.recipe), "data": Path(self.recipe.data).name},
            "environment": environment(),
            "parity": {key: value for key, value in parity.items() if key != "pictures"},
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

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        self.log.add(event="start", stage=name)
        yield
        self.log.add(event="done", stage=name, seconds=round(time.monotonic() - begun, 2))

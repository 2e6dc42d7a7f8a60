"""What a detector is fed while it is fitted: pictures, painted pictures, or frozen features when it has a head."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from flawmap.detectors.base import Detector, FrozenDetector, SynthesisDetector
from flawmap.errors import DataError, UsageError
from flawmap.images import folder as _folder
from flawmap.images.decode import decode, size_of
from flawmap.images.intake import Intake, View
from flawmap.run import parallel
from flawmap.run.look import covered
from flawmap.run.progress import progress, say
from flawmap.run.store import FeatureStore
from flawmap.synthesis import Synthesis, Texture
from flawmap.synthesis.textures import drawn
from flawmap.types import Batch, Prediction, Sample

PASS = 8  # pictures in a batch of `begin`, `end` and scoring
TEXTURES = 2000  # as many stay in memory
GREY = 0.3  # of the generic pictures
TRIED, FEW = 100, 0.4  # paintings before training, and the least share that should get a defect


class Feed:
    """Batches of samples by their row. What the network needs of every picture is computed once, by `prepare`.

    A picture is one piece, or as many as it has tiles; `pieces` lists them in the order of the store. With `most` at
    most so many are kept: as many of each picture, drawn at random by the seed 0.

    rows  of the pictures that are fed; others take no room in the store. None: all
    """

    def __init__(
        self,
        detector: Detector,
        samples: Sequence[Sample],
        intake: Intake,
        folder: Path,
        device: str,
        rows: Sequence[int] | None = None,
        most: int | None = None,
    ) -> None:
        self.samples, self.intake, self.device = samples, intake, device
        self.frozen = isinstance(detector, FrozenDetector)
        self.synthesis, self.generic = synthesis_of(detector), generic_of(detector)
        shapes = detector.backbone.shapes if isinstance(detector, FrozenDetector) else [(3, *intake.size)]
        self.pieces = self._cut(range(len(samples)) if rows is None else rows, most)
        self._of: dict[int, list[int]] = {}
        for piece, (row, _) in enumerate(self.pieces):
            self._of.setdefault(row, []).append(piece)
        self._open: tuple[int, View] | None = None
        self.store = FeatureStore(folder, shapes, len(self.pieces))

    def _cut(self, rows: Iterable[int], most: int | None) -> list[tuple[int, int]]:
        """Row and tile of each piece."""
        if self.intake.tile is None:
            return [(row, 0) for row in rows]
        counts = {row: len(self.intake.layout(size_of(self.samples[row].source, self.intake.max_mpx))) for row in rows}
        share = sum(counts.values()) if most is None else max(1, most // max(len(counts), 1))
        random, found = np.random.default_rng(0), []
        for row, count in counts.items():
            tiles = np.sort(random.choice(count, min(share, count), replace=False))
            found += [(row, int(tile)) for tile in tiles]
        return found

    def prepare(self, detector: Detector) -> None:
        if self.store.done == len(self.pieces):
            return
        features, what = (lambda image_B3HW: (image_B3HW,)), "pictures" if self.intake.tile is None else "tiles"
        if isinstance(detector, FrozenDetector):
            from flawmap.features.frozen import frozen

            features, what = frozen(detector.backbone, detector.config.size, self.device), "features"
        with progress(what, len(self.pieces)) as tick:
            self.store.fill(self.image, features, tick)
        if self.synthesis is not None and self.synthesis.foreground is not None:
            self._check_foreground(self.synthesis, self.store.stages[0])

    def _check_foreground(self, synthesis: Synthesis, images: Sequence[np.ndarray] | np.ndarray) -> None:
        assert synthesis.foreground is not None
        for row, pieces in self._of.items():
            if not any(synthesis.foreground(images[piece]).any() for piece in pieces):
                name = self.samples[row].name
                raise DataError(f"{name}: the foreground leaves nothing to paint on; choose another rule")
        painted = [synthesis(images[i % len(images)], (0, i)).mask.any() for i in range(TRIED)]
        if np.mean(painted) < FEW:
            what = "pictures" if self.intake.tile is None else "tiles"
            say(f"the foreground is so small that {np.mean(painted):.0%} of the {what} get a defect, not half")

    def image(self, piece: int) -> np.ndarray:
        """(3, H, W) float32 in [0, 1]; a picture is decoded once for all its tiles that are asked for in order."""
        row, tile = self.pieces[piece]
        if self._open is None or self._open[0] != row:
            self._open = (row, self.intake.view(self.samples[row].source))
        return self._open[1].tile(tile)

    def of(self, rows: Iterable[int]) -> np.ndarray:
        """The pieces of these pictures."""
        return np.array([piece for row in rows for piece in self._of[int(row)]], dtype=np.int64)

    def batch(self, pieces: Sequence[int] | np.ndarray) -> Batch:
        found = self.store.batch(pieces)
        if not self.frozen and found.features is not None:
            found = Batch(image=found.features[0], clean=found.features[0])
        return _to(found, self.device)

    def painted(self, pieces: Sequence[int] | np.ndarray, seeds: Iterable[Sequence[int]]) -> Batch:
        """The pieces with a known false defect each, or as they are; a seed decides all of a piece's."""
        assert self.synthesis is not None
        made = [self.synthesis(self.store.stages[0][piece], seed) for piece, seed in zip(pieces, seeds, strict=True)]
        image, clean, mask = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))
        return Batch(image=image, clean=clean, mask=mask)

    def lesson(self, pieces: Sequence[int] | np.ndarray, seeds: Sequence[Sequence[int]]) -> Batch:
        """What a step is asked on: pieces or their features, painted, or with pictures of anything beside them."""
        if self.synthesis is not None:
            return self.painted(pieces, seeds)
        batch = self.batch(pieces)
        if self.generic is not None:
            some = [_turned_grey(self.generic, seed, self.intake.size) for seed in seeds]
            batch.generic = torch.from_numpy(np.stack(some)).to(self.device)
        return batch

    def steps(self, rows: np.ndarray, batch_size: int, seed: int, start: int, steps: int) -> Iterator[Batch]:
        """The batches of training; a step's depends on nothing but `rows`, `seed` and its number."""
        workers = _workers(self.device) if self.synthesis else 0  # the other kinds have their batches on the device
        batches = _Steps(self, self.of(rows), batch_size, seed)
        how = {"num_workers": workers, "multiprocessing_context": "fork"} if workers else {}
        loader = DataLoader(batches, batch_size=None, sampler=range(start, steps), **how)
        return (_to(batch, self.device) for batch in loader)

    def one_pass(self, rows: Sequence[int]) -> Iterable[Batch]:
        return _Pass(self, self.of(rows))

    def predict(self, detector: Detector, rows: Sequence[int]) -> Iterator[tuple[int, Prediction]]:
        """Row and prediction of single pictures, (H, W) and (); from the stored features where there are any.

        All tiles of the pictures must be in the store.
        """
        detector.eval()
        found = self._predicted(detector, self.of(rows))
        if self.intake.tile is None and self.intake.ignore is None:
            yield from ((row, Prediction(map, score)) for row, (map, score) in zip(rows, found, strict=True))
            return
        for row in rows:
            layout = self.intake.layout(size := size_of(self.samples[row].source, self.intake.max_mpx))
            scores: list[float] = []
            map = layout.join(_noting(islice(found, len(layout)), scores))
            yield row, Prediction(covered(self.intake, map, size), float(np.max(scores)))

    @torch.inference_mode()
    def _predicted(self, detector: Detector, pieces: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
        for first in range(0, len(pieces), PASS):
            part = pieces[first : first + PASS]
            batch = self.batch(part)
            if isinstance(detector, FrozenDetector) and batch.features is not None:
                found = detector.head(batch.features)
            else:
                found = detector(batch.image)
            for place in range(len(part)):
                yield found.map[place].cpu().numpy(), float(found.score[place])


def draw(pictures: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """The places of a step: every epoch is a fresh shuffle, and batches run on across the end of an epoch."""
    first = step * batch_size
    places = []
    for place in range(first, first + batch_size):
        epoch, index = divmod(place, pictures)
        places.append(np.random.default_rng((seed, epoch)).permutation(pictures)[index])
    return np.array(places)


def synthesis_of(detector: Detector) -> Synthesis | None:
    """What paints defects for a detector that learns from them."""
    if not isinstance(detector, SynthesisDetector):
        return None
    config = detector.config
    texture = textures(config.textures) if config.textures else None
    return Synthesis(config.synthesis, texture=texture, foreground=config.foreground)


def generic_of(detector: Detector) -> Texture | None:
    """Pictures of anything: the middle of photos at twice the size, as in EfficientAD's code, or drawn textures."""
    if not detector.wants_generic:
        return None
    folder = getattr(detector.config, "generic", "")
    return textures(folder, zoom=2) if folder else drawn


def folders_of(detector: Detector) -> dict[str, str]:
    """A SHA-256 of names and sizes for each folder of pictures that the options name: another one is another fit."""
    found = {}
    for option in ("textures", "generic"):
        if folder := getattr(detector.config, option, ""):
            listed = sorted(f"{path.relative_to(folder)}\0{path.stat().st_size}" for path in pictures_in(folder))
            found[f"{option}_sha256"] = hashlib.sha256("\n".join(listed).encode(errors="surrogateescape")).hexdigest()
    return found


def grey(image_3HW: np.ndarray) -> np.ndarray:
    """The luma of Rec. 601 in all three channels."""
    luma_HW = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), image_3HW, axes=1)
    return np.stack([luma_HW] * 3)


def _turned_grey(generic: Texture, seed: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """A generic picture; 3 in 10 without colours."""
    random = np.random.default_rng(seed)
    image = generic(random, size)
    return grey(image) if random.random() < GREY else image


@lru_cache(2)
def textures(folder: str, zoom: int = 1) -> Texture:
    """Any picture of the folder, squashed to `zoom` times the size that is asked for, of which the middle is given.

    DataError: one cannot be read.
    """
    files = pictures_in(folder)
    say(f"checking {len(files)} pictures of {folder}")
    for path in files:
        decode(path)

    @lru_cache(TEXTURES)
    def read(place: int, size: tuple[int, int]) -> np.ndarray:
        high, wide = size
        image = Intake.fit([files[place]], (zoom * high, zoom * wide))(files[place])[0]
        top, left = ((zoom - 1) * side // 2 for side in size)
        return (image[:, top : top + high, left : left + wide] * 255).round().astype(np.uint8)

    def texture(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        return read(int(random.integers(len(files))), size).astype(np.float32) / 255

    return texture


def pictures_in(folder: str | Path) -> list[Path]:
    """In the folder and below it, in order. DataError: there are none."""
    if not Path(folder).is_dir():
        raise UsageError(f"there is no folder {folder}")
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in _folder.SUFFIXES)
    if not files:
        raise DataError(f"{folder}: no pictures in it ({' '.join(sorted(_folder.SUFFIXES))})")
    return files


def _workers(device: str) -> int:
    """Processes that paint ahead of a GPU. On a CPU they would only take turns with the step (benchmarks/step.py)."""
    if device == "cpu" or "fork" not in multiprocessing.get_all_start_methods():
        return 0
    return min(4, (os.cpu_count() or 1) - 1)


class _Steps(Dataset[Batch]):
    """The batch of a step, of this process's share of it."""

    def __init__(self, feed: Feed, pieces: np.ndarray, batch_size: int, seed: int) -> None:
        self.feed, self.pieces, self.batch_size, self.seed = feed, pieces, batch_size, seed

    def __getitem__(self, step: int) -> Batch:
        share = slice(parallel.rank(), None, parallel.world())
        pieces = self.pieces[draw(len(self.pieces), self.batch_size, step, self.seed)[share]]
        return self.feed.lesson(pieces, [(self.seed, step, place) for place in range(self.batch_size)[share]])


class _Pass:
    """Batches in order; can be walked more than once."""

    def __init__(self, feed: Feed, pieces: np.ndarray) -> None:
        self.feed, self.pieces = feed, pieces

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self.pieces), PASS):
            yield self.feed.batch(self.pieces[first : first + PASS])


def _noting(found: Iterable[tuple[np.ndarray, float]], scores: list[float]) -> Iterator[np.ndarray]:
    for map, score in found:
        scores.append(score)
        yield map


def _to(batch: Batch, device: str) -> Batch:
    if device == "cpu":
        return batch
    values = {name: getattr(batch, name) for name in ("image", "clean", "mask", "generic")}
    moved = {name: value.to(device, non_blocking=True) for name, value in values.items() if value is not None}
    features = tuple(feat.to(device) for feat in batch.features) if batch.features is not None else None
    return Batch(features=features, **moved)

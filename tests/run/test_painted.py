"""Training on painted pictures: the same whatever stops it, and however many processes paint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flawmap.detectors import create
from flawmap.errors import DataError, UsageError
from flawmap.images.folder import find
from flawmap.images.intake import Intake
from flawmap.run import feed as feeding
from flawmap.run import train as training
from flawmap.run.bundle import read
from flawmap.run.feed import Feed, textures
from flawmap.run.fit import fit
from flawmap.types import Batch

SMALL = {"width": 4, "size": 32, "window": 5, "steps": 8}


class Stopped(BaseException):
    """As sudden as a kill."""


def _weights(world: Path, out: Path, method: str, resume: bool = False, **options: object) -> bytes:
    model = fit(world, method, options=SMALL | options, held_out=0, out=out, device="cpu", resume=resume)
    return read(Path(model.bundle.origin)).files["weights.safetensors"]


@pytest.mark.parametrize(("method", "options"), [("pouta", {}), ("draem", {"size": 64}), ("pouta", {"norm": "batch"})])
def test_a_training_that_was_stopped_ends_bit_by_bit_as_one_that_was_not(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, options: dict[str, object]
) -> None:
    whole = _weights(world, tmp_path / "whole", method, **options)
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", 1e9)
    real, calls = training.save, []

    def stop_after(*given: object) -> None:
        real(*given)  # type: ignore[arg-type]
        calls.append(given)
        if len(calls) in (3, 4):
            raise Stopped

    monkeypatch.setattr(training, "save", stop_after)
    for _ in range(2):
        with pytest.raises(Stopped):
            _weights(world, tmp_path / "parts", method, resume=True, **options)
    assert _weights(world, tmp_path / "parts", method, resume=True, **options) == whole
    assert len(calls) == 8


def _feed(world: Path, folder: Path, **options: object) -> Feed:
    detector = create("pouta", SMALL | options)
    samples = [s for s in find(world) if s.split == "train"]
    feed = Feed(detector, samples, Intake((32, 32)), folder, "cpu")
    feed.prepare(detector)
    return feed


def _batches(feed: Feed, start: int = 0) -> Sequence[Batch]:
    return list(feed.steps(np.arange(10), 8, 5, start, 4))


def test_processes_that_paint_ahead_paint_the_same(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = _feed(world, tmp_path)
    alone = _batches(feed)
    monkeypatch.setattr(feeding, "_workers", lambda device: 2)
    ahead = _batches(feed)
    for one, other in zip(alone, ahead, strict=True):
        for name in ("image", "clean", "mask"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    assert torch.equal(_batches(feed, 2)[0].image, alone[2].image)
    assert not torch.equal(alone[0].image, alone[1].image)


def test_a_batch_holds_the_clean_picture_and_where_it_was_painted(world: Path, tmp_path: Path) -> None:
    for batch in _batches(_feed(world, tmp_path)):
        outside = batch.mask[:, None].expand_as(batch.image) == 0
        assert torch.equal(batch.image[outside], batch.clean[outside])
        assert set(batch.mask.unique().tolist()) <= {0.0, 1.0}
        assert 0 < len(batch.mask.flatten(1).any(dim=1).nonzero()) <= 8


def test_a_foreground_that_leaves_nothing_is_refused_before_training(world: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train/good/000.png: the foreground leaves nothing to paint on"):
        _feed(world, tmp_path, foreground="bright:254")


def test_textures_of_a_folder_are_read_in_every_size_and_drawn_by_the_seed(tmp_path: Path) -> None:
    for number, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        folder = tmp_path / "deep" / str(number)
        folder.mkdir(parents=True)
        Image.new("RGB", (40 + number, 30), colour).save(folder / "texture.png")
    texture = textures(str(tmp_path))
    found = [texture(np.random.default_rng(seed), (16, 24)) for seed in range(30)]
    assert {f.shape for f in found} == {(3, 16, 24)}
    assert {tuple(f[:, 0, 0]) for f in found} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}
    assert np.array_equal(texture(np.random.default_rng(4), (16, 24)), found[4])


def test_a_folder_without_textures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures in it"):
        textures(str(tmp_path))
    with pytest.raises(UsageError, match="there is no folder"):
        textures(str(tmp_path / "none"))

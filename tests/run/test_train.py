from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim

from flawmap.detectors.base import Detector, Optimisers
from flawmap.errors import FlawmapError
from flawmap.run import train as training
from flawmap.run.feed import draw
from flawmap.run.recipe import Log
from flawmap.run.train import restore, save, train
from flawmap.types import Batch

PICTURES = torch.randn(11, 4, generator=torch.Generator().manual_seed(0))


class Line(Detector):
    """Learns a line with all that can go wrong in a resume: noise, BatchNorm, momentum, two optimisers, a schedule."""

    name = "line"

    @dataclass(frozen=True)
    class Config(Detector.Config):
        steps: int = 0

    def __init__(self, steps: int) -> None:
        super().__init__(self.Config(steps=steps))
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)

    def optimisers(self, steps: int) -> Optimisers:
        adam = optim.AdamW([*self.first.parameters(), *self.norm.parameters()], lr=0.05)
        sgd = optim.SGD(self.last.parameters(), lr=0.05, momentum=0.9)
        return [(adam, optim.lr_scheduler.CosineAnnealingLR(adam, steps)), (sgd, None)]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        found = self.last(self.norm(self.first(batch.image + 0.1 * torch.randn_like(batch.image))))
        return (found[:, 0] - batch.image.sum(dim=1)).square().mean(), {"size": float(len(found))}


class Stopped(BaseException):
    """As sudden as a kill."""


def _run(detector: Detector, folder: Path, stop_at: int | None = None, seed: int = 0) -> list[dict]:
    def tick(done: int, loss: float) -> None:
        if done == stop_at:
            raise Stopped

    log = Log(folder / "train.jsonl")
    train(
        detector,
        lambda start: (
            Batch(image=PICTURES[draw(len(PICTURES), 8, step, seed)]) for step in range(start, detector.steps)
        ),
        seed=seed,
        checkpoint=folder / "checkpoint",
        log=log,
        tick=tick,
    )
    return log.entries()


def _states(detector: Detector, folder: Path) -> dict[str, Tensor]:
    """Weights, buffers and, from the last checkpoint, the optimisers' state."""
    from safetensors.torch import load_file

    return {**detector.state_dict(), **load_file(folder / "checkpoint")}


@pytest.mark.parametrize(("pictures", "batch"), [(11, 8), (8, 8), (3, 8), (1, 8), (209, 8)])
def test_every_epoch_shows_every_picture_once_in_an_order_of_its_own(pictures: int, batch: int):
    epochs = 4
    steps = -(-epochs * pictures // batch)
    rows = np.concatenate([draw(pictures, batch, step, seed=5) for step in range(steps)])
    shuffles = [rows[first : first + pictures] for first in range(0, epochs * pictures, pictures)]
    for shuffle in shuffles:
        assert sorted(shuffle) == list(range(pictures))
    if pictures > 8:
        assert len({tuple(shuffle) for shuffle in shuffles}) == epochs
        assert not np.array_equal(draw(pictures, batch, 0, seed=5), draw(pictures, batch, 0, seed=6))


def test_a_step_draws_the_same_pictures_whatever_came_before():
    first = draw(50, 8, 17, seed=3)
    np.random.seed(99)  # noqa: NPY002 (the global generator must not matter)
    np.testing.assert_array_equal(draw(50, 8, 17, seed=3), first)


@pytest.mark.parametrize("stops", [(1,), (13,), (29,), (30,), (5, 6, 20)])
def test_a_run_that_was_stopped_ends_bit_by_bit_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    reference = Line(30)
    _run(reference, whole)
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)  # a checkpoint a step
    for stop in stops:
        with pytest.raises(Stopped):
            _run(Line(30), parts, stop_at=stop)
        torch.manual_seed(stop)  # nothing may hang on the generator that a new process starts with
    detector = Line(30)
    entries = _run(detector, parts)
    expected, found = _states(reference, whole), _states(detector, parts)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
    losses = {entry["step"]: entry["loss"] for entry in Log(whole / "train.jsonl").entries()}
    assert [entry["step"] for entry in entries] == list(range(30))
    assert {entry["step"]: entry["loss"] for entry in entries} == losses


def test_no_step_is_logged_that_no_checkpoint_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "CHECKPOINT_S", 1e9)
    with pytest.raises(Stopped):
        _run(Line(30), tmp_path, stop_at=20)
    assert not (tmp_path / "checkpoint").exists()
    assert Log(tmp_path / "train.jsonl").entries() == []


def test_a_checkpoint_holds_weights_buffers_optimisers_and_schedules_exactly(tmp_path: Path):
    detector = Line(30)
    optimisers = detector.optimisers(30)
    for _ in range(7):
        loss, _parts = detector.loss(Batch(image=PICTURES))
        detector.zero_grad()
        loss.backward()
        for optimiser, schedule in optimisers:
            optimiser.step()
            if schedule is not None:
                schedule.step()
    save(detector, optimisers, 7, tmp_path / "checkpoint")
    fresh = Line(30)
    into = fresh.optimisers(30)
    assert restore(fresh, into, tmp_path / "checkpoint") == 7
    for key, value in detector.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key
    for (ours, our_schedule), (theirs, their_schedule) in zip(optimisers, into, strict=True):
        assert json.dumps(ours.state_dict()["param_groups"]) == json.dumps(theirs.state_dict()["param_groups"])
        for index, values in ours.state_dict()["state"].items():
            for key, value in values.items():
                other = theirs.state_dict()["state"][index][key]
                assert (other is None and value is None) or torch.equal(torch.as_tensor(value), torch.as_tensor(other))
        assert (our_schedule is None) == (their_schedule is None)
        if our_schedule is not None and their_schedule is not None:
            assert our_schedule.state_dict() == their_schedule.state_dict()
            assert our_schedule.get_last_lr() == their_schedule.get_last_lr()


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    detector = Line(3)
    save(detector, detector.optimisers(3), 1, tmp_path / "checkpoint")
    before = (tmp_path / "checkpoint").read_bytes()

    def torn(tensors: dict, path: Path, notes: dict) -> None:
        path.write_bytes(b"half")
        raise Stopped

    monkeypatch.setattr(training, "save_file", torn)
    with pytest.raises(Stopped):
        save(detector, detector.optimisers(3), 2, tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint").read_bytes() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
):
    def broken(real: Callable) -> Callable:
        calls = []

        def loss(batch: Batch) -> tuple[Tensor, dict[str, float]]:
            calls.append(batch)
            found, parts = real(batch)
            return (found * value if len(calls) == 4 else found), parts

        return loss

    detector = Line(30)
    detector.loss = broken(detector.loss)  # type: ignore[method-assign]
    with pytest.raises(FlawmapError, match=r"the loss is (nan|inf) at step 3"):
        _run(detector, tmp_path)


def test_another_seed_draws_another_run(tmp_path: Path):
    for name in "ab":
        (tmp_path / name).mkdir()
    first = _run(Line(10), tmp_path / "a", seed=0)
    second = _run(Line(10), tmp_path / "b", seed=1)
    assert [entry["loss"] for entry in first] != [entry["loss"] for entry in second]

"""Which pictures learn, scale and calibrate: disjoint, and cut by part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flawmap.detectors.efficientad import EfficientAD
from flawmap.errors import CalibrationError
from flawmap.run.fitting import Fitting
from flawmap.run.recipe import Recipe
from flawmap.run.roles import CALIBRATION, FIT, SCALE, Roles, roles
from flawmap.types import Sample

TINY = {"size": 64, "width": 4, "dim": 6, "ae_width": 4, "steps": 2}


def _samples(parts: int, views: int = 2) -> list[Sample]:
    random = np.random.default_rng(0)
    return [
        Sample(random.integers(0, 255, (70, 70, 3), dtype=np.uint8), f"{part:02}-{view}", f"{part:02}")
        for part in range(parts)
        for view in range(views)
    ]


def _recipe(**values: object) -> Recipe:
    return Recipe(**{"data": "pictures", "data_sha256": "0", "method": "efficientad", **values})  # type: ignore[arg-type]


@pytest.fixture
def detector() -> EfficientAD:
    return EfficientAD(EfficientAD.configure(TINY), pretrained=False)


def _parts(samples: list[Sample], found: Roles, role: str) -> set[str]:
    return {samples[i].part for i in found.rows(role)}


def test_parts_learn_scale_or_calibrate_and_never_two_of_them(detector: EfficientAD) -> None:
    samples = _samples(50)
    found = roles(samples, _recipe(), detector)
    parts = [_parts(samples, found, role) for role in (FIT, SCALE, CALIBRATION)]
    assert [len(part) for part in parts] == [36, 4, 10]
    assert len(set.union(*parts)) == 50
    assert sorted(found.fitted + found.scaling + found.rows(CALIBRATION)) == list(range(100))


def test_without_calibration_a_tenth_still_scales(detector: EfficientAD) -> None:
    samples = _samples(20)
    found = roles(samples, _recipe(held_out=0.0), detector)
    assert len(_parts(samples, found, SCALE)) == 2
    assert not found.rows(CALIBRATION)


def test_of_few_parts_none_is_spared_and_it_is_said(detector: EfficientAD, capsys: pytest.CaptureFixture[str]) -> None:
    found = roles(_samples(4), _recipe(held_out=0.0), detector)
    assert found.scaling == found.fitted == list(range(8))
    assert "4 good parts are too few to spare one" in capsys.readouterr().err


def test_a_rate_that_the_parts_cannot_promise_is_refused(detector: EfficientAD) -> None:
    with pytest.raises(CalibrationError, match=r"10 good parts cannot promise 1\.0 %: the least is 9\.1 % on average"):
        roles(_samples(50), _recipe(false_alarm=0.01), detector)


def test_a_fit_shows_each_picture_to_its_stage_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = _samples(20)
    monkeypatch.setattr("flawmap.detectors.efficientad.load_teacher", lambda *_: ("made here", "0" * 64))
    detector = EfficientAD(EfficientAD.configure(TINY))
    seen: dict[str, list[torch.Tensor]] = {"begin": [], "loss": [], "end": []}
    for stage in ("begin", "end"):

        def walk(batches: list, stage: str = stage) -> None:
            seen[stage] += [image for batch in batches for image in batch.image]

        monkeypatch.setattr(detector, stage, walk)
    real = detector.loss

    def loss(batch):
        seen["loss"] += list(batch.image)
        assert batch.generic.shape == batch.image.shape
        return real(batch)

    monkeypatch.setattr(detector, "loss", loss)
    fitting = Fitting(_recipe(options=TINY), detector, samples, [])
    fitting.go(tmp_path)
    own = {
        role: {_bits(fitting.intake(samples[i].source)[0]) for i in fitting.roles.rows(role)} for role in (FIT, SCALE)
    }
    assert {_bits(image.numpy()) for image in seen["begin"]} == own[FIT]
    assert {_bits(image.numpy()) for image in seen["loss"]} <= own[FIT]
    assert {_bits(image.numpy()) for image in seen["end"]} == own[SCALE]


def _bits(image: np.ndarray) -> bytes:
    return np.ascontiguousarray(image, np.float32).tobytes()

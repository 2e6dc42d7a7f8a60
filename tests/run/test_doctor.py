from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from flawmap.errors import GateError, MissingExtra, UsageError
from flawmap.run.doctor import doctor
from flawmap.run.engine import OnnxEngine
from flawmap.run.model import Model, load
from flawmap.types import Prediction


def test_without_a_bundle_it_says_what_is_installed():
    found, sound = doctor(None)
    assert sound
    assert found["onnxruntime"] == onnxruntime.__version__
    assert found["can fit"] == "yes"


@pytest.mark.parametrize("which", ["crossed", "held", "alone"])
def test_a_bundle_says_here_what_it_said_where_it_was_made(which: str, request: pytest.FixtureRequest, tmp_path: Path):
    model: Model = request.getfixturevalue(which)
    found, sound = doctor(model.save(tmp_path / "part.flaw"))
    assert sound
    assert found["sound"] == "yes"
    assert found["bundle"] == model.bundle.sha256
    assert found["promise"] == (model.calibration.sentence if model.calibration else "not calibrated")


@pytest.mark.parametrize(("moved", "expected"), [(0.5e-4, True), (2e-4, False), (-2e-4, False)])
def test_a_score_that_has_moved_by_more_than_1e_4_of_its_scale_is_not_sound(
    crossed: Model, tmp_path: Path, moved: float, expected: bool
):
    assert crossed.calibration is not None
    golden = crossed.bundle.json("golden.json")
    golden[0]["score"] += moved * crossed.calibration.scale
    path = crossed.bundle.replace({"golden.json": json.dumps(golden).encode()}).write(tmp_path / "moved.flaw")
    assert doctor(path)[1] is expected


def test_a_verdict_that_has_flipped_is_not_sound(crossed: Model, tmp_path: Path):
    golden = crossed.bundle.json("golden.json")
    golden[-1]["nok"] = not golden[-1]["nok"]
    path = crossed.bundle.replace({"golden.json": json.dumps(golden).encode()}).write(tmp_path / "flipped.flaw")
    found, sound = doctor(path)
    assert not sound
    assert "1 verdicts flipped" in found["golden pictures"]


def test_an_engine_that_says_nan_is_not_sound(crossed: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = OnnxEngine.__call__

    def broken(self: OnnxEngine, image: np.ndarray) -> Prediction:
        return real(self, image)._replace(score=np.array([np.nan], np.float32))

    monkeypatch.setattr(OnnxEngine, "__call__", broken)
    golden = [{**entry, "nok": False} for entry in crossed.bundle.json("golden.json")]
    path = crossed.bundle.replace({"golden.json": json.dumps(golden).encode()}).write(tmp_path / "nan.flaw")
    assert doctor(path)[1] is False


def test_openvino_is_held_against_the_golden_pictures_before_it_judges(crossed: Model, world: Path, tmp_path: Path):
    path = crossed.save(tmp_path / "part.flaw")
    model = load(path, "openvino")
    assert model.engine.name.startswith("openvino ")
    assert model.engine.name.endswith(" cpu fp32")
    assert model.unfit is None
    for picture in sorted((world / "test/square").glob("*.png")):
        ours, theirs = model.inspect(picture), crossed.inspect(picture)
        assert ours.verdict == theirs.verdict
        assert crossed.calibration is not None
        assert ours.score == pytest.approx(theirs.score, abs=1e-4 * crossed.calibration.scale)
    golden = crossed.bundle.json("golden.json")
    golden[0]["score"] *= 1.01
    moved = crossed.bundle.replace({"golden.json": json.dumps(golden).encode()}).write(tmp_path / "moved.flaw")
    with pytest.raises(GateError, match=r"openvino .* scores of the golden pictures differ by"):
        load(moved, "openvino")


def test_an_engine_that_is_not_there_is_said(crossed: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match="openvino"):
        Model(crossed.bundle, "openvino")
    with pytest.raises(UsageError, match="there are: onnx, openvino, torch"):
        Model(crossed.bundle, "tensor")

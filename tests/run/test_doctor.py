from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from flawmap.cli import main
from flawmap.errors import GateError, MissingExtra, UsageError
from flawmap.run.calibrate import calibrate
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


@pytest.mark.parametrize(("name", "verdict"), [("above-review.png", "OK"), ("below-review.png", "REVIEW")])
def test_a_verdict_that_has_flipped_between_ok_and_review_is_not_sound(
    banded: Model, tmp_path: Path, name: str, verdict: str
):
    assert doctor(banded.save(tmp_path / "sound.flaw"))[1]
    golden = banded.bundle.json("golden.json")
    (entry,) = (entry for entry in golden if entry["name"] == name)
    assert {entry["verdict"], verdict} == {"OK", "REVIEW"}
    entry["verdict"] = verdict
    path = banded.bundle.replace({"golden.json": json.dumps(golden).encode()}).write(tmp_path / "flipped.flaw")
    assert load(path).golden() == (0.0, [name])
    found, sound = doctor(path)
    assert not sound
    assert "1 verdicts flipped" in found["golden pictures"]


def test_golden_pictures_of_older_bundles_know_only_nok(banded: Model, tmp_path: Path):
    golden = [{k: v for k, v in entry.items() if k != "verdict"} for entry in banded.bundle.json("golden.json")]
    path = banded.bundle.replace({"golden.json": json.dumps(golden).encode()}).write(tmp_path / "old.flaw")
    assert doctor(path)[1]
    golden[3]["nok"] = not golden[3]["nok"]
    path = banded.bundle.replace({"golden.json": json.dumps(golden).encode()}).write(tmp_path / "flipped.flaw")
    assert load(path).golden() == (0.0, [golden[3]["name"]])


def test_a_calibration_that_does_not_hold_for_the_engine_is_not_sound(crossed: Model, tmp_path: Path):
    half = json.dumps({**crossed.bundle.json("calibration.json"), "precision": "fp16"}).encode()
    path = crossed.bundle.replace({"calibration.json": half}).write(tmp_path / "half.flaw")
    found, sound = doctor(path)
    assert not sound
    reason = load(path).unfit
    assert reason is not None
    assert reason.startswith("calibrated in fp16, and onnxruntime ")
    assert found["sound"] == f"no: {reason}"
    assert found["promise"] == f"none that holds here: {reason}"
    assert main(["doctor", str(path), "--json"]) == 4


def test_a_scale_of_zero_is_held_against_the_least_scale(crossed: Model):
    model = Model(crossed.bundle)
    model.calibration = dataclasses.replace(crossed.calibration, scale=0.0)  # type: ignore[type-var]
    assert model.golden() == (0.0, [])
    golden = crossed.bundle.json("golden.json")
    golden[0]["score"] += 1e-6
    model.bundle = crossed.bundle.replace({"golden.json": json.dumps(golden).encode()})
    assert model.golden()[0] == pytest.approx(1e6, rel=1e-3)


def test_a_threshold_far_off_does_not_make_the_doctor_blind(crossed: Model, tmp_path: Path):
    far = calibrate(crossed, policy="manual", threshold=1e9)
    assert doctor(far.save(tmp_path / "far.flaw"))[1]
    golden = [{**entry, "score": 3 * entry["score"]} for entry in far.bundle.json("golden.json")]
    path = far.bundle.replace({"golden.json": json.dumps(golden).encode()}).write(tmp_path / "moved.flaw")
    assert not doctor(path)[1]


def test_an_engine_that_says_nan_is_not_sound(crossed: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = OnnxEngine.__call__

    def broken(self: OnnxEngine, image: np.ndarray) -> Prediction:
        return real(self, image)._replace(score=np.array([np.nan], np.float32))

    monkeypatch.setattr(OnnxEngine, "__call__", broken)
    golden = [{**entry, "nok": False, "verdict": "OK"} for entry in crossed.bundle.json("golden.json")]
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

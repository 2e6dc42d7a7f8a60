from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import tomllib
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flawmap.cli import main
from flawmap.detectors import create
from flawmap.errors import CalibrationError, DataError, UsageError
from flawmap.images.decode import decode
from flawmap.images.folder import find, sha256
from flawmap.images.intake import Intake
from flawmap.images.split import folds
from flawmap.run import export
from flawmap.run.bundle import read
from flawmap.run.fit import fit
from flawmap.run.fitting import Fitting
from flawmap.run.model import Model, load
from flawmap.run.recipe import Recipe
from flawmap.run.roles import CROSSED
from flawmap.types import Batch, Sample, Verdict

FILES = {"recipe.toml", "env.json", "data.jsonl", "train.jsonl", "calibration.csv", "report.html", "bundle.flaw"}


def _run(model: Model) -> Path:
    assert model.run is not None
    return model.run


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _calibration(model: Model) -> dict[str, tuple[float, float]]:
    with (_run(model) / "calibration.csv").open() as file:
        return {row["name"]: (float(row["score"]), float(row["peak"])) for row in csv.DictReader(file)}


def _fitting(samples: list[Sample], method: str, **recipe: object) -> Fitting:
    """A fit that has not begun: what it would do with which picture."""
    values = {"data": "parts", "data_sha256": "00", "method": method, "held_out": 0.2, **recipe}
    return Fitting(Recipe(**values), create(method, {"size": 64}), samples, [])  # type: ignore[arg-type]


def test_a_run_has_its_place_and_its_files(crossed: Model, world: Path):
    run = _run(crossed)
    assert run.parts[-4:-1] == ("patchcore", world.parent.name, world.name)
    assert run.name[8] == "-"
    assert run.name.endswith("-s0")
    assert set(os.listdir(run)) == FILES
    assert os.readlink(run.parent / "latest") == run.name
    assert crossed.bundle.origin == str(run / "bundle.flaw")


def test_the_recipe_and_the_machine_are_written_down(held: Model, paired: Path):
    recipe = tomllib.loads((_run(held) / "recipe.toml").read_text())
    assert recipe["data"] == str(paired)
    assert (recipe["method"], recipe["seed"], recipe["held_out"]) == ("simplenet", 0, 0.34)
    assert recipe["options"]["steps"] == 200
    assert recipe["options"]["margin"] == 0.5  # a default, written out
    env = json.loads((_run(held) / "env.json").read_text())
    assert env["packages"]["torch"] == importlib.metadata.version("torch")
    carried = held.bundle.config["recipe"]
    assert carried["data_sha256"] == recipe["data_sha256"]
    assert carried["data"] == "pairs"  # the bundle does not tell where the pictures lay


def test_the_log_holds_every_stage_and_every_step_once(held: Model):
    log = _rows(_run(held) / "train.jsonl")
    stages = [entry["stage"] for entry in log if entry["event"] == "done"]
    assert stages == ["features", "fit", "graph", "calibration", "bundle", "report"]
    steps = [entry for entry in log if entry["event"] == "step"]
    assert [entry["step"] for entry in steps] == list(range(200))
    assert steps[-1]["loss"] < 0.8 * steps[0]["loss"]
    assert log[-1]["event"] == "end"
    assert log[-1]["seconds"] > 0


def test_parts_are_either_fitted_on_or_calibrated_on(held: Model, paired: Path):
    rows = _rows(_run(held) / "data.jsonl")
    used = [row for row in rows if "role" in row]
    parts = {role: {row["part"] for row in used if row["role"] == role} for role in ("fit", "calibration")}
    assert len(parts["fit"]) == 8
    assert len(parts["calibration"]) == 4
    assert not parts["fit"] & parts["calibration"]
    assert Counter(row["part"] for row in used) == dict.fromkeys(parts["fit"] | parts["calibration"], 2)
    for row in used:
        assert hashlib.sha256((paired / row["name"]).read_bytes()).hexdigest() == row["sha256"]
    calibration = held.calibration
    assert calibration is not None
    assert (calibration.parts, calibration.images, calibration.views) == (4, 8, (2, 2))
    assert not calibration.cross_fitted
    assert set(_calibration(held)) == {row["name"] for row in used if row["role"] == "calibration"}


def test_the_threshold_is_that_of_the_scores_in_the_table(held: Model):
    scores: dict[str, float] = {}
    with (_run(held) / "calibration.csv").open() as file:
        for row in csv.DictReader(file):
            scores[row["part"]] = max(float(row["score"]), scores.get(row["part"], -np.inf))
    calibration = held.calibration
    assert calibration is not None
    assert calibration.scores == tuple(sorted(scores.values()))
    assert calibration.threshold == max(scores.values()) + calibration.margin


def test_the_scores_of_a_calibration_are_those_of_the_bundle(held: Model, paired: Path):
    """Computed while fitting by torch on stored features; at the line by ONNX Runtime from the file."""
    assert held.calibration is not None
    for name, (score, peak) in _calibration(held).items():
        found, map = held.predict(paired / name)
        assert abs(found - score) <= 1e-4 * held.calibration.scale
        assert abs(float(map.max()) - peak) <= 1e-4 * abs(held.calibration.map_threshold)


def test_few_parts_are_cross_fitted_each_scored_by_a_detector_that_has_not_seen_it(crossed: Model, world: Path):
    calibration = crossed.calibration
    assert calibration is not None
    assert calibration.cross_fitted
    assert calibration.parts == 24
    assert "cross-fitting" in calibration.sentence
    roles = {row["role"] for row in _rows(_run(crossed) / "data.jsonl")}
    assert roles == {CROSSED}
    # The first fold again, the slow way: torch from the picture on.
    samples = [sample for sample in find(world) if sample.split == "train"]
    group = {sample.name for sample in folds(samples, 6, seed=0)[0]}
    intake = Intake((64, 64))
    image = {s.name: torch.from_numpy(intake(s.source)[0][None]) for s in samples}
    detector = create("patchcore", {"size": 64}).eval()
    with torch.inference_mode():
        inside = [s.name for s in samples if s.name not in group]
        detector.begin([Batch(features=detector.backbone(torch.cat([image[name] for name in inside])))])
        expected = {name: float(detector(image[name]).score) for name in group}
    found = _calibration(crossed)
    assert found.keys() == image.keys()
    assert len(group) == 4
    for name, score in expected.items():
        assert found[name][0] == pytest.approx(score, abs=1e-3 * calibration.scale)


@pytest.mark.parametrize(
    ("method", "false_alarm", "crossed"),
    [("patchcore", None, True), ("patchcore", 0.05, True), ("patchcore", 0.25, False), ("simplenet", None, False)],
)
def test_a_method_that_may_cross_fits_only_where_held_out_parts_are_too_few(
    world: Path, method: str, false_alarm: float | None, crossed: bool
):
    samples = [sample for sample in find(world) if sample.split == "train"]
    fitting = _fitting(samples, method, false_alarm=false_alarm)
    assert fitting.roles.crossed is crossed
    assert Counter(fitting.roles.of) == ({CROSSED: 24} if crossed else {"fit": 19, "calibration": 5})


@pytest.mark.parametrize(
    ("method", "false_alarm", "words"),
    [
        ("patchcore", 0.01, r"24 good parts .* 1\.0 %: the least is 4\.0 % on average; .* 99"),
        ("simplenet", 0.1, r"5 good parts .* 10\.0 %: the least is 16\.7 % on average; .* 9"),
    ],
)
def test_a_promise_out_of_reach_is_refused_before_anything_is_written(
    world: Path, tmp_path: Path, method: str, false_alarm: float, words: str
):
    with pytest.raises(CalibrationError, match=words):
        fit(world, method, options={"size": 64}, false_alarm=false_alarm, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("false_alarm", [0.0, 1.0, -0.1, float("nan")])
def test_a_false_alarm_rate_that_is_none_is_refused(world: Path, tmp_path: Path, false_alarm: float):
    with pytest.raises(CalibrationError, match="not a rate between 0 and 1"):
        fit(world, options={"size": 64}, false_alarm=false_alarm, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"held_out": 1.0}, "held_out is a share"),
        ({"folds": 1}, "folds are at least 2"),
        ({"device": "tpu"}, "no device 'tpu'; there are: auto, cpu, cuda"),
        ({"method": "patchkore"}, "no method 'patchkore'; there are: patchcore"),
        ({"options": {"sise": 64}}, r"no option 'sise'; did you mean size\?"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_written(
    world: Path, tmp_path: Path, given: dict, words: str
):
    with pytest.raises(UsageError, match=words):
        fit(world, **{"options": {"size": 64}, "out": tmp_path / "runs", **given})
    assert not (tmp_path / "runs").exists()


def test_a_broken_picture_stops_the_fit_by_name_unless_it_is_to_be_left_out(paired: Path, held: Model, tmp_path: Path):
    with pytest.raises(DataError, match=r"1 of 25 pictures cannot be used.*\n.*train/good/broken\.png: truncated"):
        fit(paired, options={"size": 64}, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    left_out = [row for row in _rows(_run(held) / "data.jsonl") if "left_out" in row]
    assert [row["name"] for row in left_out] == ["train/good/broken.png"]
    assert "truncated" in left_out[0]["left_out"]
    assert "left out: train/good/broken.png" in (_run(held) / "report.html").read_text()


def test_pictures_of_two_depths_are_refused_before_anything_is_written(world: Path, tmp_path: Path):
    sources = [world / "train/good/000.png", np.zeros((64, 64), np.uint16)]
    with pytest.raises(DataError, match=r"16 bits a channel and .* has 8"):
        fit(sources, options={"size": 64}, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_data_set_without_good_pictures_to_fit_on_is_refused(world: Path, tmp_path: Path):
    shutil.copytree(world / "test", tmp_path / "set" / "test")
    with pytest.raises(DataError, match="no good pictures to fit on"):
        fit(tmp_path / "set", out=tmp_path / "runs")


def _only_picture(model: Model) -> np.ndarray:
    """(64, 64) uint16: what the bundle of one picture carries along."""
    return np.asarray(Image.open(io.BytesIO(_golden(model)["good-0.png"]))).astype(np.uint16)


def test_one_good_picture_gives_scores_and_maps_but_never_a_verdict(alone: Model):
    assert alone.calibration is None
    assert "calibration.json" not in alone.bundle.files
    assert set(os.listdir(_run(alone))) == FILES - {"calibration.csv"}
    assert "never a verdict" in alone.card
    good = _only_picture(alone)
    bad = good.copy()
    bad[20:40, 20:40] = 100
    found = [alone.inspect(picture) for picture in (good, bad)]
    for inspection in found:
        assert (inspection.verdict, inspection.p_value, inspection.threshold) == (None, None, None)
        assert inspection.regions == ((),)
        assert np.isfinite(inspection.map).all()
    assert found[1].score > 2 * found[0].score > 0
    y, x = np.unravel_index(found[1].map.argmax(), found[1].map.shape)
    assert 16 <= y < 44
    assert 16 <= x < 44


def test_an_array_is_judged_as_the_file_of_it(alone: Model, tmp_path: Path):
    picture = _only_picture(alone)
    Image.fromarray(picture).save(tmp_path / "same.png")
    assert alone.inspect(tmp_path / "same.png").score == alone.inspect(picture).score


def test_the_white_level_of_12_bit_pictures_goes_into_the_bundle(alone: Model):
    assert 2047 < _only_picture(alone).max() <= 4095
    assert alone.bundle.config["intake"]["white"] == 4095
    assert load(alone.bundle.origin).intake.white == 4095


def test_a_picture_brighter_than_the_white_level_or_of_another_depth_gets_no_verdict(alone: Model, world: Path):
    picture = _only_picture(alone)
    picture[3, 5] = 4096
    with pytest.raises(DataError, match=r"brighter \(4096\) than the 16-bit white level 4095"):
        alone.inspect(picture)
    with pytest.raises(DataError, match="has 8 bits a channel, this model was fitted on 16-bit"):
        alone.inspect(world / "test/good/000.png")


def _golden(model: Model) -> dict[str, bytes]:
    return {
        name.removeprefix("golden/"): content
        for name, content in model.bundle.files.items()
        if name.startswith("golden/")
    }


@pytest.mark.parametrize("which", ["crossed", "held"])
def test_two_golden_pictures_stand_on_either_side_of_the_threshold(which: str, request: pytest.FixtureRequest):
    model: Model = request.getfixturevalue(which)
    assert model.calibration is not None
    below, above = (model.predict(_golden(model)[f"{where}-threshold.png"])[0] for where in ("below", "above"))
    assert below <= model.calibration.threshold < above
    assert above - below < 0.2 * model.calibration.scale
    first, second = (decode(_golden(model)[f"{where}-threshold.png"]).astype(int) for where in ("below", "above"))
    assert np.abs(first - second).max() == 1  # as close as 8 bits allow
    assert (first != second).mean() < 0.01
    noted = {entry["name"]: entry for entry in model.bundle.json("golden.json")}
    assert noted.keys() == _golden(model).keys()
    assert [noted[f"{where}-threshold.png"]["nok"] for where in ("below", "above")] == [False, True]
    assert len(noted) == 5


def test_a_picture_that_is_too_large_for_the_bundle_is_thinned_and_carried_along_all_the_same(tmp_path: Path):
    """Else a line with a good camera would pass the gate with nothing to judge."""
    random = np.random.default_rng(0)
    large = random.integers(0, 256, (1500, 1100, 3), np.uint8)
    deep = random.integers(0, 4096, (1400, 1400)).astype(np.uint16)
    Image.fromarray(large).save(tmp_path / "large.png")
    for sources, expected in (
        ([tmp_path / "large.png"], large[::2, ::2]),
        ([large], large[::2, ::2]),
        ([deep], np.repeat(deep[::2, ::2, None], 3, axis=2)),
    ):
        (golden,) = export.golden(sources, None, None, None)  # type: ignore[arg-type]
        assert golden.name == "good-0.png"
        assert len(golden.content) <= 2**21
        np.testing.assert_array_equal(decode(golden.content), expected)


def test_every_road_to_a_verdict_gives_the_same(
    crossed: Model, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Model on ONNX and on torch, the bundle as a zip and as a folder, and the command line, to 1e-4 of the scale."""
    assert crossed.calibration is not None
    pictures = tmp_path / "pictures"
    shutil.copytree(world / "test", pictures)
    for name, content in _golden(crossed).items():
        (pictures / name).write_bytes(content)
    bundle = crossed.save(tmp_path / "part.flaw")
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(tmp_path / "folder")
    models = [crossed, load(bundle), load(tmp_path / "folder"), load(bundle, "torch")]
    capsys.readouterr()
    assert main(["inspect", str(bundle), str(pictures), "--json"]) == 0
    printed = {row["part"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    names = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.*"))
    assert len(names) == 17
    assert sorted(printed) == names
    verdicts = Counter()
    for name in names:
        found = [model.inspect(pictures / name) for model in models]
        scores = [*(inspection.score for inspection in found), printed[name]["score"]]
        assert max(scores) - min(scores) <= 1e-4 * crossed.calibration.scale, name
        assert len({*(inspection.verdict for inspection in found), Verdict(printed[name]["verdict"])}) == 1, name
        assert printed[name]["p_value"] == found[0].p_value
        verdicts[found[0].verdict] += 1
    assert verdicts[Verdict.NOK] >= 7  # six defects and the golden one above the threshold


def test_the_bundle_of_the_run_is_that_of_the_model(held: Model):
    written = read(_run(held) / "bundle.flaw")
    assert written.files == held.bundle.files
    assert written.config["parity"]["worst_score"] <= 1e-4
    assert written.config["parity"]["worst_map"] <= 1e-4
    assert held.calibration is not None
    assert held.calibration.sentence in held.card
    assert sha256(Sample(_run(held) / "data.jsonl", "", "")) == hashlib.sha256(written.files["data.jsonl"]).hexdigest()


def test_a_part_is_judged_by_its_strangest_view(held: Model, paired: Path):
    good, bad = paired / "test/good/000.png", paired / "test/square/000.png"
    found = held.inspect_part([good, bad], names=["left", "right"], part="7")
    assert found.scores == (held.predict(good)[0], held.predict(bad)[0])
    assert found.score == max(found.scores)
    assert (found.verdict, found.part, found.names) == (Verdict.NOK, "7", ("left", "right"))
    assert found.map is found.maps[1]
    with pytest.raises(CalibrationError, match="judges parts of 2 views, this part has 1"):
        held.inspect(good)
    with pytest.raises(CalibrationError, match="judges parts of 2 views, this part has 3"):
        held.inspect_part([good, good, bad])


def test_a_score_that_is_no_number_is_never_a_verdict(crossed: Model, world: Path, monkeypatch: pytest.MonkeyPatch):
    real = crossed.engine

    def broken(image: np.ndarray) -> object:
        found = real(image)
        return found._replace(score=np.full_like(found.score, np.nan))

    monkeypatch.setattr(crossed, "engine", broken)
    with pytest.raises(CalibrationError, match=r"000\.png: the score or the map is not a number"):
        crossed.inspect(world / "test/good/000.png")

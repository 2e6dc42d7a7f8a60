from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from flawmap.errors import CalibrationError, DataError
from flawmap.images.masks.levels import read_mask
from flawmap.run.acceptance import accept
from flawmap.run.calibrate import calibrate
from flawmap.run.doctor import doctor
from flawmap.run.evaluate import Evaluated, evaluate, in_words
from flawmap.run.model import Model, load
from flawmap.types import Sample, Verdict


@pytest.fixture(scope="module")
def judged(crossed: Model, world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluated, Path]:
    out = tmp_path_factory.mktemp("judged") / "evaluation"
    return evaluate(crossed, world, out), out


@pytest.fixture(scope="module")
def judged_pairs(held: Model, paired: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluated, Path]:
    out = tmp_path_factory.mktemp("pairs")
    return evaluate(held, paired, out), out


def _scores(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def _metrics(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())


def test_the_figures_of_a_test_set_are_those_of_scikit_learn(judged: tuple[Evaluated, Path]):
    rows, metrics = _scores(judged[1]), _metrics(judged[1])
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)
    defect = [row["kind"] != "good" for row in rows]
    scores = [float(row["score"]) for row in rows]
    assert (metrics["pictures"], metrics["good"], metrics["defective"]) == (12, 6, 6)
    assert metrics["i_auroc"] == pytest.approx(roc_auc_score(defect, scores), abs=1e-12)
    assert metrics["i_ap"] == pytest.approx(average_precision_score(defect, scores), abs=1e-12)


def test_the_figures_of_the_maps_are_those_of_scikit_learn(judged: tuple[Evaluated, Path], crossed: Model, world: Path):
    maps, masks = [], []
    for row in _scores(judged[1]):
        map = crossed.predict(world / row["name"])[1]
        assert float(row["peak"]) == float(map.max())
        mask = world / row["name"].replace("test/", "ground_truth/").replace(".png", "_mask.png")
        maps.append(map.ravel())
        masks.append(read_mask(mask, map.shape).defect.ravel() if mask.exists() else np.zeros(map.size, bool))
    metrics = _metrics(judged[1])
    labels, values = np.concatenate(masks), np.concatenate(maps)
    assert metrics["defect_pixels"] == 6 * 14 * 14
    assert metrics["p_auroc"] == pytest.approx(roc_auc_score(labels, values), abs=1e-9)
    assert metrics["p_ap"] == pytest.approx(average_precision_score(labels, values), abs=1e-9)
    assert metrics["p_auroc"] > 0.7
    assert 0 < metrics["pro"] <= 1


def test_verdicts_and_rates_are_those_of_the_calibration(judged: tuple[Evaluated, Path], crossed: Model):
    rows, metrics = _scores(judged[1]), _metrics(judged[1])
    assert crossed.calibration is not None
    for row in rows:
        assert row["verdict"] == ("NOK" if float(row["score"]) > crossed.calibration.threshold else "OK")
        assert float(row["p_value"]) == crossed.calibration.p_value(float(row["score"]))
    false_alarms = sum(row["verdict"] == "NOK" for row in rows if row["kind"] == "good")
    escapes = sum(row["verdict"] == "OK" for row in rows if row["kind"] == "square")
    assert escapes == 0
    for name, count in (("false_alarms", false_alarms), ("escapes", escapes)):
        low, high = proportion_confint(count, 6, method="beta")
        found = metrics[name]
        assert (found["count"], found["n"]) == (count, 6)
        assert found["low"] == pytest.approx(low if count else 0, abs=1e-9)
        assert found["high"] == pytest.approx(high, abs=1e-9)


def test_the_words_are_the_figures(judged: tuple[Evaluated, Path], crossed: Model):
    evaluated, out = judged
    words, metrics = in_words(evaluated), _metrics(out)
    assert words["pictures"] == "12"
    assert words["I-AUROC"] == f"{metrics['i_auroc']:.4f}"
    assert words["PRO"] == f"{metrics['pro']:.4f}"
    assert words["escapes"].startswith("0 of 6 parts (95 % bounds 0.0% to 45.9%)")
    assert metrics["bundle_sha256"] == crossed.bundle.sha256
    page = (out / "report.html").read_text()
    assert f"{metrics['i_auroc']:.3f}"[:4] in page
    assert page.count("<html") == 1


def test_a_part_is_its_strangest_view_and_parts_of_other_view_counts_get_no_verdict(
    judged_pairs: tuple[Evaluated, Path], held: Model
):
    rows, metrics = _scores(judged_pairs[1]), _metrics(judged_pairs[1])
    assert metrics["notes"] == ["2 of 7 parts got no verdict: the calibration judges parts of 2 views"]
    single = [row for row in rows if row["part"] == row["name"]]
    assert [row["name"] for row in single] == ["test/square/004.png", "test/square/005.png"]
    assert all((row["verdict"], row["p_value"]) == ("", "") for row in single)
    parts: dict[str, float] = {}
    for row in rows:
        parts[row["part"]] = max(float(row["score"]), parts.get(row["part"], -np.inf))
    assert held.calibration is not None
    for row in rows:
        if row not in single:
            assert row["verdict"] == ("NOK" if parts[row["part"]] > held.calibration.threshold else "OK")
    defect = {row["part"]: row["kind"] != "good" for row in rows}
    assert (metrics["pictures"], metrics["parts"]) == (12, 7)
    expected = roc_auc_score([defect[part] for part in parts], list(parts.values()))
    assert metrics["part_auroc"] == pytest.approx(expected, abs=1e-12)
    by_picture = roc_auc_score([row["kind"] != "good" for row in rows], [float(row["score"]) for row in rows])
    assert metrics["i_auroc"] == pytest.approx(by_picture, abs=1e-12)
    assert (metrics["false_alarms"]["n"], metrics["escapes"]["n"]) == (3, 2)
    assert (metrics["kinds"]["square"]["n"], metrics["kinds"]["square"]["judged"]) == (4, 2)


def test_without_defects_what_needs_them_is_undefined_and_says_so(crossed: Model, world: Path, tmp_path: Path):
    shutil.copytree(world / "test/good", tmp_path / "set/test/good")
    found = evaluate(crossed, tmp_path / "set", tmp_path / "out")
    metrics = _metrics(tmp_path / "out")
    for name in ("i_auroc", "i_ap", "p_auroc", "p_ap", "pro"):
        assert metrics[name] is None
    assert metrics["escapes"]["n"] == 0
    assert metrics["false_alarms"]["n"] == 6
    words = in_words(found)
    assert words["I-AUROC"] == "undefined: good and defective are needed"
    assert words["PRO"] == "undefined: no picture has a defect pixel"
    assert (tmp_path / "out/report.html").exists()


def test_without_masks_what_needs_them_is_undefined_and_says_so(crossed: Model, world: Path, tmp_path: Path):
    shutil.copytree(world / "test", tmp_path / "set/test")
    found = evaluate(crossed, tmp_path / "set", tmp_path / "out")
    assert found.metrics["i_auroc"] is not None
    assert found.metrics["p_auroc"] is None
    assert in_words(found)["P-AUROC"] == "undefined: 6 of the defective pictures have no mask"


def test_pictures_that_nobody_has_named_get_verdicts_but_no_figures(crossed: Model, world: Path, tmp_path: Path):
    found = evaluate(crossed, world / "test/square", tmp_path)
    assert [entry.verdict for entry in found.pictures] == [Verdict.NOK] * 6
    assert "i_auroc" not in found.metrics
    assert in_words(found)["I-AUROC"] == "undefined: the data does not say which pictures are good"


def test_a_broken_picture_is_named_and_left_out_only_when_asked(crossed: Model, world: Path, tmp_path: Path):
    shutil.copytree(world / "test", tmp_path / "set/test")
    (tmp_path / "set/test/square/002.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"test/square/002\.png"):
        evaluate(crossed, tmp_path / "set", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found = evaluate(crossed, tmp_path / "set", tmp_path / "out", skip_bad=True)
    assert len(found.pictures) == 11
    assert len(found.notes) == 1
    assert found.notes[0].startswith("left out: test/square/002.png: ")


def test_a_part_with_a_broken_view_is_left_out_whole(held: Model, paired: Path, tmp_path: Path):
    """By its other view alone a defect might pass."""
    shutil.copytree(paired, tmp_path / "set")
    (tmp_path / "set/test/square/002.png").write_bytes(b"")
    found = evaluate(held, tmp_path / "set", tmp_path / "out", skip_bad=True)
    names = [entry.sample.name for entry in found.pictures]
    assert "test/square/003.png" not in names
    assert len(names) == 10
    assert found.notes[0].startswith("left out: test/square/002.png: ")
    assert found.notes[1] == (
        "left out: part test/square-1: a picture of it cannot be read, so none of it counts (1 more)"
    )
    for path in (tmp_path / "set/test").rglob("*.png"):
        if int(path.stem) % 2 or int(path.stem) > 3:
            path.write_bytes(b"")
    with pytest.raises(DataError, match="every part has a picture that cannot be read"):
        evaluate(held, tmp_path / "set", tmp_path / "none", skip_bad=True)
    assert not (tmp_path / "none").exists()


def test_a_part_that_gets_no_verdict_is_scored_by_the_rule_of_the_calibration(
    held: Model, paired: Path, world: Path, tmp_path: Path
):
    """Two views are known; three of one part: the mean of theirs under the rule mean, the largest else."""
    good = [Sample(p, f"{i}", f"part {i // 2}") for i, p in enumerate(sorted((world / "test/good").iterdir()))]
    three = sorted((paired / "test/square").iterdir())[:3]
    parts = [Sample(path, path.name, "three", "test", "square") for path in three]
    parts += [Sample(s.source, f"good {s.name}", s.part, "test", "good") for s in good]
    scores = [held.predict(path)[0] for path in three]
    for rule, expected in (("mean", np.mean(scores)), ("largest", max(scores))):
        model = calibrate(held, good, rule=rule)
        found = evaluate(model, parts, tmp_path / rule)
        entry = found.pictures[0]
        assert entry.verdict is None
        assert entry.part_score == pytest.approx(expected, abs=1e-9)
        accept(model, parts[:3], tmp_path / f"accepted {rule}")
        with (tmp_path / f"accepted {rule}/acceptance.csv").open() as file:
            row = next(csv.DictReader(file))
        assert (row["verdict"], row["outcome"], float(row["score"])) == ("", "not judged", entry.part_score)


def test_a_pattern_that_mixes_kinds_in_one_part_is_noted(crossed: Model, world: Path, tmp_path: Path):
    short = evaluate(crossed, world, tmp_path / "short", part_pattern=r"(\d+)\.png")
    assert "part 000 has good and defective pictures (and 5 parts more): is the part pattern too short?" in short.notes
    whole = evaluate(crossed, world, tmp_path / "whole", part_pattern=r"(\w+/\d+)\.png")
    assert not [note for note in whole.notes if "pattern" in note]
    for kind in ("dent", "scratch"):
        shutil.copytree(world / "test/square", tmp_path / "set/test" / kind)
    kinds = evaluate(crossed, tmp_path / "set", tmp_path / "kinds", part_pattern=r"(\d+)\.png")
    assert kinds.notes[0].startswith("part 000 has pictures of dent and scratch (and 5 parts more)")


def test_a_model_that_is_not_calibrated_gives_scores_and_no_verdicts(alone: Model, tmp_path: Path):
    for number, value in enumerate((0, 400)):
        picture = np.full((64, 64), 2000, np.uint16)
        picture[20:40, 20:40] += value
        path = tmp_path / "set/test" / ("bad" if value else "good") / f"{number}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(picture).save(path)
    found = evaluate(alone, tmp_path / "set", tmp_path / "out")
    assert list(found.notes) == ["the model is not calibrated: scores and maps, no verdicts"]
    assert all(row["verdict"] == "" for row in _scores(tmp_path / "out"))
    assert _metrics(tmp_path / "out")["false_alarms"] is None


def test_pictures_that_were_fitted_on_cannot_calibrate(crossed: Model, held: Model, world: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"000\.png: the model was fitted on this very picture \(train/good/000\.png\)"):
        calibrate(crossed, world / "train/good")
    shutil.copy(world / "train/good/007.png", tmp_path / "renamed.png")
    with pytest.raises(DataError, match=r"renamed\.png: the model was fitted .*train/good/007\.png"):
        calibrate(crossed, tmp_path)
    seen = {row["name"]: row.get("role") for row in map(json.loads, held.bundle.files["data.jsonl"].splitlines())}
    unseen = [world / name for name, role in seen.items() if role == "calibration"]
    model = calibrate(held, unseen)
    assert model.calibration is not None
    assert model.calibration.parts == 8


def test_after_a_new_calibration_verdicts_follow_the_new_threshold(crossed: Model, world: Path, tmp_path: Path):
    """Of six good parts, three tenths may be refused: rank 2 of 7, so the strangest of the six is."""
    good = world / "test/good"
    model = load(calibrate(crossed, good, false_alarm=0.3).save(tmp_path / "new.flaw"))
    assert model.calibration is not None
    assert crossed.calibration is not None
    scores = {path: crossed.predict(path)[0] for path in sorted(good.glob("*.png"))}
    assert model.calibration.scores == tuple(sorted(scores.values()))
    assert model.calibration.rank == 2
    assert model.calibration.threshold != crossed.calibration.threshold
    verdicts = {path: model.inspect(path).verdict for path in scores}
    assert [path for path, verdict in verdicts.items() if verdict == Verdict.NOK] == [
        max(scores, key=scores.__getitem__)
    ]
    assert model.calibration.sentence in model.card
    assert crossed.calibration.sentence not in model.card
    unchanged = ("model.onnx", "weights.safetensors")
    assert all(model.bundle.files[name] == crossed.bundle.files[name] for name in unchanged)


def test_a_bundle_that_was_calibrated_anew_is_still_sound(crossed: Model, world: Path, tmp_path: Path):
    """Its golden pictures stood next to the old threshold: what they are is said by the new one."""
    assert crossed.calibration is not None
    for rate in (0.3, 0.9):
        path = calibrate(crossed, world / "test/good", false_alarm=rate).save(tmp_path / f"{rate}.flaw")
        found, sound = doctor(path)
        assert sound, found
    golden = load(path).bundle.json("golden.json")
    assert all(entry["nok"] == (entry["score"] > load(path).calibration.threshold) for entry in golden)  # type: ignore[union-attr]


def test_a_target_that_few_parts_cannot_promise_is_refused(crossed: Model, world: Path):
    with pytest.raises(CalibrationError, match=r"6 good parts cannot promise 5\.0 %: the least is 14\.3 %"):
        calibrate(crossed, world / "test/good", false_alarm=0.05)

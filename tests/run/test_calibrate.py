"""From pictures to a threshold: which pictures count, what the bundle remembers, what does not go together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import beta

from flawmap.errors import BundleError, CalibrationError, DataError, UsageError
from flawmap.run.bundle import Bundle
from flawmap.run.calibrate import calibrate
from flawmap.run.evaluate import evaluate
from flawmap.run.inspect import inspect
from flawmap.run.model import Model, load
from flawmap.types import Verdict


def _scores(model: Model, folder: Path) -> list[float]:
    return sorted(model.predict(path)[0] for path in folder.glob("*.png"))


@pytest.fixture(scope="module")
def kinds(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of known defects, a folder a kind, and nothing else."""
    root = tmp_path_factory.mktemp("defects")
    for number, path in enumerate(sorted((world / "test/square").glob("*.png"))):
        kind = root / ("small" if number % 2 else "large")
        kind.mkdir(exist_ok=True)
        shutil.copy(path, kind / path.name)
    return root


def test_known_defects_set_the_threshold_and_the_bundles_good_parts_say_what_that_costs(
    crossed: Model, kinds: Path, tmp_path: Path
):
    model = load(calibrate(crossed, policy="no-escape", defects=kinds).save(tmp_path / "m.flaw"))
    made, old = model.calibration, crossed.calibration
    assert made is not None
    assert old is not None
    defects = sorted([*_scores(crossed, kinds / "small"), *_scores(crossed, kinds / "large")])
    assert made.defect_scores == pytest.approx(defects)
    assert sorted(made.defect_kinds) == ["large"] * 3 + ["small"] * 3
    assert made.scores == old.scores  # those of the fit, cross-fitted
    assert made.refused == sum(score > made.threshold for score in old.scores)
    assert made.threshold < defects[0]
    assert made.threshold == pytest.approx(defects[0], rel=2e-3)
    assert made.cross_fitted
    assert "cross-fitting" in made.sentence
    assert made.sentence.startswith("6 known defective parts set the threshold: with 95 % confidence at most 39.4 %")
    assert model.inspect(next((kinds / "small").iterdir())).verdict is Verdict.NOK
    assert made.sentence in model.card


def test_a_data_set_gives_good_and_defective_parts_of_its_test(crossed: Model, world: Path):
    made = calibrate(crossed, world, policy="no-escape").calibration
    assert made is not None
    assert made.scores == pytest.approx(_scores(crossed, world / "test/good"))
    assert made.defect_scores == pytest.approx(_scores(crossed, world / "test/square"))
    assert not made.cross_fitted


def test_a_defective_part_brings_all_its_views(held: Model, paired: Path, tmp_path: Path):
    root = tmp_path / "views"
    for folder in ("good", "square"):
        shutil.copytree(paired / "test" / folder, root / "test" / folder)
    good, bad = (sorted(path.relative_to(root) for path in (root / "test" / f).iterdir()) for f in ("good", "square"))
    rows = [f"{bad[0]},broken", f"{good[0]},broken"]
    rows += [f"{name},good-{i // 2}" for i, name in enumerate(good[1:5])]
    rows += [f"{name},alone-{name.name}" for name in (*bad[1:], *good[5:])]
    (root / "parts.csv").write_text("\n".join(["path,part", *rows]) + "\n")
    for name in (*bad[1:], *good[5:]):
        (root / name).unlink()
        rows = [row for row in rows if not row.startswith(f"{name},")]
    (root / "parts.csv").write_text("\n".join(["path,part", *rows]) + "\n")
    made = calibrate(held, root, policy="no-escape").calibration
    assert made is not None
    assert (made.parts, made.images, made.views) == (2, 4, (2, 2))
    assert made.defect_scores == (pytest.approx(max(held.predict(root / name)[0] for name in (bad[0], good[0]))),)


def test_without_pictures_another_rate_of_the_same_good_parts(crossed: Model):
    made = calibrate(crossed, false_alarm=0.2).calibration
    assert made is not None
    assert crossed.calibration is not None
    assert made.scores == crossed.calibration.scores
    assert (made.rank, made.target, made.cross_fitted) == (5, 0.2, True)
    sure = calibrate(crossed, false_alarm=0.2, confidence=0.9).calibration
    assert sure is not None
    assert beta.ppf(0.9, sure.rank, 25 - sure.rank) <= 0.2 < beta.ppf(0.9, sure.rank + 1, 24 - sure.rank)
    assert "false alarms with 90 % confidence" in sure.sentence


def _listed(path: Path, kinds: dict[Path, str], parts: dict[Path, str] | None = None) -> Path:
    """A list that gives pictures another kind than their folder's name."""
    rows = [f"{picture},{kind},{(parts or {}).get(picture, picture.name + kind)}" for picture, kind in kinds.items()]
    path.write_text("\n".join(["path,kind,part", *rows]) + "\n")
    return path


def test_costs_give_two_thresholds_and_a_person_is_asked_between_them(crossed: Model, world: Path, tmp_path: Path):
    good, bad = (sorted((world / "test" / folder).glob("*.png")) for folder in ("good", "square"))
    scores = {picture: crossed.predict(picture)[0] for picture in good}
    faint = sorted(good, key=scores.__getitem__)[2:4]  # defects that look like good parts: nothing tells them apart
    kinds = {p: "faint" if p in faint else "good" for p in good} | dict.fromkeys(bad, "square")
    data = _listed(tmp_path / "list.csv", kinds)
    costs = {"escape_cost": 900, "reject_cost": 500, "review_cost": 1, "defect_rate": 0.1}
    model = load(calibrate(crossed, data, policy="cost", **costs).save(tmp_path / "m.flaw"))
    made = model.calibration
    assert made is not None
    assert made.review_threshold is not None
    assert (len(made.scores), len(made.defect_scores)) == (4, 8)
    # Reviews are cheap, so no good part is refused and no defect passes.
    assert made.refused == 0
    assert all(score > made.review_threshold for score in made.defect_scores)
    data.write_text(data.read_text().replace("\n/", "\ntest,/").replace("path,", "split,path,"))
    found = evaluate(model, data, tmp_path / "out").metrics
    assert (found["escapes"]["count"], found["false_alarms"]["count"]) == (0, 0)
    between = sum(made.review_threshold < s <= made.threshold for s in (*made.scores, *made.defect_scores))
    assert found["reviews"] == between > 0
    assert model.inspect(faint[0]).verdict is Verdict.REVIEW


def test_the_same_name_in_two_folders_is_two_parts(crossed: Model, world: Path, tmp_path: Path):
    """test/good/000.png and known/000.png have nothing to do with each other."""
    known = tmp_path / "known"
    known.mkdir()
    for number, picture in enumerate(sorted((world / "test/square").glob("*.png"))):
        shutil.copy(picture, known / sorted((world / "test/good").glob("*.png"))[number].name)
    made = calibrate(crossed, world / "test/good", policy="no-escape", defects=known).calibration
    assert made is not None
    assert made.scores == pytest.approx(_scores(crossed, world / "test/good"))
    assert made.defect_scores == pytest.approx(_scores(crossed, known))


def test_good_pictures_that_all_vanish_are_not_replaced_by_others(crossed: Model, world: Path, tmp_path: Path):
    good, bad = (sorted((world / "test" / folder).glob("*.png")) for folder in ("good", "square"))
    kinds = dict.fromkeys(good, "good") | dict.fromkeys(bad, "square")
    data = _listed(tmp_path / "list.csv", kinds, dict.fromkeys(kinds, "all of them"))
    with pytest.raises(DataError, match="no part is good in all its views"):
        calibrate(crossed, data, policy="no-escape")


def test_a_list_keeps_its_good_parts_and_the_good_views_of_a_defective_one(held: Model, paired: Path, tmp_path: Path):
    good, bad = (sorted((paired / "test" / folder).glob("*.png")) for folder in ("good", "square"))
    parts = {picture: f"g{i // 2}" for i, picture in enumerate(good)} | {good[5]: "broken", bad[0]: "broken"}
    kinds = dict.fromkeys(good[:4], "good") | {good[5]: "good", bad[0]: "square"}
    made = calibrate(held, _listed(tmp_path / "list.csv", kinds, parts), policy="no-escape").calibration
    assert made is not None
    assert (made.parts, made.images) == (2, 4)
    assert made.defect_scores == (pytest.approx(max(held.predict(p)[0] for p in (good[5], bad[0]))),)
    alone = calibrate(held, _listed(tmp_path / "list.csv", kinds, parts), policy="no-escape", per_picture=True)
    assert alone.calibration is not None
    assert alone.calibration.defect_scores == (pytest.approx(held.predict(bad[0])[0]),)  # its good view is no defect
    assert "known defective picture" in alone.calibration.sentence


def test_defective_parts_that_were_photographed_otherwise_are_not_counted(held: Model, paired: Path, tmp_path: Path):
    good, bad = (sorted((paired / "test" / folder).glob("*.png")) for folder in ("good", "square"))
    parts = {picture: f"g{i // 2}" for i, picture in enumerate(good)}
    parts |= {bad[0]: "two", bad[1]: "two", bad[2]: "one"}
    kinds = dict.fromkeys(good, "good") | dict.fromkeys(bad[:3], "square")
    made = calibrate(held, _listed(tmp_path / "list.csv", kinds, parts), policy="no-escape").calibration
    assert made is not None
    assert (len(made.defect_scores), made.set_aside) == (1, 1)
    assert made.sentence.endswith("1 defective part with another number of views not counted.")
    del kinds[bad[0]]
    with pytest.raises(DataError, match="the good parts have 2 views, and no defective part has"):
        calibrate(held, _listed(tmp_path / "list.csv", kinds, parts), policy="no-escape")


def test_a_copy_counts_once(crossed: Model, world: Path, tmp_path: Path):
    picture = next((world / "test/good").glob("*.png"))
    for name in ("a.png", "b.png"):
        shutil.copy(picture, tmp_path / name)
    with pytest.raises(DataError, match=r"b\.png and a\.png are the same file, as parts 'b\.png' and 'a\.png'"):
        calibrate(crossed, tmp_path)
    with pytest.raises(DataError, match="are the same file"):  # good and defective at once
        calibrate(crossed, world / "test/good", policy="no-escape", defects=world / "test/good")


def test_a_part_with_a_view_that_cannot_be_read_is_left_out_whole(held: Model, paired: Path, tmp_path: Path):
    views = sorted((paired / "test/good").glob("*.png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(views[0].read_bytes()[:100])
    kinds = dict.fromkeys([*views[:5], broken], "good")
    parts = {view: f"p{i // 2}" for i, view in enumerate(kinds)}
    data = _listed(tmp_path / "list.csv", kinds, parts)
    made = calibrate(held, data, skip_bad=True).calibration
    assert made is not None
    assert (made.parts, made.images, made.views) == (2, 4, (2, 2))


def test_the_bundle_lists_what_its_threshold_rests_on(crossed: Model, world: Path):
    model = calibrate(crossed, world, policy="no-escape")
    rows = [json.loads(line) for line in model.bundle.files["data.jsonl"].splitlines()]
    before = [json.loads(line) for line in crossed.bundle.files["data.jsonl"].splitlines()]
    assert [row["sha256"] for row in rows[: len(before)]] == [row["sha256"] for row in before]
    assert [row["role"] for row in rows[len(before) :]] == ["calibration"] * 6 + ["defect"] * 6
    again = calibrate(model, world / "test/good")
    roles = [json.loads(line).get("role") for line in again.bundle.files["data.jsonl"].splitlines()]
    assert roles[len(before) :] == ["calibration before this one"] * 6 + ["calibration"] * 6
    bare = Model(crossed.bundle.replace({"data.jsonl": b"no JSON"}))
    with pytest.raises(BundleError, match=r"data\.jsonl is missing or damaged"):
        calibrate(bare, world / "test/good")
    bare = Model(Bundle({k: v for k, v in crossed.bundle.files.items() if k != "card.md"}, "here"))
    with pytest.raises(BundleError, match=r"here: card\.md is missing"):
        calibrate(bare, world / "test/good")


def test_an_area_gate_marks_no_specks_and_keeps_the_mask_of_good_parts_empty(crossed: Model, world: Path):
    good = sorted((world / "test/good").glob("*.png"))
    plain, gated = (calibrate(crossed, world / "test/good", min_area_px=a) for a in (1, 400))
    assert plain.calibration is not None
    assert gated.calibration is not None
    assert gated.calibration.map_threshold < plain.calibration.map_threshold
    assert gated.calibration.threshold == plain.calibration.threshold  # of the score: the gate is for maps alone
    for path in good:
        assert gated.inspect(path).regions == ((),)
    wide = [r for path in (world / "test/square").glob("*.png") for r in gated.inspect(path).regions[0]]
    assert wide
    assert all(region.area_px >= 400 for region in wide)
    by_mm = calibrate(crossed, world / "test/good", min_area_mm2=4.0, pitch_mm=0.1)
    assert by_mm.calibration is not None
    assert (by_mm.calibration.min_area_px, by_mm.calibration.pitch_mm) == (400, 0.1)
    found = by_mm.inspect(next((world / "test/square").glob("*.png"))).regions[0]
    assert all(region.area_mm2 == pytest.approx(region.area_px * 0.01) for region in found)


def test_the_mean_of_views_is_the_score_of_a_part_everywhere(held: Model, paired: Path, tmp_path: Path):
    views = sorted((paired / "test/good").glob("*.png"))[:6]
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(["path,part", *(f"{v},{i // 2}" for i, v in enumerate(views))]) + "\n")
    model = calibrate(held, listed, rule="mean")
    assert model.calibration is not None
    found = model.inspect_part(views[:2])
    assert found.score == pytest.approx(np.mean(found.scores))
    assert model.calibration.scores == pytest.approx(
        sorted(np.mean([model.predict(v)[0] for v in views[i : i + 2]]) for i in (0, 2, 4))
    )
    judged = evaluate(model, paired, tmp_path / "out")
    parts = {e.sample.part: e for e in judged.pictures if e.verdict is not None}
    for entry in parts.values():
        own = [e.score for e in judged.pictures if e.sample.part == entry.sample.part]
        assert entry.part_score == pytest.approx(np.mean(own))
        assert entry.verdict == (Verdict.NOK if np.mean(own) > model.calibration.threshold else Verdict.OK)


COSTS = {"escape_cost": 10.0, "reject_cost": 1.0, "defect_rate": 0.01}


@pytest.mark.parametrize(
    ("wishes", "error", "words"),
    [
        ({"policy": "best"}, UsageError, "no policy 'best'"),
        ({"margin": 0.1}, UsageError, "margin belongs to the policy no-escape, and false-alarm was chosen"),
        ({"policy": "cost", "escape_cost": 1, "reject_cost": 1}, UsageError, "needs defect_rate"),
        ({"policy": "manual"}, UsageError, "needs threshold"),
        ({"policy": "no-escape"}, DataError, "takes known defects, and there are none"),
        ({"policy": "no-escape", "false_alarm": 0.1}, UsageError, "false_alarm belongs to"),
        ({"confidence": 2.0}, UsageError, "confidence is 2.0: give a rate between 0 and 1"),
        ({"false_alarm": float("nan")}, UsageError, "false_alarm is nan: give a rate"),
        ({"policy": "cost", **COSTS, "defect_rate": 0.0}, UsageError, "defect_rate is 0.0: give a rate"),
        ({"policy": "cost", **COSTS, "escape_cost": -1.0}, UsageError, "escape_cost is -1.0: give a number above 0"),
        ({"policy": "cost", **COSTS, "reject_cost": float("nan")}, UsageError, "reject_cost is nan: give a number"),
        ({"policy": "cost", **COSTS, "review_cost": float("inf")}, UsageError, "review_cost is inf: give a number"),
        ({"policy": "no-escape", "margin": 1.5}, UsageError, "margin is 1.5: give the share"),
        ({"policy": "manual", "threshold": float("inf")}, UsageError, "threshold is inf: give a finite number"),
        ({"min_area_px": 0}, UsageError, "at least 1"),
        ({"min_area_mm2": 1.0}, UsageError, "together with the pitch"),
        ({"min_area_mm2": float("nan"), "pitch_mm": 1.0}, UsageError, "a least area of nan mm"),
        ({"min_area_mm2": 1.0, "pitch_mm": 1e-200}, UsageError, "a pixel of 1e-200 mm"),
        ({"rule": "median"}, UsageError, "no rule 'median'"),
        ({"defects": "here"}, UsageError, "say nothing about false alarms"),
        ({"pitch_mm": 0.0}, UsageError, "a pixel of 0.0 mm"),
        ({"rule": "mean"}, DataError, "scored otherwise"),
        ({"per_picture": True}, DataError, "scored otherwise"),
        ({"surely": 1}, UsageError, "calibrate knows no surely"),
    ],
)
def test_what_does_not_go_together_is_refused(crossed: Model, wishes: dict[str, Any], error: type, words: str):
    with pytest.raises(error, match=words):
        calibrate(crossed, **wishes)


def test_a_folder_of_unknown_kinds_is_no_calibration(crossed: Model, tmp_path: Path):
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("path,kind\na.png,\n")
    with pytest.raises((DataError, CalibrationError)):
        calibrate(crossed, tmp_path / "list.csv", policy="manual", threshold=1.0, defects=tmp_path / "nothing")


def test_a_calibration_of_another_precision_gives_no_verdict(
    crossed: Model, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    values = crossed.bundle.json("calibration.json") | {"precision": "int8"}
    model = Model(crossed.bundle.replace({"calibration.json": json.dumps(values).encode()}))
    picture = next((world / "test/good").glob("*.png"))
    with pytest.raises(
        CalibrationError, match=r"calibrated in int8, and onnxruntime .* computes in fp32: calibrate again"
    ):
        model.inspect(picture)
    assert inspect(model, [str(picture)]) == 1
    assert "no verdict: calibrated in int8" in capsys.readouterr().err
    judged = evaluate(model, world, tmp_path / "out")
    assert {entry.verdict for entry in judged.pictures} == {None}
    assert any("calibrated in int8" in note for note in judged.notes)
    with pytest.raises(CalibrationError, match="cannot serve: calibrated in int8"):
        calibrate(model)
    assert calibrate(model, world / "test/good").inspect(picture).verdict is not None


def test_a_calibration_of_an_older_flawmap_is_read(crossed: Model, world: Path):
    """Fields that came later have defaults; without the peaks of its maps its good parts cannot serve again."""
    later = {"peaks", "confidence", "review_threshold", "unit", "rule", "min_area_px", "pitch_mm", "defect_scores"}
    later |= {"defect_kinds", "costs", "defects_sha256", "precision"}
    values = {key: value for key, value in crossed.bundle.json("calibration.json").items() if key not in later}
    model = Model(crossed.bundle.replace({"calibration.json": json.dumps(values).encode()}))
    picture = next((world / "test/square").glob("*.png"))
    assert model.inspect(picture).verdict == crossed.inspect(picture).verdict
    with pytest.raises(DataError, match="keeps no scores of good parts"):
        calibrate(model, false_alarm=0.2)
    with pytest.raises(BundleError, match="missing or unknown 'odd'"):
        Model(crossed.bundle.replace({"calibration.json": json.dumps(values | {"odd": 1}).encode()}))

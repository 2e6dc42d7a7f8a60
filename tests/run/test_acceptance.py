from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap import cli
from flawmap.errors import CalibrationError, DataError, UsageError
from flawmap.images.folder import find
from flawmap.run.acceptance import accept, in_words, place
from flawmap.run.calibrate import calibrate
from flawmap.run.engine import Engine
from flawmap.run.evaluate import evaluate
from flawmap.run.model import Model
from flawmap.types import Prediction, Sample
from flawmap.verdict.gauge import Reading, gauge


def _again(picture: Path, to: Path, draw: np.random.Generator) -> None:
    """The picture as if the part had been presented again: moved by a pixel or two, 1 % brighter or darker.

    This makes files to run the command on. It is no measurement of a machine.
    """
    pixels = np.asarray(Image.open(picture)).astype(float)
    moved = np.roll(pixels, draw.integers(-2, 3, 2), axis=(0, 1)) * draw.uniform(0.99, 1.01)
    to.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.round(moved), 0, 255).astype(np.uint8)).save(to)


@pytest.fixture(scope="module")
def trials(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """trial-1, trial-2, trial-3, each with good/ and square/, as they lie on a disk; and masks of the first trial."""
    root, draw = tmp_path_factory.mktemp("trials") / "study", np.random.default_rng(0)
    for trial in (1, 2, 3):
        for picture in sorted((world / "test").rglob("*.png")):
            _again(picture, root / f"trial-{trial}" / picture.relative_to(world / "test"), draw)
    for mask in sorted((world / "ground_truth/square").iterdir()):
        to = root / "trial-1/ground_truth/square" / mask.name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(mask, to)
    return root


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "acceptance.csv").open() as file:
        return list(csv.DictReader(file))


def test_without_trials_the_rates_are_those_of_evaluate_and_nothing_else_changes(
    crossed: Model, world: Path, tmp_path: Path
) -> None:
    found, accepted = accept(crossed, world, tmp_path / "a")
    plain = evaluate(crossed, world, tmp_path / "b")
    entry = accepted["stations"][0]
    for name in ("escapes", "false_alarms"):
        ours = {key: entry["rates"][name][key] for key in ("count", "n", "rate", "low", "high")}
        assert ours == plain.metrics[name]
    assert {k: v["count"] for k, v in entry["rates"]["kinds"].items()} == {"square": 0}
    assert {k: v["n"] for k, v in entry["rates"]["sizes"].items()} == {"100 to 999": 6}  # 14 x 14 pixels
    assert (entry["agreement"], accepted["gauge"], accepted["gauge_good"]) == (None, None, None)
    assert "no repeated presentation was given" in in_words(accepted)["acceptance note 1"]
    same = ("scores.csv", "report.html")
    assert [(tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in same] == [True, True]
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in "ab"]
    assert [m.pop("seconds_per_picture") > 0 for m in metrics] == [True, True]
    assert metrics[0] == metrics[1]
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["metrics.json", "report.html", "scores.csv"]
    written = json.loads((tmp_path / "a/acceptance.json").read_text())
    assert written.pop("bundle_sha256") == crossed.bundle.sha256
    assert written == json.loads(json.dumps(accepted))
    assert len(found.pictures) == len(_rows(tmp_path / "a")) == 12


def test_a_study_over_trials_counts_parts_and_presentations(crossed: Model, trials: Path, tmp_path: Path) -> None:
    found, accepted = accept(crossed, trials, tmp_path, trial_pattern=r"trial-(\d)")
    rows = _rows(tmp_path)
    assert len(rows) == 36
    assert sorted({row["part"] for row in rows}) == sorted(
        {f"{k}/{i:03}.png" for k in ("good", "square") for i in range(6)}
    )
    assert crossed.calibration is not None
    for row in rows:
        score = crossed.predict(trials / f"trial-{row['trial']}" / row["part"])[0]
        assert float(row["score"]) == pytest.approx(score, abs=1e-6)
        assert row["verdict"] == ("NOK" if score > crossed.calibration.threshold else "OK")
        assert row["size_px"] == ("196" if row["kind"] == "square" and row["trial"] == "1" else "")
    entry = accepted["stations"][0]
    first = [row for row in rows if row["trial"] == "1"]
    escapes = sum(row["outcome"] == "escape" for row in first)
    alarms = sum(row["outcome"] == "false alarm" for row in first)
    assert (entry["rates"]["escapes"]["count"], entry["rates"]["escapes"]["n"]) == (escapes, 6)
    assert (entry["rates"]["false_alarms"]["count"], entry["rates"]["false_alarms"]["n"]) == (alarms, 6)
    assert found.metrics["pictures"] == 12
    assert (found.metrics["escapes"]["count"], found.metrics["false_alarms"]["count"]) == (escapes, alarms)
    by_part: dict[str, list[str]] = {}
    for row in rows:
        by_part.setdefault(row["part"], []).append(row["outcome"])
    right = sum(all(outcome == "right" for outcome in said) for said in by_part.values())
    agreed = entry["agreement"]
    assert (agreed["effectiveness"]["count"], agreed["effectiveness"]["n"]) == (right, 12)
    assert agreed["miss"]["count"] == sum(row["outcome"] == "escape" for row in rows)
    assert agreed["false_alarm"]["count"] == sum(row["outcome"] == "false alarm" for row in rows)
    assert (agreed["miss"]["n"], agreed["false_alarm"]["n"]) == (18, 18)
    study = gauge([Reading(row["part"], row["trial"], float(row["score"])) for row in rows])
    assert accepted["gauge"]["grr_percent"] == pytest.approx(study["grr_percent"])
    assert 0 < study["EV"] < study["PV"]  # moved by a pixel is less than defective or not
    good = [Reading(row["part"], row["trial"], float(row["score"])) for row in rows if row["kind"] == "good"]
    assert accepted["gauge_good"]["grr_percent"] == pytest.approx(gauge(good)["grr_percent"])
    assert accepted["gauge_good"]["grr_percent"] > study["grr_percent"]
    words = in_words(accepted)
    assert words["effectiveness"].startswith(f"{right} of 12 parts right in all 3 trials")
    assert words["escapes of parts"].startswith(f"{escapes} of 6 defective parts escaped: with 95 % confidence")
    assert words["gauge R&R of the score"].startswith(f"{study['grr_percent']:.1f} % of the study variation, ndc")


def test_stations_are_crossed(crossed: Model, trials: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    for station in "AB":
        for trial in (1, 2):
            for picture in sorted((trials / "trial-1/good").iterdir())[:4]:
                name = f"{picture.stem}_{station}{trial}.png"
                _again(picture, tmp_path / "study/good" / name, draw)
    pattern = r"_(?P<station>[AB])(?P<trial>\d)\.png"
    _, accepted = accept(crossed, tmp_path / "study", tmp_path / "out", trial_pattern=pattern)
    assert [entry["station"] for entry in accepted["stations"]] == ["A", "B"]
    assert [entry["agreement"]["parts"] for entry in accepted["stations"]] == [4, 4]
    shape = ("parts", "stations", "trials")
    assert [accepted["gauge"][name] for name in shape] == [4, 2, 2]
    rows = _rows(tmp_path / "out")
    assert {row["part"] for row in rows} == {f"good/00{i}_.png" for i in range(4)}
    assert {(row["station"], row["trial"]) for row in rows} == {("A", "1"), ("A", "2"), ("B", "1"), ("B", "2")}
    assert "A: effectiveness" in in_words(accepted)
    only_one = tmp_path / "one"
    for trial in (1, 2):
        _again(trials / "trial-1/good/000.png", only_one / f"good/000_{trial}.png", draw)
    _, accepted = accept(crossed, only_one, tmp_path / "out one", trial_pattern=r"_(\d)\.png")
    assert accepted["gauge"] is None
    assert "no gauge R&R of 2 scores: 1 part: a gauge study takes at least 2 parts" in accepted["notes"]


def test_views_of_a_part_are_one_presentation(held: Model, paired: Path, tmp_path: Path) -> None:
    """The bundle judges parts of two views: 001_a and 001_b of one trial are one verdict."""
    draw, names = np.random.default_rng(2), {}
    for line in (paired / "parts.csv").read_text().splitlines()[1:]:
        path, part = line.split(",")
        if path.startswith("test/"):
            names.setdefault(part, []).append(path)
    for trial in (1, 2):
        for number, (part, pair) in enumerate(sorted(names.items())):
            kind = part.split("/")[1].split("-")[0]
            for view, path in zip("ab", pair, strict=True):
                _again(paired / path, tmp_path / f"study/run {trial}/{kind}/{number:03}_{view}.png", draw)
    how = {"trial_pattern": r"run (\d)", "part_pattern": r"(\d+)_[ab]"}
    _, accepted = accept(held, tmp_path / "study", tmp_path / "out", **how)
    rows = _rows(tmp_path / "out")
    assert [row["part"] for row in rows] == [f"{i:03}" for i in range(5)] * 2
    assert [row["kind"] for row in rows[:5]] == ["good"] * 3 + ["square"] * 2
    views = [held.predict(tmp_path / f"study/run 2/square/004_{view}.png")[0] for view in "ab"]
    assert float(rows[-1]["score"]) == pytest.approx(max(views), abs=1e-6)
    assert accepted["stations"][0]["agreement"]["parts"] == 5
    with pytest.raises(DataError, match=r"got no verdict .*part_pattern"):
        accept(held, tmp_path / "study", tmp_path / "out2", trial_pattern=r"run (\d)")


def test_the_same_file_as_two_trials_is_refused(crossed: Model, trials: Path, tmp_path: Path) -> None:
    shutil.copytree(trials, tmp_path / "study", ignore=shutil.ignore_patterns("ground_truth"))
    shutil.copy(tmp_path / "study/trial-1/good/003.png", tmp_path / "study/trial-2/good/003.png")
    with pytest.raises(DataError, match=r"trial-2/good/003\.png is the same file as trial-1/good/003\.png: a trial is"):
        accept(crossed, tmp_path / "study", tmp_path / "out", trial_pattern=r"trial-(\d)")
    assert not (tmp_path / "out").exists()


def test_what_is_no_study_is_refused_before_anything_is_judged(
    crossed: Model, alone: Model, trials: Path, tmp_path: Path
) -> None:
    shutil.copytree(trials, tmp_path / "study", ignore=shutil.ignore_patterns("ground_truth"))
    (tmp_path / "study/trial-3/square/005.png").unlink()
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"part square/005\.png has 1 pictures in 1 and 0 pictures in 3: present every"):
        accept(crossed, tmp_path / "study", out, trial_pattern=r"trial-(\d)")
    with pytest.raises(DataError, match="at least 2 trials"):
        accept(crossed, trials, out, trial_pattern=r"(trial)-")
    with pytest.raises(DataError, match=r"finds no trial in the name trial-1/good/000\.png"):
        accept(crossed, trials, out, trial_pattern=r"run-(\d)")
    with pytest.raises(DataError, match=r"000\.png: nothing says whether it is good"):
        accept(crossed, trials / "trial-1/good", out, trial_pattern=r"(\d)\.png")
    with pytest.raises(CalibrationError, match="not calibrated"):
        accept(alone, trials, out)
    with pytest.raises(DataError, match="nothing says whether it is good"):
        accept(crossed, trials / "trial-1/good", tmp_path / "unknown")
    assert not (tmp_path / "unknown").exists()
    assert not out.exists()
    for pattern in ("(", "trial-1", r"(\d)-(\d)", r"(?P<run>\d)", r"(?P<station>\d)"):
        with pytest.raises(UsageError, match="trial_pattern"):
            place(find(trials, kind=None), pattern)


def test_trials_are_counted_as_people_count(crossed: Model, trials: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    for trial in (10, 9, 11):
        for kind in ("good", "square"):
            for number in range(2):
                name = f"{kind}/{number:03}.png"
                _again(trials / "trial-1" / name, tmp_path / f"study/trial-{trial}" / name, draw)
    found, accepted = accept(crossed, tmp_path / "study", tmp_path / "out", trial_pattern=r"trial-(\d+)")
    rows = _rows(tmp_path / "out")
    assert [row["trial"] for row in rows] == ["9"] * 4 + ["10"] * 4 + ["11"] * 4
    assert [entry.sample.name.split("/")[0] for entry in found.pictures] == ["trial-9"] * 4
    assert accepted["notes"][0].startswith("rates count the first presentation of each part (trial 9)")
    assert list(accepted["stations"][0]["agreement"]["kappa_by_trial"]) == ["9", "10", "11"]
    names = [f"line {station}/run {trial}/0.png" for station in (2, 10, 1) for trial in (10, 2, 1)]
    samples = [Sample(Path(name), name, name, "test", "good") for name in names]
    placed = place(samples, r"line (?P<station>\d+)/run (?P<trial>\d+)")
    assert list(placed) == [(station, trial) for station in ("1", "2", "10") for trial in ("1", "2", "10")]


def test_each_station_has_the_same_trials(crossed: Model, trials: Path, tmp_path: Path) -> None:
    draw, pattern = np.random.default_rng(4), r"(?P<station>[AB])(?P<trial>\d)"
    for name, shown in (("apart", ("A1", "A2", "B3", "B4")), ("once", ("A1", "A2", "B1"))):
        for place_ in shown:
            for number in range(2):
                _again(trials / f"trial-1/good/00{number}.png", tmp_path / name / place_ / f"good/{number}.png", draw)
    with pytest.raises(DataError, match=r"station A has the trials 1, 2, station B 3, 4: .*number the trials alike"):
        accept(crossed, tmp_path / "apart", tmp_path / "out", trial_pattern=pattern)
    with pytest.raises(DataError, match="station B: 1 presentation of each part: agreement takes at least 2 trials"):
        accept(crossed, tmp_path / "once", tmp_path / "out", trial_pattern=pattern)
    assert not (tmp_path / "out").exists()


def test_pictures_that_made_the_model_are_not_accepted_on(crossed: Model, world: Path, tmp_path: Path) -> None:
    study = tmp_path / "study/test"
    shutil.copytree(world / "test", study)
    shutil.copy(world / "train/good/007.png", study / "good/renamed.png")
    with pytest.raises(DataError, match=r"good/renamed\.png: this very picture was used .*role 'fit and calibration"):
        accept(crossed, tmp_path / "study", tmp_path / "out")
    found = evaluate(crossed, tmp_path / "study", tmp_path / "plain")
    told = [note for note in found.notes if "used to fit" in note]
    assert told == ["1 of the pictures was used to fit or calibrate this model: rates on them are too good"]
    again = calibrate(crossed, world / "test/good", policy="no-escape", defects=world / "test/square")
    with pytest.raises(DataError, match=r"test/good/000\.png: .*role 'calibration'\), as were 11 more of the pictures"):
        accept(again, world, tmp_path / "out")
    for trial in (1, 2):
        for path in sorted((world / "test/square").iterdir()):
            _again(path, tmp_path / f"two/trial-{trial}/square" / path.name, np.random.default_rng(trial))
    shutil.copy(world / "test/square/005.png", tmp_path / "two/trial-2/square/005.png")
    with pytest.raises(DataError, match=r"trial-2/square/005\.png: this very picture was used .*role 'defect'"):
        accept(again, tmp_path / "two", tmp_path / "out", trial_pattern=r"trial-(\d)")
    assert not (tmp_path / "out").exists()
    assert "12 of the pictures were used to fit or calibrate" in "\n".join(
        evaluate(again, world, tmp_path / "plain").notes
    )


def test_an_oracle_is_no_operating_point(crossed: Model, world: Path, trials: Path, tmp_path: Path) -> None:
    oracle = calibrate(crossed, world / "test/good", policy="f1-oracle", defects=world / "test/square")
    for pattern in (None, r"trial-(\d)"):
        with pytest.raises(CalibrationError, match="F1 oracle, read off known answers, and no operating point"):
            accept(oracle, trials, tmp_path / "out", trial_pattern=pattern)
    assert not (tmp_path / "out").exists()
    found = evaluate(oracle, trials / "trial-1/good", tmp_path / "plain")
    assert [note.split(",")[0] for note in found.notes] == ["the threshold is an F1 oracle"]


def test_a_part_that_cannot_be_read_once_is_left_out_of_all_trials(
    crossed: Model, trials: Path, tmp_path: Path
) -> None:
    shutil.copytree(trials, tmp_path / "study", ignore=shutil.ignore_patterns("ground_truth"))
    for name in ("trial-2/square/001.png", "trial-3/good/004.png", "trial-2/good/004.png"):
        (tmp_path / "study" / name).write_bytes(b"")
    how = {"trial_pattern": r"trial-(\d)"}
    with pytest.raises(DataError, match="3 of 36 pictures cannot be used"):
        accept(crossed, tmp_path / "study", tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()
    found, accepted = accept(crossed, tmp_path / "study", tmp_path / "out", skip_bad=True, **how)
    rows = _rows(tmp_path / "out")
    assert len(rows) == 30
    assert not {"square/001.png", "good/004.png"} & {row["part"] for row in rows}
    assert accepted["stations"][0]["agreement"]["parts"] == 10
    notes = "\n".join(accepted["notes"])
    assert notes.count("left out: trial-") == 3
    assert "left out: part square/001.png: a picture of it cannot be read, so none of it counts (2 more)" in notes
    assert "left out: part good/004.png: a picture of it cannot be read, so none of it counts (1 more)" in notes
    assert set(accepted["notes"]) >= set(found.notes)


def test_a_part_does_not_pass_on_the_views_that_are_left(held: Model, paired: Path, tmp_path: Path) -> None:
    for trial in (1, 2):
        for number in range(4):
            for view in "ab":
                name = f"test/square/{number:03}.png" if number < 2 else f"test/good/{number:03}.png"
                to = tmp_path / f"study/run {trial}/{name.split('/')[1]}/{number:03}_{view}.png"
                _again(paired / name, to, np.random.default_rng([trial, number, ord(view)]))
    (tmp_path / "study/run 2/square/000_b.png").write_bytes(b"no picture")
    how = {"part_pattern": r"(\w+/\d+)_", "skip_bad": True}
    accepted = accept(held, tmp_path / "study", tmp_path / "out", trial_pattern=r"run (\d)", **how)[1]
    assert [row["part"] for row in _rows(tmp_path / "out")] == ["good/002", "good/003", "square/001"] * 2
    assert accepted["stations"][0]["rates"]["escapes"]["n"] == 1
    assert (
        "left out: part square/000: a picture of it cannot be read, so none of it counts (3 more)" in accepted["notes"]
    )
    once = accept(held, _mvtec(tmp_path / "study/run 2", tmp_path / "once"), tmp_path / "out 2", **how)[1]
    assert [row["part"] for row in _rows(tmp_path / "out 2")] == ["good/002", "good/003", "square/001"]
    assert "left out: part square/000: a picture of it cannot be read, so none of it counts (1 more)" in once["notes"]


def test_a_part_pattern_that_is_too_short_is_named(held: Model, paired: Path, tmp_path: Path) -> None:
    """000_a and 000_b of good/ and of square/: four views of what are two parts."""
    draw = np.random.default_rng(5)
    for trial in (1, 2):
        for kind in ("good", "square"):
            for number, view in ((0, "a"), (0, "b"), (1, "a"), (1, "b")):
                to = tmp_path / f"study/run {trial}/{kind}/{number:03}_{view}.png"
                _again(paired / f"test/{kind}/{number:03}.png", to, draw)
    how = {"trial_pattern": r"run (\d)"}
    with pytest.raises(DataError, match=r"; part 000 has good and defective pictures .* is the part pattern too short"):
        accept(held, tmp_path / "study", tmp_path / "out", part_pattern=r"(\d+)_", **how)
    _, accepted = accept(held, tmp_path / "study", tmp_path / "out", part_pattern=r"(\w+/\d+)_", **how)
    assert accepted["stations"][0]["rates"]["parts"] == 4
    assert not [note for note in accepted["notes"] if "pattern" in note]


def _mvtec(folder: Path, root: Path) -> Path:
    shutil.copytree(folder, root / "test")
    return root


class Holed:
    """An engine whose map has a hole in the n-th picture; its scores are fine."""

    def __init__(self, engine: Engine, at: int) -> None:
        self.engine, self.name, self.at, self.seen = engine, engine.name, at, 0

    def __call__(self, image: np.ndarray) -> Prediction:
        map, score = self.engine(image)
        self.seen += 1
        return Prediction(np.where(self.seen == self.at, np.nan, map), score)


@pytest.mark.parametrize(("at", "name"), [(12, "trial-1/square/005"), (36, "trial-3/square/005")])
def test_a_map_that_is_not_a_number_is_refused_in_every_trial(
    crossed: Model, trials: Path, tmp_path: Path, at: int, name: str
) -> None:
    model = Model(crossed.bundle)
    model.engine = Holed(model.engine, at)
    with pytest.raises(CalibrationError, match=rf"{name}\.png: the score or the map is not a number"):
        accept(model, trials, tmp_path / "out", trial_pattern=r"trial-(\d)")
    assert model.engine.seen == at


@pytest.mark.parametrize(
    ("name", "pattern", "key", "rest"),
    [
        ("trial-1/good/007_a.png", r"trial-(\d)", ("", "1"), "good/007_a.png"),
        ("good/trial-2/007_a.png", r"trial-(\d)", ("", "2"), "good/007_a.png"),
        ("good/007_t3_a.png", r"_t(\d)_", ("", "3"), "good/007_t_a.png"),
        ("B/good/007_t3.png", r"(?P<station>[AB])/.*_t(?P<trial>\d)", ("B", "3"), "good/007_t.png"),
        ("B/day 2/scratch/007.png", r"(?P<station>[AB])/day (?P<trial>\d)", ("B", "2"), "scratch/007.png"),
        ("1/007.png", r"^(\d)/", ("", "1"), "007.png"),
    ],
)
def test_the_trial_is_cut_out_of_the_name(name: str, pattern: str, key: tuple[str, str], rest: str) -> None:
    kind = None if "/" in rest else "good"
    placed = place([Sample(Path(name), name, name, "test", kind)], pattern)
    assert list(placed) == [key]
    assert (placed[key][0].part, placed[key][0].kind) == (rest, rest.split("/")[0] if "/" in rest else "good")


def test_masks_lie_in_each_trial_or_where_mvtec_puts_them(trials: Path, world: Path, tmp_path: Path) -> None:
    placed = place(find(trials, kind=None), r"trial-(\d)")
    masked = [s.mask for s in placed["", "1"] if s.kind == "square"]
    assert [m.name for m in masked if isinstance(m, Path)] == [f"00{i}_mask.png" for i in range(6)]
    assert all(s.mask is None for key in placed for s in placed[key] if s.kind == "good" or key != ("", "1"))
    for trial in "12":
        for kind, source in (("good", "test/good"), ("square", "test/square"), ("", "ground_truth/square")):
            folder = tmp_path / ("test" if kind else "ground_truth") / (kind or "square") / f"t{trial}"
            shutil.copytree(world / source, folder)
    placed = place(find(tmp_path, kind=None), r"/t(\d)/")
    assert {key: [s.kind for s in group].count("square") for key, group in placed.items()} == {
        ("", "1"): 6,
        ("", "2"): 6,
    }
    assert all((s.mask is not None) == (s.kind == "square") for group in placed.values() for s in group)
    assert {s.part for s in placed["", "2"]} == {f"{k}/{i:03}.png" for k in ("good", "square") for i in range(6)}


def test_the_command_line_tells_the_acceptance(
    crossed: Model, trials: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(crossed.save(tmp_path / "b.flaw"))
    words = ["evaluate", bundle, str(trials), "--out", str(tmp_path / "out"), "--trial-pattern", r"trial-(\d)"]
    assert cli.main(words) == 2
    assert "--trial-pattern goes with --acceptance" in capsys.readouterr().err
    assert cli.main([*words, "--acceptance"]) == 0
    said = capsys.readouterr().out
    for text in ("defective parts escaped: with 95 % confidence at most", "kappa against the reference", "gauge R&R"):
        assert text in said
    assert cli.main([*words, "--acceptance", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["acceptance"] == {
        key: value
        for key, value in json.loads((tmp_path / "out/acceptance.json").read_text()).items()
        if key != "bundle_sha256"
    }
    assert told["pictures"] == 12

"""Two evaluations held against one another, checked with statsmodels, scikit-learn and plain loops."""

from __future__ import annotations

import csv
import io
import json
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar as peer
from statsmodels.stats.proportion import proportion_confint

from flawmap.cli import main
from flawmap.errors import DataError, UsageError
from flawmap.report.versus import Estimate, Part
from flawmap.run.evaluate import evaluate
from flawmap.run.model import Model
from flawmap.run.versus import LEVEL, change, in_words, mcnemar, report, reviews, sentence, versus
from flawmap.run.versus_read import names, read
from flawmap.types import Verdict

KINDS = ("good", "crack", "stain")


def rows_of(seed: int = 0, parts: int = 60, views: int = 2) -> list[dict[str, str]]:
    """Pictures of parts, half of them good, the rest of two kinds; a part's first view alone shows its defect."""
    random, rows = np.random.default_rng(seed), []
    for n in range(parts):
        kind = KINDS[0] if n < parts // 2 else KINDS[1 + n % 2]
        base = random.normal() + 1.2 * (kind != "good")
        for view in range(views):
            label = kind if view == 0 else "good"
            score = float(np.round(base + 0.3 * random.normal(), 1))
            name = f"test/{kind}/{n:03}-{view}.png"
            rows.append({"name": name, "part": f"part {n}", "kind": label, "score": repr(score)})
    return rows


def write(folder: Path, rows: list[dict[str, str]], threshold: float | None = 1.0, **more) -> Path:
    """As `flawmap evaluate` does; the verdict is that of the part's largest score."""
    folder.mkdir(parents=True, exist_ok=True)
    largest: dict[str, float] = {}
    for row in rows:
        largest[row["part"]] = max(float(row["score"]), largest.get(row["part"], -np.inf))
    full = []
    for row in rows:
        verdict = "" if threshold is None else "NOK" if largest[row["part"]] > threshold else "OK"
        full.append({**row, "peak": row["score"], "p_value": "", **({"verdict": verdict} | {k: row[k] for k in row})})
    with (folder / "scores.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["name", "part", "kind", "score", "peak", "verdict", "p_value"])
        table.writeheader()
        table.writerows(full)
    calibration = (
        None if threshold is None else {"sentence": "It promises.", "policy": "manual", "threshold": threshold}
    )
    metrics = {"seconds_per_picture": 0.1, "p_auroc": 0.9, "pro": 0.8, "notes": [], "protocol": "plain"}
    metrics |= {"bundle_sha256": folder.name, "pictures_sha256": "same", "method": "PaDiM", "calibration": calibration}
    (folder / "metrics.json").write_text(json.dumps({**metrics, **more}))
    return folder


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / "one", rows_of(0)), write(tmp_path / "two", rows_of(1), 1.4)]


def by_part(rows: list[dict[str, str]]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A slow loop: largest score, whether defective, and kind of each part."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault(row["part"], []).append(row)
    kinds = [max((r["kind"] for r in views), key=lambda k: k != "good") for views in found.values()]
    scores = np.array([max(float(r["score"]) for r in views) for views in found.values()])
    return scores, np.array([k != "good" for k in kinds]), kinds


@given(st.integers(0, 40), st.integers(0, 40))
def test_p_is_that_of_statsmodels(mended: int, spoiled: int):
    expected = peer([[7, mended], [spoiled, 3]], exact=True).pvalue if mended + spoiled else 1.0
    assert mcnemar(mended, spoiled) == pytest.approx(min(expected, 1.0), rel=1e-9)


ONE = st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(lambda w: not (w[1] and w[2]))  # review: not wrong


@given(st.lists(ONE, max_size=30))
def test_changes_are_counted_once_and_p_is_never_below_its_least(wrong: list[tuple[bool, bool, bool]]):
    found = change("good", wrong)
    assert found.to_review == sum(before and looked for before, _, looked in wrong)
    assert found.neither_wrong + found.mended + found.spoiled + found.both_wrong == found.n == len(wrong)
    assert found.mended == sum(before and not after for before, after, _ in wrong)
    assert found.p >= found.least_p * (1 - 1e-12)
    one_sided = mcnemar(0, found.mended + found.spoiled)
    assert found.least_p == pytest.approx(one_sided)


def test_figures_of_each_run_are_those_of_scikit_learn_and_statsmodels(two: list[Path]):
    found = versus(two)
    assert (len(found.parts), found.pictures, found.count(True), found.count(False)) == (60, 120, 30, 30)
    for i, (run, threshold) in enumerate(zip(found.runs, (1.0, 1.4), strict=True)):
        rows = rows_of(i)
        scores, defect, kinds = by_part(rows)
        assert run.part_auroc.value == pytest.approx(roc_auc_score(defect, scores), abs=1e-12)
        pictures = roc_auc_score([r["kind"] != "good" for r in rows], [float(r["score"]) for r in rows])
        assert run.picture_auroc.value == pytest.approx(pictures, abs=1e-12)
        for rate, wrong in (
            (run.escapes, scores[defect] <= threshold),
            (run.false_alarms, scores[~defect] > threshold),
        ):
            assert rate is not None
            assert (rate.count, rate.n) == (wrong.sum(), 30)
            assert (rate.low, rate.high) == pytest.approx(proportion_confint(wrong.sum(), 30, method="beta"), abs=1e-9)
        for kind in found.kinds:
            chosen = np.array([k in ("good", kind.name) for k in kinds])
            assert kind.aurocs[i] == pytest.approx(roc_auc_score(defect[chosen], scores[chosen]), abs=1e-12)
            escaped = kind.escapes[i]
            assert escaped is not None
            assert escaped.count == sum(s <= threshold for s, k in zip(scores, kinds, strict=True) if k == kind.name)


def test_a_pair_is_that_of_a_plain_loop_over_the_parts(two: list[Path]):
    pair = versus(two).pairs[0]
    (before, defect, _), (after, _, _) = by_part(rows_of(0)), by_part(rows_of(1))
    nok = before > 1.0, after > 1.4
    for c, group, wrong in ((pair.changes[0], defect, (~nok[0], ~nok[1])), (pair.changes[1], ~defect, nok)):
        table = [[sum(group & (wrong[0] == a) & (wrong[1] == b)) for b in (False, True)] for a in (False, True)]
        assert [[c.neither_wrong, c.spoiled], [c.mended, c.both_wrong]] == table
        assert c.p == pytest.approx(peer(table, exact=True).pvalue, rel=1e-9)
        assert c.mended > 0
        assert c.spoiled > 0
    expected = {f"part {n}" for n in np.flatnonzero(nok[0] != nok[1])}
    assert {row["part"] for row in pair.changed} == expected
    effects = [row["effect"] for row in pair.changed]
    assert effects == sorted(effects, key=("newly wrong", "mended").index)
    assert effects.count("newly wrong") == sum(c.spoiled for c in pair.changes)
    value = roc_auc_score(defect, after) - roc_auc_score(defect, before)
    assert pair.part_auroc.value == pytest.approx(value, abs=1e-12)


def test_the_interval_of_a_difference_is_that_of_a_slow_loop_over_parts(two: list[Path]):
    found = versus(two).pairs[0].part_auroc
    (before, defect, _), (after, _, _) = by_part(rows_of(0)), by_part(rows_of(1))
    random, differences = np.random.default_rng(3), []
    for _ in range(1500):
        drawn = np.concatenate([random.choice(np.flatnonzero(group), group.sum()) for group in (defect, ~defect)])
        one, other = (roc_auc_score(defect[drawn], scores[drawn]) for scores in (before, after))
        differences.append(other - one)
    # 1,500 and 2,000 draws of a deviation of about 0.06: the ends are known to about 0.006 each.
    assert (found.low, found.high) == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.025)


def test_a_run_with_the_same_scores_differs_by_its_threshold_alone(tmp_path: Path):
    """The other threshold is lower: no part can become OK, and ranks do not move."""
    found = versus([write(tmp_path / "a", rows_of(2), 1.0), write(tmp_path / "b", rows_of(2), 0.4)])
    pair = found.pairs[0]
    assert (pair.part_auroc.value, pair.part_auroc.low, pair.part_auroc.high) == (0, 0, 0)
    assert pair.changed
    assert {(row["before"]["verdict"], row["after"]["verdict"]) for row in pair.changed} == {("OK", "NOK")}
    assert (pair.changes[0].spoiled, pair.changes[1].mended) == (0, 0)
    assert any("only their thresholds can differ" in note for note in found.notes)


def test_a_part_for_review_is_neither_an_escape_nor_a_false_alarm(tmp_path: Path):
    rows = rows_of(0, parts=4, views=1)
    passed = [{**row, "verdict": "OK" if row["kind"] == "good" else "NOK"} for row in rows]
    review = [{**row, "verdict": "REVIEW"} for row in rows]
    found = versus([write(tmp_path / "a", passed), write(tmp_path / "b", review)])
    assert found.runs[1].reviews == 4
    assert [rate and rate.count for rate in (found.runs[1].escapes, found.runs[1].false_alarms)] == [0, 0]
    assert [row["effect"] for row in found.pairs[0].changed] == ["to review"] * 4
    assert [(c.mended, c.spoiled) for c in found.pairs[0].changes] == [(0, 0), (0, 0)]


def banded(rows: list[dict[str, str]], low: float, high: float) -> list[dict[str, str]]:
    """Verdicts by part with a band for review between two thresholds."""
    largest = {row["part"]: -np.inf for row in rows}
    for row in rows:
        largest[row["part"]] = max(largest[row["part"]], float(row["score"]))
    said = {part: "NOK" if s > high else "REVIEW" if s > low else "OK" for part, s in largest.items()}
    return [{**row, "verdict": said[row["part"]]} for row in rows]


def test_parts_for_review_are_told_by_class_and_never_called_mended(tmp_path: Path):
    """B reviews what lies between 0.5 and 1.0, where A says OK; above 1.0 both say NOK."""
    rows = rows_of(0)
    folders = [write(tmp_path / "a", rows, 1.0), write(tmp_path / "b", banded(rows, 0.5, 1.0))]
    found = versus(folders)
    scores, defect, _ = by_part(rows)
    band = (scores > 0.5) & (scores <= 1.0)
    good, bad = int((band & ~defect).sum()), int((band & defect).sum())
    assert min(good, bad) >= 2
    run, pair = found.runs[1], found.pairs[0]
    assert (run.reviews, run.reviews_good, run.reviews_defective, run.judged) == (good + bad, good, bad, 60)
    assert (found.runs[0].reviews, found.runs[0].judged) == (0, 60)
    assert f"{good + bad} parts now go to review ({good} good, {bad} defective)." in pair.sentence
    assert "none became" not in pair.sentence
    assert f"0 newly escape with B and {bad} no longer do, {bad} of them for review instead" in pair.sentence
    assert {row["effect"] for row in pair.changed} == {"to review"}
    assert len(pair.changed) == good + bad
    assert [(c.mended, c.to_review, c.spoiled) for c in pair.changes] == [(bad, bad, 0), (0, 0, 0)]
    words = in_words(report(folders, tmp_path / "page.html"))
    assert f"{good + bad} of 60 parts for review" in words["B"]


def test_parts_that_leave_review_are_wrong_or_from_review_and_counted(tmp_path: Path):
    rows = rows_of(0)
    found = versus([write(tmp_path / "a", banded(rows, 0.5, 1.0)), write(tmp_path / "b", rows, 1.0)])
    scores, defect, _ = by_part(rows)
    band = (scores > 0.5) & (scores <= 1.0)
    good, bad = int((band & ~defect).sum()), int((band & defect).sum())
    assert f"{good + bad} parts no longer go to review ({good} good, {bad} defective)." in found.pairs[0].sentence
    effects = [row["effect"] for row in found.pairs[0].changed]
    assert effects == ["newly wrong"] * bad + ["from review"] * good


def test_who_goes_to_review_in_words():
    """Verdicts before and after of each part."""

    def said(*given: tuple[str | None, str, str]) -> str:
        return reviews([Part(str(n), k, [0, 0], [Verdict(a), Verdict(b)]) for n, (k, a, b) in enumerate(given)], 1)

    go, back = ("good", "OK", "REVIEW"), ("crack", "REVIEW", "NOK")
    assert said(("good", "OK", "NOK"), ("crack", "REVIEW", "REVIEW")) == ""
    assert said(go) == "1 part now goes to review (1 good, 0 defective)."
    assert said(back) == "1 part no longer goes to review (0 good, 1 defective)."
    assert said(go, go, back) == (
        "2 parts now go to review (2 good, 0 defective) and 1 no longer does (0 good, 1 defective)."
    )
    assert said((None, "OK", "REVIEW")) == (
        "1 part now goes to review (0 good, 0 defective, 1 of which nobody has said)."
    )


def test_several_comparisons_share_the_five_per_cent(tmp_path: Path):
    """Six changed parts, all the same way: p is 1/32 = 3.1 %, enough for one comparison and not for two."""
    changes = [change("good", [(False, True, False)] * 6 + [(False, False, False)] * 9)]
    assert changes[0].p == pytest.approx(1 / 32)
    alone, among = (sentence("A", "B", Estimate(None), changes, level) for level in (LEVEL, LEVEL / 2))
    assert alone.endswith("These parts tell A and B apart by false alarms.")
    assert among.replace("\u202f", " ").endswith(
        "These parts do not tell A and B apart (5 % over 2 comparisons: 2.5 % each)."
    )
    rows = rows_of(0)
    low = sorted({row["part"] for row in rows if row["kind"] == "good"}, key=lambda p: int(p.split()[1]))[:6]
    plain = [{**row, "verdict": "OK"} for row in rows]
    spoiled = [{**row, "verdict": "NOK" if row["part"] in low else "OK"} for row in rows]
    one, two, three = (write(tmp_path / n, r) for n, r in (("a", plain), ("b", spoiled), ("c", plain)))
    for folders, level, told in (((one, two), 0.05, True), ((one, two, three), 0.025, False)):
        pair = versus(folders).pairs[0]
        assert (pair.level, pair.changes[1].p) == (level, pytest.approx(1 / 32))
        assert ("tell A and B apart by false alarms" in pair.sentence) == told


def test_intervals_of_several_comparisons_are_wider(tmp_path: Path):
    """That of three runs holds with 97.5 %: the slow loop's quantiles at 1.25 % and 98.75 %."""
    folders = [write(tmp_path / str(n), rows_of(n)) for n in range(3)]
    narrow, wide = versus(folders[:2]).pairs[0].part_auroc, versus(folders).pairs[0].part_auroc
    assert narrow.low is not None
    assert narrow.high is not None
    assert wide.low is not None
    assert wide.high is not None
    assert wide.low < narrow.low < narrow.high < wide.high
    (before, defect, _), (after, _, _) = by_part(rows_of(0)), by_part(rows_of(1))
    random, differences = np.random.default_rng(5), []
    for _ in range(1500):
        drawn = np.concatenate([random.choice(np.flatnonzero(group), group.sum()) for group in (defect, ~defect)])
        differences.append(roc_auc_score(defect[drawn], after[drawn]) - roc_auc_score(defect[drawn], before[drawn]))
    assert (wide.low, wide.high) == pytest.approx(np.quantile(differences, [0.0125, 0.9875]), abs=0.03)
    assert "(97.5\u202f%: " in versus(folders).pairs[0].sentence


USED = "12 of the pictures were used to fit or calibrate this model: rates on them are too good"


def test_what_promises_nothing_is_said_of_its_run_first(tmp_path: Path):
    promised = {"sentence": "s", "policy": "false-alarm", "threshold": 1.0}
    oracle, manual = ({**promised, "policy": policy} for policy in ("f1-oracle", "manual"))
    read_off = "the threshold is an F1 oracle, read off known answers: its rates are those of no operating point"
    folders = [
        write(tmp_path / "a", rows_of(0), calibration=promised, notes=["left out: x.png: torn"]),
        write(tmp_path / "b", rows_of(0), calibration=promised, notes=[USED]),
        write(tmp_path / "c", rows_of(0), calibration=oracle, notes=[read_off]),
        write(tmp_path / "d", rows_of(0), calibration=manual),
    ]
    found = versus(folders)
    assert [list(run.doubts) for run in found.runs] == [
        [],
        [f"{USED}."],
        ["Its threshold is an F1 oracle, read off known answers: it is no operating point and promises nothing."],
        ["Its threshold was set by hand: it promises nothing."],
    ]
    assert "A: left out: x.png: torn" in found.notes
    assert not any("used to fit" in note or "oracle" in note for note in found.notes)
    words = in_words(report(folders, tmp_path / "page.html"))
    assert list(words)[1:4] == ["beware of B", "beware of C", "beware of D"]
    assert words["beware of B"] == f"{USED}."
    html = (tmp_path / "page.html").read_text()
    assert html.index("Beware of B") < html.index("B against A") < html.index("Seconds were taken")
    fewer = versus([folders[0], write(tmp_path / "e", rows_of(0)[2:], calibration=promised, notes=[USED])], shared=True)
    assert list(fewer.runs[1].doubts) == [f"{USED} (counted over its whole evaluation)."]


def test_an_evaluation_on_pictures_that_fitted_the_model_says_so_in_a_comparison(
    crossed: Model, world: Path, tmp_path: Path
):
    """The note that evaluate itself writes is the one that is looked for."""
    evaluate(crossed, world, tmp_path / "test")
    evaluate(crossed, world / "train", tmp_path / "train")
    notes = json.loads((tmp_path / "train/metrics.json").read_text())["notes"]
    seen = read(tmp_path / "train", "x")
    assert any("used to fit or calibrate this model" in note for note in notes)
    run = versus([tmp_path / "train", copied(tmp_path / "train")]).runs[0]
    assert len(run.doubts) == 1
    assert run.doubts[0].startswith(f"{len(seen.pictures)} of the pictures were used to fit or calibrate this model")
    assert list(versus([tmp_path / "test", copied(tmp_path / "test")]).runs[0].doubts) == []


def test_what_evaluate_notes_of_an_oracle_is_said_once(crossed: Model, world: Path, tmp_path: Path):
    model = Model(crossed.bundle)
    assert model.calibration is not None
    model.calibration = replace(model.calibration, policy="f1-oracle")
    evaluate(model, world, tmp_path / "oracle")
    assert any("F1 oracle" in note for note in json.loads((tmp_path / "oracle/metrics.json").read_text())["notes"])
    found = versus([tmp_path / "oracle", copied(tmp_path / "oracle")])
    assert [len(run.doubts) for run in found.runs] == [1, 1]
    assert not any("F1 oracle" in note for note in found.notes)


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(folder, folder.with_name(f"{folder.name} copy")))


def test_a_part_without_a_verdict_is_in_no_count_of_verdicts(tmp_path: Path):
    rows = rows_of(0, views=1)
    torn = [{**row, "verdict": ""} if i in (0, 59) else row for i, row in enumerate(rows)]
    found = versus([write(tmp_path / "a", rows), write(tmp_path / "b", torn)])
    assert [rate and rate.n for rate in (found.runs[1].escapes, found.runs[1].false_alarms)] == [29, 29]
    assert [c.n for c in found.pairs[0].changes] == [29, 29]
    assert found.runs[1].part_auroc.value == found.runs[0].part_auroc.value
    assert "B gave 2 of 60 parts no verdict: they are not in its counts." in found.notes
    alone = versus([write(tmp_path / "c", rows, None), tmp_path / "b"])
    assert (alone.runs[0].escapes, alone.runs[0].false_alarms, alone.pairs[0].changes[0].n) == (None, None, 0)


def test_the_rule_of_the_calibration_makes_the_score_of_a_part(tmp_path: Path):
    mean = {"sentence": "s", "policy": "manual", "threshold": 1.0, "rule": "mean"}
    found = versus([write(tmp_path / "a", rows_of(0)), write(tmp_path / "b", rows_of(0), calibration=mean)])
    for part in found.parts:
        views = [float(row["score"]) for row in rows_of(0) if row["part"] == part.name]
        assert part.scores == pytest.approx([max(views), np.mean(views)])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: rows[2:], r"B lacks the part part 0 \(test/good/000-0.png\)"),
        (lambda rows: rows[:-1], r"B lacks the picture test/stain/059-1.png of the part part 59"),
        (lambda rows: [*rows, {**rows[0], "name": "new.png", "part": "x"}], r"A lacks the part x \(new.png\)"),
        (lambda rows: [{**rows[0], "kind": "stain"}, *rows[1:]], r"000-0.png is good in A and stain in B"),
        (lambda rows: [{**rows[0], "kind": ""}, *rows[1:]], r"000-0.png is good in A and of unknown kind in B"),
        (
            lambda rows: [{**rows[0], "part": "part 9"}, *rows[1:]],
            r"B lacks the picture .*000-0.png of the part part 0",
        ),
    ],
)
def test_other_data_is_refused_and_the_first_difference_named(tmp_path: Path, edit, message: str):
    folders = [write(tmp_path / "a", rows_of(0)), write(tmp_path / "b", edit(rows_of(0)))]
    with pytest.raises(DataError, match=message):
        versus(folders)
    found = versus(folders, shared=True)
    left_out = 2 if "part 9" in str(edit(rows_of(0))[0]) else 1
    assert len(found.parts) == 60 - left_out + (message.startswith("A lacks"))
    assert found.notes[0].startswith(f"{left_out} of {60 + message.startswith('A lacks')} parts were left out")
    assert (found.runs[0].p_auroc, found.runs[0].pro) == (None, None)


def test_evaluations_without_a_common_part_are_refused_even_so(tmp_path: Path):
    other = [{**row, "part": f"other {row['part']}"} for row in rows_of(0)]
    with pytest.raises(DataError, match="no part in common"):
        versus([write(tmp_path / "a", rows_of(0)), write(tmp_path / "b", other)], shared=True)


def test_folders_that_are_no_evaluations_are_named(tmp_path: Path):
    good = write(tmp_path / "a", rows_of(0))
    with pytest.raises(DataError, match="no evaluation can be read"):
        versus([good, tmp_path / "absent"])
    for name, content, message in (
        ("nan", "name,part,kind,score,peak,verdict,p_value\na,a,good,nan,1,OK,\n", "line 2: the score is nan"),
        ("word", "name,part,kind,score,peak,verdict,p_value\na,a,good,x,1,OK,\n", "line 2: could not convert"),
        ("verdict", "name,part,kind,score,peak,verdict,p_value\na,a,good,1,1,PERHAPS,\n", "PERHAPS"),
        (
            "twice",
            "name,part,kind,score,peak,verdict,p_value\n" + "a,a,good,1,1,OK,\n" * 2,
            "line 3: a stands there twice",
        ),
        ("empty", "name,part,kind,score,peak,verdict,p_value\n", "has no pictures"),
        ("columns", "name,score\na,1\n", "lacks one of"),
    ):
        folder = write(tmp_path / name, rows_of(0))
        (folder / "scores.csv").write_text(content)
        with pytest.raises(DataError, match=message):
            read(folder, name)
    views = write(tmp_path / "views", [{**row, "verdict": "OK" if i else "NOK"} for i, row in enumerate(rows_of(0))])
    with pytest.raises(DataError, match="several verdicts"):
        versus([good, views])


def test_one_folder_one_given_twice_and_too_many_are_refused(tmp_path: Path):
    folders = [write(tmp_path / str(n), rows_of(0)) for n in range(7)]
    for given_, message in ((folders[:1], "takes 2 to 6"), (folders, "takes 2 to 6"), (folders[:1] * 2, "given twice")):
        with pytest.raises(UsageError, match=message):
            versus(given_)
    three = versus(folders[:3])
    assert [pair.after for pair in three.pairs] == ["B", "C"]
    assert any("each p is held against 5\u202f% divided by 2, 2.5\u202f%" in note for note in three.notes)


def test_names_are_the_shortest_that_tell_runs_apart():
    assert names([Path("/r/padim/x/evaluation"), Path("/r/patchcore/y/evaluation")]) == ["x", "y"]
    assert names([Path("/r/padim/x/evaluation"), Path("/r/patchcore/x/evaluation")]) == ["padim", "patchcore"]
    assert names([Path("/r/one"), Path("/r/two")]) == ["one", "two"]
    assert names([Path("/r/a/x"), Path("/r/b/y"), Path("/q/b/x")]) == ["a/x", "b/y", "b/x"]


def test_pictures_with_other_content_or_of_unknown_content_are_noted(tmp_path: Path):
    one = write(tmp_path / "a", rows_of(0))
    other = versus([one, write(tmp_path / "b", rows_of(0), pictures_sha256="other")]).notes
    assert any("not the same content" in note for note in other)
    unknown = versus([one, write(tmp_path / "c", rows_of(0), pictures_sha256=None, calibration=None)])
    assert any("not all runs say which pixels" in note for note in unknown.notes)
    assert unknown.runs[1].sentence is None


def test_pictures_that_nobody_has_named_give_changes_and_no_figures(tmp_path: Path):
    rows = [{**row, "kind": ""} for row in rows_of(0)]
    found = versus([write(tmp_path / "a", rows, 1.0), write(tmp_path / "b", rows, 0.5)])
    assert (found.count(None), found.kinds, found.runs[0].part_auroc.value) == (60, [], None)
    assert {row["effect"] for row in found.pairs[0].changed} == {"changed"}
    assert found.pairs[0].sentence.startswith("Nobody has said")
    assert report([tmp_path / "a", tmp_path / "b"], tmp_path / "page.html")["unknown"] == 60


def test_the_command_writes_a_page_and_says_the_same_as_json(two: list[Path], tmp_path: Path):
    said = {}
    for name, more in (("json", ["--json"]), ("words", [])):
        out = io.StringIO()
        with redirect_stdout(out):
            assert main(["report", *map(str, two), "--out", str(tmp_path / f"{name}.html"), *more]) == 0
        said[name] = out.getvalue()
    assert (tmp_path / "json.html").read_bytes() == (tmp_path / "words.html").read_bytes()
    found = json.loads(said["json"])
    assert found["page"] == str(tmp_path / "json.html")
    assert (found["parts"], found["good"], found["defective"], found["baseline"]) == (60, 30, 30, "A")
    pair = versus(two).pairs[0]
    assert found["pairs"][0]["part_auroc"]["value"] == pair.part_auroc.value
    assert found["pairs"][0]["changes"][0]["p"] == pair.changes[0].p
    assert len(found["pairs"][0]["changed"]) == len(pair.changed)
    assert pair.sentence.replace("\u202f", " ") in said["words"]


def test_the_command_refuses_other_data_with_exit_code_3_and_one_evaluation_with_2(two: list[Path], tmp_path: Path):
    write(two[1], rows_of(1)[:-2])
    out = tmp_path / "page.html"
    assert main(["report", *map(str, two), "--out", str(out)]) == 3
    assert not out.exists()
    assert main(["report", *map(str, two), "--out", str(out), "--shared"]) == 0
    assert "1 of 60 parts were left out" in out.read_text()
    assert main(["report", str(two[0])]) == 2
    assert main(["report", str(two[0]), "--shared"]) == 2


def test_two_evaluations_of_a_bundle_tell_what_the_page_needs(crossed: Model, world: Path, tmp_path: Path):
    """What evaluate writes is enough: promise, threshold and the hash of the pictures, here the same ones twice."""
    assert crossed.calibration is not None
    for name in ("one", "two"):
        evaluate(crossed, world, tmp_path / name)
    found = versus([tmp_path / "one", tmp_path / "two"])
    run = found.runs[1]
    assert (run.sentence, run.threshold) == (crossed.calibration.sentence, crossed.calibration.threshold)
    assert (run.bundle_sha256, run.method) == (crossed.bundle.sha256, "PatchCore")
    assert run.pictures_sha256 == found.runs[0].pictures_sha256 is not None
    assert found.pairs[0].changed == []
    metrics = json.loads((tmp_path / "one/metrics.json").read_text())
    assert run.escapes is not None
    assert run.false_alarms is not None
    assert (run.escapes.count, run.false_alarms.count) == (
        metrics["escapes"]["count"],
        metrics["false_alarms"]["count"],
    )
    assert run.part_auroc.value == pytest.approx(metrics["part_auroc"], abs=1e-12)
    low, high = metrics["i_auroc_low"], metrics["i_auroc_high"]
    assert (run.picture_auroc.low, run.picture_auroc.high) == (low, high)

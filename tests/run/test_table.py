"""The run table: what is done is not done again, what has changed is, and nobody does another's work."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from pathlib import Path

import pytest

from flawmap.images.folder import find
from flawmap.run import table as tables
from flawmap.run import weights
from flawmap.run.claim import claimed
from flawmap.run.table import Job, Table, curve, falling, made
from flawmap.verdict.metrics import auroc

QUICK = {"size": 64}


def _row(job: Job, **values: object) -> dict[str, object]:
    config = {"size": 64, "keep": 0.1, "seed": job.seed}
    return {
        "key": job.key,
        "method": job.method,
        "options": dict(job.options),
        "seed": job.seed,
        "config": config,
        **values,
    }


def test_a_job_is_known_by_all_that_decides_it_and_by_nothing_else() -> None:
    job = Job("patchcore", "mvtec/bottle", {"size": 64, "keep": 0.1}, 1, 2, 3, 0.2)
    again = Job("patchcore", "mvtec/bottle", {"keep": 0.1, "size": 64}, 1, 2, 3, 0.2)
    others = [
        Job("simplenet", "mvtec/bottle", {"size": 64, "keep": 0.1}, 1, 2, 3, 0.2),
        Job("patchcore", "mvtec/cable", {"size": 64, "keep": 0.1}, 1, 2, 3, 0.2),
        Job("patchcore", "mvtec/bottle", {"size": 96, "keep": 0.1}, 1, 2, 3, 0.2),
        Job("patchcore", "mvtec/bottle", {"size": 64, "keep": 0.1}, 0, 2, 3, 0.2),
        Job("patchcore", "mvtec/bottle", {"size": 64, "keep": 0.1}, 1, None, 3, 0.2),
        Job("patchcore", "mvtec/bottle", {"size": 64, "keep": 0.1}, 1, 2, 0, 0.2),
        Job("patchcore", "mvtec/bottle", {"size": 64, "keep": 0.1}, 1, 2, 3, 0.0),
    ]
    assert job.key == again.key
    assert len({job.key, *(other.key for other in others)}) == 8


def test_a_run_becomes_a_row_and_is_not_repeated(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, job = Table(tmp_path), Job("patchcore", "square", QUICK, seed=3, shots=4, draw=1)
    monkeypatch.setattr(tables, "KEEP_S", 0)
    table.fill([job], lambda name: find(world), "cpu")
    row = table.rows()[job.key]
    assert (row["method"], row["data"], row["seed"], row["shots"], row["draw"]) == ("patchcore", "square", 3, 4, 1)
    assert (row["fitted_on"], row["pictures"], len(row["support"])) == (4, 12, 4)
    assert row["i_auroc"] > 0.9
    assert row["promise"] is None
    assert row["support"] == sorted(row["support"])
    assert table.model(job) == tmp_path / "models" / f"{job.key}.flaw"
    assert not (tmp_path / "runs" / job.key).exists()
    scores = table.scores(job)
    assert scores is not None
    assert len(scores) == 12
    assert scores[0][:3] == ("test/good/000.png", "test/good/000.png", "good")
    assert row["i_auroc"] == auroc([s.score for s in scores], [s.kind != "good" for s in scores])
    assert (row["threshold"], row["calibrated_on"]) == (None, None)
    before = table.path.read_bytes()
    table.fill([job], lambda name: pytest.fail("the pictures were asked for again"))
    assert table.path.read_bytes() == before
    assert capsys.readouterr().err.count("== patchcore") == 1


def test_scores_that_were_not_kept_are_made_anew_from_the_model_or_by_another_run(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, job = Table(tmp_path), Job("patchcore", "square", QUICK, shots=3, held_out=0.4)
    table.fill([job], lambda name: find(world), "cpu", keep=True)
    first, line = table.scores(job), table.path.read_bytes()
    row = table.rows()[job.key]
    assert row["threshold"] > 0
    assert row["promise"] == pytest.approx(1 / (row["calibrated_on"] + 1))
    path = tmp_path / "scores" / f"{job.key}.csv"
    path.unlink()
    assert table.scores(job) is None
    table.fill([job], lambda name: pytest.fail("the scores are not wanted"), "cpu")
    capsys.readouterr()
    table.fill([job], lambda name: find(world), "cpu", scores=True)
    assert "fitting" not in capsys.readouterr().err
    assert (table.scores(job), table.path.read_bytes()) == (first, line)
    path.unlink()
    (tmp_path / "models" / f"{job.key}.flaw").unlink()
    table.fill([job], lambda name: find(world), "cpu", scores=True)
    assert table.scores(job) == first
    assert table.path.read_bytes().count(b"\n") == 2


def test_a_job_is_not_known_by_where_this_machine_keeps_its_weights() -> None:
    plain = {"backbone": "resnet18.tv_in1k"}
    job = Job("simplenet", "square", plain)
    given = Job("simplenet", "square", plain | {"weights": "/a/b/resnet18.tv_in1k.safetensors"})
    assert (given.key, str(given)) == (job.key, str(job))
    taught = Job("efficientad", "square", {"width": 32, "dim": 96, "teacher": "/a/b/efficientad.safetensors"})
    assert taught.key == Job("efficientad", "square", {"width": 32, "dim": 96}).key


def test_a_row_counts_wherever_its_weights_were(tmp_path: Path) -> None:
    table, job = Table(tmp_path), Job("patchcore", "square", QUICK)
    table._add(_row(job) | {"config": {"size": 64, "weights": "/a/b.safetensors", "seed": 0}})
    assert list(table.rows()) == [job.key]


def test_a_row_of_other_weights_than_the_embedded_ones_does_not_count(tmp_path: Path) -> None:
    table = Table(tmp_path)
    jobs = [Job("patchcore", "square", QUICK), Job("efficientad", "square", {"preset": "small", "size": 64})]
    for job in jobs:
        own = weights.embedded_sha256(job.method, job.options)
        assert own is not None
        table._add(_row(job, weights_sha256="0" * 64) | {"config": {"size": 64}})
        assert job.key not in table.rows()
        table._add(_row(job, weights_sha256=own) | {"config": {"size": 64}})
        assert job.key in table.rows()


def test_a_row_made_with_another_file_of_weights_is_made_anew(tmp_path: Path) -> None:
    file = tmp_path / "resnet18.tv_in1k.safetensors"
    file.write_bytes(b"first")
    options = {**QUICK, "backbone": "resnet18.tv_in1k"}
    table, job = Table(tmp_path), Job("patchcore", "square", {**options, "weights": str(file)})
    digest = hashlib.sha256(b"first").hexdigest()
    table._add(_row(Job("patchcore", "square", options), weights_sha256=digest) | {"config": {"size": 64}})
    assert table.done(job)
    file.write_bytes(b"other")
    weights._sha256.cache_clear()
    assert not table.done(job)


def test_what_is_held_out_does_not_count_as_fitted(world: Path, tmp_path: Path) -> None:
    table, job = Table(tmp_path), Job("simplenet", "square", {**QUICK, "steps": 2}, held_out=0.25)
    table.fill([job], lambda name: find(world), "cpu")
    assert table.rows()[job.key]["fitted_on"] == 18  # of 24


def test_the_same_draw_gives_every_method_the_same_pictures(world: Path) -> None:
    from flawmap.images.split import shots

    good = [s for s in find(world) if s.split == "train"]
    first, again, other = (
        [s.name for s in shots(pictures, 5, draw)] for pictures, draw in ((good, 0), (good[::-1], 0), (good, 1))
    )
    assert first == again
    assert len(first) == 5
    assert first != other


def test_a_row_made_with_other_defaults_does_not_count(tmp_path: Path) -> None:
    table, job = Table(tmp_path), Job("patchcore", "square", QUICK)
    table._add(_row(job) | {"config": {"size": 64, "keep": 0.5, "seed": 0}})
    assert table.rows() == {}
    table._add(_row(job))
    assert list(table.rows()) == [job.key]


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    table, job = Table(tmp_path), Job("patchcore", "square", QUICK)
    table._add(_row(job))
    with table.path.open("a") as file:
        file.write(json.dumps(_row(Job("patchcore", "round", QUICK)))[:-9])
    assert list(table.rows()) == [job.key]
    other = Job("patchcore", "oval", QUICK)
    table._add(_row(other))
    assert list(table.rows()) == [job.key, other.key]


def test_a_row_with_an_option_that_is_no_more_does_not_count(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table._add(_row(Job("patchcore", "square", {"gone": 3})))
    assert table.rows() == {}


def test_a_fit_that_had_ended_is_judged_and_not_fitted_again(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flawmap.run import evaluate as evaluating

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    table, job = Table(tmp_path), Job("patchcore", "square", QUICK, shots=3)
    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            table.fill([job], lambda name: find(world), "cpu")
    assert table.rows() == {}
    capsys.readouterr()
    table.fill([job], lambda name: find(world), "cpu")
    assert "checking" not in capsys.readouterr().err
    assert table.rows()[job.key]["fitted_on"] == 3


def test_a_model_of_an_older_row_is_not_shown_beside_a_newer_one(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, job = Table(tmp_path), Job("patchcore", "square", QUICK, shots=3)
    table.fill([job], lambda name: find(world), "cpu", keep=True)
    assert table.model(job)
    lines = [json.loads(line) for line in table.path.read_text().splitlines()]
    table.path.write_text(json.dumps(lines[0] | {"config": lines[0]["config"] | {"keep": 0.77}}) + "\n")
    assert table.model(job) is None
    table.fill([job], lambda name: find(world), "cpu")
    assert table.model(job) is None


def _hold(root: Path, job: Job, held: object, go: object) -> None:
    with claimed(root / "claims" / job.key) as mine:
        assert mine
        held.set()  # type: ignore[attr-defined]
        go.wait(20)  # type: ignore[attr-defined]


def test_a_job_that_another_process_has_is_left_to_it_until_it_is_gone(tmp_path: Path) -> None:
    context, job = multiprocessing.get_context("spawn"), Job("patchcore", "square", QUICK)
    held, go = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, job, held, go))
    other.start()
    assert held.wait(60)
    table = Table(tmp_path)
    table.fill([job], lambda name: pytest.fail("this job was another's"))
    with claimed(tmp_path / "claims" / job.key) as mine:
        assert not mine
    other.kill()
    other.join()
    with claimed(tmp_path / "claims" / job.key) as mine:
        assert mine


def test_a_loss_curve_has_a_mean_for_every_twentieth() -> None:
    assert curve([float(i // 3) for i in range(60)]) == [float(i) for i in range(20)]
    assert curve([]) == []


def test_how_much_a_loss_still_fell_is_seen_before_the_rate_falls() -> None:
    points = [9.0] * 8 + [2.0] * 4 + [1.5] * 4 + [0.1] * 4
    assert falling(points) == pytest.approx(0.25)
    assert falling(points[:5]) is None


def test_a_row_says_when_and_from_which_commit() -> None:
    found = made()
    assert set(found) == {"date", "commit", "machine"}
    assert all(found.values())

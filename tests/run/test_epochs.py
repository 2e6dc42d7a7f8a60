"""Figures at every meta-epoch: the training is that of a plain fit, its figures are those of scikit-learn; pages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load as weights_of
from sklearn.metrics import average_precision_score, roc_auc_score

from flawmap.errors import DataError
from flawmap.images.folder import find
from flawmap.images.masks.levels import read_mask
from flawmap.run import epochs
from flawmap.run import reproduce as reproducing
from flawmap.run.epochs import Bench, Study, settled, small_mask, watched
from flawmap.run.fit import fit
from flawmap.run.model import Model
from flawmap.run.reproduce import reproduce
from flawmap.run.table import Job
from flawmap.types import Sample

SEED, STEPS, EVERY = 3, 16, 8
RECIPE = """
title = "A training"
source = "A paper"
kind = "epochs"

[full]

[small]
categories = ["square"]
seeds = [0, 1]
figure = {{ shows = "{shows}", meta_epochs = {meta_epochs}, every = 2 }}

[[rows]]
name = "SimpleNet"
method = "simplenet"
options = {{ size = 64, hidden = 8 }}
note = "a note"
"""


def _job(steps: int) -> Job:
    return Job("simplenet", "square", {"size": 64, "steps": steps}, SEED)


@pytest.fixture(scope="module")
def bench(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(_job(STEPS), find(world), tmp_path_factory.mktemp("bench"), "cpu")


@pytest.fixture(scope="module")
def plain(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    out = tmp_path_factory.mktemp("plain")
    return fit(world, "simplenet", options={"size": 64, "steps": STEPS}, seed=SEED, held_out=0, out=out, device="cpu")


def test_a_watched_training_ends_with_the_weights_of_a_plain_fit(bench: Bench, plain: Model) -> None:
    detector, points = watched(_job(STEPS), bench, EVERY)
    mine, theirs = detector.state_dict(), weights_of(plain.bundle.files["weights.safetensors"])
    assert mine.keys() == theirs.keys()
    assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []
    assert {metric: len(values) for metric, values in points.items()} == dict.fromkeys(epochs.METRICS, 2)


def test_every_point_is_that_of_a_training_which_ends_there(bench: Bench) -> None:
    _, short = watched(_job(STEPS), bench, EVERY)
    _, long = watched(_job(STEPS + EVERY), bench, EVERY)
    assert {metric: values[:2] for metric, values in long.items()} == short


def test_the_last_point_is_what_scikit_learn_says_of_the_plain_model(bench: Bench, plain: Model, world: Path) -> None:
    _, points = watched(_job(STEPS), bench, EVERY)
    scores, maps, masks, labels = [], [], [], []
    for sample in (s for s in find(world) if s.split == "test"):
        score, map = plain.predict(sample.source)
        scores.append(score)
        labels.append(not sample.good)
        maps.append(map)
        masks.append(np.zeros((64, 64), bool) if sample.mask is None else read_mask(sample.mask, (64, 64)).defect)
    pixels, truth = np.stack(maps).ravel(), np.stack(masks).ravel()
    assert points["i_auroc"][-1] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert points["p_auroc"][-1] == pytest.approx(roc_auc_score(truth, pixels), abs=1e-4)
    assert points["p_ap"][-1] == pytest.approx(average_precision_score(truth, pixels), abs=1e-3)


def test_a_small_mask_is_where_more_than_half_of_a_pixel_is_defect() -> None:
    mask = np.random.default_rng(0).random((12, 8)) < 0.5
    sample = Sample(np.zeros((12, 8, 3), np.uint8), "a", "a", "test", "hole", mask)
    expected = np.zeros((6, 4), bool)
    for y in range(6):
        for x in range(4):
            expected[y, x] = mask[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].sum() > 2
    assert expected.any()
    assert (small_mask(sample, (6, 4)).defect == expected).all()


def test_a_defect_smaller_than_half_a_pixel_stays_in_its_mask() -> None:
    mask = np.zeros((8, 8), bool)
    mask[5, 2] = True
    small = small_mask(Sample(np.zeros((8, 8, 3), np.uint8), "a", "a", "test", "hole", mask), (4, 4))
    assert np.argwhere(small.defect).tolist() == [[2, 1]]
    assert small.ignored is None


def test_a_small_pixel_is_ignored_where_any_part_of_it_is() -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[:4, :4] = 255
    mask[3, 5] = mask[1, 1] = 128
    for kind in ("hole", "good"):
        given = mask if kind == "hole" else np.where(mask == 128, mask, 0).astype(np.uint8)
        small = small_mask(Sample(np.zeros((8, 8, 3), np.uint8), "a", "a", "test", kind, given), (4, 4))
        assert small.ignored is not None
        assert np.argwhere(small.ignored).tolist() == [[0, 0], [1, 2]]
        assert np.argwhere(small.defect).tolist() == ([[0, 1], [1, 0], [1, 1]] if kind == "hole" else [])


def test_a_defect_without_a_mask_is_refused() -> None:
    with pytest.raises(DataError, match="a: a defect without a mask"):
        small_mask(Sample(np.zeros((8, 8, 3), np.uint8), "a", "a", "test", "hole"), (4, 4))


def _study(image: list[float], pixel: list[float] | None = None) -> Study:
    points = {"i_auroc": image, "p_auroc": pixel or [0.0] * len(image)}
    return Study(Job("simplenet", "square"), 2, points, {})


def test_the_best_is_the_first_of_the_best_by_image_and_then_by_pixel() -> None:
    assert _study([0.8, 0.9, 0.9, 0.7], [0.9, 0.5, 0.6, 0.9]).best == 2
    assert _study([0.8, 0.9, 0.9, 0.7], [0.9, 0.6, 0.6, 0.9]).best == 1


def test_settled_is_the_first_from_which_on_all_are_near_the_last() -> None:
    assert settled([0.5, 0.9, 0.895, 0.9]) == 2
    assert settled([0.9, 0.5, 0.9, 0.91]) == 3
    assert settled([0.9, 0.9, 0.9]) == 1
    assert settled([0.9, 0.5]) == 2
    assert _study([0.1, 0.9, 0.8, 0.85]).moves("i_auroc", since=2) == pytest.approx(0.1)


def _page(shows: str, meta_epochs: int, world: Path, out: Path, patch: pytest.MonkeyPatch, train: bool = True) -> str:
    folder = out / "recipes"
    folder.mkdir(exist_ok=True)
    (folder / "training.toml").write_text(RECIPE.format(shows=shows, meta_epochs=meta_epochs))
    patch.setattr(reproducing, "_folder", lambda: folder)
    return Path(reproduce("training", world.parent, out, train=train, device="cpu")["page"]).read_text()


def _files(out: Path) -> list[dict]:
    found = [json.loads(path.read_text()) for path in (out / "epochs").glob("*.json")]
    return sorted(found, key=lambda values: values["job"]["seed"])


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("epochs")


def test_the_last_stands_beside_the_best_and_what_choosing_gives(
    world: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    page = _page("best", 3, world, out, monkeypatch)
    points = [values["points"] for values in _files(out)]
    assert [values["job"]["options"]["steps"] for values in _files(out)] == [6, 6]
    assert "nothing is chosen by what they say" in page
    assert "| category | seeds | I-AUROC, last | I-AUROC, BEST ON TEST | I-AUROC, gained by choosing |" in page
    last = np.array([p["i_auroc"][-1] for p in points])
    best = np.array([max(p["i_auroc"]) for p in points])
    cells = [last, best, best - last]
    wanted = [f"{c.mean():{form}} ± {c.std(ddof=1):.3f}" for c, form in zip(cells, (".3f", ".3f", "+.3f"), strict=True)]
    assert f"| square | 2 | {' | '.join(wanted)} |" in page
    assert f"an I-AUROC higher by {(best - last).mean():.3f} ± " in page
    assert "![A training](training.svg)" in page
    assert "BEST ON TEST" in (out / "training.svg").read_text()
    assert "a note" in page


def test_what_has_a_file_is_not_trained_again_and_other_pictures_are(
    world: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    first = _page("best", 3, world, out, monkeypatch)
    asked: list[Job] = []

    def counted(job: Job, *rest: object) -> tuple[None, dict]:
        asked.append(job)
        return None, _files(out)[0]["points"]

    monkeypatch.setattr(epochs, "watched", counted)
    assert _page("best", 3, world, out, monkeypatch) == first
    assert asked == []
    [path] = (path for path in (out / "epochs").glob("*.json") if json.loads(path.read_text())["job"]["seed"] == 1)
    path.write_text(path.read_text().replace('"data_sha256": "', '"data_sha256": "other'))
    assert f"square: {epochs.NOT_RUN}: seed 1." in _page("best", 3, world, out, monkeypatch, train=False)
    _page("best", 3, world, out, monkeypatch)
    assert [job.seed for job in asked] == [1]


def test_curves_say_from_when_on_a_figure_stays(world: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")

    def drawn(job: Job, *rest: object) -> tuple[None, dict]:
        rising = [0.5 + 0.02 * job.seed] * 10 + [0.9] * 10
        return None, dict.fromkeys(epochs.METRICS, rising)

    monkeypatch.setattr(epochs, "watched", drawn)
    page = _page("curves", 20, world, out, monkeypatch)
    assert "![A training](training-square.svg)" in page
    assert "| after meta-epoch | 1 | 2 | 5 | 10 | 15 | 20 |" in page
    assert "| I-AUROC | 0.510 ± 0.014 | 0.510 ± 0.014 | 0.510 ± 0.014 | 0.510 ± 0.014 | 0.900 ± 0.000 |" in page
    assert "| 1 | 11 | 11 | 11 | 11 |" in page
    assert "| *their mean* | 11 | 11 | 11 | 11 |" in page
    assert "| *largest mean, at meta-epoch* | 11 (0.900) | 11 (0.900) | 11 (0.900) | 11 (0.900) |" in page
    assert "from meta-epoch 11, 11 (by seed; median 11 of 20), their mean from 11." in page
    assert "By meta-epoch 15 it does so in 2 of 2 seeds. From there on the mean changes by +0.000" in page
    words = re.sub("<[^>]+>", "", (out / "training-square.svg").read_text())
    assert "meta-epoch" in words
    assert "square: mean of 2 seeds; band: one standard deviation" in words


def test_without_a_file_and_a_wish_there_is_nothing_but_that(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = _page("best", 3, world, tmp_path, monkeypatch, train=False)
    assert "square: not run: seed 0, 1." in page
    assert not list(tmp_path.glob("*.svg"))


def test_a_study_that_another_process_makes_is_left_to_it(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def taken(path: Path) -> Iterator[bool]:
        yield False

    monkeypatch.setattr("flawmap.run.epochs.claimed", taken)
    page = _page("best", 3, world, tmp_path, monkeypatch)
    assert "square: not run: seed 0, 1." in page
    assert "in the hands of another process" in capsys.readouterr().err


def test_features_and_checkpoints_are_gone_afterwards(world: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _page("best", 3, world, out, monkeypatch)
    assert {path.suffix for path in (out / "epochs").iterdir()} == {".json"}


def test_a_mask_of_half_grey_is_as_the_masks_rule_says(tmp_path: Path) -> None:
    values = np.full((4, 4), 100, np.uint8)
    values[:2] = 200
    Image.fromarray(values).save(tmp_path / "mask.png")
    sample = Sample(np.zeros((4, 4, 3), np.uint8), "a", "a", "test", "hole", tmp_path / "mask.png")
    assert small_mask(sample, (2, 2)).defect.tolist() == [[True, True], [False, False]]

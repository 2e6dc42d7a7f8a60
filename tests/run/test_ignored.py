"""Pixels to ignore on their way through an evaluation: figures, counts, notes, the page, crops."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from flawmap.images.decode import decode
from flawmap.images.folder import find
from flawmap.images.masks.levels import read_mask
from flawmap.images.protocol import Protocol
from flawmap.run.acceptance import _size
from flawmap.run.evaluate import Pixels, evaluate, in_words
from flawmap.run.figures import Shown, chosen, strips
from flawmap.run.model import Model
from flawmap.run.recipe import truth
from flawmap.types import Sample

COUNTS = {"ignored_pixels", "ignoring", "only_ignored"}


@pytest.fixture(scope="module")
def banded(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world; masks 0 to 2 with a band, of 3 all is ignored, and a good picture has a corner to ignore."""
    root = tmp_path_factory.mktemp("banded") / "parts" / "square"
    shutil.copytree(world, root)
    for number in range(4):
        path = root / f"ground_truth/square/{number:03}_mask.png"
        mask = np.array(Image.open(path))
        rows, columns = np.nonzero(mask)
        top, left = rows.min(), columns.min()
        inner = np.zeros_like(mask)
        inner[top + 3 : top + 11, left + 3 : left + 11] = 255
        mask[:] = 0
        mask[top - 2 : top + 16, left - 2 : left + 16] = 128
        Image.fromarray(mask if number == 3 else np.maximum(mask, inner)).save(path)
    corner = np.zeros((64, 64), np.uint8)
    corner[:20, :20] = 128
    (root / "ground_truth/good").mkdir()
    Image.fromarray(corner).save(root / "ground_truth/good/000_mask.png")
    return root


def _levels(samples: list[Sample]) -> list[np.ndarray]:
    return [np.zeros((64, 64), np.uint8) if s.mask is None else np.array(Image.open(s.mask)) for s in samples]


def test_an_evaluation_leaves_the_band_out_and_counts_it(crossed: Model, banded: Path, tmp_path: Path) -> None:
    evaluated = evaluate(crossed, banded, tmp_path)
    samples = [s for s in find(banded) if s.split == "test"]
    levels = np.stack(_levels(samples))
    maps = np.stack([crossed.predict(s.source)[1] for s in samples])
    kept = levels != 128
    truth, values = levels[kept] == 255, maps[kept]
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["p_auroc"] == pytest.approx(roc_auc_score(truth, values), abs=1e-9)
    assert found["p_ap"] == pytest.approx(average_precision_score(truth, values), abs=1e-9)
    assert (found["good_pixels"], found["defect_pixels"]) == ((~truth).sum(), truth.sum())
    assert found["ignored_pixels"] == (levels == 128).sum() == 3 * (18 * 18 - 64) + 18 * 18 + 400
    assert (found["ignoring"], found["only_ignored"], found["lost"], found["lost_defects"]) == (5, 1, 0, 0)
    assert (found["defective"], found["good"]) == (6, 6)  # of pictures and parts nothing is ignored
    note = "5 masks have pixels to ignore, which count in no pixel metric: test/good/000.png"
    assert note in found["notes"]
    assert note in in_words(evaluated).values()
    page = (tmp_path / "report.html").read_text()
    assert "Hatched in a mask: pixels to ignore" in page
    assert "mask; hatched: ignored" in page


def test_without_a_band_nothing_is_said_of_it(crossed: Model, world: Path, tmp_path: Path) -> None:
    evaluate(crossed, world, tmp_path)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert not COUNTS & found.keys()
    assert not any("ignore" in note for note in found["notes"])
    assert "Hatched in a mask" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("rule", ["nearest", "area"])
def test_under_a_protocol_of_another_size_what_is_ignored_stays_so(crossed: Model, rule: str) -> None:
    """128 x 128 pictures at the network's 64: by area any part of a pixel is enough."""
    mask = np.zeros((128, 128), np.uint8)
    mask[20:60, 20:60] = 255
    mask[20:60, 59] = 128  # half of a small pixel
    mask[90:92, 90:92] = 128
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    sample = Sample(image, "d", "d", "test", "crack", mask)
    pixels = Pixels(crossed, Protocol("own", mask=rule, at="network"))
    map = np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)
    pixels.add(sample, map, np.zeros((128, 128), np.float32))
    found = pixels.result()
    if rule == "area":
        assert (found["defect_pixels"], found["ignored_pixels"]) == (20 * 20 - 20, 20 + 1)
    else:
        placed = np.asarray(crossed.intake.place(Image.fromarray(mask), Image.Resampling.NEAREST))
        assert found["defect_pixels"] == (placed == 255).sum()
        assert found["ignored_pixels"] == (placed == 128).sum()
    assert found["defect_pixels"] + found["ignored_pixels"] + found["good_pixels"] == 64 * 64


def test_the_size_of_a_defect_is_without_what_is_ignored(banded: Path) -> None:
    sizes = [_size(s) for s in find(banded) if s.split == "test" and not s.good]
    assert sizes == [64, 64, 64, None, 196, 196]


def test_a_strip_hatches_what_is_ignored_and_says_so(crossed: Model, banded: Path) -> None:
    shown = chosen([s for s in find(banded) if s.split == "test"], 6)
    assert sum(each.ignored is not None for each in shown) == 4
    with_band = next(each for each in shown if each.ignored is not None)
    plain = Shown(with_band.sample, with_band.image, with_band.mask)
    assert (with_band.outlined != plain.outlined).any(axis=2)[with_band.ignored].mean() > 0.4
    assert (with_band.marked == (with_band.mask | with_band.ignored)).all()
    assert (plain.marked == plain.mask).all()
    from flawmap.run.figures import Kept

    kept = [Kept("PatchCore", None, crossed)]  # type: ignore[arg-type]
    assert strips(kept, [with_band], {}) != strips(kept, [plain], {})


def test_the_hatching_lies_in_the_band_and_the_outline_over_it() -> None:
    from flawmap.report.heatmap import HALO, HATCH, LINE, outlined

    image = np.full((40, 40, 3), 90, np.uint8)
    mask, ignored = np.zeros((2, 40, 40), bool)
    mask[10:20, 10:20] = True
    ignored[10:20, 24:36] = True
    drawn = outlined(image, mask, ignored)
    colours = {tuple(colour) for colour in drawn[11:19, 25:35].reshape(-1, 3).tolist()}
    assert colours == {HATCH, HALO, (90, 90, 90)}
    assert (drawn[9, 12] == LINE).all()
    assert (drawn[15, 15] == 90).all()
    assert (drawn[30:] == 90).all()
    assert (outlined(image, mask, None) == outlined(image, mask)).all()
    assert decode(drawn).shape == (40, 40, 3)


def test_what_a_person_says_is_another_thing_once_a_sidecar_gives_128_its_meaning(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 128, 200, 255]], np.uint8)).save(path)
    sample = Sample(np.zeros((1, 4, 3), np.uint8), "d", "d", "test", "crack", path)
    before = truth([sample])
    assert read_mask(path, (1, 4)).defect.tolist() == [[False, True, True, True]]
    (tmp_path / "mask.png.json").write_text('{"ignore": 128}')
    assert read_mask(path, (1, 4)).defect.tolist() == [[False, False, True, True]]
    assert truth([sample]) != before

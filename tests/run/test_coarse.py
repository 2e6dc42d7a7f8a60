"""Masks made smaller and larger: against a slow loop, and the figures of a kept model against its row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from flawmap.errors import DataError
from flawmap.images.folder import find
from flawmap.images.masks.levels import Marks
from flawmap.run import reproduce as reproducing
from flawmap.run.coarse import METRICS, banded, changed, figures, kept, read_all
from flawmap.run.evaluate import evaluate
from flawmap.run.model import Model
from flawmap.run.reproduce import reproduce
from flawmap.run.table import Job, Table
from flawmap.types import Sample

RECIPE = """
title = "Masks"
source = "A report"
kind = "coarse"

[full]

[small]
categories = ["square"]
figure.offsets = [-8, -2, 0, 2]

[[rows]]
name = "PatchCore"
method = "patchcore"
options = { size = 64 }
"""


def _slowly(mask: np.ndarray, offset: int) -> np.ndarray:
    """Every pixel looks at all pixels of a disc around it."""
    found = np.zeros_like(mask)
    radius = abs(offset)
    for y, x in np.ndindex(*mask.shape):
        seen = [
            mask[v, u]
            for v in range(max(0, y - radius), min(mask.shape[0], y + radius + 1))
            for u in range(max(0, x - radius), min(mask.shape[1], x + radius + 1))
            if (v - y) ** 2 + (u - x) ** 2 <= radius**2
        ]
        found[y, x] = any(seen) if offset > 0 else all(seen)
    return found


@pytest.mark.parametrize("offset", [-3, -2, -1, 0, 1, 2, 5])
def test_a_mask_is_changed_by_a_disc(offset: int) -> None:
    mask = np.zeros((20, 24), bool)
    mask[:9, 3:14] = True  # at the edge, from where it does not shrink
    mask[14:17, 18:21] = True
    mask[12, 2] = True
    assert (changed(mask, offset) == _slowly(mask, offset)).all()


def test_nothing_and_everything_stay_what_they_are() -> None:
    for mask in (np.zeros((4, 4), bool), np.ones((4, 4), bool)):
        assert (changed(mask, 2) == mask).all()
        assert (changed(mask, -2) == mask).all()


def test_a_mask_that_vanishes_leaves_its_picture_out() -> None:
    large, small = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    large[2:18, 2:18], small[5:8, 5:8] = True, True
    blank = np.zeros((20, 20, 3), np.uint8)
    tested = [Sample(blank, name, name, "test", "hole", mask) for name, mask in (("large", large), ("small", small))]
    tested.append(Sample(blank, "good", "good", "test"))
    given = read_all(tested)
    assert list(kept(given, tested, 0)) == ["large", "small"]
    assert list(kept(given, tested, -2)) == ["large"]
    empty = [Sample(blank, "empty", "empty", "test", "hole", np.zeros((20, 20), bool))]
    assert list(kept(read_all(empty), empty, -2)) == ["empty"]  # it was so before, and counts as in an evaluation
    with pytest.raises(DataError, match="bare: a defect without a mask"):
        read_all([Sample(blank, "bare", "bare", "test", "hole")])


def test_what_is_ignored_stays_ignored_at_every_width_and_on_good_pictures() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[5:12, 5:12], mask[5:12, 12:14] = 255, 128
    good = np.zeros((20, 20), np.uint8)
    good[3, 3] = 128
    blank = np.zeros((20, 20, 3), np.uint8)
    tested = [Sample(blank, "d", "d", "test", "hole", mask), Sample(blank, "g", "g", "test", "good", good)]
    for offset in (-2, 0, 3):
        found = kept(read_all(tested), tested, offset)
        assert (found["d"].defect == changed(mask == 255, offset)).all()
        for name, given in (("d", mask), ("g", good)):
            assert (found[name].ignored == (given == 128)).all()


def test_a_band_lies_to_both_sides_of_the_outline() -> None:
    mask, before = np.zeros((20, 24), bool), np.zeros((20, 24), bool)
    mask[6:14, 5:16], before[0, 0] = True, True
    for width in (1, 2, 4):
        found = banded(Marks(mask, before), width)
        near = _slowly(mask, width) & ~_slowly(mask, -width)
        assert (found.ignored == (near | before)).all()
        assert (found.defect == _slowly(mask, -width)).all()
    assert banded(Marks(mask, None), 0).ignored is None


def test_the_same_maps_are_held_against_every_width(crossed: Model, world: Path) -> None:
    tested = [s for s in find(world) if s.split == "test"]
    given = read_all(tested)
    masks_of = {offset: kept(given, tested, offset) for offset in (-8, 0, 4)}
    found = figures(crossed, tested, masks_of)
    maps = [crossed.predict(s.source)[1] for s in tested]
    for offset in (0, 4):
        none = Marks(np.zeros((64, 64), bool), None)
        masks = [masks_of[offset].get(s.name, none).defect for s in tested]
        expected = roc_auc_score(np.stack(masks).ravel(), np.stack(maps).ravel())
        assert found[offset]["p_auroc"] == pytest.approx(expected, abs=1e-9)
    assert np.isnan(found[-8]["p_auroc"])  # squares of 14 pixels are gone


def _keep(out: Path, model: Model, found: Mapping[str, Any]) -> None:
    """As if the table had run it."""
    job = Job("patchcore", "square", {"size": 64})
    (out / "models").mkdir()
    model.save(out / "models" / f"{job.key}.flaw")
    row = {"key": job.key, **asdict(job), "config": model.bundle.config["options"], "curve": [], "steps": 0}
    Table(out)._add(row | {"date": "2026-01-02", "commit": "abc", "machine": "two cores"} | dict(found))


def test_a_page_has_the_figures_of_the_row_where_masks_are_as_given(
    crossed: Model, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "masks.toml").write_text(RECIPE)
    monkeypatch.setattr(reproducing, "_folder", lambda: folder)
    assert "not shown: PatchCore" in Path(reproduce("masks", world.parent, tmp_path, train=False)["page"]).read_text()
    row = evaluate(crossed, find(world), tmp_path / "evaluation").metrics
    _keep(tmp_path, crossed, {metric: row[metric] for metric in METRICS})
    page = Path(reproduce("masks", world.parent, tmp_path, device="cpu")["page"]).read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert lines[0] == ["", "method", "-8 px", "-2 px", "as given", "+2 px"]
    for metric, title in (("p_auroc", "P-AUROC"), ("p_ap", "P-AP"), ("pro", "PRO")):
        [cells] = (cells for cells in lines if cells[0] == title)
        assert cells[1:3] == ["PatchCore", "—"]
        assert cells[4] == f"{row[metric]:.3f}"
    [cells] = (cells for cells in lines if cells[0] == "pictures left out, of 6 defective ones")
    assert cells[2:] == ["6", "0", "0", "0"]
    [cells] = (cells for cells in lines if cells[0] == "components")
    assert cells[2:] == ["0", "6", "6", "6"]
    [cells] = (cells for cells in lines if cells[0] == "defect pixels, share")
    assert cells[2:5] == [f"{6 * side * side / (12 * 64 * 64):.3f}" for side in (0, 10, 14)]
    assert "![Masks](masks-square.svg)" in page
    assert (tmp_path / "masks-square.svg").read_text().count("<svg") == 1

"""A model that sees the middle of a picture only: the same in fitting, bundle and evaluation, and it says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import UsageError
from flawmap.images.protocol import Protocol
from flawmap.run.evaluate import Pixels, evaluate
from flawmap.run.fit import fit
from flawmap.run.model import Model, load
from flawmap.run.table import Job, Table


def part(seed: int) -> np.ndarray:
    """(80, 80, 3) uint8: smooth stripes with noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:80, :80]
    wave = 128 + 40 * np.sin((x + random.uniform(0, 8)) / 5) + 20 * np.cos(y / 7)
    return np.clip(wave[..., None] + random.normal(0, 4, (80, 80, 3)), 0, 255).astype(np.uint8)


CROP = Protocol("crop", 64, 80, "area", "network")


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of 80 px: one defect in the middle, one over the border of what is seen, one outside."""
    root = tmp_path_factory.mktemp("edge") / "parts" / "edge"
    for name, count, seed in (("train/good", 8, 0), ("test/good", 3, 100), ("test/square", 3, 200)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            image = part(seed + number)
            if name == "test/square":
                mask = np.zeros((80, 80), bool)
                at = (34, 4, 0)[number]
                mask[at : at + 8, at : at + 8] = True
                image[mask] = 10
                (root / "ground_truth/square").mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(root / f"ground_truth/square/{number:03}_mask.png")
            Image.fromarray(image).save(root / name / f"{number:03}.png")
    return root


@pytest.fixture(scope="module")
def cropped(edge: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return fit(edge, "patchcore", out=tmp_path_factory.mktemp("cropped"), protocol=CROP, held_out=0)


def test_the_bundle_sees_the_middle_wherever_it_is_loaded(cropped: Model, edge: Path, tmp_path: Path):
    model = load(cropped.save(tmp_path / "model.flaw"))
    assert (model.intake.size, model.intake.resize) == ((64, 64), 80)
    assert "middle 64 x 64 px of 80" in model.card
    _, map = model.predict(edge / "test/square/000.png")
    assert map.shape == (80, 80)
    outside = np.ones((80, 80), bool)
    outside[8:72, 8:72] = False
    assert np.all(map[outside] == map.min())
    y, x = np.unravel_index(map.argmax(), map.shape)
    assert 30 <= y < 46
    assert 30 <= x < 46


def test_a_defect_that_the_crop_cuts_off_is_counted_and_its_picture_stays_defective(
    cropped: Model, edge: Path, tmp_path: Path
):
    found = evaluate(cropped, edge, tmp_path, protocol=CROP)
    assert (found.metrics["lost_defects"], found.metrics["cut_defects"], found.metrics["defective"]) == (1, 1, 3)
    # 8 x 8 whole, 4 x 4 of the cut one, and nothing of the lost one.
    assert found.metrics["defect_pixels"] == 64 + 16
    assert found.metrics["good_pixels"] == 6 * 64 * 64 - 80
    assert any("lost their whole defect" in note and "002.png" in note for note in found.notes)


def test_at_the_pictures_own_size_the_masks_stay_whole(cropped: Model, edge: Path, tmp_path: Path):
    metrics = evaluate(cropped, edge, tmp_path).metrics
    assert (metrics["lost_defects"], metrics["defect_pixels"]) == (1, 3 * 64)
    assert metrics["protocol"].startswith("Protocol plain. Pictures brought to 80 px (shorter side), the middle 64 px")


def test_a_protocol_that_is_not_the_models_is_refused(cropped: Model, edge: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="224 px of 256, the model takes 64 px of 80"):
        evaluate(cropped, edge, tmp_path, protocol="patchcore-crop")


def test_a_saturation_shrinks_with_its_picture_and_not_with_what_a_crop_leaves(cropped: Model):
    """320 px of a picture at the network's own scale, half of it cut off: 100 pixels are still asked for."""
    mask = np.zeros((80, 80), bool)
    mask[0:16, 8:28] = True
    placed, saturation = Pixels(cropped, CROP)._region(mask, 100.0)
    assert (placed.sum(), saturation) == (160, pytest.approx(100.0))
    assert Pixels(cropped, CROP)._region(mask, 300.0)[1] == 160  # never more than there is
    large = np.zeros((160, 160), bool)
    large[40:80, 40:80] = True  # at half the scale: a quarter of the pixels
    placed, saturation = Pixels(cropped, CROP)._region(large, 400.0)
    assert (placed.sum(), saturation) == (400, pytest.approx(100.0))


def test_a_job_with_a_protocol_is_another_job_and_counts_as_todays(edge: Path, tmp_path: Path):
    rules = {"size": 64, "resize": 80, "mask": "area", "at": "network"}
    plain, job = Job("patchcore", "edge", {"size": 64}), Job("patchcore", "edge", {"size": 64}, protocol=rules)
    assert plain.key != job.key
    table = Table(tmp_path)
    from flawmap.images.folder import find

    table.fill([job], lambda name: find(edge), "cpu")
    row = table.rows()[job.key]
    assert (row["lost_defects"], row["protocol"]) == (1, rules)
    assert json.loads((tmp_path / "table.jsonl").read_text())["peak_mb"] > 50

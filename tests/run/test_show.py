from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.report.gallery import codes
from flawmap.run import show
from flawmap.run.evaluate import evaluate
from flawmap.run.model import Model, load
from flawmap.types import Verdict


def data(page: Path) -> dict:
    found = re.findall(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


@pytest.fixture(scope="module")
def page(crossed: Model, world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("page")
    evaluate(crossed, world, out)
    return data(out / "report.html")


def test_the_page_of_a_test_has_every_picture_with_the_map_that_the_model_gives(
    page: dict, crossed: Model, world: Path
):
    assert len(page["pictures"]) == 12
    for row in page["pictures"]:
        score, map = crossed.predict(world / row[0])
        assert row[1] == score
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(row[5]))))
        assert (shown == codes(map, show.scale(crossed))).all()
    assert crossed.calibration is not None
    assert page["threshold"] == crossed.calibration.threshold


def test_a_defects_size_is_that_of_its_mask(page: dict):
    sizes = {part[0]: part[4] for part in page["parts"]}
    assert {size for part, size in sizes.items() if "square" in part} == {14 * 14}
    assert {size for part, size in sizes.items() if "good" in part} == {0}


def test_pictures_of_the_first_galleries_have_a_good_patch_of_a_training_picture(page: dict):
    explained = [row for row in page["pictures"] if row[9]]
    assert len(explained) >= 8  # the borderline parts
    for row in explained:
        assert row[9].startswith("train/good/")
        assert row[8], f"{row[9]} lies beside the test, so its patch can be read"
        left, top, right, bottom = row[10]
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1


def test_views_of_a_part_stand_together_and_parts_without_a_verdict_are_told(held: Model, paired: Path, tmp_path: Path):
    evaluate(held, paired, tmp_path, skip_bad=True)
    found = data(tmp_path / "report.html")
    assert [len(part[5]) for part in found["parts"]].count(2) == 5
    assert sum(not part[3] for part in found["parts"]) == 2
    for part in found["parts"]:
        assert part[2] == max(found["pictures"][view][1] for view in part[5])


def test_the_report_of_a_fit_shows_the_training_of_a_method_that_trains(held: Model, crossed: Model):
    assert held.run is not None
    assert crossed.run is not None
    trained = (held.run / "report.html").read_text()
    assert "in 200 steps" in trained
    assert 'id="training-t"' in trained
    assert 'id="training-t"' not in (crossed.run / "report.html").read_text()


def _cards(page: Path) -> dict[str, str | None]:
    """Picture -> verdict, of every card."""
    cards = re.findall(r'<p class="about">(.*?)</p>', page.read_text(), re.DOTALL)
    words = [re.sub(r"<[^>]*>", " ", card).split() for card in cards]
    return {card[0]: next((word for word in card if word in set(Verdict)), None) for card in words}


def test_the_page_of_a_bundle_says_which_golden_pictures_go_to_review(banded: Model, tmp_path: Path):
    page = show.bundle_report(banded, tmp_path / "page.html")
    assert _cards(page) == {
        **{f"good-{i}.png": "OK" for i in range(3)},
        **{"below-threshold.png": "REVIEW", "above-threshold.png": "NOK"},
        **{"below-review.png": "OK", "above-review.png": "REVIEW"},
    }
    assert "stood next to a threshold" in page.read_text()


def test_the_page_of_a_bundle_without_pictures_next_to_the_threshold_does_not_speak_of_them(
    banded: Model, tmp_path: Path
):
    good = [entry for entry in banded.bundle.json("golden.json") if entry["name"].startswith("good-")]
    path = banded.bundle.replace({"golden.json": json.dumps(good).encode()}).write(tmp_path / "good.flaw")
    page = show.bundle_report(load(path), tmp_path / "page.html")
    assert _cards(page) == {f"good-{i}.png": "OK" for i in range(3)}
    assert "next to a threshold" not in page.read_text()


def test_the_page_of_a_bundle_whose_calibration_does_not_hold_promises_nothing(crossed: Model, tmp_path: Path):
    half = json.dumps({**crossed.bundle.json("calibration.json"), "precision": "fp16"}).encode()
    model = load(crossed.bundle.replace({"calibration.json": half}).write(tmp_path / "half.flaw"))
    page = show.bundle_report(model, tmp_path / "page.html")
    assert set(_cards(page).values()) == {None}
    text = page.read_text()
    assert "No promise and no verdict: calibrated in fp16, and onnxruntime" in text
    assert "good parts promise" not in text
    assert "24 good parts promise" in show.bundle_report(crossed, tmp_path / "sound.html").read_text()

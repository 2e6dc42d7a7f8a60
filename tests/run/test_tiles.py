"""Models that see tiles, a region, or not the whole picture: fitted, calibrated and judged on the one road."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flawmap.errors import UsageError
from flawmap.images.decode import decode
from flawmap.images.folder import find
from flawmap.images.protocol import Protocol
from flawmap.run.bulk import inspect_bulk
from flawmap.run.calibrate import calibrate
from flawmap.run.doctor import doctor
from flawmap.run.engine import TorchEngine
from flawmap.run.evaluate import evaluate
from flawmap.run.feed import Feed
from flawmap.run.fit import fit
from flawmap.run.look import look
from flawmap.run.model import Model, load
from flawmap.types import Verdict

SMALL = {"neighbourhood": 1, "keep": 0.05}


@pytest.fixture(scope="module")
def tiled(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    out = tmp_path_factory.mktemp("tiled")
    return fit(
        world,
        options={**SMALL, "most": 200},
        tile=32,
        overlap=8,
        scales=(1, 0.5),
        false_alarm=0.2,
        held_out=0.3,
        out=out,
    )


def _defects(world: Path) -> list[Path]:
    return sorted((world / "test" / "square").glob("*.png"))


def test_a_tiled_model_marks_the_defect_in_the_pictures_own_pixels(tiled: Model, world: Path, tmp_path: Path):
    found = tiled.inspect(_defects(world)[0])
    assert found.verdict == Verdict.NOK
    assert found.maps[0].shape == (64, 64)
    mask = decode(world / "ground_truth" / "square" / f"{_defects(world)[0].stem}_mask.png")[..., 0] > 0
    row, column = np.unravel_index(found.maps[0].argmax(), mask.shape)
    assert mask[max(0, row - 4) : row + 5, max(0, column - 4) : column + 5].any()
    metrics = evaluate(tiled, world, tmp_path).metrics
    assert metrics["i_auroc"] > 0.9
    assert "tiles of 32 px that overlap by 8 px or more" in metrics["protocol"]
    with pytest.raises(UsageError, match="use plain"):
        evaluate(tiled, world, tmp_path, protocol=Protocol("own", 32, None, "nearest", "network"))


def test_all_engines_say_the_same_of_tiles(tiled: Model, world: Path):
    assert tiled.run is not None
    trained = load(tiled.run / "bundle.flaw", "torch")
    scale = tiled.calibration.scale  # type: ignore[union-attr]
    for path in _defects(world)[:2]:
        ours, theirs = tiled.look(path), trained.look(path)
        assert abs(ours.score - theirs.score) / scale < 1e-4
        np.testing.assert_allclose(ours.map, theirs.map, atol=1e-4 * float(ours.map.max()))
    assert doctor(tiled.run / "bundle.flaw")[1]


def test_the_threshold_is_that_of_whole_pictures(tiled: Model, world: Path):
    """What calibrates is what `inspect` would say: blended maps, the largest score of all tiles."""
    assert tiled.run is not None
    rows = [json.loads(line) for line in (tiled.run / "data.jsonl").read_text().splitlines()]
    names = [row["name"] for row in rows if row["role"] == "calibration"]
    kept = dict(zip(names, sorted(tiled.calibration.scores), strict=True))  # type: ignore[union-attr]
    said = sorted(tiled.look(world / "train" / "good" / Path(name).name).score for name in kept)
    np.testing.assert_allclose(said, sorted(kept.values()), rtol=1e-5)


def test_folds_are_judged_as_whole_pictures(tiled: Model, world: Path, tmp_path: Path):
    detector = TorchEngine.from_bundle(tiled.bundle.config, tiled.bundle.files["weights.safetensors"]).detector
    samples = [s for s in find(world) if s.split == "train"][:3]
    feed = Feed(detector, samples, tiled.intake, tmp_path, "cpu")
    assert len(feed.pieces) == 3 * (9 + 1)
    feed.prepare(detector)
    for row, found in feed.predict(detector, [2, 0]):
        direct = look(TorchEngine(detector), tiled.intake, samples[row].source)
        assert found.score == pytest.approx(direct.score, rel=1e-4)
        np.testing.assert_allclose(found.map, direct.map, rtol=1e-3, atol=1e-4)


def test_of_very_many_tiles_as_many_of_each_picture_are_learnt_from(tiled: Model, world: Path, tmp_path: Path):
    detector = TorchEngine.from_bundle(tiled.bundle.config, tiled.bundle.files["weights.safetensors"]).detector
    samples = [s for s in find(world) if s.split == "train"][:3]
    pieces = Feed(detector, samples, tiled.intake, tmp_path / "a", "cpu", rows=[0, 2], most=8).pieces
    assert [row for row, _ in pieces] == [0] * 4 + [2] * 4
    assert len(set(pieces)) == 8
    assert pieces == Feed(detector, samples, tiled.intake, tmp_path / "b", "cpu", rows=[0, 2], most=8).pieces


def test_the_bundle_says_what_it_sees_and_how_much_the_seams_differ(tiled: Model):
    assert "Cuts pictures at 1, 0.5 of the size into tiles of 32 px that overlap by 8 px or more" in tiled.card
    assert "Where tiles overlap, their maps differ from the blended one by " in tiled.card
    assert 0 < tiled.bundle.config["tiles"]["seam_mean"] <= tiled.bundle.config["tiles"]["seam_99"] < 1


def test_a_tiled_model_is_calibrated_again_like_any_other(tiled: Model, world: Path):
    again = calibrate(tiled, [world / "test" / "good"][0], false_alarm=0.2)
    assert again.intake == tiled.intake
    assert again.inspect(_defects(world)[0]).verdict == Verdict.NOK
    assert again.golden()[1] == []


def test_what_tiles_cannot_do_is_refused_before_any_work(tiled: Model, world: Path, tmp_path: Path):
    assert tiled.run is not None
    with pytest.raises(UsageError, match="use flawmap inspect --maps"):
        inspect_bulk(tiled.run / "bundle.flaw", [str(world)], tmp_path / "out", maps=True)
    with pytest.raises(UsageError, match="the size is that of a tile"):
        fit(world, options={"size": 64}, tile=32, out=tmp_path)
    with pytest.raises(UsageError, match="give tile as well"):
        fit(world, options={"size": 32}, overlap=8, out=tmp_path)
    with pytest.raises(UsageError, match="t-SNE"):
        evaluate(tiled, world, tmp_path, tsne=True)
    with pytest.raises(UsageError, match="choose one"):
        fit(
            world,
            options={"size": 64},
            protocol=Protocol("own", 64, 64, "nearest", "picture"),
            roi=(0, 0, 32, 32),
            out=tmp_path,
        )
    with pytest.raises(UsageError, match="not both"):
        fit(world, protocol="patchcore-crop", tile=224, out=tmp_path)


def test_what_lies_outside_the_region_or_inside_a_polygon_changes_nothing(world: Path, tmp_path: Path):
    polygon = ((40, 8), (62, 8), (62, 30), (40, 30))
    model = fit(
        world,
        options={"neighbourhood": 1, "keep": 1.0, "size": 64},
        roi=(4, 0, 64, 60),
        ignore=[polygon],
        false_alarm=0.3,
        held_out=0.4,
        out=tmp_path,
    )
    good = decode(world / "train" / "good" / "000.png").copy()
    spoilt = good.copy()
    spoilt[:, :4] = 0
    spoilt[60:] = 255
    spoilt[9:29, 41:61] = 7
    one, other = model.look(good), model.look(spoilt)
    assert one.score == other.score
    np.testing.assert_array_equal(one.map, other.map)
    map = model.over(other.map, other.size)
    assert map.shape == (64, 64)
    assert (map[:, :4] == map.min()).all()
    assert (map[10:28, 42:60] == map.min()).all()
    spoilt[30:50, 10:30] = 0
    assert model.look(spoilt).score > one.score
    assert model.bundle.files.keys() >= {"golden/below-threshold.png", "golden/above-threshold.png"}
    assert "Blacks out 1 polygons of pictures of 64 x 64 px" in model.card

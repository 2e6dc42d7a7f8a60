from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from flawmap.errors import GateError
from flawmap.images.decode import decode
from flawmap.images.intake import Intake
from flawmap.run.bundle import Bundle
from flawmap.run.calibrate import calibrate
from flawmap.run.deliver import export_bundle
from flawmap.run.engine import OnnxEngine
from flawmap.run.export import TOLERANCE, Golden, gate, golden_anew, judged_alone, near_threshold
from flawmap.run.model import Model, load
from flawmap.types import Prediction


class Wrapped:
    """An engine whose answers are tampered with."""

    name = "wrapped"

    def __init__(self, engine: Callable[[np.ndarray], Prediction], change: Callable[[Prediction], Prediction]) -> None:
        self.engine, self.change = engine, change

    def __call__(self, image_B3HW: np.ndarray) -> Prediction:
        return self.change(self.engine(image_B3HW))


class Mean:
    """Scores the mean brightness: a plain engine for pictures of any depth."""

    name = "mean"

    def __call__(self, image_B3HW: np.ndarray) -> Prediction:
        return Prediction(image_B3HW.mean(axis=1), image_B3HW.mean(axis=(1, 2, 3)))


def _golden(model: Model) -> list[Golden]:
    names = [name for name in model.bundle.files if name.startswith("golden/")]
    return [Golden(name.removeprefix("golden/"), model.bundle.files[name]) for name in names]


def _moved(by: float) -> Callable[[Prediction], Prediction]:
    return lambda found: found._replace(score=found.score + np.float32(by))


@pytest.fixture(scope="module")
def exported(crossed: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("exported")
    bundle = crossed.save(folder / "part.flaw")
    return folder / "graph", export_bundle(bundle, folder / "graph")


def test_the_gate_lets_pass_what_moves_by_less_than_1e_4_of_the_scale(crossed: Model):
    assert crossed.calibration is not None
    scale = crossed.calibration.scale
    found = gate(
        crossed.engine,
        Wrapped(crossed.engine, _moved(0.5 * TOLERANCE * scale)),
        crossed.intake,
        [picture for picture in _golden(crossed) if "threshold" not in picture.name],
        crossed.calibration,
    )
    assert found["worst_score"] == pytest.approx(0.5 * TOLERANCE, rel=0.05)
    assert found["worst_map"] == 0
    assert len(found["pictures"]) == 3


@pytest.mark.parametrize("share", [2.0, -2.0])
def test_the_gate_refuses_a_score_that_moves_by_more_than_1e_4_of_the_scale(crossed: Model, share: float):
    assert crossed.calibration is not None
    moved = Wrapped(crossed.engine, _moved(share * TOLERANCE * crossed.calibration.scale))
    with pytest.raises(GateError, match=r"good-\d\.png: .* says .* and wrapped says .* the bundle is not written"):
        gate(crossed.engine, moved, crossed.intake, _golden(crossed), crossed.calibration)


@pytest.mark.parametrize("what", ["score", "map"])
def test_the_gate_refuses_nan(crossed: Model, what: str):
    def broken(found: Prediction) -> Prediction:
        return found._replace(**{what: np.full_like(getattr(found, what), np.nan)})

    for ours, theirs in ((crossed.engine, Wrapped(crossed.engine, broken)), (Wrapped(crossed.engine, broken),) * 2):
        with pytest.raises(GateError):
            gate(ours, theirs, crossed.intake, _golden(crossed), crossed.calibration)


def test_the_gate_refuses_a_map_that_moves_in_one_pixel(crossed: Model):
    def one_pixel(found: Prediction) -> Prediction:
        map = found.map.copy()
        map[0, 3, 5] += 3 * TOLERANCE * map.max()
        return found._replace(map=map)

    calibration = dataclasses.replace(crossed.calibration, map_threshold=0.0)  # type: ignore[type-var]
    with pytest.raises(GateError, match="map 3"):
        gate(crossed.engine, Wrapped(crossed.engine, one_pixel), crossed.intake, _golden(crossed), calibration)


def test_without_a_calibration_scores_are_held_against_that_of_a_picture_that_is_not_good(crossed: Model):
    """Else a network that is sure of its good pictures, whose scores are then rounding, could not be saved."""
    golden = _golden(crossed)[:3]
    images = [crossed.intake(picture.content)[0] for picture in golden]
    for image in images:
        image[:, 16:32, 16:32] = 1 - image[:, 16:32, 16:32]
    largest = max(float(crossed.engine(image[None]).score[0]) for image in images)
    assert largest > 1.5 * max(float(crossed.engine(crossed.intake(g.content)[0][None]).score[0]) for g in golden)
    for share, passes in ((0.5, True), (2.0, False)):
        moved = Wrapped(crossed.engine, lambda f, share=share: f._replace(score=f.score + share * TOLERANCE * largest))
        if passes:
            found = gate(crossed.engine, moved, crossed.intake, golden, None)
            assert found["worst_score"] == pytest.approx(5e-5, rel=0.1)
        else:
            with pytest.raises(GateError, match="of the scale"):
                gate(crossed.engine, moved, crossed.intake, golden, None)


def test_the_gate_refuses_a_verdict_that_flips_however_little_the_score_moves(crossed: Model):
    picture = _golden(crossed)[0]
    score, _ = crossed.predict(picture.content)
    assert crossed.calibration is not None
    little = 0.1 * TOLERANCE * crossed.calibration.scale
    calibration = dataclasses.replace(crossed.calibration, threshold=score + little / 2)
    with pytest.raises(GateError, match="the verdict flips"):
        gate(crossed.engine, Wrapped(crossed.engine, _moved(little)), crossed.intake, [picture], calibration)


def test_the_gate_refuses_a_verdict_that_flips_to_review(banded: Model):
    """At the lower threshold no picture becomes NOK, and still the verdict is another."""
    calibration, pictures = banded.calibration, {golden.name: golden for golden in _golden(banded)}
    assert calibration is not None
    assert calibration.review_threshold is not None
    below = pictures["below-review.png"]
    gap = calibration.review_threshold - banded.predict(below.content)[0]
    assert 0 <= gap < 0.01 * calibration.scale
    large = dataclasses.replace(calibration, scale=1e4 * calibration.scale)  # the score alone would pass
    found = gate(banded.engine, banded.engine, banded.intake, list(pictures.values()), large)
    assert [entry["verdict"] for entry in found["pictures"]].count("REVIEW") == 2
    with pytest.raises(GateError, match=r"below-review\.png.* and the verdict flips"):
        gate(banded.engine, Wrapped(banded.engine, _moved(1.1 * gap)), banded.intake, [below], large)


def test_a_picture_alone_is_judged_by_the_thresholds_whatever_the_views(banded: Model):
    calibration = dataclasses.replace(banded.calibration, views=(3, 3))  # type: ignore[type-var]
    low, high = calibration.review_threshold, calibration.threshold
    assert low is not None
    scores = (low, np.nextafter(low, np.inf), high, np.nextafter(high, np.inf))
    assert [judged_alone(score, calibration) for score in scores] == ["OK", "REVIEW", "REVIEW", "NOK"]
    assert [calibration.verdict([score] * 3) for score in scores] == ["OK", "REVIEW", "REVIEW", "NOK"]
    assert judged_alone(high, dataclasses.replace(calibration, review_threshold=None)) == "OK"
    assert judged_alone(high, None) is None


def test_golden_pictures_stand_at_the_thresholds_of_another_calibration(crossed: Model, banded: Model):
    old, new = crossed.calibration, banded.calibration
    assert old is not None
    assert new is not None
    assert new.review_threshold is not None
    before, files = crossed.bundle.files, banded.bundle.files
    good = {name for name in before if name.startswith("golden/good-")}
    assert len(good) == 3
    near = [f"{where}-{what}.png" for what in ("threshold", "review") for where in ("below", "above")]
    assert {name for name in files if name.startswith("golden/")} == good | {f"golden/{name}" for name in near}
    assert all(files[name] == before[name] for name in good)
    assert files["golden/below-threshold.png"] != before["golden/below-threshold.png"]
    said = {entry["name"]: entry for entry in banded.bundle.json("golden.json")}
    assert len(said) == 7
    for name, entry in said.items():
        score, map = banded.predict(files[f"golden/{name}"])
        assert (entry["score"], entry["peak"]) == (score, pytest.approx(float(map.max())))
        assert entry["verdict"] == banded.inspect(files[f"golden/{name}"]).verdict
        assert entry["nok"] == (score > new.threshold)
    assert [said[name]["verdict"] for name in near] == ["REVIEW", "NOK", "OK", "REVIEW"]
    for what, threshold in (("threshold", new.threshold), ("review", new.review_threshold)):
        low, high = (said[f"{where}-{what}.png"]["score"] for where in ("below", "above"))
        assert low <= threshold < high
        assert high - low < 0.03 * new.scale  # 8 bits fade no finer
        assert not low <= old.threshold < high
    assert banded.golden() == (0.0, [])


def test_golden_pictures_of_a_threshold_that_nothing_crosses_are_taken_out(crossed: Model, banded: Model):
    far = calibrate(crossed, policy="manual", threshold=1e6).calibration
    assert far is not None
    files = golden_anew(banded.engine, banded.intake, banded.bundle.files, far)
    assert sorted(name for name in files if name.startswith("golden/")) == [f"golden/good-{i}.png" for i in range(3)]
    assert [entry["name"] for entry in json.loads(files["golden.json"])] == [f"good-{i}.png" for i in range(3)]
    others = {name for name in files if not name.startswith("golden")}
    assert others == {name for name in banded.bundle.files if not name.startswith("golden")}
    assert all(files[name] == banded.bundle.files[name] for name in others)
    assert Model(Bundle(files, "far")).golden()[1] == []
    back = golden_anew(crossed.engine, crossed.intake, files, crossed.calibration)  # type: ignore[arg-type]
    assert {name: back[name] for name in back if name.startswith("golden/")} == {
        name: content for name, content in crossed.bundle.files.items() if name.startswith("golden/")
    }


@pytest.mark.parametrize("what", ["score", "map"])
def test_golden_pictures_are_not_made_of_nan(banded: Model, what: str):
    def broken(found: Prediction) -> Prediction:
        return found._replace(**{what: np.full_like(getattr(found, what), np.nan)})

    engine, calibration = Wrapped(banded.engine, broken), banded.calibration
    assert calibration is not None
    with pytest.raises(GateError, match=r"golden picture good-0\.png: wrapped finds no finite score"):
        golden_anew(engine, banded.intake, banded.bundle.files, calibration)


def test_a_calibration_that_does_not_hold_is_not_exported(crossed: Model, tmp_path: Path):
    half = json.dumps({**crossed.bundle.json("calibration.json"), "precision": "fp16"}).encode()
    path = crossed.bundle.replace({"calibration.json": half}).write(tmp_path / "half.flaw")
    with pytest.raises(GateError, match=r"half\.flaw: calibrated in fp16, and onnxruntime .*; nothing is written"):
        export_bundle(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_exported_again_says_what_the_bundle_says(
    exported: tuple[Path, dict[str, str]], crossed: Model, world: Path
):
    folder, said = exported
    assert sorted(path.name for path in folder.iterdir()) == ["calibration.json", "model.onnx", "use.json"]
    assert said["verdicts flipped"] == "0"
    assert said["golden pictures"] == "5"
    again = OnnxEngine((folder / "model.onnx").read_bytes())
    for path in sorted((world / "test").rglob("*.png")):
        image = crossed.intake(path)[0][None]
        np.testing.assert_allclose(again(image).score, crossed.engine(image).score, rtol=1e-6)


def test_a_customer_needs_nothing_but_onnxruntime_and_pillow(
    exported: tuple[Path, dict[str, str]], crossed: Model, world: Path
):
    folder, _ = exported
    use = json.loads((folder / "use.json").read_text())
    threshold = json.loads((folder / "calibration.json").read_text())["threshold"]
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    height, width = use["intake"]["size"]
    for path in sorted((world / "test").rglob("*.png")):
        picture = Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        image = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 255
        map, score = session.run(["map", "score"], {"image": np.ascontiguousarray(image)})
        found = crossed.inspect(path)
        assert float(np.asarray(score)[0]) == pytest.approx(found.score, rel=1e-6)
        assert ("NOK" if np.asarray(score)[0] > threshold else "OK") == found.verdict
        np.testing.assert_allclose(np.asarray(map)[0], found.map, rtol=1e-5)


@pytest.mark.parametrize("which", ["crossed", "held", "alone"])
def test_the_graph_carries_nothing_of_the_machine_it_was_made_on(which: str, request: pytest.FixtureRequest):
    content = request.getfixturevalue(which).bundle.files["model.onnx"]
    graph = onnx.load_from_string(content)
    for word in (b".py", b"site-packages", b"torch/", b"Traceback", str(Path.home()).encode() + b"/", b"/tmp"):
        assert word not in content, word
    assert graph.doc_string == graph.graph.doc_string == ""
    assert not graph.metadata_props
    for thing in (*graph.graph.node, *graph.graph.value_info, *graph.graph.initializer, *graph.graph.output):
        assert thing.doc_string == ""
        assert not thing.metadata_props
    for tensor in graph.graph.initializer:
        assert tensor.data_location == onnx.TensorProto.DEFAULT
        assert not tensor.external_data
    assert {entry.domain: entry.version for entry in graph.opset_import}[""] == 18
    assert all(entry.domain in ("", "pkg.onnxscript.torch_lib.common") for entry in graph.opset_import)


@pytest.mark.parametrize("which", ["crossed", "held"])
def test_the_graph_takes_any_number_of_pictures_and_each_is_judged_alone(
    which: str, request: pytest.FixtureRequest, world: Path
):
    model: Model = request.getfixturevalue(which)
    session = onnxruntime.InferenceSession(model.bundle.files["model.onnx"], providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(float)", [3, 64, 64])
    assert isinstance(image.shape[0], str)
    assert [output.name for output in session.get_outputs()] == ["map", "score"]
    batch = np.stack([model.intake(path)[0] for path in sorted((world / "test").rglob("*.png"))[3:8]])
    alone = [model.engine(picture[None]) for picture in batch]
    for count in (1, 2, 5):
        map, score = session.run(["map", "score"], {"image": batch[:count]})
        assert np.asarray(map).shape == (count, 64, 64)
        for i in range(count):
            np.testing.assert_allclose(np.asarray(score)[i], alone[i].score[0], rtol=1e-5)
            np.testing.assert_allclose(np.asarray(map)[i], alone[i].map[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("depth", "white"), [(np.uint8, None), (np.uint16, 4095)])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_picture_is_disturbed_until_it_stands_next_to_the_threshold(
    depth: type, white: int | None, channels: tuple[int, ...]
):
    top = white or 255
    picture = np.random.default_rng(0).integers(0, top // 4, (48, 40, *channels)).astype(depth)
    intake, engine = Intake((32, 32), white), Mean()

    def score(source: object) -> float:
        return float(engine(intake(source)[0][None]).score[0])  # type: ignore[arg-type]

    threshold = score(picture) + 0.01
    below, above = near_threshold(engine, intake, picture, threshold)  # type: ignore[arg-type]
    assert (below.name, above.name) == ("below-threshold.png", "above-threshold.png")
    if channels and depth is np.uint16:
        below, above = (decode(golden.content)[..., 0] for golden in (below, above))  # Pillow writes deep grey only
        assert below.dtype == np.uint16
        return
    assert score(below.content) <= threshold < score(above.content)
    assert score(above.content) - score(below.content) < 1e-3


def test_a_threshold_that_no_fading_crosses_gives_no_picture(crossed: Model, world: Path):
    picture = world / "train/good/000.png"
    for threshold in (-1.0, 1e9):
        assert near_threshold(crossed.engine, crossed.intake, picture, threshold) == []


@pytest.mark.slow
def test_a_bundle_without_a_calibration_can_be_exported(alone: Model, tmp_path: Path):
    said = export_bundle(alone.save(tmp_path / "alone.flaw"), tmp_path / "out")
    assert said["golden pictures"] == "1"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.onnx", "use.json"]
    use = json.loads((tmp_path / "out/use.json").read_text())
    assert use["intake"]["white"] == 4095
    assert load(tmp_path / "alone.flaw").calibration is None

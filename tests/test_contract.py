"""What every registered detector keeps, fitted through the front door on the tiny world."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt

from flawmap.detectors import DETECTORS, create, describe, detector_class
from flawmap.errors import UsageError
from flawmap.run import export
from flawmap.run.bundle import Bundle
from flawmap.run.engine import Engine, OnnxEngine, TorchEngine
from flawmap.run.fit import fit
from flawmap.run.model import Model, load
from flawmap.types import Prediction, Verdict
from flawmap.verdict.metrics import auroc

STEPS = 120  # for those that learn
NEAR_PX = 8  # one patch of the networks' grid
TOLERANCE = 1e-4  # of the scale, between torch and ONNX Runtime

VARIANTS = {"vanilla": ("pouta", {"reuse": False})}  # networks so different that they are held to it too

every_method = pytest.mark.parametrize("method", DETECTORS)


def _fit(method: str, world: Path, out: Path) -> Model:
    """With so many parts held out that no method cross-fits."""
    method, more = VARIANTS.get(method, (method, {}))
    about = describe(method)
    options = {"size": 64, **more, **({"steps": STEPS} if "steps" in about["options"] else {})}
    if "small" in about["presets"]:  # it trains a network of its own
        # DRAEM learns slower where the processor has no bfloat16.
        options |= {"preset": "small", "steps": 300 if method == "draem" else 200, "rate": 3e-3}
        options |= {} if "teacher" in about["options"] else {"width": 8, "window": 7}  # the embedded one has its width
    return fit(world, method, options=options, seed=3, false_alarm=0.1, held_out=0.4, out=out, device="cpu")


@pytest.fixture(scope="session", params=[*DETECTORS, *VARIANTS])
def model(request: pytest.FixtureRequest, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return _fit(request.param, world, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def trained(model: Model) -> TorchEngine:
    return TorchEngine.from_bundle(model.bundle.config, model.bundle.files["weights.safetensors"])


@pytest.fixture(params=["onnx", "torch", "openvino"])
def engine(request: pytest.FixtureRequest, model: Model, trained: TorchEngine) -> Engine:
    if request.param == "openvino":
        return Model(model.bundle, "openvino").engine  # which has passed its gate
    return model.engine if request.param == "onnx" else trained


@pytest.fixture(scope="session")
def images(world: Path) -> Callable[[Model], np.ndarray]:
    """Good and defective pictures in turn, as the network takes them: (12, 3, 64, 64)."""

    def read(model: Model) -> np.ndarray:
        pairs = zip(_pictures(world, "good"), _pictures(world, "square"), strict=True)
        return np.stack([model.intake(path)[0] for pair in pairs for path in pair])

    return read


def _pictures(world: Path, kind: str) -> list[Path]:
    return sorted((world / "test" / kind).glob("*.png"))


def test_maps_and_scores_have_their_shapes_and_are_finite(
    model: Model, engine: Engine, images: Callable[[Model], np.ndarray]
) -> None:
    for count in (1, 5):
        found = engine(images(model)[:count])
        assert isinstance(found, Prediction)
        assert (found.map.shape, found.score.shape) == ((count, 64, 64), (count,))
        assert found.map.dtype == found.score.dtype == np.float32
        assert np.isfinite(found.map).all()
        assert np.isfinite(found.score).all()


def test_higher_is_stranger(model: Model, world: Path) -> None:
    kinds = ["good"] * 6 + ["square"] * 6
    scores = [model.inspect(path).score for kind in ("good", "square") for path in _pictures(world, kind)]
    area = auroc(scores, [kind != "good" for kind in kinds])
    assert area is not None
    assert area >= 0.9


def test_the_map_is_highest_at_the_defect(model: Model, world: Path) -> None:
    for path in _pictures(world, "square"):
        mask = np.array(Image.open(world / "ground_truth" / "square" / f"{path.stem}_mask.png")) > 0
        map = model.inspect(path).map
        away_px = np.asarray(distance_transform_edt(~mask))[np.unravel_index(map.argmax(), map.shape)]
        assert away_px <= NEAR_PX, path.name
        assert map[mask].mean() > map[~mask].mean(), path.name


def test_defects_are_rejected_and_outlined(model: Model, world: Path) -> None:
    found = [model.inspect(path) for path in _pictures(world, "square")]
    assert [f.verdict for f in found] == [Verdict.NOK] * 6
    assert all(any(r.peak > model.calibration.map_threshold for r in f.regions[0]) for f in found if model.calibration)
    assert sum(len(f.regions[0]) for f in found) >= 6


def test_a_picture_scores_the_same_alone_and_in_a_batch(
    model: Model, engine: Engine, images: Callable[[Model], np.ndarray]
) -> None:
    batch = engine(images(model))
    for place, image in enumerate(images(model)):
        alone = engine(image[None])
        assert float(alone.score[0]) == pytest.approx(float(batch.score[place]), rel=1e-5, abs=1e-5)
        np.testing.assert_allclose(alone.map[0], batch.map[place], rtol=0, atol=3e-5 * np.abs(batch.map).max())


def test_saving_and_loading_changes_no_bit(model: Model, images: Callable[[Model], np.ndarray], tmp_path: Path) -> None:
    again = load(model.save(tmp_path / "model.flaw"))
    assert isinstance(again.engine, OnnxEngine)
    assert again.calibration == model.calibration
    for ours, theirs in zip(model.engine(images(model)), again.engine(images(model)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_every_engine_says_what_torch_says(
    model: Model, engine: Engine, trained: TorchEngine, images: Callable[[Model], np.ndarray]
) -> None:
    assert model.calibration
    torchs, others = trained(images(model)), engine(images(model))
    # Hundreds of scales above the threshold, single precision itself is coarser than the tolerance.
    rounding = 8 * np.finfo(np.float32).eps * np.abs(torchs.score)
    assert (np.abs(torchs.score - others.score) <= np.maximum(TOLERANCE * model.calibration.scale, rounding)).all()
    assert np.abs(torchs.map - others.map).max() <= TOLERANCE * np.abs(torchs.map).max()
    verdicts = [[model.calibration.verdict([float(s)]) for s in found.score] for found in (torchs, others)]
    assert verdicts[0] == verdicts[1]


def test_the_same_seed_gives_the_same_scores(
    request: pytest.FixtureRequest,
    model: Model,
    trained: TorchEngine,
    world: Path,
    images: Callable[[Model], np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second fit that is stopped before its export: what follows draws nothing at random, and takes long."""

    def stop(_: Any) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "to_onnx", stop)
    with pytest.raises(KeyboardInterrupt):
        _fit(request.node.callspec.params["model"], world, tmp_path)
    weights = next(tmp_path.rglob("model.safetensors")).read_bytes()
    again = TorchEngine.from_bundle(model.bundle.config, weights)
    for ours, theirs in zip(again(images(model)), trained(images(model)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_without_a_calibration_there_is_no_verdict(model: Model, world: Path) -> None:
    files = {name: content for name, content in model.bundle.files.items() if name != "calibration.json"}
    found = Model(Bundle(files, "uncalibrated")).inspect(_pictures(world, "square")[0])
    assert (found.verdict, found.p_value, found.threshold, found.regions) == (None, None, None, ((),))
    assert found.score == model.inspect(_pictures(world, "square")[0]).score


@every_method
def test_it_says_what_it_is_and_where_it_comes_from(method: str) -> None:
    cls = detector_class(method)
    assert cls.name == method
    assert cls.paper.startswith("https://")
    text = sys.modules[cls.__module__].__doc__ or ""
    assert cls.paper in text
    assert text.startswith(f"{cls.title}: ")


@every_method
def test_every_option_has_its_line_of_help(method: str) -> None:
    options = describe(method)["options"]
    assert "size" in options
    assert [name for name, row in options.items() if len(row["help"]) < 5] == []


@every_method
def test_a_misspelt_option_is_answered_with_the_options(method: str) -> None:
    with pytest.raises(UsageError, match=r"'sise'; did you mean size\?") as caught:
        create(method, {"sise": 64})
    assert [name for name in describe(method)["options"] if name not in str(caught.value)] == []


@every_method
@pytest.mark.parametrize("value", ["large", "64.5", 64.5, None])
def test_a_value_of_another_type_is_a_usage_error(method: str, value: Any) -> None:
    with pytest.raises(UsageError, match="option size"):
        create(method, {"size": value})


@every_method
def test_a_preset_is_made_of_options_and_gives_way_to_them(method: str) -> None:
    cls = detector_class(method)
    for preset, values in cls.presets.items():
        config = dataclasses.asdict(cls.configure({"preset": preset}))
        assert {key: config[key] for key in values} == dict(values)
        assert cls.configure({"preset": preset, "size": "96"}).size == 96
    with pytest.raises(UsageError, match="no preset 'papre'; there are: ") as caught:
        create(method, {"preset": "papre"})
    assert [name for name in cls.presets if name not in str(caught.value)] == []


@every_method
def test_options_come_back_from_a_recipe_as_they_were(method: str) -> None:
    cls = detector_class(method)
    for preset in (None, *cls.presets):
        config = cls.configure({"preset": preset} if preset else {})
        assert cls.configure(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_a_method_that_is_not_there_is_answered_with_the_methods() -> None:
    with pytest.raises(UsageError, match=f"no method 'patchcare'; there are: {', '.join(DETECTORS)}"):
        create("patchcare")

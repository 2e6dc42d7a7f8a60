from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from flawmap.errors import BundleError, CalibrationError, DataError, GateError
from flawmap.images.decode import decode
from flawmap.run import loss
from flawmap.run.bundle import Bundle
from flawmap.run.calibrate import calibrate
from flawmap.run.deliver import export_bundle
from flawmap.run.engine import OnnxEngine, OpenVinoEngine
from flawmap.run.graph import precision
from flawmap.run.int8 import _no_looser, in_int8
from flawmap.run.loss import Loss, compare, gate
from flawmap.run.model import Model, load
from flawmap.run.quantise import quantised
from flawmap.verdict.metrics import auroc

ESCAPED = loss.MOST_ESCAPED
WIDE = {"most_lost": 1.0, "most_flipped": 1.0}  # networks of a few seconds are no measure of what int8 costs


@pytest.fixture(autouse=True, scope="module")
def _any_escapes() -> Iterator[None]:
    """For the same reason; the gate on them is tested by figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "MOST_ESCAPED", 1.0)
        yield


@pytest.fixture(scope="module", params=["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def made(request: pytest.FixtureRequest, held: Model, paired: Path) -> Model:
    return in_int8(held, request.param, paired, **WIDE)[0]


def test_the_backbone_is_quantised_and_the_head_is_not(held: Model):
    images = [np.full((1, 3, 64, 64), value, np.float32) for value in (0.0, 0.5, 1.0)]
    before, (content, count) = held.bundle.files["model.onnx"], quantised(held.bundle.files["model.onnx"], images)
    graph = onnx.load_from_string(content)
    into = {node.output[0]: node for node in graph.graph.node}
    inside = [n for n in graph.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    taken = {n.name for n in inside if n.input[1] in into and into[n.input[1]].op_type == "DequantizeLinear"}
    assert len(taken) == count > 10
    assert all(name.startswith("backbone/") for name in taken)
    first = next(n.name for n in onnx.load_from_string(before).graph.node if n.op_type == "Conv")
    assert first not in taken
    assert {n.name for n in inside if not n.name.startswith("backbone/")} & taken == set()
    for node in inside:
        if node.name in taken:
            weight = next(w for w in graph.graph.initializer if w.name == into[node.input[1]].input[0])
            values = onnx.numpy_helper.to_array(weight)
            assert values.dtype == np.int8
            assert np.abs(values.astype(int)).max() <= 64  # seven bits: 2 x 255 x 64 fits into 16
    assert (precision(before), precision(content)) == ("fp32", "int8")
    assert not graph.metadata_props


def test_a_bundle_in_int8_is_calibrated_in_int8_by_the_engine_that_judges(made: Model, held: Model):
    old, new = held.calibration, made.calibration
    assert old is not None
    assert new is not None
    assert new.engine == made.engine.name
    assert made.engine.name.endswith(" cpu int8")
    assert (new.precision, old.precision) == ("int8", "fp32")
    assert (new.policy, new.target, new.parts, new.views, new.rank) == (
        old.policy,
        old.target,
        old.parts,
        old.views,
        old.rank,
    )
    assert new.scores != old.scores
    assert made.unfit is None
    assert made.golden() == (0.0, [])
    assert made.bundle.files["data.jsonl"] == held.bundle.files["data.jsonl"]
    assert made.bundle.config["graph"]["operators"]["QuantizeLinear"] > 10
    assert len(made.bundle.files["model.onnx"]) < 0.6 * len(held.bundle.files["model.onnx"])


def test_the_calibration_is_that_of_the_held_out_pictures_judged_one_by_one(made: Model, paired: Path):
    assert made.calibration is not None
    rows = [json.loads(line) for line in made.bundle.files["data.jsonl"].splitlines()]
    parts: dict[str, list[float]] = {}
    for row in rows:
        if row.get("role", "") == "calibration":
            parts.setdefault(row["part"], []).append(made.look(paired / row["name"]).score)
    assert sorted(max(scores) for scores in parts.values()) == pytest.approx(list(made.calibration.scores), rel=1e-6)


def test_what_is_lost_is_written_into_the_bundle_and_is_what_the_engines_say(made: Model, held: Model, paired: Path):
    told = made.bundle.config["int8"]["loss"]
    found = [(path, kind) for kind in ("good", "square") for path in sorted((paired / "test" / kind).glob("*.png"))]
    labels = [kind != "good" for _, kind in found]
    areas = [auroc([model.look(path).score for path, _ in found], labels) for model in (held, made)]
    assert told["auroc_labelled"] == pytest.approx(areas)
    assert told["labelled"] == len(found)
    assert (told["good"], told["painted"] >= 60) == (8, True)
    assert told["pictures"] == told["good"] + told["painted"] + told["labelled"]
    assert told["judged"] == told["painted"] + told["labelled"]
    assert told["defective"] == told["painted"] + sum(labels)
    assert f"Precision: int8 against fp32: I-AUROC on painted defects {told['auroc_painted'][0]:.4f}" in made.card
    assert made.calibration is not None
    assert made.calibration.sentence in made.card


def test_a_bundle_in_int8_gives_no_verdict_by_an_engine_that_did_not_calibrate_it(
    made: Model, tmp_path: Path, paired: Path
):
    path, own = made.save(tmp_path / "int8.flaw"), made.engine.name.split()[0].removesuffix("runtime")
    again = load(path, own)
    picture = sorted((paired / "test" / "good").glob("*.png"))[0]
    assert again.judge([0.0])[1] == "OK" if again.calibration and again.calibration.views == (1, 1) else True
    for engine in {"onnx", "openvino", "torch"} - {own}:
        if engine == "openvino":  # which is held against the golden pictures when it is loaded
            with pytest.raises(GateError, match="scores of the golden pictures differ"):
                load(path, engine)
            continue
        other = load(path, engine)
        assert other.unfit
        with pytest.raises(CalibrationError, match="calibrate again"):
            other.inspect_part([picture, picture])


@pytest.mark.slow
def test_the_same_pictures_give_the_same_graph_and_the_same_loss(held: Model, paired: Path, made: Model):
    if made.engine.name.startswith("openvino"):
        pytest.skip("one engine is enough")
    again, _ = in_int8(held, "onnx", paired, **WIDE)
    assert again.bundle.files["model.onnx"] == made.bundle.files["model.onnx"]
    assert again.bundle.config["int8"] == made.bundle.config["int8"]


def _loss(**changed: object) -> Loss:
    values = {"good": 900, "painted": 60, "labelled": 40, "defective": 100, "flips": 5, "escapes": 2, "alarms": 3}
    values["worst_score"] = 0.4
    return Loss(**{**values, "auroc_painted": (0.9, 0.895), "auroc_labelled": (1.0, 0.99), **changed})  # type: ignore[arg-type]


def test_the_gate_on_what_is_lost():
    gate(_loss())  # just within both: 0.01 of the I-AUROC, 5 of 100 verdicts
    gate(_loss(auroc_painted=(0.5, 0.9), auroc_labelled=None, flips=0))
    refused = [_loss(flips=6), _loss(auroc_painted=(0.9, 0.889)), _loss(auroc_labelled=(1.0, 0.989))]
    refused += [_loss(worst_score=np.inf), _loss(worst_score=np.nan), _loss(auroc_painted=(0.9, np.nan))]
    for each in refused:
        with pytest.raises(GateError, match=r"int8 against fp32: .* allowed are 0\.01 of the I-AUROC and 5%"):
            gate(each)
    gate(_loss(flips=6), most_flipped=0.06)  # of 100: the 900 good ones that calibrated do not count
    gate(_loss(auroc_painted=(0.9, 0.86)), most_lost=0.05)


def test_defective_pictures_that_pass_are_bounded_by_themselves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loss, "MOST_ESCAPED", ESCAPED)
    gate(_loss())  # 2 of 100
    gate(_loss(painted=60, labelled=0, defective=60, flips=1, escapes=1, alarms=0))
    for each in (_loss(flips=3, escapes=3, alarms=0), _loss(defective=60, flips=2, escapes=2, alarms=0)):
        with pytest.raises(GateError, match=r"defective pictures go from NOK or REVIEW to OK; .* at most 2%"):
            gate(each, most_lost=1.0, most_flipped=1.0)


def test_flips_are_of_painted_and_labelled_pictures_and_escapes_of_defective_ones(held: Model, paired: Path):
    from flawmap.images.folder import find

    found = [s for s in find(paired) if s.split == "test"]
    good, assured = [s for s in found if s.good], held.calibration
    assert assured is not None
    passing = Model(held.bundle)
    passing.calibration = dataclasses.replace(assured, threshold=1e9)
    told = compare(held, passing, good[:1], found)
    stopped = [held.look(s.source).score > assured.threshold for s in found]
    bad = sum(stop for stop, s in zip(stopped, found, strict=True) if not s.good)
    assert (told.judged, told.defective) == (60 + len(found), 60 + sum(not s.good for s in found))
    assert told.alarms == 0
    assert bad > 0
    assert told.flips - told.escapes == sum(stopped) - bad
    assert bad < told.escapes <= told.defective
    back = compare(passing, held, good[:1], found)
    assert (back.escapes, back.alarms) == (0, told.flips)


class Noisy:
    """An engine that adds noise to scores, in units of `scale`."""

    def __init__(self, model: Model, share: float) -> None:
        assert model.calibration is not None
        self.engine, self.name = model.engine, model.engine.name
        self.by, self.random = share * model.calibration.scale, np.random.default_rng(0)

    def __call__(self, image_B3HW: np.ndarray) -> object:
        found = self.engine(image_B3HW)
        return found._replace(score=found.score + np.float32(self.by * self.random.normal()))


def test_noise_is_found_by_the_comparison_and_none_where_there_is_none(held: Model, paired: Path):
    from flawmap.images.folder import find

    good = [s for s in find(paired) if s.split == "test" and s.good]
    same = compare(held, held, good)
    assert (same.flips, same.worst_score, same.lost, same.auroc_labelled) == (0, 0.0, 0.0, None)
    other = Model(held.bundle)
    other.engine = Noisy(held, 30.0)  # type: ignore[assignment]
    found = compare(held, other, good)
    assert found.flips > 0.1 * found.judged
    assert found.worst_score > 20
    assert found.flips == found.escapes + found.alarms
    with pytest.raises(GateError):
        gate(found)


def test_fresh_parts_never_loosen_the_target_silently(held: Model, paired: Path, world: Path):
    from flawmap.images.folder import find

    assert held.calibration is not None
    few = sorted((world / "test" / "good").glob("*.png"))[:3]
    with pytest.raises(CalibrationError, match=r"3 good parts promise no less than 0\.25 .* for 0\.2: give 4 or"):
        in_int8(held, "onnx", paired, few)
    sure = dataclasses.replace(held.calibration, confidence=0.95, target=0.05)
    with pytest.raises(CalibrationError, match="give 59 or more"):  # 0.95 ** 59 is the first below 0.05
        _no_looser(sure, find(few), "few")


def test_too_much_lost_writes_nothing(held: Model, paired: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = held.save(tmp_path / "held.flaw")
    monkeypatch.setattr(loss, "compare", lambda *_: _loss(flips=50))
    with pytest.raises(GateError, match="50 of 100 verdicts flip"):
        export_bundle(path, tmp_path / "out", kind="int8", pictures=paired)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_cross_fitted_calibration_takes_fresh_good_parts(crossed: Model, world: Path):
    with pytest.raises(
        DataError, match=r"cannot be repeated in int8. Give good parts that it has not seen with --fresh"
    ):
        in_int8(crossed, "onnx", world, **WIDE)
    with pytest.raises(DataError, match="the model was fitted on this very picture"):
        in_int8(crossed, "onnx", world, world / "train" / "good", **WIDE)
    with pytest.raises(CalibrationError, match=r"6 good parts promise .* calibrated for 0\.04: give 24 or more"):
        in_int8(crossed, "onnx", world, world / "test" / "good", **WIDE)
    fresh = [np.roll(decode(path), 9, axis=1) for path in sorted((world / "train" / "good").glob("*.png"))]
    made, told = in_int8(crossed, "onnx", world, fresh, **WIDE)
    assert made.calibration is not None
    assert crossed.calibration is not None
    assert (made.calibration.parts, made.calibration.cross_fitted) == (24, False)
    assert made.calibration.target == crossed.calibration.target
    assert told["promise"] == made.calibration.sentence
    rows = [json.loads(line) for line in made.bundle.files["data.jsonl"].splitlines()]
    assert [row.get("role", "") for row in rows].count("calibration") == 24


def test_pictures_that_are_not_there_are_told(held: Model, paired: Path, world: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"holds 0 of the 16 pictures that the model was fitted on"):
        in_int8(held, "onnx", world / "test" / "good", **WIDE)
    rows = [json.loads(line) for line in held.bundle.files["data.jsonl"].splitlines()]
    fitted = [paired / row["name"] for row in rows if row.get("role", "").startswith("fit")]
    with pytest.raises(
        DataError, match=r"lacks 8 of the 8 good pictures that calibrated the model, such as train/good"
    ):
        in_int8(held, "onnx", fitted, **WIDE)


def test_a_model_without_a_calibration_is_not_quantised(held: Model, paired: Path):
    files = {name: content for name, content in held.bundle.files.items() if name != "calibration.json"}
    with pytest.raises(GateError, match="calibrate first"):
        in_int8(Model(Bundle(files, "bare")), "onnx", paired)


@pytest.mark.slow
def test_the_policy_stays_the_same(held: Model, paired: Path):
    made = calibrate(held, policy="no-escape", defects=paired, margin=0.25)
    assert made.calibration is not None
    again, _ = in_int8(made, "onnx", paired, **WIDE)
    assert again.calibration is not None
    for name in ("policy", "closer", "unit", "rule", "min_area_px", "pitch_mm", "parts"):
        assert getattr(again.calibration, name) == getattr(made.calibration, name)
    assert len(again.calibration.defect_scores) == len(made.calibration.defect_scores)
    rows = [json.loads(line) for line in made.bundle.files["data.jsonl"].splitlines()]
    others = [paired / row["name"] for row in rows if "square" not in row["name"]]
    with pytest.raises(DataError, match="known defects that the policy no-escape rests on"):
        in_int8(made, "onnx", others, **WIDE)


def test_precision_is_told_by_the_graph_and_not_by_what_is_written_beside_it(made: Model):
    graph = made.bundle.files["model.onnx"]
    assert OnnxEngine(graph).name.endswith("int8")
    assert OpenVinoEngine(graph).name.endswith("int8")
    assert made.calibration is not None
    lying = json.dumps({**made.calibration.to_dict(), "precision": "fp32"}).encode()
    with pytest.raises((BundleError, CalibrationError, GateError)):
        Model(made.bundle.replace({"calibration.json": lying})).judge([0.0, 0.0])
    assert dataclasses.replace(made.calibration, precision="fp32").unfit(made.engine.name)

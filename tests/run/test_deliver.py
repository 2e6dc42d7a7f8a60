from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from flawmap.cli import main
from flawmap.errors import GateError, UsageError
from flawmap.images.decode import decode
from flawmap.run.bundle import Bundle, read
from flawmap.run.calibrate import calibrate
from flawmap.run.deliver import STEPS, export_bundle, use
from flawmap.run.doctor import doctor
from flawmap.run.export import TOLERANCE
from flawmap.run.int8 import _bare
from flawmap.run.model import Model, load
from flawmap.run.quantise import quantised
from flawmap.run.triton import config


@pytest.fixture(scope="module")
def path(crossed: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crossed.save(tmp_path_factory.mktemp("deliver") / "part.flaw")


@pytest.fixture(scope="module")
def openvino(path: Path) -> Path:
    out = path.with_name("openvino.flaw")
    said = export_bundle(path, out, engine="openvino", form="bundle")
    assert said["verdicts flipped"] == "0"
    return out


def test_a_bundle_for_openvino_is_calibrated_and_remembered_by_openvino(openvino: Path, crossed: Model, world: Path):
    model = load(openvino, "openvino")
    assert model.calibration is not None
    assert crossed.calibration is not None
    assert model.calibration.engine == model.engine.name
    assert model.calibration.threshold == crossed.calibration.threshold
    assert model.golden() == (0.0, [])
    engines = model.bundle.config["parity"]["engines"]
    assert [name.split()[0] for name in engines] == ["torch", "onnxruntime", "openvino"]
    assert model.bundle.config["parity"]["worst_score"] <= TOLERANCE
    for picture in sorted((world / "test").rglob("*.png")):
        ours, theirs = model.inspect(picture), crossed.inspect(picture)
        assert abs(ours.score - theirs.score) <= TOLERANCE * crossed.calibration.scale
        assert ours.verdict == theirs.verdict
    found, sound = doctor(openvino)  # by the engine that the bundle is for
    assert (sound, found["engine"]) == (True, model.engine.name)
    assert found["golden pictures"].startswith("scores within 0.0e+00")


def test_the_other_engines_that_were_held_against_it_may_judge_too(openvino: Path, world: Path):
    picture = world / "test" / "square" / "000.png"
    assert {str(load(openvino, engine).inspect(picture).verdict) for engine in ("onnx", "torch", "openvino")} == {"NOK"}
    bundle = read(openvino)
    alone = {**bundle.config, "parity": {**bundle.config["parity"], "engines": []}}
    model = Model(bundle.replace({"config.json": json.dumps(alone).encode()}))
    assert "openvino" in str(model.unfit)
    assert "was never held against it" in str(model.unfit)


def test_an_engine_that_says_something_else_writes_nothing(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from flawmap.run.engine import OpenVinoEngine

    judge = OpenVinoEngine.__call__
    monkeypatch.setattr(OpenVinoEngine, "__call__", lambda *a: judge(*a)._replace(score=judge(*a).score * 1.01))
    with pytest.raises(GateError, match=r"openvino .* the bundle is not written"):
        export_bundle(path, tmp_path / "out.flaw", engine="openvino", form="bundle")
    assert list(tmp_path.iterdir()) == []


def test_the_model_repository_of_triton_is_what_the_graph_is(path: Path, crossed: Model, tmp_path: Path):
    """Its configuration, read by Triton's own description of it, has the graph's names, types and sizes."""
    pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as triton

    assert main(["export", str(path), "--format", "triton", "--name", "bottle", "--out", str(tmp_path)]) == 0
    folder = tmp_path / "bottle"
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    assert names == ["1/model.onnx", "calibration.json", "config.pbtxt", "use.json"]
    told = text_format.Parse((folder / "config.pbtxt").read_text(), triton.ModelConfig())
    assert (told.name, told.platform) == ("bottle", "onnxruntime_onnx")
    assert told.max_batch_size == 8
    assert told.HasField("dynamic_batching")
    assert [group.kind for group in told.instance_group] == [triton.ModelInstanceGroup.KIND_CPU]
    graph = onnx.load(folder / "1" / "model.onnx").graph
    types = {onnx.TensorProto.FLOAT: triton.TYPE_FP32}
    for ours, theirs in ((told.input, graph.input), (told.output, graph.output)):
        assert [each.name for each in ours] == [each.name for each in theirs]
        for one, other in zip(ours, theirs, strict=True):
            dims = other.type.tensor_type.shape.dim
            assert one.data_type == types[other.type.tensor_type.elem_type]
            assert dims[0].dim_param  # any number of pictures
            shape = list(one.reshape.shape) if one.HasField("reshape") else list(one.dims)
            assert shape == [dim.dim_value for dim in dims[1:]]
    assert list(told.output[1].dims) == [1]  # Triton knows no output without dimensions
    assert crossed.calibration is not None
    assert json.loads((folder / "calibration.json").read_text())["threshold"] == crossed.calibration.threshold
    assert main(["export", str(path), "--format", "triton", "--name", "bottle", "--out", str(tmp_path)]) == 2


@pytest.mark.parametrize("name", ["", "../x", "a b", 'x"', "-x"])
def test_a_name_that_triton_cannot_take_is_a_usage_error(name: str):
    with pytest.raises(UsageError, match="cannot be called"):
        config(name, (64, 64))


def test_use_json_says_what_the_graph_is_and_what_the_client_does(path: Path, crossed: Model):
    plain = json.loads(use(crossed))
    assert plain["graph"] == crossed.bundle.config["graph"]
    assert plain["intake"] == json.loads(json.dumps(crossed.intake.to_dict()))
    assert "client" not in plain
    assert [entry["name"] for entry in plain["parity"]["pictures"]][:1] == ["good-0.png"]
    assert set(STEPS) <= plain["intake"].keys()
    tiled = {**crossed.bundle.config["intake"], "tile": 64, "overlap": 8, "scales": [1.0], "scene": [64, 64]}
    config = json.dumps({**crossed.bundle.config, "intake": tiled}).encode()
    told = json.loads(use(Model(crossed.bundle.replace({"config.json": config}))))
    assert told["client"].startswith("The intake has tile, overlap, scales:")
    cropped = json.dumps({**crossed.bundle.config, "intake": {**plain["intake"], "resize": 80}}).encode()
    told = json.loads(use(Model(crossed.bundle.replace({"config.json": cropped}))))
    assert told["client"].startswith("The intake has resize:")


def test_use_json_says_that_the_threshold_is_of_parts_with_several_views(crossed: Model):
    model = Model(crossed.bundle)
    assert model.calibration is not None
    model.calibration = dataclasses.replace(model.calibration, views=(2, 3), rule="mean")
    client = json.loads(use(model))["client"]
    assert client.startswith("The threshold is of parts with 2 to 3 views")
    assert "the mean of its pictures' scores" in client


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"engine": "tensorrt"}, "no engine 'tensorrt'; there are: onnx, openvino"),
        ({"kind": "fp16"}, "no precision 'fp16'; there are: fp32, int8"),
        ({"form": "zip"}, "no format 'zip'; there are: folder, bundle, triton"),
        ({"kind": "int8"}, "say with --pictures where they lie"),
        ({"pictures": "x"}, "--pictures belongs to the precision int8"),
        ({"part_pattern": "x"}, "--part-pattern belongs to the precision int8"),
        ({"most_lost": 0.1}, "--loss belongs to the precision int8"),
        ({"kind": "int8", "pictures": "x", "most_flipped": 1.5}, "--flips is 1.5: give a share from 0 to 1"),
        ({"kind": "int8", "pictures": "x", "most_lost": np.nan}, "--loss is nan: give a share from 0 to 1"),
        ({"form": "triton", "engine": "openvino"}, "made for Triton's ONNX Runtime"),
        ({"name": "x"}, "a name belongs to the format triton"),
    ],
)
def test_what_makes_no_sense_together_is_a_usage_error(asked: dict, said: str, path: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=said):
        export_bundle(path, tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_where_nothing_can_be_written_is_told_before_the_work(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "models" / "part").mkdir(parents=True)
    refused = [
        (tmp_path / "models", {"form": "bundle"}, r"is a folder, and --format bundle writes one file: give --out"),
        (tmp_path / "file", {}, r"file is a file, and --format folder needs a folder there"),
        (tmp_path / "file" / "x.flaw", {"form": "bundle"}, r"file is a file, and --format bundle needs a folder"),
        (tmp_path / "models", {"form": "triton"}, r"part is there already; give another --name"),
        (tmp_path / "models", {"form": "triton", "name": "a b"}, r"cannot be called 'a b'"),
    ]
    for out, asked, said in refused:
        with pytest.raises(UsageError, match=said):
            export_bundle(tmp_path / "part.flaw", out, **asked)  # there is none: nothing is read before


def test_a_threshold_of_an_earlier_export_does_not_stay(path: Path, crossed: Model, tmp_path: Path):
    export_bundle(path, tmp_path / "out")
    assert (tmp_path / "out" / "calibration.json").exists()
    files = {name: content for name, content in crossed.bundle.files.items() if name != "calibration.json"}
    bare = Bundle(files, "bare").write(tmp_path / "bare.flaw")
    export_bundle(bare, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["model.onnx", "use.json"]


def test_a_bundle_for_openvino_is_made_one_for_onnx_again(openvino: Path, world: Path, tmp_path: Path):
    export_bundle(openvino, tmp_path / "onnx.flaw", engine="onnx", form="bundle")
    model = load(tmp_path / "onnx.flaw")
    assert model.calibration is not None
    assert (model.unfit, model.calibration.engine) == (None, model.engine.name)
    assert model.golden() == (0.0, [])
    assert str(model.inspect(world / "test" / "square" / "000.png").verdict) == "NOK"
    export_bundle(openvino, tmp_path / "models", form="triton")  # which judges in ONNX Runtime
    told = json.loads((tmp_path / "models" / "openvino" / "calibration.json").read_text())
    assert told["engine"] == model.engine.name


@pytest.fixture(scope="module")
def int8(crossed: Model, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph in int8 that OpenVINO calibrated; that it was quantised is all that is asked of it here."""
    pictures = sorted((world / "train" / "good").glob("*.png"))[:2]
    images = [decode(picture).transpose(2, 0, 1)[None].astype(np.float32) / 255 for picture in pictures]
    graph, _ = quantised(crossed.bundle.files["model.onnx"], images)
    bare = Model(_bare(crossed.bundle, graph, "openvino"), "openvino")
    return calibrate(bare, world / "test" / "good").save(tmp_path_factory.mktemp("int8") / "int8.flaw")


def test_a_calibration_in_int8_of_another_engine_is_not_given_to_triton(int8: Path, tmp_path: Path):
    with pytest.raises(GateError, match=r"calibrated with openvino .* or export for onnx from the bundle in single"):
        export_bundle(int8, tmp_path / "models", form="triton")
    assert not (tmp_path / "models").exists()


def test_options_of_int8_are_not_ignored_for_a_bundle_that_is_in_int8(int8: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"in int8 already and is exported as it is: leave out --precision"):
        export_bundle(int8, tmp_path / "out", kind="int8", pictures="x", most_lost=0.5)
    assert not (tmp_path / "out").exists()


def test_the_graph_alone_refuses_a_calibration_of_an_engine_that_onnx_runtime_was_not_held_against(
    int8: Path, openvino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script = Path(__file__).parents[2] / "examples" / "04_onnx_alone.py"
    export_bundle(int8, tmp_path / "int8")
    export_bundle(openvino, tmp_path / "fp32")
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "int8")])
    with pytest.raises(SystemExit, match="calibrated with openvino, against which ONNX Runtime was never held"):
        runpy.run_path(str(script))
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "fp32")])
    runpy.run_path(str(script))  # all engines were held against one another

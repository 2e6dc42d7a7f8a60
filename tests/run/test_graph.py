from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flawmap.errors import BundleError
from flawmap.run.bundle import read
from flawmap.run.engine import OnnxEngine, OpenVinoEngine
from flawmap.run.graph import described, in_words, operators, precision
from flawmap.run.model import Model, load


def _counted(graph: bytes) -> dict[str, int]:
    """By the package onnx, which the judging half does without."""
    model = onnx.load_from_string(graph)
    assert not model.functions
    return dict(Counter(node.op_type for node in model.graph.node))


def _plus_one(weight: onnx.TensorProto | None = None) -> onnx.ModelProto:
    """map = image + weight, score = the largest of it."""
    weight = weight or numpy_helper.from_array(np.ones(1, np.float32), "weight")
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Add", ["image", "weight"], ["map"]),
        helper.make_node("ReduceMax", ["map"], ["score"], keepdims=1),
    ]
    ends = [value("image", TensorProto.FLOAT, [1]), value("map", TensorProto.FLOAT, [1])]
    graph = helper.make_graph(nodes, "g", ends[:1], [ends[1], value("score", TensorProto.FLOAT, [1])], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _elsewhere(location: str = "secret.bin") -> onnx.TensorProto:
    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[1])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    return weight


@pytest.mark.parametrize("which", ["crossed", "held"])
def test_a_bundles_graph_is_described_as_onnx_counts_it(which: str, request: pytest.FixtureRequest):
    model: Model = request.getfixturevalue(which)
    graph = model.bundle.files["model.onnx"]
    found = described(graph)
    assert found["operators"] == _counted(graph)
    assert found["opset"] == 18
    assert found["bytes"] == len(graph)
    assert model.bundle.config["graph"] == found
    assert f"Graph: {in_words(found)}\n" in model.card
    assert precision(graph) == "fp32"
    assert len(onnx.load_from_string(graph).opset_import) == 1


def test_nodes_inside_nodes_and_functions_are_counted_and_their_data_looked_at():
    inner = _plus_one(_elsewhere()).graph
    inside = helper.make_node("If", ["condition"], ["out"], then_branch=inner, else_branch=inner)
    constant = helper.make_node("Constant", [], ["c"], value=_elsewhere())
    model = _plus_one()
    for node in (inside, constant):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        changed.graph.node.append(node)
        with pytest.raises(BundleError, match="names data in another file"):
            operators(changed.SerializeToString())
    function = helper.make_function("own", "f", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], [])
    model.functions.append(function)
    model.graph.node.append(helper.make_node("f", ["map"], ["twice"], domain="own"))
    assert operators(model.SerializeToString()) == (18, {"Add": 1, "Neg": 1, "ReduceMax": 1, "own.f": 1})


@pytest.mark.parametrize("engine", [OnnxEngine, OpenVinoEngine])
def test_a_graph_that_names_data_in_another_file_is_refused_even_where_that_file_is(
    engine: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("secret.bin").write_bytes(np.float32(3).tobytes())
    for location in ("secret.bin", str(tmp_path / "secret.bin"), "../secret.bin"):
        with pytest.raises(BundleError, match="names data in another file"):
            engine(_plus_one(_elsewhere(location)).SerializeToString())
    assert engine(_plus_one().SerializeToString())(np.ones(1, np.float32)).score.tolist() == [2]


def test_a_bundle_with_such_a_graph_is_refused(crossed: Model, tmp_path: Path):
    changed = crossed.bundle.replace({"model.onnx": _plus_one(_elsewhere()).SerializeToString()})
    path = changed.write(tmp_path / "elsewhere.flaw")
    with pytest.raises(BundleError, match="names data in another file"):
        load(path)


def test_what_is_no_graph_is_a_bundle_error(crossed: Model):
    graph = _plus_one().SerializeToString()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        broken = bytearray(graph)
        for place in random.integers(0, len(graph), 3):
            broken[place] = random.integers(256)
        try:
            operators(bytes(broken))
        except BundleError:
            refused += 1
    assert refused > 100
    for content in (b"", b"no graph at all", graph[:-7], b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 20):
        with pytest.raises(BundleError, match=r"model\.onnx"):
            operators(content)
    deep = b""
    for _ in range(200):  # a graph in an attribute of a node of a graph ...
        for field in (6, 5, 1):
            deep = _field(field, deep)
    with pytest.raises(BundleError, match="inside one another"):
        operators(_field(7, deep))


def _field(number: int, content: bytes) -> bytes:
    length, found = len(content), bytearray()
    while length > 127:
        found.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | 2, *found, length]) + content


def test_files_larger_than_any_bundle_are_not_read(crossed: Model, tmp_path: Path):
    path = crossed.save(tmp_path / "large.flaw")
    with path.open("r+b") as file:
        file.truncate(2**32 + 1)  # takes no room on the disk
    with pytest.raises(BundleError, match=r"4294967297 bytes, a bundle has at most 4294967296"):
        read(path)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, size in (("model.onnx", 2**31), ("config.json", 10)):
        with (folder / name).open("wb") as file:
            file.truncate(size)
    with pytest.raises(BundleError, match=r"model\.onnx has 2147483648 bytes, more than one file may hold"):
        read(folder)
    with (folder / "config.json").open("wb") as file:
        file.truncate(2**31 + 1)
    with pytest.raises(BundleError, match=r"4294967297 bytes, a bundle has at most"):
        read(folder)

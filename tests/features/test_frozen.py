"""The backbone's graph in ONNX Runtime says what torch says, is written once, and is not believed unchecked."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from flawmap.errors import GateError
from flawmap.features import frozen as module
from flawmap.features.backbone import EMBEDDED, Backbone
from flawmap.features.frozen import frozen, graph_file

STAGES = (1, 2, 3)  # those of the detectors' default: their graph serves here too, and writing one takes seconds


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(EMBEDDED, STAGES, 64)


@pytest.fixture(scope="module")
def graph(backbone: Backbone) -> Path:
    return graph_file(backbone, 64)


@pytest.fixture
def cache(tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own that holds the graph."""
    shutil.copy(graph, tmp_path)
    monkeypatch.setenv("FLAWMAP_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("pictures", [1, 3])
def test_the_features_are_those_of_torch(backbone: Backbone, graph: Path, pictures: int) -> None:
    assert graph.exists()
    image = np.random.default_rng(1).random((pictures, 3, 64, 64), dtype=np.float32)
    ours = frozen(backbone, 64)(image)
    with torch.no_grad():
        torchs = backbone(torch.from_numpy(image))
    assert [feat.shape for feat in ours] == [(pictures, 24, 16, 16), (pictures, 40, 8, 8), (pictures, 112, 4, 4)]
    for our, theirs in zip(ours, torchs, strict=True):
        assert our.dtype == np.float32
        assert np.abs(our - theirs.numpy()).max() < 1e-4 * float(theirs.abs().max())


def test_the_graph_is_written_once(backbone: Backbone, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exported(*_: object) -> None:
        raise AssertionError("a graph was written")

    monkeypatch.setattr(module, "export", exported)
    path = graph_file(backbone, 64)
    before = path.read_bytes()
    frozen(backbone, 64)
    assert list(cache.iterdir()) == [path]
    assert path.read_bytes() == before
    with pytest.raises(AssertionError, match="a graph was written"):
        graph_file(backbone, 96)
    changed = Backbone(EMBEDDED, STAGES, 64)
    with torch.no_grad():
        changed.net.get_parameter("conv_stem.weight")[0, 0, 0, 0] += 1e-3
    with pytest.raises(AssertionError, match="a graph was written"):
        graph_file(changed, 64)
    assert list(cache.iterdir()) == [path]


def _changed(path: Path) -> bytes:
    graph = onnx.load(path)
    largest = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.CopyFrom(numpy_helper.from_array(1.01 * numpy_helper.to_array(largest), largest.name))
    return graph.SerializeToString()


def test_a_graph_that_says_something_else_is_refused(
    backbone: Backbone, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = _changed(next(cache.iterdir()))

    def made(*_: object) -> Path:
        (tmp_path / "wrong.onnx").write_bytes(wrong)
        return tmp_path / "wrong.onnx"

    monkeypatch.setattr("flawmap.features.frozen.graph_file", made)
    with pytest.raises(GateError, match=r"ONNX Runtime and torch differ by \d.*e-0\d of the largest feature of stage"):
        frozen(backbone, 64)


@pytest.mark.parametrize("damage", ["changed", "torn", "empty"])
def test_a_damaged_graph_in_the_cache_is_made_anew(
    damage: str, backbone: Backbone, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = next(cache.iterdir())
    sound = path.read_bytes()
    path.write_bytes({"changed": _changed(path), "torn": sound[:1000], "empty": b""}[damage])

    def export(*arguments: object) -> None:  # tracing again takes seconds and gives what was there
        next(argument for argument in arguments if isinstance(argument, Path)).write_bytes(sound)

    monkeypatch.setattr("flawmap.features.frozen.export", export)
    frozen(backbone, 64)
    assert path.read_bytes() == sound

"""A graph in int8: the convolutions and products of the network, by the ranges that good pictures show of them.

Static quantisation by ONNX Runtime: QDQ nodes, weights int8 a channel, activations uint8. Of a method on frozen
features only the backbone is quantised; distances, re-weighting and smoothing stay in float, for they decide the last
digits. Of any network these stay in float too:

first convolution    it sees pixels; in int8 it alone brought most of the error
grouped ones         depthwise convolutions have few products to save, and a range of their own in each channel
those after a sum    OpenVINO 2026.4 computes a quantised residual block wrongly (its low-precision passes; without them
                     it is right), and the gate would refuse it

Weights take seven of their eight bits. Processors without VNNI multiply by vpmaddubsw, which adds two products in 16
bits and cuts off what is larger: 2 x 255 x 127 is, 2 x 255 x 64 is not. So scores are not cut here and whole there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flawmap.errors import GateError

OPERATORS = ("Conv", "Gemm")
NETWORK = "backbone/"  # how the names of a frozen backbone's nodes begin
BITS = 7  # of a weight


def quantised(graph: bytes, images: Iterable[np.ndarray]) -> tuple[bytes, int]:
    """The graph in int8, and how many of its nodes are; `images` are (B, 3, H, W) as the network takes them.

    GateError: nothing in the graph can be quantised.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    model = onnx.load_from_string(graph)
    chosen, others = _nodes(model)
    if not chosen:
        raise GateError(f"the graph has no {' or '.join(OPERATORS)} to quantise; export it in fp32")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "int8.onnx"
        quantize_static(
            model,
            path,
            _reader(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATORS),
            nodes_to_exclude=others,
            per_channel=True,
            reduce_range=BITS == 7,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        found = onnx.load(path)
    del found.metadata_props[:]
    found.producer_name, found.producer_version = model.producer_name, model.producer_version
    onnx.checker.check_model(found)
    return found.SerializeToString(), len(chosen)


def _nodes(model: Any) -> tuple[list[str], list[str]]:
    """Names of the nodes to quantise, and of the others of the same kinds."""
    same = [node for node in model.graph.node if node.op_type in OPERATORS]
    frozen = any(node.name.startswith(NETWORK) for node in same)
    kept = {model.graph.input[0].name}  # what is computed from the picture without a convolution
    sums = {node.output[0] for node in model.graph.node if node.op_type == "Add"}
    chosen = []
    for node in model.graph.node:  # in the order of computing
        if node.op_type not in OPERATORS:
            kept |= set(node.output) if any(name in kept for name in node.input) else set()
        elif not (node.input[0] in kept | sums or _grouped(node) or (frozen and not node.name.startswith(NETWORK))):
            chosen.append(node.name)
    return chosen, sorted({node.name for node in same} - set(chosen))


def _grouped(node: Any) -> bool:
    return any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)


def _reader(images: Iterable[np.ndarray]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left: Iterator[np.ndarray] = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
            image_B3HW = next(self._left, None)
            return None if image_B3HW is None else {"image": image_B3HW}

    return Reader()


def _quiet() -> Any:
    """ONNX Runtime advises by logging to run its own preparation, which torch's exporter has done already."""
    import contextlib
    import logging

    @contextlib.contextmanager
    def quiet() -> Iterator[None]:
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)

    return quiet()

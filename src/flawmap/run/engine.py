"""Engines: from the network's input to map and score. ONNX Runtime judges at the line, or OpenVINO; torch was trained.

B images  H W pixels of the network
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from flawmap.errors import BundleError, MissingExtra, UsageError
from flawmap.run.graph import precision
from flawmap.types import Prediction

TOLERANCE = 1e-4  # between two engines, of the score scale and of the map's


class Engine(Protocol):
    name: str

    def __call__(self, image_B3HW: np.ndarray) -> Prediction:
        """(B, 3, H, W) float32 in [0, 1] -> map (B, H, W), score (B,), float32."""
        ...


class OnnxEngine:
    """The graph of a bundle in ONNX Runtime, on the CPU. BundleError: it cannot be loaded, or names other files."""

    def __init__(self, graph: bytes, threads: int = 0) -> None:
        import onnxruntime

        kind = precision(graph)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or _threads()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises classes of its own, made at run time
            raise BundleError(f"model.onnx cannot be loaded: {str(error).splitlines()[0]}") from error
        self.name = f"onnxruntime {onnxruntime.__version__} cpu {kind}"

    def __call__(self, image_B3HW: np.ndarray) -> Prediction:
        return Prediction(*self._session.run(["map", "score"], {"image": image_B3HW}))


class OpenVinoEngine:
    """The same graph in OpenVINO, on the CPU; needs the extra `openvino`.

    In single precision, but for what the graph itself has quantised: left to itself OpenVINO computes in bfloat16 where
    the processor can, which moves scores.
    """

    def __init__(self, graph: bytes, threads: int = 0) -> None:
        try:
            import openvino
        except ImportError as error:
            raise MissingExtra("openvino", "openvino", "the engine openvino") from error

        kind = precision(graph)
        hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads := threads or _threads():
            hints["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            core = openvino.Core()
            with _own_signal_stack():
                self._request = core.compile_model(core.read_model(model=graph), "CPU", hints).create_infer_request()
        except RuntimeError as error:
            raise BundleError(f"model.onnx cannot be loaded: {str(error).splitlines()[0]}") from error
        self.name = f"openvino {openvino.__version__.split('-')[0]} cpu {kind}"

    def __call__(self, image_B3HW: np.ndarray) -> Prediction:
        # One by one: for a batch it takes other kernels, and a picture's score would hang on its neighbours.
        found = [self._alone(image_B3HW[place : place + 1]) for place in range(len(image_B3HW))]
        maps, scores = zip(*found, strict=True)
        return Prediction(np.concatenate(maps), np.concatenate(scores))

    def _alone(self, image_13HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = self._request.infer({"image": image_13HW})
        return found["map"].copy(), found["score"].copy()  # the request's own memory is used again


class _Stack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _own_signal_stack() -> Iterator[None]:
    """The thread keeps the stack that it handles signals on.

    OpenVINO gives it one that is freed with the model. Of two models, the second remembers the first one's as what to
    put back: when both are gone the next signal, Ctrl-C or the end of a child, is a segmentation fault.
    """
    if sys.platform != "linux":
        yield
        return
    own, libc = _Stack(), ctypes.CDLL(None)
    libc.sigaltstack(None, ctypes.byref(own))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(own), None)


def engine_of(name: str) -> str:
    """What a calibration calls its engine, as `Model` takes it: onnx, openvino or torch."""
    return name.split()[0].removesuffix("runtime") if name.split() else "onnx"


def _threads() -> int:
    """FLAWMAP_THREADS, or 0: as many as the machine has cores."""
    stated = os.environ.get("FLAWMAP_THREADS", "0")
    if not stated.isdecimal():
        raise UsageError(f"FLAWMAP_THREADS is {stated!r}: give a number of threads, or 0 for one a core")
    return int(stated)


class TorchEngine:
    """The detector as it was trained; needs the extra `train`."""

    def __init__(self, detector: Any, device: str = "cpu") -> None:
        import torch

        self.detector, self.device = detector.to(device).eval(), device
        self.name = f"torch {torch.__version__} {device} fp32"

    @classmethod
    def from_bundle(cls, config: Mapping[str, Any], weights: bytes) -> TorchEngine:
        from safetensors.torch import load

        from flawmap.detectors import create

        detector = create(config["method"], config["options"], pretrained=False)
        detector.load_state_dict(load(weights))
        return cls(detector)

    def __call__(self, image_B3HW: np.ndarray) -> Prediction:
        import torch

        with torch.inference_mode():
            found = self.detector(torch.from_numpy(image_B3HW).to(self.device))
        return Prediction(found.map.cpu().numpy(), found.score.cpu().numpy())


def device_named(device: str) -> str:
    """cpu or cuda; auto is cuda where torch sees a GPU. UsageError: no such device, or none here."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda: torch sees no GPU here")
    if device not in ("cpu", "cuda"):
        raise UsageError(f"no device {device!r}; there are: auto, cpu, cuda")
    return device

"""Frozen features on a CPU: the backbone's own graph in ONNX Runtime, two to seven times faster than eager torch.

The graph is written once per backbone, weights, stages and size, and kept in a cache folder (FLAWMAP_CACHE, else the
user's cache folder); each time it is loaded it is compared with torch on one picture.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from flawmap.errors import GateError
from flawmap.features.backbone import Backbone

TOLERANCE = 1e-4  # of the largest feature of a stage

Features = tuple[np.ndarray, ...]


def frozen(backbone: Backbone, size: int, device: str = "cpu") -> Callable[[np.ndarray], Features]:
    """A function from pictures (B, 3, size, size) float32 to one (B, C, h, w) float32 a stage."""
    if device != "cpu":
        return _on_device(backbone, device)
    kept = graph_file(backbone, size)
    try:
        return _in_onnxruntime(kept, backbone, size)
    except Exception:  # a torn or changed file in the cache; ONNX Runtime raises classes of its own
        kept.unlink()
        return _in_onnxruntime(graph_file(backbone, size), backbone, size)


def _in_onnxruntime(graph: Path, backbone: Backbone, size: int) -> Callable[[np.ndarray], Features]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def features(image_B3HW: np.ndarray) -> Features:
        return tuple(np.asarray(feat) for feat in session.run(None, {"image": image_B3HW}))

    _compare(backbone, features, size)
    return features


def graph_file(backbone: Backbone, size: int) -> Path:
    """The backbone's ONNX graph in the cache, written when it is not there yet."""
    path = _cache() / f"backbone-{_fingerprint(backbone, size)}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            fresh = Path(folder) / path.name
            names = [f"feat{i}" for i in range(len(backbone.shapes))]
            export(backbone, (torch.zeros(2, 3, size, size),), fresh, ["image"], names)
            fresh.replace(path)
    return path


def export(module: torch.nn.Module, arguments: tuple, path: Path, inputs: list[str], outputs: list[str]) -> None:
    """Writes one ONNX file without external data; of every tensor among the arguments the first dimension is free."""
    import contextlib
    import io
    import logging
    import warnings

    free = {0: torch.export.Dim("batch", min=1, max=4096)}
    shapes = tuple(tuple(free for _ in a) if isinstance(a, tuple) else free for a in arguments)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), arguments, str(path), input_names=inputs, output_names=outputs, dynamic_shapes=shapes,
            dynamo=True, external_data=False, verbose=False, opset_version=18,
        )  # fmt: skip


def _on_device(backbone: Backbone, device: str) -> Callable[[np.ndarray], Features]:
    backbone = backbone.to(device)
    # Ten-bit products would move the scores by more than the parity gate allows.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    @torch.inference_mode()
    def features(image_B3HW: np.ndarray) -> Features:
        return tuple(feat.cpu().numpy() for feat in backbone(torch.from_numpy(image_B3HW).to(device)))

    return features


@torch.inference_mode()
def _compare(backbone: Backbone, features: Callable[[np.ndarray], Features], size: int) -> None:
    image = np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)
    for stage, (ours, torchs) in enumerate(zip(features(image), backbone(torch.from_numpy(image)), strict=True)):
        worst = np.abs(ours - torchs.numpy()).max() / max(float(torchs.abs().max()), 1e-12)
        if not worst <= TOLERANCE:
            raise GateError(f"ONNX Runtime and torch differ by {worst:.1e} of the largest feature of stage {stage}")


def _cache() -> Path:
    return Path(
        os.environ.get("FLAWMAP_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flawmap"
    )


def _fingerprint(backbone: Backbone, size: int) -> str:
    digest = hashlib.sha256(f"{torch.__version__} {size} {backbone.shapes}".encode())
    for key, value in backbone.state_dict().items():
        digest.update(key.encode())
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()[:24]

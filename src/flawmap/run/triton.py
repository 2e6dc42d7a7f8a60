"""A model repository for NVIDIA's Triton Inference Server: NAME/config.pbtxt and NAME/1/model.onnx.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
Beside the graph lie use.json (how a file becomes the input) and calibration.json (threshold), for the client.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from flawmap.errors import UsageError
from flawmap.run.model import Model

BATCH = 8  # the most pictures that Triton puts together
WAIT_US = 2000  # a picture waits so long for others

CONFIG = """\
name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: {batch}
input [
  {{ name: "image" data_type: TYPE_FP32 dims: [ 3, {high}, {wide} ] }}
]
output [
  {{ name: "map" data_type: TYPE_FP32 dims: [ {high}, {wide} ] }},
  {{ name: "score" data_type: TYPE_FP32 dims: [ 1 ] reshape: {{ shape: [ ] }} }}
]
dynamic_batching {{ max_queue_delay_microseconds: {wait} }}
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""


def config(name: str, size: tuple[int, int]) -> str:
    """config.pbtxt. The score is one number a picture, which Triton's clients get as (batch, 1).

    On the CPU, for there the parity gate was passed; a GPU computes otherwise.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UsageError(f"a model of Triton cannot be called {name!r}: letters, digits, - _ and ., as --name bottle")
    return CONFIG.format(name=name, batch=BATCH, high=size[0], wide=size[1], wait=WAIT_US)


def repository(model: Model, out: Path, name: str, beside: Mapping[str, bytes | None]) -> Path:
    """Writes the model's folder into the repository `out`. UsageError: it has a model of that name already."""
    text, folder = config(name, model.intake.size), out / name
    if folder.exists():
        raise UsageError(f"{folder} is there already; give another --name, or remove it")
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(text)
    (folder / "1" / "model.onnx").write_bytes(model.bundle.files["model.onnx"])
    for file, content in beside.items():
        if content is not None:
            (folder / file).write_bytes(content)
    return folder

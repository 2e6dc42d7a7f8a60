"""anomalib's side, in its own environment: python anomalib_side.py VERB JOB.json; findings go to the job's `out`.

fit       Engine.fit on good pictures, as its documentation has it; the model is exported as .pt
predict   every test picture from disk to score and map, one at a time, by TorchInferencer
export    the .pt model as OpenVINO
openvino  as predict, by OpenVINOInferencer

Three things are not anomalib's defaults, all to its favour or of no weight: no validation on test pictures, so that it
costs no time and scores stay as the model gives them; as many loading processes as cores instead of eight; the
backbone's weights come from a file.
"""

# pyright: reportMissingImports=false
# (these imports are of the other environment)

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

WARM_UP = 5
SIZE = 256


def fit(job: dict[str, Any]) -> dict[str, Any]:
    import anomalib.models
    from anomalib.data import Folder
    from anomalib.engine import Engine
    from lightning.pytorch import Callback, seed_everything

    class Steps(Callback):
        begins: list[float] = []  # noqa: RUF012

        def on_train_batch_start(self, *_: Any) -> None:
            self.begins.append(time.perf_counter())

    seed_everything(job["seed"], workers=True)
    _weights_from(job["weights"])
    pictures = Folder(
        name="pictures",
        root=job["pictures"],
        normal_dir="train/good",
        train_batch_size=job["batch"],
        num_workers=os.cpu_count() or 1,
        test_split_mode="none",
        val_split_mode="from_train" if job["held_out"] else "none",
        val_split_ratio=job["held_out"] or 0.5,
        seed=job["seed"],
    )
    kind = getattr(anomalib.models, job["peer"])
    model = kind(**job["arguments"], pre_processor=_pre_processor(job["mean"], job["std"]))
    trainer = {**job["trainer"], **({} if job["held_out"] else {"limit_val_batches": 0})}
    engine = Engine(accelerator="cpu", default_root_dir=job["folder"], callbacks=[Steps()], **trainer)
    begun = time.perf_counter()
    engine.fit(model=model, datamodule=pictures)
    seconds = time.perf_counter() - begun
    model.trainer = None  # EfficientAd would pickle it too, with our callback
    model.to_torch(job["folder"])
    gaps = [b - a for a, b in pairwise(Steps.begins)]
    learns = bool(job["trainer"])
    return {"fit_s": seconds, "steps": len(Steps.begins) if learns else 0, "step_s": median(gaps) if learns else None}


def _weights_from(file: str) -> None:
    """timm gives its backbone with the weights of this file wherever anomalib asks for pretrained ones."""
    import timm
    from safetensors.torch import load_file

    plain = timm.create_model

    def create(name: str, *, pretrained: bool = False, **options: Any) -> Any:
        net = plain(name, pretrained=False, **options)
        if pretrained:
            own, state = net.state_dict(), load_file(file)
            net.load_state_dict({key: state[key] for key in own}, strict=True)
        return net

    timm.create_model = create


def _pre_processor(mean: list[float] | None, std: list[float] | None) -> Any:
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    steps: list[Any] = [Resize((SIZE, SIZE), antialias=True)]
    if mean and std:
        steps.append(Normalize(mean=mean, std=std))
    return PreProcessor(transform=Compose(steps))


def predict(job: dict[str, Any]) -> dict[str, Any]:
    from anomalib.deploy import TorchInferencer

    model = TorchInferencer(path=Path(job["folder"]) / "weights" / "torch" / "model.pt", device="cpu")
    return _timed(job, model.predict, "maps.npy")


def export(job: dict[str, Any]) -> dict[str, Any]:
    import torch

    # Pickle: the file is our own, written by `fit` a moment ago.
    model = torch.load(Path(job["folder"]) / "weights" / "torch" / "model.pt", map_location="cpu", weights_only=False)[
        "model"
    ]
    # One picture: with its default, a batch of any size, torch.export fixes PatchCore's batch at two.
    one = {"dynamic_axes": None, "dynamic_shapes": None, "opset_version": 18}
    model.to_openvino(job["folder"], input_size=(SIZE, SIZE), onnx_kwargs=one)
    return {}


def openvino(job: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    from anomalib.deploy import OpenVINOInferencer
    from PIL import Image

    model = OpenVINOInferencer(Path(job["folder"]) / "weights" / "openvino" / "model.xml", device="CPU")

    def one(path: str) -> Any:
        # The exported graph has a fixed size, so the picture is brought to it before.
        return model.predict(np.asarray(Image.open(path).convert("RGB").resize((SIZE, SIZE))))

    return _timed(job, one, "maps-openvino.npy")


def _timed(job: dict[str, Any], look: Callable[[str], Any], maps: str) -> dict[str, Any]:
    import numpy as np
    import torch

    paths, found, walls = [entry["image"] for entry in job["test"]], [], []
    with torch.no_grad():
        for path in paths[:WARM_UP]:
            look(path)
        cpu = time.process_time()
        for path in paths:
            begun = time.perf_counter()
            batch = look(path)
            walls.append(time.perf_counter() - begun)
            found.append((np.asarray(batch.anomaly_map, np.float32).squeeze(), np.asarray(batch.pred_score).item()))
        cpu = (time.process_time() - cpu) / len(paths)
    np.save(Path(job["folder"]) / maps, np.stack([map for map, _ in found]))
    return {
        "picture_s": median(walls),
        "picture_fast_s": quantiles(walls, n=10)[0],
        "picture_cpu_s": cpu,
        "scores": [score for _, score in found],
    }


def main() -> None:
    verb, job = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    found = {"fit": fit, "predict": predict, "export": export, "openvino": openvino}[verb](job)
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()

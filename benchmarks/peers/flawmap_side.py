"""Our side, in a fresh process each time: python flawmap_side.py VERB JOB.json; what was found goes to the job's `out`.

prepare  the backbone's weights and a random teacher in the layout of each side
fit      flawmap.fit through the public API; the bundle stays in the job's folder
predict  every test picture from disk to score and map, one at a time, in ONNX Runtime as at the line
judge    the figures of both sides from their maps, by flawmap.verdict
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

WARM_UP = 5
WIDTH, DIM = 128, 384  # of EfficientAD-S


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    import torch
    from cases import BACKBONE
    from safetensors.torch import save_file

    from flawmap.detectors.efficientad import PDN
    from flawmap.features.weights import find

    found = find(BACKBONE)
    state = {key: value.contiguous() for key, value in found.state.items()}
    save_file(state, job["weights"])
    torch.manual_seed(0)
    teacher = PDN("small", WIDTH, DIM).state_dict()
    notes = {"pdn": "small", "width": WIDTH, "dim": DIM, "backbone": "none: random", "photos": "none"}
    save_file(teacher, job["teacher"], {"flawmap": json.dumps(notes)})
    # The second layout is anomalib's file of a teacher; it is read with weights_only.
    names = {"trunk.0": "conv1", "trunk.3": "conv2", "trunk.6": "conv3", "last": "conv4"}
    theirs = {f"{names[k.rsplit('.', 1)[0]]}.{k.rsplit('.', 1)[1]}": v for k, v in teacher.items()}
    Path(job["peer_teacher"]).parent.mkdir(parents=True, exist_ok=True)
    torch.save(theirs, job["peer_teacher"])
    return {"mean": found.mean, "std": found.std, "sha256": found.sha256, "origin": found.origin}


def fit(job: dict[str, Any]) -> dict[str, Any]:
    import flawmap

    begins = _note_steps(job["method"])
    begun = time.perf_counter()
    model = flawmap.fit(
        job["pictures"],
        job["method"],
        options=job["options"],
        seed=job["seed"],
        held_out=job["held_out"],
        out=Path(job["folder"]) / "runs",
    )
    seconds = time.perf_counter() - begun
    model.save(Path(job["folder"]) / "bundle.flaw")
    begins = begins[-job["options"].get("steps", 0) :]  # before them, some tell how long training will take
    gaps = [b - a for a, b in pairwise(begins)]
    return {"fit_s": seconds, "steps": len(begins), "step_s": median(gaps) if gaps else None}


def _note_steps(method: str) -> list[float]:
    """When each step begins: the loss is asked for once a step."""
    from flawmap.detectors import detector_class

    kind, begins = detector_class(method), []
    plain = kind.loss

    def loss(self: Any, batch: Any) -> Any:
        begins.append(time.perf_counter())
        return plain(self, batch)

    kind.loss = loss  # type: ignore[method-assign]
    return begins


def predict(job: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    import flawmap

    model = flawmap.load(Path(job["folder"]) / "bundle.flaw")
    paths = [entry["image"] for entry in job["test"]]
    for path in paths[:WARM_UP]:
        model.predict(path)
    walls, cpu = [], time.process_time()
    for path in paths:
        begun = time.perf_counter()
        model.predict(path)
        walls.append(time.perf_counter() - begun)
    cpu = (time.process_time() - cpu) / len(paths)
    found = [model.engine(model.intake(path)[0][None]) for path in paths]  # the map in the network's size
    np.save(Path(job["folder"]) / "maps.npy", np.concatenate([map for map, _ in found]).astype(np.float32))
    return {
        "picture_s": median(walls),
        "picture_fast_s": quantiles(walls, n=10)[0],
        "picture_cpu_s": cpu,
        "scores": [float(score[0]) for _, score in found],
    }


def judge(job: dict[str, Any]) -> dict[str, Any]:
    """The maps of either side are enlarged to the size of the picture by the same bilinear resize."""
    import numpy as np
    from PIL import Image

    from flawmap.images.masks.levels import read_mask
    from flawmap.images.tiles import enlarge
    from flawmap.verdict.metrics import auroc
    from flawmap.verdict.pixels import PixelMetrics

    pixels, maps = PixelMetrics(), np.load(Path(job["folder"]) / "maps.npy")
    for entry, map in zip(job["test"], maps, strict=True):
        with Image.open(entry["image"]) as picture:
            size = (picture.height, picture.width)
        mask, ignored = read_mask(entry["mask"], size, entry["image"]) if entry["mask"] else (None, None)
        pixels.add(enlarge(map, size), mask, good=entry["good"], ignored=ignored)
    found = pixels.result()
    image = auroc(job["scores"], [not entry["good"] for entry in job["test"]])
    return {"i_auroc": image, **{key: found[key] for key in ("p_auroc", "p_ap", "pro")}}


def main() -> None:
    verb, job = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    found = {"prepare": prepare, "fit": fit, "predict": predict, "judge": judge}[verb](job)
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()

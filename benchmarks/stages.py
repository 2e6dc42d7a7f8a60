"""Where the time of one picture goes, from a file's bytes to the verdict, and how near that is to what must be paid.

python benchmarks/stages.py [--rounds 15] [--methods simplenet pouta] [--keep]

Bottles of MVTec AD (FLAWMAP_DATA) at 900 x 900 px as PNG. Every stage, the bare backbone's graph and a plain product of
matrices as large as the search are timed once a round, in one process for each number of threads (FLAWMAP_THREADS).
Aims: 1.25 times the bare backbone (and the product, above 1,000 patches), 1.1 times the own graph of whole networks.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from paired import BUNDLES, CATEGORY, METHODS, bundle, grown, in_turn, made_by, middle, quartiles, ratio, section
from results import DATA

WHOLE = ("efficientad", "pouta", "draem")  # networks without a frozen backbone
STAGES = ("decode", "resize", "graph", "enlarge", "regions", "verdict")
PICTURES = 4


def pictures() -> list[bytes]:
    """Half good, half not, as in the test set."""
    test = DATA / CATEGORY / "test"
    good, bad = (sorted(test.glob(kind)) for kind in ("good/*.png", "[!g]*/*.png"))
    return [grown(path) for path in [*good[: PICTURES // 2], *bad[:: len(bad) // (PICTURES // 2)][: PICTURES // 2]]]


def session(graph: Any) -> Callable[[dict[str, np.ndarray]], Any]:
    """A graph alone, at the threads that FLAWMAP_THREADS says."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["FLAWMAP_THREADS"])
    options.log_severity_level = 4
    held = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda feeds: held.run(None, feeds)


def operation(kind: str, x: tuple[int, ...], weight: np.ndarray, **attributes: Any) -> Callable[[], Any]:
    """One operator in ONNX Runtime, its weight a constant."""
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(kind, ["x", "w"], ["y"], **attributes)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", x), ("y", None))]
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    run, feed = session(model.SerializeToString()), {"x": np.ones(x, np.float32)}
    return lambda: run(feed)


def convolution() -> tuple[Callable[[], Any], float]:
    """What the machine does best: a 3 x 3 convolution of 128 channels, and its GFLOP."""
    shape, channels = (8, 128, 56, 56), 128
    run = operation("Conv", shape, np.full((channels, channels, 3, 3), 1e-3, np.float32), pads=[1, 1, 1, 1])
    return run, 2 * shape[0] * shape[2] * shape[3] * channels * channels * 9 / 1e9


def limits(model: Any, image: np.ndarray) -> tuple[dict[str, Callable[[], Any]], float]:
    """The bare backbone alone and eight at a time, the search as a plain product; the backbone's GFLOP."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from flawmap.detectors import create
    from flawmap.features.frozen import graph_file

    config = model.bundle.config
    detector: Any = create(config["method"], config["options"])
    backbone = session(str(graph_file(detector.backbone, detector.config.size)))
    eight = np.repeat(image, 8, axis=0)
    found = {"backbone": lambda: backbone({"image": image}), "backbone of 8": lambda: backbone({"image": eight})}
    if config["method"] == "patchcore":
        high, wide = detector.grid
        memory = np.ones((detector.dim + 1, config["options"]["most"]), np.float32)
        found["product"] = operation("MatMul", (high * wide, detector.dim + 1), memory)
    with FlopCounterMode(display=False) as flops, torch.inference_mode():
        detector.backbone(torch.from_numpy(image))
    return found, flops.get_total_flops() / 1e9


def stages(model: Any, files: list[bytes]) -> dict[str, Callable[[], Any]]:
    """Each stage on the same pictures, with what it needs at hand; `inspect` is all of them as a user calls it."""
    from flawmap.images.decode import decode
    from flawmap.verdict.regions import regions

    marked = (model.calibration.map_threshold, model.calibration.min_area_px, model.calibration.pitch_mm)
    pixels = [decode(file) for file in files]
    images = [model.intake(array)[0][None] for array in pixels]
    maps = [model.engine(image)[0][0] for image in images]
    sizes = [array.shape[:2] for array in pixels]
    large = [model.over(map, size) for map, size in zip(maps, sizes, strict=True)]
    eight = np.concatenate([images[i % len(images)] for i in range(8)])
    score = float(model.engine(images[0])[1][0])
    return {
        "decode": lambda: [decode(file) for file in files],
        "resize": lambda: [model.intake(array) for array in pixels],
        "graph": lambda: [model.engine(image) for image in images],
        "enlarge": lambda: [model.over(map, size) for map, size in zip(maps, sizes, strict=True)],
        "regions": lambda: [regions(map, *marked) for map in large],
        "verdict": lambda: [model.judge([score]) for _ in files],
        "inspect": lambda: [model.inspect(file) for file in files],
        "from pixels": lambda: [model.inspect(array) for array in pixels],
        "graph of 8": lambda: model.engine(eight),
    }


def one(method: str, rounds: int) -> dict[str, Any]:
    """All times of a method in seconds a picture, a list of rounds each."""
    from flawmap.run.inspect import inspect
    from flawmap.run.model import load

    model, files = load(bundle(method)), pictures()
    variants = stages(model, files)
    gflop = 0.0
    if method not in WHOLE:
        more, gflop = limits(model, model.intake(files[0])[0][None])
        variants |= {name: (lambda run=run: [run() for _ in files]) for name, run in more.items()}
        variants["backbone of 8"] = more["backbone of 8"]
    conv, of_conv = convolution()
    variants["convolution"] = conv
    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(files):
            Path(folder, f"{number}.png").write_bytes(file)

        def lot() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                inspect(model, [folder])

        # With one thread the processor's time is the wall's on a quiet machine, and says the same on a busy one.
        clock = time.process_time if os.environ["FLAWMAP_THREADS"] == "1" else time.perf_counter
        took = in_turn({**variants, "folder": lot}, rounds, clock=clock)
    single = {"convolution": 1.0}
    for name in ("graph of 8", "backbone of 8"):
        single[name] = 8.0
    per = {name: [s / single.get(name, len(files)) for s in seconds] for name, seconds in took.items()}
    return {"seconds": per, "gflop": gflop, "conv gflop": of_conv}


def measured(method: str, threads: int, rounds: int) -> dict[str, Any]:
    """In a process of its own: threads are set before anything is loaded."""
    env = {**os.environ, "FLAWMAP_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--one", method, "--rounds", str(rounds)]
    return json.loads(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)


def bounds(method: str, found: dict[str, Any]) -> list[str]:
    """Cells: what must be paid, then whole, without decoding and resizing, and the graph, as paired ratios to it."""
    took = dict(found["seconds"])
    took["must"] = took["graph" if method in WHOLE else "backbone"]
    aim, what = (1.1, "own graph") if method in WHOLE else (1.25, "backbone")
    take_off = np.zeros(len(took["must"]))
    if "4,000" in method:
        take_off, what = np.array(took["product"]), "backbone, product taken off"
    before = np.add(took["decode"], took["resize"])
    took["whole"] = list(np.array(took["inspect"]) - take_off)
    took["behind"] = list(np.array(took["inspect"]) - before - take_off)
    took["alone"] = list(np.array(took["graph"]) - take_off)
    took["lot"] = list(np.array(took["folder"]) - take_off)
    cells = [quartiles(ratio(took, name, "must")) for name in ("whole", "lot", "behind", "alone")]
    return [f"{what}, {middle(took['must']) * 1e3:.1f} ms", *cells, f"{aim}"]


def tables(found: dict[tuple[str, int], dict[str, Any]]) -> list[str]:
    """The stages, then the limits."""
    lines = ["| ms a picture | threads | " + " | ".join(STAGES) + " | **inspect** | folder | graph, 8 at once |"]
    lines += ["|---" * (len(STAGES) + 5) + "|"]
    for (method, threads), each in found.items():
        took = each["seconds"]
        cells = [f"{middle(took[name]) * 1e3:.1f}" for name in (*STAGES, "inspect", "folder", "graph of 8")]
        lines.append(f"| {method} | {threads} | " + " | ".join(cells) + " |")
    lines += ["", "| times what must be paid | threads | what must be paid | disk to verdict | the same, folder | "]
    lines[-1] += "without decode and resize | graph alone | aim |"
    lines += ["|---" * 8 + "|"]
    lines += [f"| {method} | {n} | " + " | ".join(bounds(method, each)) + " |" for (method, n), each in found.items()]
    lines += [
        "",
        "| threads | a plain convolution, GFLOP/s | bare backbone, GFLOP/s | of the convolution's | 8 at once |",
    ]
    lines += ["|---|---|---|---|---|"]
    for threads in sorted({n for _, n in found}):
        each = next((f for (m, n), f in found.items() if n == threads and m not in WHOLE), None)
        if each is None:
            continue
        peak = each["conv gflop"] / middle(each["seconds"]["convolution"])
        rates = [each["gflop"] / middle(each["seconds"][name]) for name in ("backbone", "backbone of 8")]
        lines.append(f"| {threads} | {peak:.0f} | {rates[0]:.0f} | {rates[0] / peak:.0%} | {rates[1] / peak:.0%} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--keep", action="store_true", help="beside what was measured before, in pieces")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.rounds)))
        return
    for method in args.methods:
        bundle(method)
    kept = BUNDLES / "stages.json"
    rows = json.loads(kept.read_text()) if args.keep and kept.exists() else []
    found: dict[tuple[str, int], dict[str, Any]] = {(method, threads): each for method, threads, each in rows}
    for method in args.methods:
        for threads in args.threads:
            found[method, threads] = measured(method, threads, args.rounds)
            kept.write_text(json.dumps([[*key, value] for key, value in found.items()]))
            print(f"{method}, {threads} threads: done", file=sys.stderr, flush=True)
    head = (
        f"{made_by('stages.py')} Medians of {args.rounds} rounds over {PICTURES} bottles of 900 x 900 px as PNG (about "
        "1 MB, enlarged and with noise of 2 grey levels, half of them with a defect); the middle half of the rounds in "
        "brackets; ratios are of the same round. Nearest neighbours, smoothing and the score are in the graph. The "
        "networks have hardly been trained, so that their regions are not those of a good model. "
        "`folder` is a picture of `flawmap inspect FOLDER`. With one thread it is the processor's time, with more the "
        "wall's, which other work on the machine disturbs."
    )
    section("From disk to verdict", [head, "", *tables(found)])


if __name__ == "__main__":
    main()

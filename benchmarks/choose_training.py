"""Chooses how the small POUTA and the small EfficientAD are trained without a look at any test picture.

Of a category's good training pictures some parts train the network and others are held out; each held-out picture is
judged as it is and with artificial defects (artificial_defects.py: not those that it is trained with), whose masks are
exact. Prints the table of docs/defaults.md. Rows already in benchmarks/out/choose_training.jsonl are not run again;
several of this script share the work with --shard 0/2, 1/2.

    python benchmarks/choose_training.py [--steps 400] [--shard 0/1] [--only norm]
    python benchmarks/choose_training.py --steps 800 --only EfficientAD [--teacher FILE]

The pictures are found by FLAWMAP_DATA, else in ../shared/data; the textures of DTD and photos in ../shared/sources.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from choose_defaults import METRICS, pictures
from PIL import Image

from flawmap.detectors import create
from flawmap.detectors.base import Detector
from flawmap.images.intake import Intake
from flawmap.run.feed import Feed
from flawmap.run.recipe import Log
from flawmap.run.train import train
from flawmap.types import GOOD, Sample
from flawmap.verdict.metrics import auroc
from flawmap.verdict.pixels import PixelMetrics

HERE = Path(__file__).resolve().parent
ROOT = Path(os.environ.get("FLAWMAP_DATA") or HERE.parents[1] / "shared" / "data")
FOLDERS = {"DTD": ROOT.parent / "sources" / "textures_dtd", "photos": ROOT.parent / "sources" / "photos_imagenet"}
TABLE = HERE / "out" / "choose_training.jsonl"
NAMES = ("mvtec/bottle", "glassfiber/glassfiber")
PLAIN: dict[str, Any] = {"norm": "instance", "rate": 1e-3, "synthesis": "pouta"}
VARIANTS: dict[str, dict[str, Any]] = {
    "instance, rate 1e-3, pouta": {},
    "rate 2e-4": {"rate": 2e-4},
    "rate 3e-3": {"rate": 3e-3},
    "norm none": {"norm": "none"},
    "norm batch": {"norm": "batch"},
    "synthesis draem": {"synthesis": "draem"},
    "synthesis memseg": {"synthesis": "memseg"},
    "textures of DTD": {"textures": "DTD"},
    "DRAEM, rate 1e-3": {"method": "draem", "rate": 1e-3},
    "DRAEM, rate 2e-4": {"method": "draem", "rate": 2e-4},
    "EfficientAD, batch 2, rate 1e-3": {"method": "efficientad", "batch": 2},
    "EfficientAD, batch 1": {"method": "efficientad", "batch": 1},
    "EfficientAD, batch 4": {"method": "efficientad", "batch": 4},
    "EfficientAD, rate 3e-4": {"method": "efficientad", "batch": 2, "rate": 3e-4},
    "EfficientAD, rate 1e-4": {"method": "efficientad", "batch": 2, "rate": 1e-4},
    "EfficientAD, penalty on photos": {"method": "efficientad", "batch": 2, "generic": "photos"},
    "EfficientAD, a teacher of drawn textures": {"method": "efficientad", "batch": 2, "teacher": "other"},
}


def made(options: dict[str, Any], steps: int, teacher: str) -> Detector:
    chosen = dict(options) if "method" in options else PLAIN | options
    chosen |= {key: str(FOLDERS[value]) for key, value in chosen.items() if key in ("textures", "generic")}
    chosen |= {"teacher": teacher} if "teacher" in chosen else {}
    return create(chosen.pop("method", "pouta"), {"preset": "small", **chosen, "steps": steps})


def judge(name: str, options: dict[str, Any], steps: int, teacher: str) -> dict[str, Any]:
    """Trains, and holds maps and scores against the masks."""
    detector = made(options, steps, teacher)
    size = detector.config.size
    fit, held, mask = pictures(ROOT, name, 0)
    samples = [Sample(as_bytes(image), str(i), str(i), kind=GOOD) for i, image in enumerate(fit)]
    scratch = TABLE.parent / f"scratch-{os.getpid()}"
    feed = Feed(detector, samples, Intake((size, size)), scratch / "pictures", "cpu")
    feed.prepare(detector)
    begun = time.perf_counter()
    rows = np.arange(len(fit))
    scaling = rows[::10] if detector.needs_end else rows[:0]
    rows = np.setdiff1d(rows, scaling)
    with torch.no_grad():
        detector.begin(feed.one_pass(rows))
    train(
        detector,
        lambda start: feed.steps(rows, detector.batch_size, 0, start, steps),
        seed=0,
        checkpoint=scratch / "checkpoint",
        log=Log(scratch / "log.jsonl"),
        tick=lambda done, loss: print(f"{name} {options} {done} {loss:.3f}", flush=True) if done % 50 == 0 else None,
    )
    if detector.needs_end:
        with torch.no_grad():
            detector.end(feed.one_pass(scaling))
    spent = time.perf_counter() - begun
    intake, large = Intake((size, size)), mask.shape[1:]
    pixels, scores = PixelMetrics(), []
    with torch.inference_mode():
        for image, truth in zip(held, mask, strict=True):
            found = detector(torch.from_numpy(intake(as_bytes(image))[0][None]))
            map = np.asarray(Image.fromarray(found.map[0].numpy()).resize(large[::-1], Image.Resampling.BILINEAR))
            pixels.add(map, truth, good=not truth.any())
            scores.append(float(found.score[0]))
    result = pixels.result() | {"i_auroc": auroc(scores, mask.any(axis=(1, 2)))}
    losses = [entry["loss"] for entry in Log(scratch / "log.jsonl").entries()]
    for path in sorted(scratch.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    scratch.rmdir()
    return {key: result[key] for key in METRICS} | {"train_s": round(spent), "loss": float(np.mean(losses[-20:]))}


def as_bytes(image: np.ndarray) -> np.ndarray:
    return (image * 255).round().astype(np.uint8)


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in TABLE.read_text().splitlines()] if TABLE.exists() else []


def table(steps: int) -> str:
    lines = [f"| variant | category | {' | '.join(METRICS.values())} | last loss | s |", "|---|---|" + "---|" * 6]
    for row in sorted(rows(), key=lambda r: (list(VARIANTS).index(r["variant"]), r["category"])):
        if row["steps"] == steps:
            cells = [f"{row[key]:.3f}" for key in (*METRICS, "loss")]
            lines.append(f"| {row['variant']} | {row['category']} | {' | '.join(cells)} | {row['train_s']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--shard", default="0/1", help="this part of so many")
    parser.add_argument("--only", nargs="+", default=[""], help="variants whose name has all of this")
    parser.add_argument("--teacher", default="", help="distilled from drawn textures, for that variant")
    args = parser.parse_args()
    part, parts = map(int, args.shard.split("/"))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // parts))
    TABLE.parent.mkdir(exist_ok=True)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    jobs = [(variant, name) for variant in VARIANTS for name in NAMES if all(word in variant for word in args.only)]
    jobs = [job for job in jobs if args.teacher or "a teacher" not in job[0]]
    for variant, name in jobs[part::parts]:
        if any((r["variant"], r["category"], r["steps"]) == (variant, name, args.steps) for r in rows()):
            continue
        row = {"variant": variant, "category": name, "steps": args.steps, "commit": commit}
        row |= {"date": time.strftime("%Y-%m-%d"), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
        row |= judge(name, VARIANTS[variant], args.steps, args.teacher)
        with TABLE.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print(table(args.steps))


if __name__ == "__main__":
    main()

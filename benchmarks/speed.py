"""Fitting and the whole road as ratios, all in one run: a section of docs/speed.md.

python benchmarks/speed.py [--category mvtec/bottle]

features   frozen Lite0 features, 256 px, one picture at a time: ONNX Runtime against eager torch
coreset    4,000 of the patches of 100 pictures: ours against the plain loop that measures all rows each time
learning   PatchCore from the category's good pictures, memories of 4,000 and 1,000: its features and what `begin` does
           with them, beside one pass of the pictures through the bare backbone's graph
road       fit and evaluate, each in a fresh process, beside the bare backbone's own time for the same pictures

How long a start takes is startup.py's, where the time of one picture goes stages.py's.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import made_by, section
from results import DATA

MEMORIES = (1000, 4000)


def best(work: Callable[[], object], times: int) -> float:
    """Seconds, the least of so many."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return min(found)


def features() -> tuple[float, float]:
    """Seconds a picture: ONNX Runtime, torch."""
    from flawmap.features.backbone import EMBEDDED, Backbone
    from flawmap.features.frozen import frozen

    backbone = Backbone(EMBEDDED, (1, 2, 3), 256)
    image = np.random.default_rng(0).random((1, 3, 256, 256), dtype=np.float32)
    ours, tensor = frozen(backbone, 256), torch.from_numpy(image)
    with torch.inference_mode():
        pairs = [(best(lambda: ours(image), 3), best(lambda: backbone(tensor), 3)) for _ in range(5)]
    return min(a for a, _ in pairs), min(b for _, b in pairs)


def coreset(category: str) -> tuple[float, float, int]:
    """Seconds: ours, the plain loop (from its first 100 centres), and how many patches."""
    from flawmap.detectors import create
    from flawmap.features.coreset import k_centre
    from flawmap.features.frozen import frozen
    from flawmap.features.patches import to_patches
    from flawmap.images.folder import find
    from flawmap.images.intake import Intake

    detector = create("patchcore")
    run, intake = frozen(detector.backbone, 256), Intake((256, 256))  # type: ignore[attr-defined]
    samples = [s for s in find(DATA / category) if s.split == "train"][:100]
    feats = ([torch.from_numpy(f) for f in run(intake(s.source)[0][None])] for s in samples)
    patch_ND = torch.cat([to_patches(detector.embed(f)) for f in feats])  # type: ignore[attr-defined]
    ours = best(lambda: k_centre(patch_ND, 4000, seed=0, projection=128), 2)
    plain = best(lambda: _plain(patch_ND, 100), 1) * 40
    return ours, plain, len(patch_ND)


def _plain(patch_ND: torch.Tensor, keep: int) -> None:
    searched = patch_ND @ torch.randn(patch_ND.shape[1], 128) / 128**0.5
    norm, far = searched.square().sum(dim=1), torch.full((len(searched),), torch.inf)
    centre = 0
    for _ in range(keep):
        gap = norm + norm[centre] - 2 * (searched @ searched[centre])
        far = torch.minimum(far, gap.clamp_(min=0))
        centre = int(far.argmax())


def learning(category: str) -> tuple[int, float, list[tuple[str, float, float, float]]]:
    """Pictures, seconds of one pass, and for each size of memory seconds: features, patches, coreset."""
    from flawmap.detectors import create, patchcore
    from flawmap.features.frozen import frozen
    from flawmap.images.folder import find
    from flawmap.images.intake import Intake
    from flawmap.run.feed import Feed

    samples = [s for s in find(DATA / category) if s.split == "train"]
    intake, search = Intake.fit([s.source for s in samples], (256, 256)), patchcore.k_centre
    run = frozen(create("patchcore").backbone, 256)  # type: ignore[attr-defined]
    images = [intake(sample.source)[0][None] for sample in samples]
    bare, rows, spent = best(lambda: [run(image) for image in images], 3), [], list[float]()

    def timed(*what: Any, **how: Any) -> torch.Tensor:
        found: list[torch.Tensor] = []
        spent.append(best(lambda: found.append(search(*what, **how)), 1))
        return found[0]

    patchcore.k_centre = timed
    for most in MEMORIES:
        detector, spent[:] = create("patchcore", {"most": most}), []
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            feed = Feed(detector, samples, intake, Path(folder), "cpu")
            features = best(lambda feed=feed, detector=detector: feed.prepare(detector), 1)
            normals = feed.one_pass(range(len(samples)))
            begin = best(lambda normals=normals, detector=detector: detector.begin(normals), 3)
        rows.append((f"{most:,}", features, begin - min(spent), min(spent)))
    patchcore.k_centre = search
    return len(samples), bare, rows


def road(category: str, one_picture: float) -> list[tuple[str, float, float, float]]:
    """What, seconds, peak MB, and how often the bare backbone's time for the same pictures."""
    data, rows = DATA / category, []
    train = len(list((data / "train" / "good").iterdir()))
    test = sum(len(list(folder.iterdir())) for folder in (data / "test").iterdir())
    with tempfile.TemporaryDirectory() as scratch:
        for method in ("patchcore", "simplenet"):
            bundle = f"{scratch}/{method}.flaw"
            words = ["fit", str(data), "--method", method, "--out", scratch, "--save", bundle]
            for what, command, pictures in (
                (f"fit {method}, {train} pictures", words, train),
                (f"evaluate, {test} pictures", ["evaluate", bundle, str(data)], test),
            ):
                seconds, peak = process(command)
                rows.append((what, seconds, peak, seconds / (pictures * one_picture)))
        picture = next((data / "test" / "good").iterdir())
        seconds, peak = process(["inspect", bundle, str(picture)])
        rows.append(("inspect one picture, fresh process", seconds, peak, seconds / one_picture))
    return rows


# A child starts with its parent's peak; a small one in between keeps ours out of the figure.
WATCH = """
import resource, subprocess, sys, time
begun = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=-3, stderr=-3).returncode
print(code, time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


def process(words: list[str]) -> tuple[float, float]:
    """Seconds and peak MB of a command in a fresh process."""
    command = [sys.executable, "-c", WATCH, sys.executable, "-m", "flawmap.cli", *words]
    code, seconds, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    if code != "0":
        sys.exit(f"flawmap {' '.join(words)} failed")
    return float(seconds), float(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--category", default="mvtec/bottle")
    category = parser.parse_args().category
    pictures, bare, learnt = learning(category)
    ort, eager = features()
    ours, plain, rows = coreset(category)
    lines = [
        f"{made_by('speed.py')} torch {torch.__version__}. Read the ratios; seconds are those of this machine.",
        "",
        "| | ours | peer | ratio |",
        "|---|---|---|---|",
        f"| frozen Lite0 features, 256 px, a picture: ONNX Runtime against eager torch | {ort * 1000:.0f} ms | "
        f"{eager * 1000:.0f} ms | {eager / ort:.1f} |",
        f"| coreset of 4,000 from {rows:,} patches: ours against the plain greedy loop | {ours:.1f} s | "
        f"{plain:.0f} s | {plain / ours:.1f} |",
        "",
        f"What PatchCore learns from {pictures} pictures, and how often the {bare:.2f} s that one pass of them takes "
        "through the bare backbone's graph (aim: 1.5 times). Features are decoded, resized, pushed through the graph "
        "and written to the disk; patches are read from there, pooled, measured and drawn.",
        "",
        "| memory | features, s | patches, s | coreset, s | together | x one pass |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {' | '.join(f'{one:.2f}' for one in spent)} | {sum(spent):.2f} | {sum(spent) / bare:.2f} |"
            for name, *spent in learnt
        ),
        "",
        f"The whole road on {category}, each command in a fresh process (with start-up, import and export); the bare "
        "backbone takes the features' time above for each picture.",
        "",
        "| | seconds | peak MB | x bare backbone |",
        "|---|---|---|---|",
        *(
            f"| {what} | {seconds:.1f} | {peak:.0f} | {ratio:.1f} |"
            for what, seconds, peak, ratio in road(category, ort)
        ),
    ]
    section("Fitting, and the whole road", lines)
    print(f"peak here {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()

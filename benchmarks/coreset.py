"""The coreset beside anomalib's, on the same patches in one run: docs/coreset.md.

python benchmarks/coreset.py --peer PYTHON [--category mvtec/bottle] [--rows 200000] [--share 0.1]

PYTHON is that of an environment with anomalib 2.7.0 (benchmarks/peers/run.py makes one). anomalib's search takes an
hour at 200,000 patches. It measures every patch against every centre, so it is timed for a few of its centres, in
three places, and the rest is reckoned. Each side searches in a fresh process. The cover is compared in full, at
--covered patches: the radius is taken between the patches themselves, whatever projection the search used. anomalib's
projection (its own code) is searched by our search, which is as exact as its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

PEER, PLACES, EACH = "2.7.0", 3, 20
SEEDS = (0, 1, 2)


def patches(category: str, rows: int, path: Path) -> int:
    """Equalised Lite0 features of the good training pictures, saved; how many numbers a patch has."""
    from results import DATA

    from flawmap.detectors.patchcore import PatchCore
    from flawmap.features.frozen import frozen
    from flawmap.features.patches import to_patches
    from flawmap.images.folder import find
    from flawmap.images.intake import Intake
    from flawmap.types import Batch

    detector = PatchCore(PatchCore.Config())
    run, intake = frozen(detector.backbone, 256), Intake((256, 256))
    found = [run(intake(s.source)[0][None]) for s in find(DATA / category) if s.split == "train"]
    batches = [Batch(features=tuple(torch.from_numpy(feat) for feat in feats)) for feats in found]
    with torch.inference_mode():
        detector.embed.measure(batches)
        patch_ND = torch.cat([to_patches(detector.embed(batch.features or ())) for batch in batches])
    if len(patch_ND) < rows:
        sys.exit(f"{category} has {len(patch_ND):,} patches, not {rows:,}: choose a larger one or fewer --rows")
    np.save(path, patch_ND[:rows].numpy())
    return patch_ND.shape[1]


def ours(path: Path, share: float) -> dict[str, float]:
    from flawmap.features.coreset import k_centre

    patch_ND = torch.from_numpy(np.load(path))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun, worked = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        found = k_centre(patch_ND, int(len(patch_ND) * share), seed=0, projection=128)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, cpu = time.perf_counter() - begun, time.process_time() - worked
    return {"seconds": seconds, "cpu": cpu, "centres": len(found), "mb": (after - before) / 1024}


def peers(path: Path, share: float) -> dict[str, list[float]]:
    """Seconds a centre and CPU seconds a centre, in places one after the other."""
    from anomalib.models.components.sampling.k_center_greedy import (  # pyright: ignore[reportMissingImports]
        KCenterGreedy,
    )

    torch.manual_seed(0)
    search = KCenterGreedy(torch.from_numpy(np.load(path)), share)
    search.model.fit(search.embedding)
    search.features = search.model.transform(search.embedding)
    centre, seconds, cpu = torch.tensor(0), [], []
    for _ in range(PLACES):
        begun, worked = time.perf_counter(), time.process_time()
        for _ in range(EACH):  # the body of select_coreset_idxs
            search.update_distances(cluster_center=centre)
            centre = search.get_new_idx()
            search.min_distances.scatter_(0, centre.unsqueeze(0).unsqueeze(1), 0.0)
        seconds.append((time.perf_counter() - begun) / EACH)
        cpu.append((time.process_time() - worked) / EACH)
    return {"seconds": seconds, "cpu": cpu, "dimensions": [search.features.shape[1]]}


def projected(path: Path, covered: int) -> dict[str, bool]:
    """anomalib's projection of the first rows, one of each seed, saved beside them."""
    from anomalib.models.components.dimensionality_reduction import (  # pyright: ignore[reportMissingImports]
        SparseRandomProjection,
    )

    some_ND = torch.from_numpy(np.load(path)[:covered])
    for seed in SEEDS:
        model = SparseRandomProjection(eps=0.9, random_state=seed)
        model.fit(some_ND)
        np.save(path.with_name(f"projected{seed}.npy"), model.transform(some_ND).numpy())
    return {"saved": True}


def covers(path: Path, covered: int, share: float) -> list[tuple[str, list[float]]]:
    """Whose search, and its cover radius for each seed."""
    from flawmap.features.coreset import k_centre

    patch_ND, keep = torch.from_numpy(np.load(path)[:covered]), int(covered * share)

    def radius(row_M: torch.Tensor) -> float:
        kept_MD = patch_ND[row_M]
        return max(float(torch.cdist(part, kept_MD).amin(dim=1).max()) for part in patch_ND.split(2000))

    theirs = [torch.from_numpy(np.load(path.with_name(f"projected{seed}.npy"))) for seed in SEEDS]
    lots = [torch.randperm(covered, generator=torch.Generator().manual_seed(seed))[:keep] for seed in SEEDS]
    plain = _plain(patch_ND, keep, int(k_centre(patch_ND, 1, seed=0)[0]))
    return [
        ("anomalib's projection", [radius(k_centre(theirs[s], keep, seed=s)) for s in SEEDS]),
        ("ours, projected to 128", [radius(k_centre(patch_ND, keep, seed=s, projection=128)) for s in SEEDS]),
        ("ours, not projected", [radius(k_centre(patch_ND, keep, seed=s)) for s in SEEDS]),
        ("the plain loop, not projected (first seed)", [radius(plain)]),
        ("by lot", [radius(lot) for lot in lots]),
    ]


def _plain(patch_ND: torch.Tensor, keep: int, first: int) -> torch.Tensor:
    """Algorithm 1 word for word: every patch against every centre, differences squared and summed."""
    chosen, gap_N = [first], (patch_ND - patch_ND[first]).square().sum(dim=1)
    while len(chosen) < keep:
        chosen.append(int(gap_N.argmax()))
        gap_N = torch.minimum(gap_N, (patch_ND - patch_ND[chosen[-1]]).square().sum(dim=1))
    return torch.tensor(chosen)


def _process(python: str, side: str, *words: object) -> dict:
    run = subprocess.run([python, __file__, "--side", side, *map(str, words)], capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{side} in {python} failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def page(asked: argparse.Namespace) -> list[str]:
    from results import commit

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "patches.npy"
        numbers = patches(asked.category, asked.rows, path)
        peer = _process(asked.peer, "peers", path, asked.share)
        own = _process(sys.executable, "ours", path, asked.share)
        again = _process(asked.peer, "peers", path, asked.share)
        _process(asked.peer, "projected", path, asked.covered)
        radii = covers(path, asked.covered, asked.share)
    places, cpus = peer["seconds"] + again["seconds"], peer["cpu"] + again["cpu"]
    whole, work = min(places) * own["centres"], min(cpus) * own["centres"]
    first = radii[0][1]
    return [
        "# Coreset",
        "",
        f"Made by `python benchmarks/coreset.py` on {time.strftime('%Y-%m-%d')}, commit {commit()}: {os.cpu_count()} "
        f"cores ({platform.machine()}), no GPU, torch {torch.__version__}, anomalib {PEER}. {asked.rows:,} patches of "
        f"{numbers} numbers ({asked.category}, Lite0, 256 px, stages 1 to 3), {own['centres']:,} of them kept.",
        "",
        "| | seconds | CPU seconds |",
        "|---|---|---|",
        f"| ours, all centres | {own['seconds']:.1f} | {own['cpu']:.1f} |",
        f"| anomalib, reckoned from {2 * PLACES * EACH} centres | {whole:,.0f} | {work:,.0f} |",
        f"| times as fast | {whole / own['seconds']:.0f} | {work / own['cpu']:.0f} |",
        "",
        f"anomalib measures every patch against every centre, in {peer['dimensions'][0]} dimensions after its "
        f"projection, so that a centre always costs the same. Milliseconds a centre, {EACH} centres a place, half of "
        f"the places before our search and half after it: {', '.join(f'{s * 1000:.0f}' for s in places)} (CPU: "
        f"{', '.join(f'{s * 1000:.0f}' for s in cpus)}). The least one counts. Projecting is left out. CPU seconds are "
        "those to compare where the machine had other work. Beside the patches our search held "
        f"{own['mb']:.0f} MB.",
        "",
        f"The cover, at {asked.covered:,} patches and {int(asked.covered * asked.share):,} kept: the distance between "
        "the worst covered patch and the nearest kept one, in the features' own space. Smaller is better.",
        "",
        "| search | radius, seeds 0 to 2 | of anomalib's |",
        "|---|---|---|",
        *(
            f"| {what} | {', '.join(f'{r:.3f}' for r in found)} | {np.mean(found) / np.mean(first):.3f} |"
            for what, found in radii
        ),
        "",
    ]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", help="python of an environment with anomalib")
    parser.add_argument("--category", default="mvtec/bottle")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--covered", type=int, default=20_000, help="patches whose cover is compared")
    parser.add_argument("--side", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if asked.side:
        side, path, number = asked.side
        found = projected(Path(path), int(number)) if side == "projected" else None
        print(json.dumps(found or {"ours": ours, "peers": peers}[side](Path(path), float(number))))
        return
    if not asked.peer:
        parser.error("--peer is needed: the python of an environment with anomalib")
    target = Path(__file__).resolve().parents[1] / "docs" / "coreset.md"
    target.write_text("\n".join(page(asked)))
    print(target)


if __name__ == "__main__":
    main()

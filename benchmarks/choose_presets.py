"""Chooses the presets fast and accurate of PatchCore, PaDiM and SimpleNet without a look at any test picture.

Of a category's good training pictures some parts fit the method and others are held out; each held-out picture is
judged as it is and with made defects of two kinds that share no code, whose masks are exact: *drawn*, two a picture
(artificial_defects.py), and *painted*, one a picture (flawmap.synthesis). All are made at 256 px and then resized, so
that every candidate is judged on the same ones, and maps are held against masks at 256 px.

The rule is `chosen`; what of it was changed after a look at results stands in docs/presets.md. Rows already in
benchmarks/out/choose_presets.jsonl are not made again.

    python benchmarks/choose_presets.py count    the operations of a picture, by candidate
    python benchmarks/choose_presets.py judge [--methods patchcore] [--categories mvtec/bottle] [--draw 0]
    python benchmarks/choose_presets.py table    what came out, and what the rule says

The pictures are found by FLAWMAP_DATA, else in ../shared/data.

B images  H W pixels
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from artificial_defects import SIZE
from choose_defaults import fitted, pictures
from choose_training import as_bytes
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flawmap.detectors import create
from flawmap.detectors.base import FrozenDetector
from flawmap.features.backbone import EMBEDDED, Backbone
from flawmap.features.frozen import frozen
from flawmap.images.intake import Intake
from flawmap.images.tiles import enlarge
from flawmap.run.table import made
from flawmap.synthesis import PRESETS, Synthesis
from flawmap.verdict.metrics import auroc
from flawmap.verdict.pixels import PixelMetrics

HERE = Path(__file__).resolve().parent
ROOT = Path(os.environ.get("FLAWMAP_DATA") or HERE.parents[1] / "shared" / "data")
TABLE = HERE / "out" / "choose_presets.jsonl"
FIT, HELD = 24, 12  # pictures that fit, and that are held out
NAMES = ("mvtec/bottle", "elpv/mono", "magnetic_tile/magnetic_tile", "aitex/fabric_02")
METHODS = ("patchcore", "padim", "simplenet")
METRICS = {"i_auroc": "I-AUROC", "p_ap": "P-AP", "pro": "PRO"}
SOURCES = ("drawn", "painted")
STAGES = (1, 2, 3)
LITE2 = "tf_efficientnet_lite2"
# Of the balanced one's operations: what fast may take, and what accurate may.
FAST, ACCURATE = 0.6, 4.0
# A backbone that another package brings must be worth the package.
EXTRA = 0.01


@dataclass(frozen=True)
class Candidate:
    """One setting; the smoothing keeps its width on the part."""

    name: str
    size: int = 256
    backbone: str = EMBEDDED
    stages: tuple[int, ...] = STAGES
    more: tuple[tuple[str, Any], ...] = ()

    def options(self) -> dict[str, Any]:
        plain = {"size": self.size, "backbone": self.backbone, "stages": self.stages, "sigma_px": self.size / 64}
        return {**plain, **dict(self.more)}


def _with(**more: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(more.items())


BALANCED = "balanced: the defaults"
CANDIDATES: dict[str, list[Candidate]] = {
    "patchcore": [
        Candidate(BALANCED),
        Candidate("memory 1,000, stride 16", more=_with(most=1000, stride=16)),
        Candidate("192 px, memory 1,000", 192, more=_with(most=1000)),
        Candidate("192 px, stages 2, 3, memory 1,000", 192, stages=(2, 3), more=_with(most=1000)),
        Candidate("384 px", 384),
        Candidate("Lite2", 256, LITE2),
        Candidate("Lite2, 320 px", 320, LITE2),
    ],
    "padim": [
        Candidate(BALANCED),
        Candidate("50 features", more=_with(dims=50)),
        Candidate("192 px", 192),
        Candidate("192 px, 50 features", 192, more=_with(dims=50)),
        Candidate("all 176 features", more=_with(dims=0)),
        Candidate("384 px", 384),
        Candidate("Lite2", 256, LITE2),
        Candidate("Lite2, 320 px", 320, LITE2),
    ],
    "simplenet": [
        Candidate(BALANCED),
        Candidate("stages 1, 2", stages=(1, 2)),
        Candidate("192 px", 192),
        Candidate("384 px", 384),
        Candidate("Lite2", 256, LITE2),
        Candidate("Lite2, 320 px", 320, LITE2),
    ],
}


# ---- pictures and features


@dataclass(frozen=True, eq=False)
class Case:
    """Pictures (H, W, 3) uint8; of the held-out ones where they come from and their masks (H, W)."""

    fit: list[np.ndarray]
    held: list[np.ndarray]
    source: list[str]
    mask: np.ndarray


def case(name: str, draw: int) -> Case:
    fit, held, mask = pictures(ROOT, name, draw, (FIT, HELD))
    good = int((~mask.any(axis=(1, 2))).sum())
    source = ["good"] * good + ["drawn"] * (len(held) - good)
    rng, masks = np.random.default_rng([*name.encode(), draw, 1]), list(mask)
    for place, image in enumerate(held[:good]):
        paint = Synthesis(list(PRESETS)[place % len(PRESETS)], anomalous=1.0)
        paint.preset = replace(paint.preset, rotate_clean=0.0, redraw=True)
        painted = paint(np.ascontiguousarray(image.transpose(2, 0, 1)), [int(rng.integers(2**31))])
        held.append(painted.image.transpose(1, 2, 0))
        masks.append(painted.mask > 0.5)
        source.append("painted")
    return Case([as_bytes(i) for i in fit], [as_bytes(i) for i in held], source, np.stack(masks))


Features = tuple[dict[int, Tensor], dict[int, Tensor]]


def features(of: Case, backbone: str, size: int) -> Features:
    """One (B, C, h, w) a stage, of the pictures that fit and of the held-out ones."""
    run, intake = network(backbone, size), Intake((size, size))
    found = []
    for images in (of.fit, of.held):
        rows = [run(intake(image)[0][None]) for image in images]
        stages = [torch.from_numpy(np.concatenate(stage)) for stage in zip(*rows, strict=True)]
        found.append(dict(zip(STAGES, stages, strict=True)))
    return found[0], found[1]


@cache
def network(backbone: str, size: int, stages: tuple[int, ...] = STAGES) -> Any:
    return frozen(Backbone(backbone, stages, size), size)


# ---- judging


def judge(method: str, options: dict[str, Any], feats: Features, of: Case) -> dict[str, Any]:
    """Fits, and holds scores and maps against the masks."""
    room = {"reservoir_mb": 1024} if method == "patchcore" else {}  # the coreset is chosen from all patches
    detector = create(method, {**options, **room}, pretrained=False)
    assert isinstance(detector, FrozenDetector)
    found, scores, spent = fitted(detector, *feats)
    maps, row = [enlarge(map, (SIZE, SIZE)) for map in found], {}
    for name in SOURCES:
        places = [i for i, source in enumerate(of.source) if source in ("good", name)]
        pixels = PixelMetrics()
        for i in places:
            pixels.add(maps[i], of.mask[i], good=of.source[i] == "good")
        figures = pixels.result() | {"i_auroc": auroc(scores[places], [of.source[i] == name for i in places])}
        row[name] = {key: figures[key] for key in METRICS}
    return row | {"fit_s": round(spent, 1)}


def operations(method: str, candidate: Candidate) -> float:
    """Thousand millions (multiply and add are two) of one picture, backbone and head, with a full memory."""
    detector = create(method, candidate.options(), pretrained=False).eval()
    assert isinstance(detector, FrozenDetector)
    if method == "patchcore":
        most = candidate.options().get("most", 4000)
        detector.memory_MD = torch.rand(most, detector.embed.dim)
        detector.company_MK = torch.zeros(most, 9, dtype=torch.long)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        detector(torch.zeros(1, 3, candidate.size, candidate.size))
    return counter.get_total_flops() / 1e9


# ---- the rule, and the tables


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in TABLE.read_text().splitlines()] if TABLE.exists() else []


def add(row: dict[str, Any]) -> None:
    TABLE.parent.mkdir(exist_ok=True)
    with TABLE.open("a") as file:
        file.write(json.dumps({**row, **made()}) + "\n")


def value(row: dict[str, Any]) -> float:
    """What the rule counts: the mean of I-AUROC, P-AP and PRO, over both kinds of made defects."""
    return float(np.mean([row[source][key] for source in SOURCES for key in METRICS]))


def costs(method: str, found: list[dict[str, Any]]) -> dict[str, float]:
    return {r["candidate"]: r["gop"] for r in found if r["method"] == method and "gop" in r}


def values(method: str, found: list[dict[str, Any]]) -> dict[str, dict[tuple[str, int], float]]:
    """Of each candidate its value in each category and draw; left out is what was not counted, or lacks two of them."""
    kept: dict[str, dict[tuple[str, int], float]] = {}
    for row in found:
        if row["method"] == method and "category" in row:
            kept.setdefault(row["candidate"], {})[row["category"], row["draw"]] = value(row)
    most, cost = max((len(each) for each in kept.values()), default=0), costs(method, found)
    return {name: each for name, each in kept.items() if len(each) >= most - 1 and name in cost}


def chosen(method: str, found: list[dict[str, Any]]) -> dict[str, str]:
    """fast: the best mean gain on balanced, over shared cases, of what takes at most 0.6 of its operations.
    accurate: the best of what takes at most four times as many, Lite2 only where it is 0.01 better than the best
    without it; balanced itself is among them."""
    kept = values(method, found)
    usual = kept[BALANCED]
    means = {name: float(np.mean([each[at] - usual[at] for at in each])) for name, each in kept.items()}
    cost = costs(method, found)
    lite2 = {c.name for c in CANDIDATES[method] if c.backbone == LITE2}
    fast = [name for name in means if cost[name] <= FAST * cost[BALANCED]]
    slow = [name for name in means if cost[name] <= ACCURATE * cost[BALANCED]]
    best = {"accurate": max(slow, key=lambda name: means[name] - EXTRA * (name in lite2))}
    return {"fast": max(fast, key=means.__getitem__), **best} if fast else best


def table(method: str, found: list[dict[str, Any]]) -> Iterator[str]:
    """A row a candidate, those that take least first; in brackets the gain on balanced and in how many cases."""
    cost, kept, picked = costs(method, found), values(method, found), chosen(method, found)
    heads = [f"{source} {title}" for source in SOURCES for title in METRICS.values()]
    yield f"| candidate | 10^9 operations | of balanced | {' | '.join(heads)} | mean |"
    yield "|---|---|---|" + "---|" * (len(heads) + 1)
    for name in sorted(kept, key=lambda name: cost[name]):
        mine = [r for r in found if r["method"] == method and r["candidate"] == name and "category" in r]
        cells = [f"{np.mean([r[source][key] for r in mine]):.3f}" for source in SOURCES for key in METRICS]
        gains = [kept[name][place] - kept[BALANCED][place] for place in kept[name]]
        change = "" if name == BALANCED else f" ({np.mean(gains):+.3f}, {sum(g > 0 for g in gains)} of {len(gains)})"
        marks = [preset for preset, of in picked.items() if of == name]
        shown = f"**{name}: {' and '.join(marks)}**" if marks else name
        mean = f"{np.mean(list(kept[name].values())):.3f}{change}"
        yield f"| {shown} | {cost[name]:.2f} | {cost[name] / cost[BALANCED]:.2f} | {' | '.join(cells)} | {mean} |"


# ---- the run


def _count(methods: list[str]) -> None:
    for method in methods:
        for candidate in CANDIDATES[method]:
            if candidate.name not in costs(method, rows()):
                add({"method": method, "candidate": candidate.name, "gop": operations(method, candidate)})


def _judge(methods: list[str], categories: list[str], draw: int) -> None:
    for name in categories:
        done = {(r["method"], r["candidate"]) for r in rows() if (r.get("category"), r.get("draw")) == (name, draw)}
        jobs = [(m, c) for m in methods for c in CANDIDATES[m] if (m, c.name) not in done]
        of = case(name, draw) if jobs else None
        for backbone, size in dict.fromkeys((c.backbone, c.size) for _, c in jobs):
            assert of is not None
            feats = features(of, backbone, size)
            for method, candidate in jobs:
                if (candidate.backbone, candidate.size) == (backbone, size):
                    row = judge(method, candidate.options(), feats, of)
                    add({"method": method, "candidate": candidate.name, "category": name, "draw": draw, **row})
                    print(name, method, candidate.name, f"{value(row):.3f}", f"{row['fit_s']} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("what", choices=["count", "judge", "table"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--categories", nargs="+", default=list(NAMES))
    parser.add_argument("--draw", type=int, default=0)
    asked = parser.parse_args()
    if asked.what == "count":
        _count(asked.methods)
    if asked.what == "judge":
        _judge(asked.methods, asked.categories, asked.draw)
    if asked.what == "table":
        print(platform.machine(), f"{os.cpu_count()} cores")
        for method in asked.methods:
            print(f"\n{method}\n", *table(method, rows()), sep="\n")


if __name__ == "__main__":
    main()

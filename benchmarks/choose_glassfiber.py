"""Chooses method and settings for glass fibre without a look at any test picture.

The 90 good training pictures are four sweeps of ten overlapping poses and 50 poses of a few other layups. Fitting on
the sweeps and judging the poses, and the reverse, is a change of scene within the training data (the main protocol);
folds by part are the second, easier one. A held-out picture is judged as it is, in changed light, and with defects of
three independent kinds whose masks are exact: layup_defects.py, what flawmap.synthesis paints, artificial_defects.py.
All defects are made at 512 px and then resized, so that every setting is judged on the same ones. Rows that are in
benchmarks/out/choose_glassfiber.jsonl already are not run again.

    python benchmarks/choose_glassfiber.py --draws 0 --splits shift [--weights FOLDER]     the first round
    python benchmarks/choose_glassfiber.py --draws 0 1 --splits shift folds --finalists    the second

FOLDER holds mobilenetv2_100.safetensors (benchmarks/backbones.py); without it that backbone is left out. The pictures
are found by FLAWMAP_DATA, else in ../shared/data.

B images  H W pixels  h w patch grid
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from artificial_defects import with_defect
from choose_defaults import learn
from glassfiber_candidates import CANDIDATES, FINALISTS, MOBILENET, Candidate
from layup_defects import KINDS, with_structure
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata
from torch import Tensor, nn

from flawmap.detectors import create
from flawmap.detectors.base import FrozenDetector
from flawmap.features.backbone import Backbone
from flawmap.features.frozen import frozen
from flawmap.features.patches import Enlarge
from flawmap.images.decode import decode
from flawmap.images.folder import find
from flawmap.images.intake import Intake
from flawmap.images.split import folds
from flawmap.synthesis import PRESETS, Synthesis
from flawmap.types import Batch, Sample
from flawmap.verdict.metrics import auroc
from flawmap.verdict.pixels import PixelMetrics

HERE = Path(__file__).resolve().parent
ROOT = Path(os.environ.get("FLAWMAP_DATA") or HERE.parents[1] / "shared" / "data")
TABLE = HERE / "out" / "choose_glassfiber.jsonl"
FULL, MAP = 512, 256  # defects are made at the pictures' own size; maps are held against masks at this one
SWEEPS, POSES = 20, 24  # held-out pictures of a draw
FOLDS = 3
STAGES = (1, 2, 3, 4)
SIGMAS = (4.0, 8.0, 16.0)  # px at 256
PLAIN = 0.08  # mean change inside the mask from which a defect counts as plain to see, if it has 0.3 % of the picture
SOURCES = ("layup", "painted", "small")


class Shown(NamedTuple):
    """A picture that is judged: (512, 512) uint8; its mask (256, 256)."""

    row: int  # of the good picture that it was made from
    source: str  # good, light, or one of SOURCES
    kind: str
    image: np.ndarray
    mask: np.ndarray
    plain: bool


# ---- pictures


def good() -> tuple[list[Sample], list[np.ndarray]]:
    samples = [s for s in find(ROOT / "glassfiber" / "glassfiber") if s.split == "train" and s.good]
    return samples, [decode(s.source) for s in samples]


def held_out(samples: list[Sample], images: list[np.ndarray], draw: int) -> list[Shown]:
    """Every second sweep picture and every second pose, the other half in the other draw; and what is made of them."""
    sweeps = [i for i, s in enumerate(samples) if s.part.startswith("sweep")][draw % 2 :: 2][:SWEEPS]
    poses = [i for i, s in enumerate(samples) if s.part.startswith("pose")][draw % 2 :: 2][:POSES]
    found = []
    for place, row in enumerate([*sweeps, *poses]):
        rng = np.random.default_rng([2026, draw, row])
        group = [i for i, s in enumerate(samples) if s.part[:4] == samples[row].part[:4] and i != row]
        other = images[group[rng.integers(len(group))]]
        found += _shown(row, place, images[row], other, rng)
    return found


def _shown(row: int, place: int, image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> Iterator[Shown]:
    grey, other_grey = (_grey(i) for i in (image, other))
    yield _make(row, "good", "", grey, grey, None)
    for kind in range(2):
        yield _make(row, "light", "", grey, _in_other_light(grey, rng, slanted=bool(kind)), None)
    kinds = list(KINDS)
    for kind in (kinds[place % 6], kinds[(place + 2) % 6], kinds[(place + 4) % 6]):
        yield _make(row, "layup", kind, grey, *with_structure(grey, other_grey, kind, rng))
    for kind in (list(PRESETS)[place % 3], list(PRESETS)[(place + 1) % 3]):
        paint = Synthesis(kind, anomalous=1.0)
        paint.preset = replace(paint.preset, rotate_clean=0.0, redraw=True)
        painted = paint(np.repeat(grey[None], 3, axis=0), [int(rng.integers(2**31))])
        yield _make(row, "painted", kind, grey, painted.image.mean(axis=0), painted.mask > 0.5)
    colour, other_colour = (np.repeat(g[..., None], 3, axis=2) for g in (grey, other_grey))
    changed, mask = with_defect(colour, other_colour, rng)
    yield _make(row, "small", "", grey, changed.mean(axis=2), mask)


def _make(row: int, source: str, kind: str, before: np.ndarray, after: np.ndarray, mask: np.ndarray | None) -> Shown:
    small, plain = np.zeros((MAP, MAP), bool), False
    if mask is not None:
        small = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize((MAP, MAP), Image.Resampling.BOX)) > 127
        plain = bool(mask.mean() > 0.003 and np.abs(after - before)[mask].mean() > PLAIN)
    return Shown(row, source, kind, (np.clip(after, 0, 1) * 255).round().astype(np.uint8), small, plain)


def _grey(image: np.ndarray) -> np.ndarray:
    grey = image if image.ndim == 2 else image[..., 0]
    assert grey.shape == (FULL, FULL), "the pictures are not those that the defects were made for"
    return grey.astype(np.float32) / 255


def _in_other_light(grey: np.ndarray, rng: np.random.Generator, *, slanted: bool) -> np.ndarray:
    """Brightness, contrast and gamma changed, slightly blurred; slanted: brighter towards one side."""
    y, x = np.mgrid[:FULL, :FULL] / FULL - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    slope = 1 + slanted * rng.uniform(0.2, 0.6) * (np.cos(angle) * x + np.sin(angle) * y)
    changed = np.clip(grey * slope, 0, 1) ** np.exp(rng.uniform(-0.35, 0.35))
    changed = (changed - changed.mean()) * rng.uniform(0.8, 1.2) + changed.mean() * rng.uniform(0.8, 1.2)
    return gaussian_filter(changed, rng.uniform(0, 1.2))


# ---- features


class Features(NamedTuple):
    """Of one backbone and size: stages of the good pictures and of those shown, and the shapes of the stages."""

    good: dict[int, Tensor]
    shown: dict[int, Tensor]


def features(name: str, size: int, weights: str, images: list[np.ndarray], shown: list[Shown]) -> Features:
    run, intake = frozen(Backbone(name, STAGES, size, weights=weights), size), Intake((size, size))
    found = []
    for pictures in (images, [s.image for s in shown]):
        rows = [run(intake(image)[0][None]) for image in pictures]
        stages = [torch.from_numpy(np.concatenate(stage)) for stage in zip(*rows, strict=True)]
        found.append(dict(zip(STAGES, stages, strict=True)))
    return Features(*found)


# ---- judging


@dataclass(frozen=True)
class Split:
    name: str
    fit: list[int]  # rows of good pictures
    held: list[int]  # rows whose versions are judged


def splits(samples: list[Sample], asked: list[str], draw: int) -> Iterator[Split]:
    rows = {s.name: i for i, s in enumerate(samples)}
    sweeps = [i for i, s in enumerate(samples) if s.part.startswith("sweep")]
    poses = [i for i, s in enumerate(samples) if s.part.startswith("pose")]
    if "shift" in asked:
        yield Split("sweeps to poses", sweeps, poses)
        yield Split("poses to sweeps", poses, sweeps)
    if "folds" in asked:
        cut = [[rows[s.name] for s in part] for part in folds(samples, FOLDS, draw)]
        for number, held in enumerate(cut):
            yield Split(f"fold {number}", [i for part in cut if part is not held for i in part], held)


def fitted(candidate: Candidate, feats: Features, fit: list[int]) -> FrozenDetector:
    detector = create(candidate.method, candidate.detector_options(), pretrained=False)
    assert isinstance(detector, FrozenDetector)
    part = tuple(feats.good[s][fit] for s in detector.config.stages)
    with torch.no_grad():
        detector.begin([Batch(features=tuple(f[i : i + 8] for f in part)) for i in range(0, len(fit), 8)])
    learn(detector, part)
    detector.enlarge = nn.Identity()  # so that its map is the grid, to be enlarged in several ways
    return detector.eval()


def judge(candidate: Candidate, feats: Features, split: Split, shown: list[Shown]) -> dict[str, Any]:
    begun = time.perf_counter()
    detector = fitted(candidate, feats, split.fit)
    fit_s, begun = time.perf_counter() - begun, time.perf_counter()
    places = [i for i, s in enumerate(shown) if s.row in split.held]
    part = tuple(feats.shown[s] for s in detector.config.stages)
    with torch.inference_mode():
        found = [detector.head(tuple(f[places[i : i + 8]] for f in part)) for i in range(0, len(places), 8)]
        grid_Bhw, paper_B = torch.cat([p.map for p in found]), torch.cat([p.score for p in found])
        head_s = (time.perf_counter() - begun) / len(places)
        maps = {sigma: Enlarge(detector.grid, (MAP, MAP), sigma)(grid_Bhw) for sigma in SIGMAS}
    flat = grid_Bhw.flatten(1)
    scores = {"paper": paper_B, "raw": flat.amax(dim=1)}
    scores |= {f"map {sigma:g}": map.amax(dim=(1, 2)) for sigma, map in maps.items()}
    scores["top 2 %"] = flat.topk(max(1, flat.shape[1] // 50), dim=1).values.mean(dim=1)
    judged = [shown[i] for i in places]
    row: dict[str, Any] = {name: _image_figures(score.numpy(), judged) for name, score in scores.items()}
    row["pixels"] = {f"{sigma:g}": _pixel_figures(maps[sigma].numpy(), judged) for sigma in SIGMAS[:2]}
    return row | {"fit_s": round(fit_s, 1), "head_ms": round(head_s * 1000, 1), "grid": list(detector.grid)}


def _image_figures(scores: np.ndarray, judged: list[Shown]) -> dict[str, float]:
    """I-AUROC of each source against the good pictures as they are, and against those in other light; of each kind;
    and the share of good pictures at or above the least strange plain defect (fa), and above the 5 % least (fa5)."""
    source = np.array([s.source for s in judged])
    plain = np.array([s.plain for s in judged])
    row = {}
    for name in SOURCES:
        bad = scores[source == name]
        for suffix, normal in (("", scores[source == "good"]), (" light", scores[source == "light"])):
            row[name + suffix] = _auroc(normal, bad)
            if name == "small":  # hardly any of them is plain
                continue
            least = np.quantile(scores[(source == name) & plain], [0, 0.05], method="lower")
            row[f"fa {name}{suffix}"], row[f"fa5 {name}{suffix}"] = (float((normal >= at).mean()) for at in least)
    for kind in (*KINDS, *PRESETS):
        mine = np.array([s.kind == kind for s in judged])
        row[kind] = _auroc(scores[source == "good"], scores[mine])
    return row


def _auroc(normal: np.ndarray, bad: np.ndarray) -> float:
    return float(auroc(np.concatenate([normal, bad]), np.arange(len(normal) + len(bad)) >= len(normal)) or 0)


def _pixel_figures(maps: np.ndarray, judged: list[Shown]) -> dict[str, float]:
    row = {}
    for name in SOURCES[:2]:
        pixels = PixelMetrics()
        for map, shown in zip(maps, judged, strict=True):
            if shown.source in ("good", name):
                pixels.add(map, shown.mask, good=shown.source == "good")
        result = pixels.result()
        row |= {f"{name} p_ap": result["p_ap"], f"{name} p_auroc": result["p_auroc"]}
    return row


# ---- the run


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in TABLE.read_text().splitlines()] if TABLE.exists() else []


def run(draw: int, asked: list[str], candidates: list[Candidate], weights: Path | None) -> None:
    samples, images = good()
    shown: list[Shown] = []
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    head = {"draw": draw, "commit": commit, "date": time.strftime("%Y-%m-%d"), "machine": platform.machine()}
    todo = [c for c in candidates if weights or c.backbone != MOBILENET]
    for place in dict.fromkeys((c.backbone, c.size) for c in todo):
        done = {(r["candidate"], r["split"], r["draw"]) for r in rows()}
        mine = [c for c in todo if (c.backbone, c.size) == place]
        jobs = [(c, s) for c in mine for s in splits(samples, asked, draw) if (c.name, s.name, draw) not in done]
        if not jobs:
            continue
        shown = shown or held_out(samples, images, draw)
        begun = time.perf_counter()
        file = str(weights / f"{MOBILENET}.safetensors") if weights and place[0] == MOBILENET else ""
        feats = features(*place, file, images, shown)
        print(f"{place}: features of {len(images) + len(shown)} in {time.perf_counter() - begun:.0f} s", flush=True)
        for candidate, split in jobs:
            row = {"candidate": candidate.name, "split": split.name} | head | judge(candidate, feats, split, shown)
            with TABLE.open("a") as out:
                out.write(json.dumps(row) + "\n")
            best = {k: f"{row[k]['layup']:.3f} {row[k]['painted']:.3f}" for k in ("paper", "map 4", "map 8")}
            print(candidate.name, split.name, best, f"{row['fit_s']} s, {row['head_ms']} ms", flush=True)


# ---- the table


def table(asked: list[str], draws: list[int]) -> Iterator[str]:
    """One row a candidate that has all splits and draws: means over them, in brackets the least and the largest."""
    kept = [r for r in rows() if r["draw"] in draws and _protocol(r["split"]) in asked]
    places = {(r["split"], r["draw"]) for r in kept}
    whole: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    for row in kept:
        whole.setdefault(row["candidate"], {})[row["split"], row["draw"]] = row
    whole = {name: found for name, found in whole.items() if found.keys() == places}
    heads = ["layup", "painted", "small", "layup P-AP", "painted P-AP", "fa layup", "fa5 layup", "rank", "map 4", "ms"]
    yield f"{', '.join(asked)}; draws {draws}; {len(places)} splits\n"
    yield f"| candidate | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}"
    rank = _ranks(whole)
    for name in sorted(whole, key=lambda name: rank[name]):
        found = list(whole[name].values())
        cells = [_spread([_with_light(r["paper"], source) for r in found]) for source in SOURCES]
        cells += [_spread([r["pixels"]["4"][f"{source} p_ap"] for r in found]) for source in SOURCES[:2]]
        cells += [f"{np.mean([r['paper'][key] for r in found]):.2f}" for key in ("fa layup", "fa5 layup")]
        cells += [f"{rank[name]:.1f}", f"{np.mean([_with_light(r['map 4'], 'layup') for r in found]):.3f}"]
        yield f"| {name} | {' | '.join(cells)} | {np.mean([r['head_ms'] for r in found]):.0f} |"
    yield "\n| image score | layup | painted | small | fa layup | fa5 layup |\n|---|---|---|---|---|---|"
    found = [r for rows_of in whole.values() for r in rows_of.values() if r["candidate"].startswith("patchcore")]
    for score in ("paper", "raw", *(f"map {sigma:g}" for sigma in SIGMAS), "top 2 %"):
        cells = [f"{np.mean([_with_light(r[score], source) for r in found]):.3f}" for source in SOURCES]
        cells += [f"{np.mean([r[score][key] for r in found]):.2f}" for key in ("fa layup", "fa5 layup")]
        yield f"| {score} | {' | '.join(cells)} |"


def _protocol(split: str) -> str:
    return "folds" if split.startswith("fold") else "shift"


def _with_light(figures: dict[str, float], source: str) -> float:
    """I-AUROC against the good pictures as they are and against those in other light, in equal parts."""
    return (figures[source] + figures[f"{source} light"]) / 2


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.2f}-{max(values):.2f})"


def _ranks(whole: dict[str, dict[tuple[str, int], dict[str, Any]]]) -> dict[str, float]:
    """The mean place of each candidate, 1 the best, over splits, draws and the I-AUROC and P-AP of both sources."""
    names, places = list(whole), []
    for split in next(iter(whole.values()), {}):
        for source in SOURCES[:2]:
            found = [whole[name][split] for name in names]
            places.append(rankdata([-_with_light(r["paper"], source) for r in found]))
            places.append(rankdata([-r["pixels"]["4"][f"{source} p_ap"] for r in found]))
    return dict(zip(names, np.mean(places, axis=0).tolist(), strict=True)) if places else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--draws", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--splits", nargs="+", choices=["shift", "folds"], default=["shift", "folds"])
    parser.add_argument("--only", default="", help="candidates whose name has this")
    parser.add_argument("--finalists", action="store_true", help="only those of the second round")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--weights", type=Path, help="a folder with mobilenetv2_100.safetensors")
    asked = parser.parse_args()
    TABLE.parent.mkdir(exist_ok=True)
    torch.set_num_threads(int(os.environ.get("FLAWMAP_THREADS") or os.cpu_count() or 1))
    candidates = [c for c in (FINALISTS if asked.finalists else CANDIDATES) if asked.only in c.name]
    for draw in asked.draws if not asked.table else []:
        run(draw, asked.splits, candidates, asked.weights)
    print(*table(asked.splits, asked.draws), sep="\n")


if __name__ == "__main__":
    main()

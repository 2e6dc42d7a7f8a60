"""What tiles find that a squashed picture has lost: docs/tiling.md.

python benchmarks/tiling.py [--methods padim patchcore]

ball_screw  629 x 256 px: squashed to 256 x 256 against tiles of 256 px, and against tiles at two scales
fabric      4,000 x 3,000 px made of pictures of fabric_02 at their own resolution, one real defect of 10 to 40 px in
            each defective one: squashed to 256 px against tiles of 256 px

Rows are kept in benchmarks/out/tiling.jsonl, and those that are there are not made again. No choice was made on these
pictures: tile and overlap are the defaults of the page.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from promise import machine
from results import DATA, HERE, commit
from scipy import ndimage
from speed import process

TABLE = HERE / "out" / "tiling.jsonl"
PAGE = HERE.parent / "docs" / "tiling.md"
WIDE, HIGH, SIDE = 4000, 3000, 256
VIEWS: dict[str, dict[str, Any]] = {
    "squashed": {},
    "tiles": {"tile": 256, "overlap": 32},
    "tiles at 1 and 0.5": {"tile": 256, "overlap": 32, "scales": (1.0, 0.5)},
}
FABRIC = {"good": 12, "test": 8, "held_out": 0.34, "false_alarm": 0.25}


def mosaics(root: Path) -> None:
    """Good pictures to fit on, good and defective ones to test with, in MVTec's layout."""
    source, random = DATA / "aitex" / "fabric_02", np.random.default_rng(0)
    train = [np.asarray(Image.open(p).convert("L")) for p in sorted((source / "train" / "good").glob("*.png"))]
    good = [np.asarray(Image.open(p).convert("L")) for p in sorted((source / "test" / "good").glob("*.png"))]
    defects = []
    for path in sorted((source / "ground_truth").glob("*/*_mask.png")):
        mask = np.asarray(Image.open(path).convert("L")) > 127
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        long = max(np.ptp(rows), np.ptp(columns)) + 1
        if 10 <= long <= 40:
            picture = source / "test" / path.parent.name / path.name.replace("_mask", "")
            defects.append((np.asarray(Image.open(picture).convert("L")), mask, int(long)))
    for number in range(FABRIC["good"]):
        _write(root / "train" / "good" / f"{number:03}.png", _laid(train, random))
    sizes = []
    for number in range(FABRIC["test"]):
        _write(root / "test" / "good" / f"{number:03}.png", _laid(good, random))
        picture, mask = _laid(good, random), np.zeros((HIGH, WIDE), np.uint8)
        tile, marked, long = defects[number % len(defects)]
        row, column = int(random.integers(HIGH // SIDE)) * SIDE, int(random.integers(WIDE // SIDE)) * SIDE
        square = picture[row : row + SIDE, column : column + SIDE]
        square[:] = _sewn(square, tile, marked)
        mask[row : row + SIDE, column : column + SIDE] = marked * np.uint8(255)
        sizes.append(long)
        _write(root / "test" / "small" / f"{number:03}.png", picture)
        _write(root / "ground_truth" / "small" / f"{number:03}_mask.png", mask)
    (root / "sizes.json").write_text(json.dumps({"defects": len(defects), "sizes": sizes}))


def _laid(tiles: list[np.ndarray], random: np.random.Generator) -> np.ndarray:
    rows = -(-HIGH // SIDE), -(-WIDE // SIDE)
    drawn = [[tiles[int(random.integers(len(tiles)))] for _ in range(rows[1])] for _ in range(rows[0])]
    return np.block(drawn)[:HIGH, :WIDE].copy()


def _sewn(good: np.ndarray, tile: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """The marked defect alone, moved to the brightness of where it goes, its border faded out over some 6 px: the rest
    of its picture would be found by the joints around it."""
    near = ndimage.binary_dilation(marked, iterations=12)
    share = ndimage.gaussian_filter(ndimage.binary_dilation(marked, iterations=6).astype(float), 2) * near
    moved = tile + (good[near].mean() - tile[near & ~marked].mean())
    return np.clip(np.rint(good + share * (moved - good)), 0, 255).astype(np.uint8)


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def row(what: str, data: Path, method: str, view: str) -> dict[str, Any]:
    """One fit and its test, in a process of its own so that its memory can be told."""
    words = [sys.executable, __file__, "--one", what, str(data), method, view]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def one(what: str, data: str, method: str, view: str) -> dict[str, Any]:
    import flawmap

    how = {key: FABRIC[key] for key in ("held_out", "false_alarm")} if what == "fabric" else {}
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        model = flawmap.fit(Path(data), method, out=folder, **how, **VIEWS[view])
        seconds = time.perf_counter() - begun
        found = flawmap.evaluate(model, Path(data), Path(folder) / "evaluation")
        memory = _inspect_mb(model, data) if what == "fabric" else None
    kept = ("i_auroc", "p_ap", "pro", "seconds_per_picture", "false_alarms", "escapes")
    return {
        "what": what,
        "method": method,
        "view": view,
        "fit_s": seconds,
        **{key: found.metrics.get(key) for key in kept},
        "seams": model.bundle.config.get("tiles"),
        "hit": _hits(model, Path(data)) if what == "fabric" else None,
        "sizes": json.loads((Path(data) / "sizes.json").read_text()) if what == "fabric" else None,
        "inspect_mb": memory,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
    }


def _hits(model: Any, data: Path) -> int:
    """In how many defective pictures the largest value of the map lies within 32 px of the defect."""
    hits = 0
    for path in sorted((data / "test" / "small").glob("*.png")):
        map = model.predict(path)[1]
        mask = np.asarray(Image.open(data / "ground_truth" / "small" / f"{path.stem}_mask.png")) > 127
        row, column = np.unravel_index(map.argmax(), map.shape)
        hits += bool(mask[max(0, row - 32) : row + 33, max(0, column - 32) : column + 33].any())
    return hits


def _inspect_mb(model: Any, data: str) -> float:
    """Peak memory of a fresh process that inspects one of the pictures."""
    picture = next((Path(data) / "test" / "small").glob("*.png"))
    return process(["inspect", str(model.bundle.origin), str(picture)])[1]


def page(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Small defects in large pictures: tiles",
        "",
        "A network sees a picture of 256 px or so. Squashing a large picture to that makes small defects smaller than "
        "a pixel. With `--tile` every method cuts pictures into squares at their own resolution instead:",
        "",
        "```",
        "flawmap fit parts/ --tile 256 --overlap 32",
        "```",
        "",
        TEXT,
        f"## Measured\n\nMade by `python benchmarks/tiling.py` on {rows[-1]['date']}, commit {rows[-1]['commit']}: "
        f"{machine()}. One seed; default options; no choice was made on these pictures.",
        "",
    ]
    for what, title in (("ball_screw", BALL), ("fabric", CLOTH)):
        mine = [r for r in rows if r["what"] == what]
        if not mine:
            continue
        sizes = mine[0]["sizes"]
        lines += [
            title.format(
                **({} if sizes is None else {"span": _span(sizes["sizes"]), "defects": sizes["defects"], **FABRIC})
            ),
            "",
        ]
        lines += [
            "| | I-AUROC | P-AP | PRO | false alarms | escapes | map's peak at the defect | seams: mean, 99 % | "
            "ms a picture | MB to inspect one |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_line(r) for r in mine] + [""]
    return "\n".join(lines)


def _span(sizes: list[int]) -> str:
    return f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"


def _line(r: dict[str, Any]) -> str:
    def rate(key: str) -> str:
        return f"{r[key]['count']} of {r[key]['n']}" if r[key] else "-"

    seams = "-" if r["seams"] is None else f"{r['seams']['seam_mean']:.1%}, {r['seams']['seam_99']:.1%}"
    hit = "-" if r["hit"] is None else f"{r['hit']} of {FABRIC['test']}"
    # None: the process was held for a while, so that its time says nothing.
    took = "-" if r["seconds_per_picture"] is None else f"{1000 * r['seconds_per_picture']:.0f}"
    memory = "-" if r["inspect_mb"] is None else f"{r['inspect_mb']:.0f}"
    return (
        f"| {r['method']}, {r['view']} | {r['i_auroc']:.3f} | {r['p_ap']:.3f} | {r['pro']:.3f} | "
        f"{rate('false_alarms')} | {rate('escapes')} | {hit} | {seams} | {took} | {memory} |"
    )


TEXT = """\
- **Tiles** stand evenly and overlap by at least `--overlap` pixels (an eighth of a tile unless given). Where they
  overlap, their maps are blended with weights that fall off linearly, so that no line stays where two meet.
- **The score** of a picture is the largest of its tiles', and its map is the blended one, in the picture's own size.
  The threshold is calibrated on exactly that: a picture of 250 tiles has 250 chances to raise a false alarm, and the
  promise is about the picture (and the part), not the tile.
- **Tiled and untiled are two models.** Networks normalise over what they see, pool over it, and pad its border; the
  same network gives other scores for a tile than for the picture. So nothing is carried over: what is fitted on tiles
  is calibrated and inspected on tiles, and the bundle says which.
- **The seam error** is how far each tile's own map is from the blended one where another tile covers the same pixel,
  as a share of the largest value of the maps of a few good pictures. It stands in the card, in the report and below. A
  larger overlap makes it matter less, and costs time.
- **Scales.** `--scales 1,0.5` cuts the picture at its own size and again at half of it, by one model; the map is the
  larger of the two at every pixel. A side that is shorter than a tile is stretched to it.
- **Memory.** A picture is decoded once; four tiles at a time go through the network, and their maps are added to one
  map of the picture's size. Of very many tiles at most 4,000 are learnt from, as many of each picture; a model that is
  cross-fitted learns from all of them, since each picture is also judged by all its tiles: mind the disk (0.7 MB a
  tile of 256 px), or ask for a rate that the held-out parts can promise.
- **A region and polygons.** `--roi 100,50,900,700` (left, top, right, bottom) sees nothing else; `--ignore
  "0,0 80,0 80,60"` blacks out a polygon, in fitting and at the line, and marks nothing there. Both are pixels of the
  pictures that were fitted. A defect outside, or under a polygon, is not seen: `flawmap evaluate` counts those.
- **The size of the pictures** belongs to such a model. They must all have one shape; one of that shape in another size
  (another binning) is brought to the fitted size before it is cut, one of another shape is refused.
- **Not for tiles**: protocols with a crop, `inspect --out --save-maps`, the nearest good patch and t-SNE in reports,
  and the graph outside of flawmap, whose client has to cut the tiles itself (`use.json` says so).
"""
BALL = """\
**ball_screw**, 629 x 256 px. Its I-AUROC is not worth much (a plain pixel statistic reaches 0.96, SOURCES.md of the \
data); look at the pixels. Squashing makes the pictures 2.5 times narrower."""
CLOTH = """\
**Fabric, 4,000 x 3,000 px**: {good} good pictures (a third held out), {test} good and {test} defective ones to test \
with, each made of 192 pictures of fabric at their own resolution, and the defective ones with one real defect of \
{span} px ({defects} to choose from) sewn in, among 12 million pixels. \
{false_alarm:.0%} false alarms were asked for, since so few \
pictures can promise no less. The joints between the pieces are in good pictures as well. \
A dash for the time: the process was held meanwhile, so that it says nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["padim", "patchcore"])
    parser.add_argument("--one", nargs=4)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(*args.one)))
        return
    TABLE.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in TABLE.read_text().splitlines()] if TABLE.exists() else []
    with tempfile.TemporaryDirectory() as scratch:
        for what, data in (("ball_screw", DATA / "bsdata" / "ball_screw"), ("fabric", Path(scratch) / "fabric")):
            for method in args.methods:
                for view in VIEWS:
                    if any((r["what"], r["method"], r["view"]) == (what, method, view) for r in rows):
                        continue
                    if what == "fabric" and view not in ("squashed", "tiles"):
                        continue
                    if what == "fabric" and not data.exists():
                        mosaics(data)
                    rows.append(row(what, data, method, view))
                    with TABLE.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
                    print(_line(rows[-1]), flush=True)
    PAGE.write_text(page(rows))
    print(PAGE, f"(peak here {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB)")


if __name__ == "__main__":
    main()

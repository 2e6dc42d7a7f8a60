"""How large the report of a test of 1,000 pictures is, how long it takes to write, and how soon it answers.

python benchmarks/report.py [--pictures 1000] [--side 700] [--keep FILE]

The pictures are drawn: grain over a gradient, which JPEG packs badly, one defect in four. Opening is measured in
headless Chromium, from the start of the navigation until the page's script has finished.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from flawmap.report.heatmap import anchored
from flawmap.report.page import Picture, Report, Scored, write
from flawmap.types import GOOD
from flawmap.verdict.calibration import Calibration
from flawmap.verdict.metrics import summary

KINDS = (GOOD, GOOD, GOOD, "crack", "stain", "dent")
OPENS = 5


def drawn(count: int, side: int, seed: int = 0) -> Report:
    """A report of so many pictures, each drawn when it is asked for."""
    random = np.random.default_rng(seed)
    good = random.gamma(9, 0.1, 300)
    names = [f"good/{i}" for i in range(300)]
    calibration = Calibration.from_good(names, good.tolist(), (good + 1).tolist())
    kinds = [KINDS[i % len(KINDS)] for i in range(count)]
    values = [float(random.gamma(9, 0.1) + (kind != GOOD) * random.gamma(4, 0.3)) for kind in kinds]
    scores = [
        Scored(f"test/{kind}/{i:04}.png", f"{i:04}", kind, value, calibration.verdict([value]))
        for i, (kind, value) in enumerate(zip(kinds, values, strict=True))
    ]
    metrics = summary(values, kinds, [s.verdict for s in scores if s.verdict])
    look = lambda i: picture(scores[i], side, i)  # noqa: E731
    return Report("Drawn", anchored(1.5, calibration.map_threshold), "", calibration, metrics, scores, picture=look)


def picture(of: Scored, side: int, seed: int) -> Picture:
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    image = (110 + 60 * (x + y) / side)[..., None] + random.normal(0, 12, (side, side, 3))
    at, radius = random.integers(side // 4, 3 * side // 4, 2), random.integers(side // 40 + 1, side // 8 + 2)
    mask = (x - at[0]) ** 2 + (y - at[1]) ** 2 < radius**2
    if of.kind != GOOD:
        image[mask] -= 70
    coarse = np.mgrid[:64, :64] * side / 64
    distance = np.hypot(coarse[1] - at[0], coarse[0] - at[1]) / side
    map = of.score + 1.5 * np.exp(-((distance / 0.12) ** 2)) + random.normal(0, 0.02, (64, 64))
    pixels = image.clip(0, 255).astype(np.uint8)
    return Picture(
        of.name, of.part, of.kind, of.score, of.verdict, pixels, map.astype(np.float32), mask & (of.kind != GOOD)
    )


def opened(path: Path, chromium: str) -> list[float]:
    """Seconds until the page answers, of a few openings."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        found = []
        for _ in range(OPENS):
            page = browser.new_context(offline=True).new_page()
            page.goto(path.as_uri())
            assert page.evaluate("typeof flawmap") == "object", "the page's script did not finish"
            found.append(page.evaluate("performance.getEntriesByType('navigation')[0].domInteractive") / 1000)
            page.context.close()
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--side", type=int, default=700, help="of a picture, px")
    parser.add_argument("--keep", type=Path, help="leave the page here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.keep or Path(folder) / "report.html"
        begun = time.monotonic()
        write(drawn(args.pictures, args.side), path)
        took = time.monotonic() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{args.pictures} pictures of {args.side} px: {path.stat().st_size / 1e6:.2f} MB", flush=True)
        print(f"written in {took:.1f} s, drawing them included; peak memory {peak:.0f} MB")
        if chromium := shutil.which("chromium"):
            seconds = opened(path.resolve(), chromium)
            print(f"opens in {np.median(seconds):.2f} s (median of {OPENS}; {min(seconds):.2f} to {max(seconds):.2f})")
        else:
            print("no chromium on the path: opening is not measured")


if __name__ == "__main__":
    main()

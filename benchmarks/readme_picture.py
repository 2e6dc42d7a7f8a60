"""The README's picture: real verdicts on the demo's drawn fabric, one part a kind.

flawmap demo --woven && python benchmarks/readme_picture.py demo docs/woven.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import flawmap
from flawmap.images.decode import decode
from flawmap.images.folder import find
from flawmap.images.masks.levels import read_mask
from flawmap.images.woven import KINDS
from flawmap.report.heatmap import outlined, overlay
from flawmap.run.show import scale

SIDE, GAP, TEXT = 176, 8, 40


def main(demo: str, out: str) -> None:
    model = flawmap.load(Path(demo) / "woven.flaw")
    samples = [s for s in find(Path(demo) / "woven-parts") if s.split == "test"]
    columns = []
    for kind in ("good", *KINDS):
        # The first part of each kind that was judged rightly: the report shows the misses as well.
        for sample in (s for s in samples if s.kind == kind):
            found = model.inspect(sample.source)
            if (found.verdict == "OK") == sample.good:
                columns.append((kind, sample, found))
                break
    sheet = Image.new("RGB", (len(columns) * (SIDE + GAP) + GAP, 2 * (SIDE + GAP) + GAP + TEXT), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (kind, sample, found) in enumerate(columns):
        left = GAP + number * (SIDE + GAP)
        image = decode(sample.source)
        shown = image if sample.mask is None else outlined(image, *read_mask(sample.mask, image.shape[:2]))
        for row, pane in enumerate((shown, overlay(image, found.map, scale(model)))):
            small = Image.fromarray(np.asarray(pane)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(small, (left, GAP + row * (SIDE + GAP)))
        caption = f"{kind.replace('_', ' ')}\n{found.verdict}  {found.score:.1f} (limit {found.threshold:.1f})"
        draw.text((left, 2 * (SIDE + GAP) + GAP), caption, fill="black", font=font)
    sheet.quantize(256).save(out, optimize=True)
    print(out)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Several pictures of one part, and one verdict.

python examples/01_first_model.py && python examples/03_several_views.py first.flaw [SIZE]

A model that knows the material is calibrated for parts of two views. Fitting on several views works the same: of files,
name the part by parts.csv or --part-pattern; here the pictures are arrays, so samples name it.
"""

from __future__ import annotations

import sys

import flawmap
from flawmap.images.woven import draw

model = flawmap.load(sys.argv[1])
size = int(sys.argv[2]) if len(sys.argv) > 2 else 256
views = ("left", "right")


def sample(part: int, view: int) -> flawmap.Sample:
    """In place of two cameras."""
    picture, _ = draw(5000 + 2 * part + view, size)
    return flawmap.Sample(picture, f"part{part:03}-{views[view]}", f"part{part:03}")


model = flawmap.calibrate(model, [sample(part, view) for part in range(25) for view in range(2)])
assert model.calibration
print(model.calibration.sentence)

sound, torn = draw(6000, size)[0], draw(6001, size, "hole")[0]
found = model.inspect_part([sound, torn], names=views, part="part100")
print(f"{found.verdict}  {found.part}")
for name, score in zip(found.names, found.scores, strict=True):
    print(f"     {name} {score:.2f} (limit {found.threshold:.2f})")

try:
    model.inspect(sound)
except flawmap.FlawmapError as error:  # one view of two is not a part
    print(f"no verdict: {error}")

"""From a folder of good pictures to verdicts.

python examples/01_first_model.py [FOLDER [SIZE]]

FOLDER is in MVTec's layout (train/good, test/<kind>); without one, woven fabric is drawn.
"""

from __future__ import annotations

import sys
from pathlib import Path

import flawmap
from flawmap.images.woven import write

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else write("woven-parts")
size = int(sys.argv[2]) if len(sys.argv) > 2 else 256

model = flawmap.fit(folder, method="patchcore", options={"size": size})
model.save("first.flaw")
print(model.card)

model = flawmap.load("first.flaw")  # from here on no torch is needed
for kind in sorted((folder / "test").iterdir()):
    for picture in sorted(kind.iterdir())[:3]:
        found = model.inspect(picture)
        boxes = [region.box for region in found.regions[0]]
        print(
            f"{found.verdict:<3}  score {found.score:.2f}  p {found.p_value:.3f}  {kind.name}/{picture.name}  {boxes}"
        )

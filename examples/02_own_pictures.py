"""Pictures that are arrays already, as a camera or another library gives them.

python examples/02_own_pictures.py [SIZE]

An array is (H, W) or (H, W, 3), uint8 or uint16, in RGB order. OpenCV gives BGR: turn it with array[..., ::-1].
"""

from __future__ import annotations

import sys

import numpy as np

import flawmap
from flawmap.images.woven import draw

size = int(sys.argv[1]) if len(sys.argv) > 1 else 256
good = [draw(seed, size)[0] for seed in range(30)]  # in place of a camera
broken, mask = draw(1000, size, "hole")

model = flawmap.fit(good, options={"size": size}, name="camera/station-1")
for name, picture in (("another good one", draw(999, size)[0]), ("with a hole", broken)):
    found = model.inspect(picture, name=name)
    print(f"{found.verdict:<3}  p {found.p_value:.3f}  {name}")

found = model.inspect(broken)
marked = np.zeros(mask.shape, bool)
for region in found.regions[0]:
    left, top, right, bottom = region.box
    marked[top:bottom, left:right] = True
print(f"{(marked & mask).sum() / mask.sum():.0%} of the hole lies in the boxes that were found")

"""The exported graph without flawmap: NumPy, Pillow and ONNX Runtime.

flawmap export first.flaw --out onnx
python examples/04_onnx_alone.py onnx PICTURE ...

For 8-bit grey and RGB pictures, one view a part. Other pictures, several views and p-values: see flawmap's own rules.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

folder, pictures = Path(sys.argv[1]), sys.argv[2:]
use = json.loads((folder / "use.json").read_text())
calibration = json.loads((folder / "calibration.json").read_text())
height, width = use["intake"]["size"]
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

for name in pictures:
    image = ImageOps.exif_transpose(Image.open(name))
    if image.mode not in ("L", "RGB") or use["intake"]["white"] is not None:
        sys.exit(f"{name}: only 8-bit grey and RGB here")
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)  # Pillow's, antialiased
    batch = np.asarray(resized, np.float32).transpose(2, 0, 1)[None] / 255
    map, score = (np.asarray(output)[0] for output in session.run(["map", "score"], {"image": batch}))
    verdict = "NOK" if score > calibration["threshold"] else "OK"
    marked = (map > calibration["map_threshold"]).mean()
    print(f"{verdict:<3}  score {score:.6f} (limit {calibration['threshold']:.6f})  {marked:.1%} marked  {name}")

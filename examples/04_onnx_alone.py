"""The exported graph without flawmap: NumPy, Pillow and ONNX Runtime.

flawmap export first.flaw --out onnx
python examples/04_onnx_alone.py onnx PICTURE ...

For 8-bit grey and RGB pictures, one view a part; what it cannot judge as flawmap does it refuses. Above the threshold
a part is NOK; of two thresholds, a person looks at what is between them. p-values: see flawmap's own rules.
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
if not (folder / "calibration.json").exists():
    sys.exit("the model is not calibrated: there is no verdict to give")
calibration = json.loads((folder / "calibration.json").read_text())
if calibration["views"][1] > 1 or calibration.get("rule", "largest") != "largest":
    sys.exit("the calibration judges parts of several views, or by their mean: only one view a part here")
made, *_ = calibration["engine"].split() or ["an engine without a name"]
if made != "onnxruntime" and not {made, "onnxruntime"} <= {name.split()[0] for name in use["parity"]["engines"]}:
    sys.exit(f"calibrated with {made}, against which ONNX Runtime was never held: export with --engine onnx")
if calibration.get("unit", "part") == "picture":
    print("calibrated per picture: these verdicts promise nothing for parts of several views", file=sys.stderr)
if calibration["policy"] == "f1-oracle":
    print("the threshold is an oracle: read off the answers, no operating point", file=sys.stderr)
limit = calibration["threshold"]
looked = calibration.get("review_threshold")  # null: nothing goes to review
height, width = use["intake"]["size"]
if other := [
    key for key, value in use["intake"].items() if key not in ("size", "white", "max_mpx") and value is not None
]:
    sys.exit(f"the model does not see pictures squashed as a whole ({', '.join(other)}): not here")
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

for name in pictures:
    image = ImageOps.exif_transpose(Image.open(name))
    if image.mode not in ("L", "RGB") or use["intake"]["white"] is not None:
        sys.exit(f"{name}: only 8-bit grey and RGB here")
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)  # Pillow's, antialiased
    batch = np.asarray(resized, np.float32).transpose(2, 0, 1)[None] / 255
    map, score = (np.asarray(output)[0] for output in session.run(["map", "score"], {"image": batch}))
    if not (np.isfinite(score) and np.isfinite(map).all()):
        sys.exit(f"{name}: the score or the map is not a number, so no verdict can be given")
    verdict = "NOK" if score > limit else "REVIEW" if looked is not None and score > looked else "OK"
    marked = (map > calibration["map_threshold"]).mean()
    print(f"{verdict:<6}  score {score:.6f} (limit {limit:.6f})  {marked:.1%} marked  {name}")

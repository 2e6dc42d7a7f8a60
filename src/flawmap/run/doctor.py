"""What is installed here, and whether a bundle says here what it said where it was made."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from flawmap.run.bundle import read
from flawmap.run.export import TOLERANCE
from flawmap.run.model import Model
from flawmap.run.recipe import environment


def doctor(bundle: Path | None) -> tuple[dict[str, Any], bool]:
    """Facts for people, and whether all is sound."""
    here = environment()
    found: dict[str, Any] = {
        "python": here["python"],
        "platform": here["platform"],
        "cores": here["cores"],
        **here["packages"],
        "can inspect": "yes",
        "can fit": "yes" if all(map(importlib.util.find_spec, ("torch", "timm", "onnxscript"))) else "no: extra train",
    }
    if bundle is None:
        return found, True
    model = Model(read(bundle))
    gaps, flips = [0.0], []
    for entry in model.bundle.json("golden.json"):
        content = model.bundle.files[f"golden/{entry['name']}"]
        score, _ = model.predict(content)
        scale = model.calibration.scale if model.calibration else max(abs(entry["score"]), 1e-12)
        gaps.append(abs(score - entry["score"]) / scale)
        if model.calibration and (score > model.calibration.threshold) != entry["nok"]:
            flips.append(entry["name"])
    sound = all(gap <= TOLERANCE for gap in gaps) and not flips  # a gap that is NaN is not sound
    found |= {
        "bundle": model.bundle.sha256,
        "method": model.method,
        "promise": model.calibration.sentence if model.calibration else "not calibrated",
        "golden pictures": f"scores within {max(gaps):.1e} of their scale, {len(flips)} verdicts flipped",
        "sound": "yes" if sound else f"no: calibrate again on this machine (allowed {TOLERANCE:.0e})",
    }
    return found, sound

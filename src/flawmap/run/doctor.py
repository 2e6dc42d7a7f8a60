"""What is installed here, and whether a bundle says here what it said where it was made."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from flawmap.run.bundle import read
from flawmap.run.engine import TOLERANCE
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
    gap, flips = model.golden()
    same, unfit = gap <= TOLERANCE and not flips, model.unfit
    promise = model.calibration.sentence if model.calibration else "not calibrated"
    found |= {
        "bundle": model.bundle.sha256,
        "method": model.method,
        "promise": f"none that holds here: {unfit}" if unfit else promise,
        "golden pictures": f"scores within {gap:.1e} of their scale, {len(flips)} verdicts flipped",
        "sound": "yes",
    }
    if not same:
        found["sound"] = f"no: calibrate again on this machine (allowed {TOLERANCE:.0e})"
    elif unfit:
        found["sound"] = f"no: {unfit}"
    return found, same and not unfit

"""What is installed here, and whether a bundle says here what it said where it was made."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from flawmap.run.bundle import Bundle, read
from flawmap.run.engine import TOLERANCE
from flawmap.run.graph import described, in_words
from flawmap.run.model import Model
from flawmap.run.recipe import environment
from flawmap.run.sign import KEY, signer


def doctor(bundle: Path | None, key: Path | None = None) -> tuple[dict[str, Any], bool]:
    """Facts for people, and whether all is sound, by the engine that the bundle was calibrated with."""
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
    content = read(bundle, key)
    model = Model(content, "openvino" if _named(content).startswith("openvino") else "onnx")
    gap, flips = model.golden()
    same, unfit = gap <= TOLERANCE and not flips, model.unfit
    promise = model.calibration.sentence if model.calibration else "not calibrated"
    found |= {
        "bundle": model.bundle.sha256,
        "signed by": _signed(content, bool(key or os.environ.get(KEY))),
        "method": model.method,
        "engine": model.engine.name,
        "graph": in_words(described(content.files["model.onnx"])),
        "promise": f"none that holds here: {unfit}" if unfit else promise,
        "golden pictures": f"scores within {gap:.1e} of their scale, {len(flips)} verdicts flipped",
        "sound": "yes",
    }
    if not same:
        found["sound"] = f"no: calibrate again on this machine (allowed {TOLERANCE:.0e})"
    elif unfit:
        found["sound"] = f"no: {unfit}"
    return found, same and not unfit


def _named(bundle: Bundle) -> str:
    """The engine of the calibration, where there is one."""
    return str(bundle.json("calibration.json").get("engine", "")) if "calibration.json" in bundle.files else ""


def _signed(bundle: Bundle, checked: bool) -> str:
    whose = signer(bundle)
    return "nobody" if whose is None else whose if checked else f"{whose}, as it says; --key proves it"

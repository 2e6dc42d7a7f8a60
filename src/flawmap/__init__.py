"""flawmap: teach it what good parts look like, and it finds and outlines what is not good.

    model = flawmap.fit("bottle/")
    found = model.inspect("photo.png")  # .score .map .verdict .regions .p_value
    model.save("bottle.flaw"); flawmap.load("bottle.flaw")

Importing this is instant; what a name needs is imported when the name is first used. Only `fit` needs torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flawmap.errors import FlawmapError as FlawmapError
    from flawmap.run.calibrate import calibrate as calibrate
    from flawmap.run.evaluate import evaluate as evaluate
    from flawmap.run.fit import fit as fit
    from flawmap.run.model import Model as Model
    from flawmap.run.model import load as load
    from flawmap.types import Inspection as Inspection
    from flawmap.types import Prediction as Prediction
    from flawmap.types import Region as Region
    from flawmap.types import Sample as Sample
    from flawmap.types import Verdict as Verdict
    from flawmap.verdict.calibration import Calibration as Calibration

__version__ = "0.1.0"

_HOMES = {
    "Calibration": "verdict.calibration",
    "FlawmapError": "errors",
    "Inspection": "types",
    "Model": "run.model",
    "Prediction": "types",
    "Region": "types",
    "Sample": "types",
    "Verdict": "types",
    "calibrate": "run.calibrate",
    "evaluate": "run.evaluate",
    "fit": "run.fit",
    "load": "run.model",
}

__all__ = [
    "Calibration",
    "FlawmapError",
    "Inspection",
    "Model",
    "Prediction",
    "Region",
    "Sample",
    "Verdict",
    "calibrate",
    "evaluate",
    "fit",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"flawmap has no {name!r}; it has: {', '.join(__all__)}")
    try:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name in ("torch", "timm", "onnx", "onnxscript"):
            from flawmap.errors import MissingExtra

            raise MissingExtra(error.name, "train", f"flawmap.{name}") from error
        raise


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

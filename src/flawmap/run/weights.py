"""Which weights a row of a recipe needs, and whether they are on this machine: nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from flawmap.run.table import Job


def given(method: str, options: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The options that name a file of `folder`: BACKBONE.safetensors, or of EfficientAD efficientad-PDN-WIDTH-DIM."""
    option, name = _needed(method, options)
    path = folder / f"{name}.safetensors"
    return {option: str(path)} if option and option not in options and path.is_file() else {}


def lacking(job: Job) -> str:
    """Why a job cannot be run here: its weights are not here, and how to give them. Empty: it can."""
    option, name = _needed(job.method, job.options)
    if not option or job.options.get(option) or _here(job.method, name):
        return ""
    source = "made by flawmap distill" if option == "teacher" else f"of timm's {name}"
    return f"no weights here; give a folder with {name}.safetensors, {source}, as --weights"


def _needed(method: str, options: Mapping[str, Any]) -> tuple[str, str]:
    """The option that takes a file of weights, and what that file is called; nothing for a method without."""
    from flawmap.detectors import detector_class

    config = detector_class(method).configure(options)
    if hasattr(config, "backbone"):
        return "weights", config.backbone
    if hasattr(config, "teacher"):
        return "teacher", f"efficientad-{config.pdn}-{config.width}-{config.dim}"
    return "", ""


@cache
def _here(method: str, name: str) -> bool:
    """In our package, in an installed one, or in the hub's local cache."""
    if method == "efficientad":
        from flawmap.detectors.efficientad import embedded

        _, pdn, width, dim = name.split("-")
        return embedded({"pdn": pdn, "width": int(width), "dim": int(dim)}) is not None
    from flawmap.features import weights

    return weights.here(name)

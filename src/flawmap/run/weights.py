"""Which weights a row of a recipe needs, and whether they are on this machine: nothing is fetched."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from flawmap.run.table import Job


def given(method: str, options: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The options that name a file of `folder`: BACKBONE.safetensors, or of EfficientAD efficientad-PDN-WIDTH-DIM."""
    option, name = _needed(method, options)
    path = folder / f"{name}.safetensors"
    wanted = option and option not in options and not embedded_sha256(method, options)
    return {option: str(path)} if wanted and path.is_file() else {}


def lacking(job: Job) -> str:
    """Why a job cannot be run here: its weights are not here, and how to give them. Empty: it can."""
    option, name = _needed(job.method, job.options)
    if not option or job.options.get(option) or _here(job.method, name):
        return ""
    source = "made by flawmap distill" if option == "teacher" else f"of timm's {name}"
    return f"no weights here; give a folder with {name}.safetensors, {source}, as --weights"


def file_sha256(options: Mapping[str, Any]) -> str | None:
    """Of the file that is given for the weights, where one is."""
    path = options.get("weights") or options.get("teacher")
    return _sha256(Path(path)) if path and Path(path).is_file() else None


def embedded_sha256(method: str, options: Mapping[str, Any]) -> str | None:
    """Of the weights that come with us or with a package of ours, where the method takes such."""
    option, name = _needed(method, options)
    if option == "teacher":
        path = _teacher(name)
        return _sha256(path) if path else None
    from flawmap.features import weights

    return weights.packaged_sha256(name) if option else None


@cache
def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _teacher(name: str) -> Path | None:
    from flawmap.detectors.efficientad import embedded

    _, pdn, width, dim = name.split("-")
    return embedded({"pdn": pdn, "width": int(width), "dim": int(dim)})


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
        return _teacher(name) is not None
    from flawmap.features import weights

    return weights.here(name)

"""The detectors: one paper, one file. The list is the registry, and reading it needs no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flawmap.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from flawmap.detectors.base import Detector

DETECTORS = {
    "patchcore": "patchcore:PatchCore",
    "simplenet": "simplenet:SimpleNet",
    "padim": "padim:PaDiM",
    "pouta": "pouta:POUTA",
    "draem": "draem:DRAEM",
    "efficientad": "efficientad:EfficientAD",
}


def detector_class(name: str) -> type[Detector]:
    """The class of a registered detector; needs the extra `train`."""
    if name not in DETECTORS:
        raise UsageError(f"no method {name!r}; there are: {', '.join(DETECTORS)}")
    module, cls = DETECTORS[name].split(":")
    try:
        return getattr(importlib.import_module(f".{module}", __name__), cls)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("torch", "timm", "torchvision"):
            raise MissingExtra(error.name, "train", f"the method {name}") from error
        raise


def create(name: str, options: dict[str, Any] | None = None, *, pretrained: bool = True) -> Detector:
    """A fresh detector. `options` by name, values as text or of their type; a misspelt one is a UsageError."""
    cls = detector_class(name)
    return cls(cls.configure(options or {}), pretrained=pretrained)


def describe(name: str) -> dict[str, Any]:
    """Title, paper, options (default and help) and presets of a method."""
    import dataclasses

    cls = detector_class(name)
    options = {f.name: {"default": f.default, "help": f.metadata["help"]} for f in dataclasses.fields(cls.Config)}
    presets = {key: dict(values) for key, values in cls.presets.items()}
    return {"name": name, "title": cls.title, "paper": cls.paper, "options": options, "presets": presets}

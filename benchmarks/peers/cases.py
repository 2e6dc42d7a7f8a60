"""What is compared: a method of ours and a model of anomalib, brought to the same numbers.

Nothing here imports either side. The layers are timm's: stage 1 is blocks.1 (stride 4), 2 is blocks.2 (stride 8), 3 is
blocks.4 (stride 16).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BACKBONE = "tf_efficientnet_lite0"
FINE, COARSE = ["blocks.1", "blocks.2", "blocks.4"], ["blocks.2", "blocks.4"]
SSN_STEPS, DRAEM_STEPS, EFFICIENTAD_STEPS = 54, 3, 60  # enough to time a step; nobody has learnt much by then


@dataclass(frozen=True)
class Case:
    title: str
    method: str  # ours
    options: Mapping[str, Any] = field(default_factory=dict)
    peer: str = ""  # anomalib's class; empty: ours alone
    arguments: Mapping[str, Any] = field(default_factory=dict)
    normalise: bool = True  # the peer's pre-processor scales pixels as the weights want it
    batch: int = 32  # of the peer's training; 32 is its default
    trainer: Mapping[str, Any] = field(default_factory=dict)
    held_out: float = 0.0  # share of the good pictures that scales the maps, on both sides
    trained_out: bool = True
    seeds: tuple[int, ...] = (0,)


def _patchcore(keep: float) -> dict[str, Any]:
    # The reservoir holds all patches: the peer chooses from all of them.
    return {"stages": (2, 3), "equalise": False, "keep": keep, "most": 1_000_000, "reservoir_mb": 512}


CASES = {
    "patchcore-1": Case(
        "PatchCore, coreset of 1 %",
        *("patchcore", _patchcore(0.01)),
        *("Patchcore", {"backbone": BACKBONE, "layers": COARSE, "coreset_sampling_ratio": 0.01}),
        seeds=(0, 1, 2),
    ),
    "patchcore-defaults": Case("PatchCore, our defaults", "patchcore", seeds=(0, 1, 2)),
    "padim": Case(
        "PaDiM, 100 features, stride 4",
        *("padim", {"stride": 4, "dims": 100}),
        *("Padim", {"backbone": BACKBONE, "layers": FINE, "n_features": 100}),
    ),
    "padim-defaults": Case("PaDiM, our defaults", "padim"),
    "simplenet": Case(
        f"SimpleNet beside SuperSimpleNet, {SSN_STEPS} steps of 8",
        *("simplenet", {"stages": (2, 3), "steps": SSN_STEPS}),
        *("Supersimplenet", {"backbone": BACKBONE, "layers": COARSE}),
        batch=8,
        trainer={"max_steps": SSN_STEPS, "max_epochs": 10},
        trained_out=False,
    ),
    "simplenet-defaults": Case("SimpleNet, our defaults", "simplenet"),
    "draem": Case(
        f"DRAEM, {DRAEM_STEPS} steps of 8",
        *("draem", {"steps": DRAEM_STEPS, "textures": "{textures}"}),
        *("Draem", {"dtd_dir": "{textures}"}),
        normalise=False,
        batch=8,
        trainer={"max_steps": DRAEM_STEPS},
        trained_out=False,
    ),
    "efficientad": Case(
        f"EfficientAD-S, {EFFICIENTAD_STEPS} steps of 1",
        *("efficientad", {"steps": EFFICIENTAD_STEPS, "teacher": "{teacher}", "generic": "{photos}"}),
        *("EfficientAd", {"imagenet_dir": "{photos_by_class}"}),
        normalise=False,
        batch=1,
        trainer={"max_steps": EFFICIENTAD_STEPS},
        held_out=0.2,
        trained_out=False,
    ),
    "patchcore-10": Case(
        "PatchCore, coreset of 10 %",
        *("patchcore", _patchcore(0.1)),
        *("Patchcore", {"backbone": BACKBONE, "layers": COARSE, "coreset_sampling_ratio": 0.1}),
    ),
}  # fmt: skip

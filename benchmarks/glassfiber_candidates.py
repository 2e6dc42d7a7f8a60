"""What choose_glassfiber.py tries, in the order of its rounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LITE0, LITE1, LITE2, MOBILENET = *(f"tf_efficientnet_lite{n}" for n in range(3)), "mobilenetv2_100"
SHORT = {LITE0: "lite0", LITE1: "lite1", LITE2: "lite2", MOBILENET: "mobilenetv2"}


@dataclass(frozen=True)
class Candidate:
    method: str
    backbone: str
    size: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        words = [self.method, SHORT[self.backbone], str(self.size)]
        return " ".join([*words, *(f"{key}={_typed(value)}" for key, value in self.options.items())])

    def detector_options(self) -> dict[str, Any]:
        room = {"reservoir_mb": 512} if self.method == "patchcore" else {}  # the coreset is chosen from all patches
        return {"backbone": self.backbone, "size": self.size, **room, **self.options}


def _typed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()


def _patchcore(backbone: str, size: int, **options: Any) -> Candidate:
    return Candidate("patchcore", backbone, size, options)


CANDIDATES = [
    _patchcore(LITE0, 256),
    _patchcore(LITE0, 256, stages=(2, 3)),
    _patchcore(LITE0, 256, stages=(3,)),
    _patchcore(LITE0, 256, stages=(3, 4)),
    _patchcore(LITE0, 256, stages=(2, 3, 4)),
    _patchcore(LITE0, 256, stages=(3,), neighbourhood=5),
    _patchcore(LITE0, 256, neighbourhood=5),
    _patchcore(LITE0, 256, equalise=False),
    _patchcore(LITE0, 256, stages=(2, 3), equalise=False),
    Candidate("simplenet", LITE0, 256),
    Candidate("simplenet", LITE0, 256, {"stages": (2, 3)}),
    Candidate("simplenet", LITE0, 256, {"stages": (3, 4)}),
    # what the first ones asked for: coarser stages, no averaging, a whole memory
    _patchcore(LITE0, 256, stages=(3,), neighbourhood=1),
    _patchcore(LITE0, 256, stages=(3, 4), neighbourhood=1),
    _patchcore(LITE0, 256, stages=(3,), keep=1, most=20000),
    _patchcore(LITE0, 256, stages=(3, 4), equalise=False),
    _patchcore(LITE0, 256, stages=(2, 3), stride=16),
    _patchcore(LITE0, 256, stages=(2, 3, 4), stride=16),
    Candidate("simplenet", LITE0, 256, {"stages": (3,)}),
    _patchcore(LITE2, 256),
    _patchcore(LITE2, 256, stages=(3,)),
    _patchcore(LITE2, 256, stages=(3, 4)),
    _patchcore(LITE2, 256, stages=(2, 3, 4)),
    _patchcore(LITE0, 384, stages=(3,)),
    _patchcore(LITE0, 384, stages=(3, 4)),
    _patchcore(LITE0, 384, stages=(3,), neighbourhood=1),
    _patchcore(LITE0, 384, stages=(2, 3), stride=16),
    _patchcore(LITE1, 256, stages=(3,)),
    _patchcore(LITE1, 256, stages=(3, 4)),
    _patchcore(MOBILENET, 256, stages=(3,)),
    _patchcore(MOBILENET, 256, stages=(3, 4)),
    _patchcore(LITE0, 512, stages=(3,)),
    _patchcore(LITE0, 512, stages=(3, 4)),
    _patchcore(LITE0, 512, stages=(4,)),
    _patchcore(LITE0, 512, stride=16),
    # what those asked for: stage 3 at larger sizes
    _patchcore(LITE0, 512, stages=(3,), neighbourhood=5),
    _patchcore(LITE2, 384, stages=(3,)),
    _patchcore(LITE2, 512, stages=(3,)),
    # the report's question, whether SimpleNet wants other settings here: widths, noise, steps, size
    Candidate("simplenet", LITE0, 256, {"hidden": 64}),
    Candidate("simplenet", LITE0, 256, {"hidden": 1024}),
    Candidate("simplenet", LITE0, 256, {"width": 64}),
    Candidate("simplenet", LITE0, 256, {"stages": (2, 3), "hidden": 1024}),
    Candidate("simplenet", LITE0, 256, {"noise": 0.25}),
    Candidate("simplenet", LITE0, 256, {"noise": 1.0}),
    Candidate("simplenet", LITE0, 256, {"steps": 1200}),
    Candidate("simplenet", LITE0, 384, {"stages": (2, 3)}),
]
# The second round: the other draw, and folds. The first is the default, to compare with.
FINALISTS = [
    _patchcore(LITE0, 256),
    _patchcore(LITE0, 256, stages=(3,)),
    _patchcore(LITE0, 384, stages=(3,)),
    _patchcore(LITE0, 384, stages=(3, 4)),
    _patchcore(LITE0, 512, stages=(3,)),
    _patchcore(LITE0, 512, stages=(3,), neighbourhood=5),
    _patchcore(LITE2, 256, stages=(3,)),
    _patchcore(LITE2, 384, stages=(3,)),
    _patchcore(LITE2, 512, stages=(3,)),
    # what the second round asked for: lite2 at 384 px with a larger memory, and without averaging
    _patchcore(LITE2, 384, stages=(3,), keep=1, most=10000),
    _patchcore(LITE2, 384, stages=(3,), neighbourhood=1),
]

"""The gate of every method and engine on real pictures: scores within 1e-4 of their scale, and no verdict flips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flawmap.detectors import DETECTORS, describe
from flawmap.images.folder import find
from flawmap.run.fit import fit
from flawmap.run.model import Model

TOLERANCE = 1e-4
OPTIONS = {"size": 96, "steps": 60}  # enough to have scores of some spread, not to find defects


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("method", DETECTORS)
def test_every_engine_gives_real_pictures_the_same_scores_and_verdicts(
    method: str, real: Callable[[str], Path], tmp_path: Path
) -> None:
    bottle, about = real("mvtec/bottle"), describe(method)
    options = {name: value for name, value in OPTIONS.items() if name in about["options"]}
    options |= {"preset": "small"} if "small" in about["presets"] else {}
    model = fit(bottle, method, options=options, shots=40, held_out=0.5, false_alarm=0.1, out=tmp_path, device="cpu")
    assert model.calibration is not None
    engines = [model, Model(model.bundle, "torch"), Model(model.bundle, "openvino")]
    pictures = [sample.source for sample in find(bottle) if sample.split == "test"][::2]
    assert len(pictures) >= 40
    verdicts, worst = [], 0.0
    for picture in pictures:
        found = [engine.inspect(picture) for engine in engines]
        scores = [one.score for one in found]
        # Hundreds of scales above the threshold, single precision itself is coarser than the tolerance.
        allowed = max(TOLERANCE * model.calibration.scale, 8 * float(np.finfo(np.float32).eps) * max(scores))
        worst = max(worst, (max(scores) - min(scores)) / allowed)
        assert len({one.verdict for one in found}) == 1, f"{method}: {picture} flips"
        verdicts.append(found[0].verdict)
    assert worst <= 1
    assert len(set(verdicts)) == 2, "one verdict for all pictures proves nothing"

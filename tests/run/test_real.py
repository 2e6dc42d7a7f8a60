from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flawmap.run.evaluate import evaluate
from flawmap.run.fit import fit
from flawmap.run.model import load


@pytest.mark.data
@pytest.mark.slow
def test_patchcore_finds_the_defects_of_bottles_and_both_engines_agree(real: Callable[[str], Path], tmp_path: Path):
    """MVTec AD, bottle: 209 good pictures to fit on, 83 to test. The paper reports an I-AUROC of 1.000."""
    bottle = real("mvtec/bottle")
    model = fit(bottle, out=tmp_path / "runs")
    found = evaluate(model, bottle, tmp_path / "evaluation")
    assert found.metrics["pictures"] == 83
    assert found.metrics["i_auroc"] >= 0.995
    assert found.metrics["p_auroc"] >= 0.96
    assert model.calibration is not None
    trained = load(model.bundle.origin, "torch")
    for entry in found.pictures:
        score, _ = trained.predict(entry.sample.source)
        assert abs(score - entry.score) <= 1e-4 * model.calibration.scale
        assert model.calibration.verdict([score]) == entry.verdict

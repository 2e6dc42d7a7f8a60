"""Deviations of SimpleNet's features, before the adaptor and behind it, against numpy."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flawmap.detectors import create
from flawmap.errors import DataError, UsageError
from flawmap.images.folder import find
from flawmap.run import reproduce as reproducing
from flawmap.run.model import Model
from flawmap.run.reproduce import reproduce
from flawmap.run.spread import deviations, network
from flawmap.run.table import Job, Table

RECIPE = """
title = "Spread"
source = "A paper"
kind = "spread"

[full]

[small]
categories = ["square"]

[[rows]]
name = "SimpleNet"
method = "simplenet"
options = { size = 64, steps = 200 }
"""


def test_deviations_are_those_of_all_patches_at_once(held: Model, world: Path) -> None:
    good = [s for s in find(world) if s.split == "test" and s.good]
    detector = network(held, "SimpleNet")
    found = deviations(detector, held, good)
    images = torch.from_numpy(np.stack([held.intake(s.source)[0] for s in good]))
    with torch.inference_mode():
        feats_BDhw = detector.embed(detector.backbone(images)).double().numpy()
    patches = feats_BDhw.transpose(0, 2, 3, 1).reshape(-1, feats_BDhw.shape[1])
    patches = (patches - detector.mean_D.numpy()) / float(detector.scale)
    assert found["local"] == pytest.approx(patches.std(axis=0), rel=1e-4)
    untrained: Any = create("simplenet", held.bundle.config["options"], pretrained=False)
    for name, adaptor in (("adapted", detector.adaptor), ("adapted, untrained", untrained.adaptor)):
        weights = adaptor.weight.detach().double().numpy()
        assert found[name] == pytest.approx((patches @ weights.T).std(axis=0), rel=1e-4), name
    assert not np.allclose(found["adapted"], found["adapted, untrained"], rtol=0.01)
    assert not detector.adaptor._forward_hooks


def test_what_is_no_simplenet_or_has_no_good_pictures_is_refused(crossed: Model, held: Model) -> None:
    with pytest.raises(UsageError, match="First is patchcore; this figure looks into simplenet alone"):
        network(crossed, "First")
    with pytest.raises(DataError, match="no good test picture"):
        deviations(network(held, "SimpleNet"), held, [])


def test_a_page_has_a_chart_and_the_share_below_the_noise(
    held: Model, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "spread.toml").write_text(RECIPE)
    monkeypatch.setattr(reproducing, "_folder", lambda: folder)
    assert "square: not run" in Path(reproduce("spread", world.parent, tmp_path, train=False)["page"]).read_text()
    job = Job("simplenet", "square", {"size": 64, "steps": 200})
    (tmp_path / "models").mkdir()
    held.save(tmp_path / "models" / f"{job.key}.flaw")
    row = {"key": job.key, **asdict(job), "config": held.bundle.config["options"], "curve": [], "steps": 200}
    Table(tmp_path)._add(row | {"date": "2026-01-02", "commit": "abc", "machine": "two cores"})
    page = Path(reproduce("spread", world.parent, tmp_path, device="cpu")["page"]).read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert [cells[:3] for cells in lines[2:]] == [
        ["square", name, "176"] for name in ("local", "adapted, untrained", "adapted")
    ]
    assert all(cells[-1].endswith("(noise 0.5)") for cells in lines[2:])
    assert "![Spread](spread-square.svg)" in page
    words = (tmp_path / "spread-square.svg").read_text()
    assert all(word in words for word in ("local", "adapted", "noise"))

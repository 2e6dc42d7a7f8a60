"""Three fits that all tests of the drivers share: each takes seconds, most of them for the export of its graph."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from flawmap.images.decode import decode
from flawmap.run.bundle import Bundle
from flawmap.run.calibrate import calibrate
from flawmap.run.export import golden_anew
from flawmap.run.fit import fit
from flawmap.run.model import Model

NET = {"size": 64, "steps": 200}


def _listing(world: Path, folder: str) -> list[str]:
    return sorted(path.relative_to(world).as_posix() for path in (world / folder).glob("*.png"))


@pytest.fixture(scope="session")
def crossed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """PatchCore on 24 good parts: too few for 1 % from parts held out, so it is cross-fitted."""
    return fit(world, "patchcore", options={"size": 64}, folds=6, out=tmp_path_factory.mktemp("crossed"))


@pytest.fixture(scope="session")
def paired(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world with two pictures of each part, a broken picture, and two defective parts of one picture only."""
    root = tmp_path_factory.mktemp("paired") / "parts" / "pairs"
    shutil.copytree(world, root)
    rows = ["path,part"]
    for folder, limit in (("train/good", 24), ("test/good", 6), ("test/square", 4)):
        rows += [f"{name},{folder}-{i // 2}" for i, name in enumerate(_listing(root, folder)[:limit])]
    (root / "parts.csv").write_text("\n".join(rows) + "\n")
    whole = (root / "train/good/000.png").read_bytes()
    (root / "train/good/broken.png").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.fixture(scope="session")
def held(paired: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """SimpleNet on 12 parts of two views: four of them are held out for calibration."""
    out = tmp_path_factory.mktemp("held")
    return fit(paired, "simplenet", options=NET, held_out=0.34, out=out, skip_bad=True)


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """PatchCore on one array as a 12-bit camera gives it: (64, 64) uint16, no value above 4095."""
    y, x = np.mgrid[:64, :64]
    wave = 2200 + 900 * np.sin(x / 5) + 400 * np.cos(y / 7)
    picture = (wave + np.random.default_rng(0).normal(0, 60, (64, 64))).astype(np.uint16)
    return fit([picture], "patchcore", options={"size": 64}, out=tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="session")
def banded(crossed: Model, world: Path) -> Model:
    """The same with two thresholds, by cost: its defects are squares from hardly visible to dark."""
    faint = []
    for share in np.linspace(0.02, 1.0, 16):
        picture = decode(world / "test/good/000.png").astype(float)
        picture[20:34, 24:38] += share * (30 - picture[20:34, 24:38])
        faint.append(np.rint(picture).astype(np.uint8))
    costs = {"escape_cost": 50, "reject_cost": 20, "review_cost": 0.5, "defect_rate": 0.1}
    made = calibrate(crossed, policy="cost", defects=faint, **costs)
    assert made.calibration is not None
    return Model(Bundle(golden_anew(made.engine, made.intake, made.bundle.files, made.calibration), "banded"))

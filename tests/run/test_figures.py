"""Figures from models that the run table keeps: what is shown, by which rule, and where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DataError, UsageError
from flawmap.images.folder import find
from flawmap.run import reproduce as reproducing
from flawmap.run.figures import chosen
from flawmap.run.reproduce import reproduce
from flawmap.run.table import Table
from flawmap.types import Sample

RECIPE = """
title = "A figure"
source = "A paper"
kind = "{kind}"

[full]

[small]
categories = ["square"]
options.pouta = {{ width = 4, size = 32, window = 5, steps = 4 }}
options.patchcore = {{ size = 64 }}
figure = {{ pictures = 3, level = 3 }}

[[rows]]
name = "First"
method = "{first}"

[[rows]]
name = "POUTA"
method = "pouta"
options = {{ mss = false }}
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("figures")


def _page(kind: str, first: str, world: Path, out: Path, monkeypatch: pytest.MonkeyPatch, train: bool = True) -> str:
    folder = out / "recipes"
    folder.mkdir(exist_ok=True)
    (folder / "figure.toml").write_text(RECIPE.format(kind=kind, first=first))
    monkeypatch.setattr(reproducing, "_folder", lambda: folder)
    return Path(reproduce("figure", world.parent, out, train=train, device="cpu")["page"]).read_text()


def _picture(out: Path) -> np.ndarray:
    return np.asarray(Image.open(out / "figure-square.png").convert("RGB"))


@pytest.mark.parametrize(("kind", "first"), [("strips", "patchcore"), ("levels", "pouta"), ("gradcam", "pouta")])
def test_a_figure_has_a_row_a_picture_and_shows_colours(
    kind: str, first: str, world: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = _page(kind, first, world, out, monkeypatch)
    assert "![A figure](figure-square.png)" in page
    assert "not shown" not in page
    found = _picture(out)
    rows = 3 * 2 if kind == "levels" else 3
    assert 160 * rows < found.shape[0] < 160 * rows + 120
    assert found.std() > 20


def test_points_and_the_map_of_their_pair_stand_side_by_side(
    world: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    _page("tsne", "pouta", world, out, monkeypatch)
    colours = {tuple(c) for c in _picture(out).reshape(-1, 3)[::3]}
    assert _picture(out).shape[1] > 800
    assert len(colours) > 100


def test_what_was_not_run_is_said_and_not_drawn(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = _page("strips", "patchcore", world, tmp_path, monkeypatch, train=False)
    assert "square: not run, so not shown: First, POUTA." in page
    assert not (tmp_path / "figure-square.png").exists()


def test_a_run_whose_model_was_not_kept_is_done_again_for_a_figure(
    world: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _page("strips", "patchcore", world, out, monkeypatch)
    [row] = [row for row in Table(out).rows().values() if row["method"] == "patchcore"]
    model = out / "models" / f"{row['key']}.flaw"
    before = Table(out).path.read_text().count("\n")
    model.unlink()
    _page("strips", "patchcore", world, out, monkeypatch)
    assert model.exists()
    assert Table(out).path.read_text().count("\n") == before + 1


def test_a_figure_that_looks_inside_refuses_other_methods(
    world: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="First is patchcore; this figure looks into pouta alone"):
        _page("gradcam", "patchcore", world, out, monkeypatch)


def test_pictures_are_chosen_by_name_and_kind_and_not_by_score(world: Path) -> None:
    names = [shown.sample.name for shown in chosen(find(world), 3)]
    assert names == ["test/square/003.png", "test/square/002.png", "test/square/004.png"]
    kinds = [
        Sample(np.zeros((4, 4, 3), np.uint8), f"{kind}{i}", f"{kind}{i}", "test", kind, np.ones((4, 4), bool))
        for kind in ("cut", "hole")
        for i in range(3)
    ]
    assert [shown.sample.name for shown in chosen(kinds, 3)] == ["cut1", "hole1", "cut0"]
    with pytest.raises(DataError, match="no test picture of a defect"):
        chosen([s for s in find(world) if s.good], 3)

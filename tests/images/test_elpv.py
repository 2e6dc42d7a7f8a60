from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DataError, MissingExtra, UsageError
from flawmap.images import elpv

installed = pytest.mark.skipif(importlib.util.find_spec("elpv_dataset") is None, reason="elpv-dataset is not installed")


def _package(monkeypatch: pytest.MonkeyPatch, spec: ModuleSpec | None) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def _labels(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    (folder / "data").mkdir()
    (folder / "data/labels.csv").write_text(text)
    spec = ModuleSpec("elpv_dataset", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    _package(monkeypatch, spec)


@installed
def test_a_draw_holds_what_was_asked_for():
    cells = elpv.samples(good=30, test_good=20, defective=10)
    assert Counter((cell.split, cell.kind) for cell in cells) == {
        ("train", "good"): 30,
        ("test", "good"): 20,
        ("test", "defective"): 10,
    }
    assert len({cell.part for cell in cells}) == 60
    for cell in cells:
        assert isinstance(cell.source, Path)
        assert cell.name == f"{cell.split}/{cell.kind}/{cell.source.name}"
        assert cell.mask is None
    with Image.open(str(cells[0].source)) as picture:
        assert picture.size == (300, 300)
        assert picture.mode == "L"


@installed
def test_a_draw_follows_its_seed():
    first, again, other = (
        [cell.name for cell in elpv.samples(good=20, test_good=5, defective=5, seed=seed)] for seed in (1, 1, 2)
    )
    assert first == again
    assert set(first) != set(other)


@installed
@pytest.mark.parametrize(("kind", "good", "defective"), [("mono", 588, 313), ("poly", 920, 402)])
def test_every_certain_cell_can_be_drawn_and_none_more(kind: Literal["mono", "poly"], good: int, defective: int):
    cells = elpv.samples(kind, good=good - 100, test_good=100, defective=defective)
    labels = Path(str(cells[0].source)).parents[1] / "labels.csv"
    table = np.genfromtxt(labels, dtype=None, encoding="utf-8")
    truth = {Path(path).stem: (probability, module) for path, probability, module in table.tolist()}
    assert {truth[cell.part] for cell in cells if cell.good} == {(0.0, kind)}
    assert {truth[cell.part] for cell in cells if not cell.good} == {(1.0, kind)}
    assert len({cell.part for cell in cells}) == good + defective
    with pytest.raises(UsageError, match=str(good)):
        elpv.samples(kind, good=good, test_good=1)
    with pytest.raises(UsageError, match=str(defective)):
        elpv.samples(kind, defective=defective + 1)


@installed
def test_the_package_itself_is_not_imported(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "elpv_dataset"]:  # by another test
        monkeypatch.delitem(sys.modules, name)
    elpv.samples(good=1, test_good=0, defective=0)
    assert "elpv_dataset" not in sys.modules


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    _package(monkeypatch, None)
    with pytest.raises(MissingExtra, match=r"flawmap\[demo\]"):
        elpv.samples()


@pytest.mark.parametrize("text", ["images/cell0001.png 0.0", "images/cell0001.png none mono", "a b c d"])
def test_a_damaged_list_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str):
    _labels(monkeypatch, tmp_path, text)
    with pytest.raises(DataError, match=r"labels\.csv"):
        elpv.samples(good=1, test_good=0, defective=0)


def test_a_listed_cell_without_its_picture_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    _labels(monkeypatch, tmp_path, "images/cell0001.png 0.0 mono\n")
    with pytest.raises(DataError, match=r"cell0001\.png is listed but missing"):
        elpv.samples(good=1, test_good=0, defective=0)


@pytest.mark.parametrize("wrong", [{"kind": "thin-film"}, {"good": -1}, {"seed": -1}])
def test_arguments_that_make_no_sense_are_refused(wrong: dict):
    with pytest.raises(UsageError):
        elpv.samples(**wrong)


def test_the_licence_forbids_commercial_use_in_words():
    assert "CC BY-NC-SA 4.0" in elpv.LICENCE
    assert "no commercial use" in elpv.LICENCE

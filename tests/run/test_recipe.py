from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DataError
from flawmap.run.recipe import Log, Recipe, digest, new_folder, same, unfinished
from flawmap.types import Sample

RECIPE = Recipe(data="parts/bottle", data_sha256="00", options={"size": 64, "stages": (2, 3), "standardise": True})


@pytest.mark.parametrize(
    "data",
    [
        "plain/bottle",
        "quotes \"double\" and 'single'",
        r"C:\parts\new\table",
        "Schweißnaht/größe µm 漢字",
        "emoji 🔩 beyond the first plane",
        "tab\tnewline\nbell\x07 delete\x7f",
        os.fsdecode(b"not utf-8 \xff"),
    ],
)
def test_a_recipe_comes_back_as_it_was_written(tmp_path: Path, data: str):
    recipe = Recipe(
        data=data,
        data_sha256="ab" * 32,
        method="simplenet",
        options={"stages": (2, 3), "noise": 0.015, "sigma_px": 4.0, "width": 0, "standardise": False, "weights": data},
        seed=7,
        held_out=0.3,
        folds=3,
        false_alarm=None,
    )
    recipe.write(tmp_path / "recipe.toml")
    read = Recipe.read(tmp_path / "recipe.toml")
    assert read.data == read.options["weights"] == data
    assert read.false_alarm is None
    assert tuple(read.options["stages"]) == (2, 3)
    assert (read.seed, read.held_out, read.folds, read.method) == (7, 0.3, 3, "simplenet")
    assert read.options["standardise"] is False
    assert type(read.options["sigma_px"]) is float
    assert type(read.options["width"]) is int
    assert same(tmp_path / "recipe.toml", recipe)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"false_alarm": 0.05},
        {"data_sha256": "01"},
        {"data": "parts/cable"},
        {"held_out": 0.3},
        {"options": {**RECIPE.options, "size": 128}},
    ],
)
def test_a_recipe_that_differs_in_one_thing_is_another(tmp_path: Path, change: dict):
    RECIPE.write(tmp_path / "recipe.toml")
    assert same(tmp_path / "recipe.toml", RECIPE)
    assert not same(tmp_path / "recipe.toml", Recipe(**{**RECIPE.__dict__, **change}))


def test_what_is_no_recipe_says_what_is_wrong(tmp_path: Path):
    path = tmp_path / "recipe.toml"
    with pytest.raises(DataError, match=r"recipe\.toml: not a recipe"):
        Recipe.read(path)
    path.write_text("data = ")
    with pytest.raises(DataError, match=r"recipe\.toml: not a recipe"):
        Recipe.read(path)
    path.write_text('data = "a"\ndata_sha256 = "b"\nsead = 3\n')
    with pytest.raises(DataError, match=r"unknown or missing sead; known: .*seed"):
        Recipe.read(path)
    path.write_text("seed = 3\n")
    with pytest.raises(DataError, match="missing data, data_sha256"):
        Recipe.read(path)


def test_a_torn_last_line_of_the_log_is_dropped(tmp_path: Path):
    path = tmp_path / "train.jsonl"
    log = Log(path)
    log.many([{"step": 0}, {"step": 1}])
    with path.open("a") as file:
        file.write('{"time": 1, "st')
    log = Log(path)
    log.add(step=2)
    assert [entry["step"] for entry in log.entries()] == [0, 1, 2]
    assert path.read_bytes().endswith(b"}\n")


def test_a_log_of_one_torn_line_is_empty(tmp_path: Path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"time": 1')
    assert Log(path).entries() == []


def test_runs_started_in_the_same_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    folders = [new_folder(tmp_path, RECIPE) for _ in range(3)]
    parent = tmp_path / "patchcore" / "parts" / "bottle"
    names = ["20260101-000000-s0", "20260101-000000-s0-2", "20260101-000000-s0-3"]
    assert folders == [parent / name for name in names]
    assert all(folder.is_dir() for folder in folders)
    assert os.readlink(parent / "latest") == names[-1]


def test_a_list_of_pictures_gives_its_name_without_the_suffix(tmp_path: Path):
    folder = new_folder(tmp_path, Recipe(data="line/monday.csv", data_sha256="00", seed=4))
    assert folder.parent == tmp_path / "patchcore" / "line" / "monday"
    assert folder.name.endswith("-s4")


def test_the_newest_unfinished_run_of_the_same_recipe_is_found(tmp_path: Path):
    assert unfinished(tmp_path, RECIPE) is None
    runs = [new_folder(tmp_path, RECIPE) for _ in range(3)]
    other = new_folder(tmp_path, Recipe(**{**RECIPE.__dict__, "data_sha256": "other"}))
    for run in runs:
        RECIPE.write(run / "recipe.toml")
    Recipe(**{**RECIPE.__dict__, "data_sha256": "other"}).write(other / "recipe.toml")
    (runs[2] / "bundle.flaw").write_bytes(b"done")
    assert unfinished(tmp_path, RECIPE) == runs[1]


def test_the_digest_is_of_names_parts_and_contents_in_any_order(tmp_path: Path):
    random = np.random.default_rng(0)
    samples = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        Image.fromarray(random.integers(0, 255, (8, 8), np.uint8)).save(path)
        samples.append(Sample(path, path.name, path.name))
    whole = digest(samples)
    assert digest(reversed(samples)) == whole
    renamed = Sample(samples[0].source, "other.png", samples[0].part)
    another_part = Sample(samples[0].source, samples[0].name, "part 7")
    assert len({whole, digest([renamed, *samples[1:]]), digest([another_part, *samples[1:]]), digest(samples[1:])}) == 4
    content = samples[0].source.read_bytes()  # type: ignore[union-attr]
    samples[0].source.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # type: ignore[union-attr]
    assert digest(samples) != whole


def test_the_log_can_be_read_while_it_is_written(tmp_path: Path):
    log = Log(tmp_path / "train.jsonl")
    log.add(event="start", stage="fit")
    entry = json.loads((tmp_path / "train.jsonl").read_text())
    assert {**entry, "time": 0} == {"time": 0, "event": "start", "stage": "fit"}
    assert abs(entry["time"] - time.time()) < 60

"""Recipes as they are shipped, and pages from rows: means, deviations, what was not run, the paper beside it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from flawmap.cli import main
from flawmap.detectors import detector_class
from flawmap.errors import DataError, UsageError
from flawmap.run import reproduce as reproducing
from flawmap.run.reproduce import Recipe, Row, Size, names, read, reproduce
from flawmap.run.table import Job, Table

TINY = """
title = "Two methods"
source = "A paper, Table I"
kind = "{kind}"
metrics = ["i_auroc", "p_ap"]
paper_is = "mean of 15"

[full]
data = "mvtec"

[small]
categories = ["square"]
seeds = [0, 1]
{small}

[[rows]]
name = "PatchCore"
method = "patchcore"
options = {{ size = 64 }}
paper = {{ i_auroc = 0.99, 2 = 0.8 }}
note = "as quoted"

[[rows]]
name = "SimpleNet"
method = "simplenet"
options = {{ size = 64 }}
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "tiny-table.toml").write_text(TINY.format(kind="table", small=""))
    (folder / "tiny-shots.toml").write_text(TINY.format(kind="shots", small="shots = [2, 4]\ndraws = 2"))
    monkeypatch.setattr(reproducing, "_folder", lambda: folder)
    return tmp_path / "out"


def _add(out: Path, job: Job, **values: object) -> None:
    config = asdict(detector_class(job.method).configure({"seed": job.seed, **job.options}))
    row = {"key": job.key, **asdict(job), "config": config, "curve": [], "steps": 0, "support": ["a.png"]}
    Table(out)._add(row | {"date": "2026-01-02", "commit": "abc", "machine": "two cores"} | values)


def _cells(page: str, name: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.split("|")[2:-1]] for line in page.splitlines() if line.startswith(f"| {name} |")
    ]


@pytest.mark.parametrize("name", names())
def test_a_shipped_recipe_is_made_of_methods_and_options_that_exist(name: str) -> None:
    recipe = read(name)
    assert recipe.title
    assert recipe.source
    for size in (recipe.full, recipe.small):
        jobs = [job for _, job in recipe.jobs(size, ["a"])]
        assert jobs or recipe.kind in ("cost", "book")
        for job in jobs:
            detector_class(job.method).configure({"seed": job.seed, **job.options})


@pytest.mark.parametrize("name", [name for name in names() if read(name).kind != "cost"])
def test_the_full_recipe_of_a_learning_method_is_the_papers_size(name: str) -> None:
    recipe = read(name)
    for _, job in recipe.jobs(recipe.full, ["a"]):
        if job.method == "pouta":
            config = detector_class("pouta").configure(dict(job.options))
            assert (config.width, config.size, config.steps, config.rate) == (64, 224, 18150, 2e-4)


def test_what_is_not_there_is_answered_with_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"called 'pouta-table-7'; there are: .*pouta-table-6"):
        read("pouta-table-7")


def test_a_table_has_means_deviations_and_the_papers_value(world: Path, tiny: Path) -> None:
    for seed, value in ((0, 0.9), (1, 0.8)):
        _add(tiny, Job("patchcore", "square", {"size": 64}, seed), i_auroc=value, p_ap=0.5)
    found = reproduce("tiny-table", world.parent, tiny, train=False)
    page = Path(found["page"]).read_text()
    assert page.startswith("## Two methods\n")
    assert "small recipe: for a CPU, not the paper's settings" in page
    assert _cells(page, "PatchCore") == [
        ["64", "2", "0.850 ± 0.071", "0.500 ± 0.000", "—", "—", "—"],
        ["0.850", "0.990", "0.500", "—"],
    ]
    assert _cells(page, "SimpleNet")[0][:4] == ["—", "0", "not run", "not run"]
    assert "- PatchCore: patchcore, size 64 (tf_efficientnet_lite0); as quoted." in page
    assert "Dates 2026-01-02; commits abc; two cores." in page


def test_a_run_that_has_not_converged_is_said_to_be_so(world: Path, tiny: Path) -> None:
    for method, curve in (("patchcore", [2.0] * 12 + [1.0] * 8), ("simplenet", [1.0] * 20)):
        _add(tiny, Job(method, "square", {"size": 64}, 0), i_auroc=0.9, p_ap=0.5, curve=curve, steps=40)
    page = Path(reproduce("tiny-table", world.parent, tiny, train=False)["page"]).read_text()
    assert _cells(page, "PatchCore")[0][-3:] == ["40", "1.000", "50%, not converged"]
    assert _cells(page, "SimpleNet")[0][-3:] == ["40", "1.000", "0%"]


def test_a_loss_of_which_nothing_is_left_has_converged(world: Path, tiny: Path) -> None:
    _add(
        tiny,
        Job("patchcore", "square", {"size": 64}, 0),
        i_auroc=0.9,
        p_ap=0.5,
        curve=[1.0] + [0.002] * 11 + [0.001] * 8,
    )
    page = Path(reproduce("tiny-table", world.parent, tiny, train=False)["page"]).read_text()
    assert _cells(page, "PatchCore")[0][-1] == "50%"


def test_few_shots_are_shown_over_draws_with_their_pictures(world: Path, tiny: Path) -> None:
    for draw, value in ((0, 0.7), (1, 0.9)):
        _add(
            tiny,
            Job("patchcore", "square", {"size": 64}, 0, 2, draw),
            i_auroc=value,
            p_ap=None,
            support=[f"{draw}.png"],
        )
    page = Path(reproduce("tiny-shots", world.parent, tiny, train=False)["page"]).read_text()
    assert "| square | PatchCore | 2/0 | 0.800 ± 0.141 | not run |" in page
    assert "| *mean of 15* | PatchCore, paper | — | 0.800 | — |" in page
    assert "- square, k = 2, draw 1: 1.png" in page


def test_a_command_runs_what_is_missing_and_prints_the_page(
    world: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["reproduce", "tiny-table", "--data", str(world.parent), "--out", str(tiny), "--only", "patchcore"]
    assert main([*words, "--seeds", "1"]) == 0
    printed = capsys.readouterr().out
    assert _cells(printed, "PatchCore")[0][:2] == ["64", "1"]
    assert _cells(printed, "SimpleNet")[0][:2] == ["—", "0"]
    [row] = Table(tiny).rows().values()
    assert (row["method"], row["seed"], row["fitted_on"]) == ("patchcore", 1, 24)
    assert main([*words, "--no-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"page": str(tiny / "tiny-table.md")}


def test_without_a_name_the_list_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()] == names()


def test_a_data_set_that_is_not_there_is_answered_with_its_layout(tmp_path: Path, world: Path) -> None:
    with pytest.raises(UsageError, match=r"name their folder with --data\nVisA: 12 objects(.|\n)*1cls.csv"):
        reproduce("pouta-table-2", None, tmp_path)
    with pytest.raises(DataError, match=r"VisA: 12 objects(.|\n)*1cls.csv"):
        reproduce("pouta-table-2", world.parent, tmp_path)


def test_one_category_that_is_missing_does_not_stop_the_others(
    world: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Path(str(reproducing._folder())) / "tiny-table.toml"
    recipe.write_text(recipe.read_text().replace('["square"]', '["square", "round"]'))
    page = Path(reproduce("tiny-table", world.parent, tiny, train=False)["page"]).read_text()
    assert "not run: round" in capsys.readouterr().err
    assert "**square**" in page


def test_shots_of_zero_are_all_pictures_and_limits_hold() -> None:
    rows = (Row("A", "patchcore"), Row("B", "pouta"), Row("only quoted"))
    size = Size(categories=("x", "y"), shots=(2, 0), limits={"pouta": ["y"]})
    recipe = Recipe("r", "t", "s", "shots", rows, size, size)
    jobs = [job for _, job in recipe.jobs(size, [])]
    assert [(j.method, j.data, j.shots) for j in jobs] == [
        ("patchcore", "x", 2), ("patchcore", "x", None), ("patchcore", "y", 2), ("pouta", "y", 2),
        ("patchcore", "y", None), ("pouta", "y", None),
    ]  # fmt: skip


def test_textures_go_to_the_methods_that_paint() -> None:
    recipe = read("pouta-table-1")
    for _, job in recipe.jobs(recipe.small, [], "dtd"):
        assert ("textures" in job.options) == (job.method in ("pouta", "draem"))


def test_a_metric_that_no_picture_has_is_not_a_run_that_was_not_made(world: Path, tiny: Path) -> None:
    _add(tiny, Job("patchcore", "square", {"size": 64}, 0), i_auroc=0.9, p_ap=None)
    page = Path(reproduce("tiny-table", world.parent, tiny, train=False)["page"]).read_text()
    assert _cells(page, "PatchCore")[0][2:4] == ["0.900", "—"]
    assert _cells(page, "PatchCore")[1] == ["0.900", "0.990", "—", "—"]


@pytest.mark.parametrize("given", [{"only": "nosuch"}, {"seeds": [9]}])
def test_what_matches_no_run_is_answered_with_the_runs(world: Path, tiny: Path, given: dict) -> None:
    with pytest.raises(
        UsageError, match=r"nothing of tiny-table is called so(.|\n)*PatchCore, patchcore, square, size 64, seed 0"
    ):
        reproduce("tiny-table", world.parent, tiny, **given)


def test_a_category_is_found_below_the_data_sets_name_and_without_it(world: Path, tiny: Path) -> None:
    recipe = Path(str(reproducing._folder())) / "tiny-table.toml"
    recipe.write_text(recipe.read_text().replace('["square"]', '["parts/square"]'))
    for data in (world.parent, world.parent.parent):
        page = Path(reproduce("tiny-table", data, tiny, train=False)["page"]).read_text()
        assert "**parts/square**" in page


def test_rows_of_other_pictures_are_refused(world: Path, tiny: Path) -> None:
    _add(tiny, Job("patchcore", "square", {"size": 64}, 0), i_auroc=0.9, p_ap=None, data_sha256="other")
    with pytest.raises(DataError, match="rows of square were made from other pictures"):
        reproduce("tiny-table", world.parent, tiny, train=False)


def test_several_processes_are_several_commands_and_not_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="not started by torchrun"):
        reproduce("pouta-table-1", tmp_path, tmp_path)


def test_what_is_measured_anew_takes_no_choice_of_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="measures anew each time"):
        reproduce("pouta-table-6", None, tmp_path, train=False)


def test_a_name_is_not_a_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is called '\.\./recipes/pouta-table-1'"):
        read("../recipes/pouta-table-1")

"""Pages of the lab report's recipes on the tiny world: curves, thresholds, bars, few parts, grey, weights, the book."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from flawmap.errors import UsageError
from flawmap.images.decode import decode
from flawmap.images.folder import find
from flawmap.run import reproduce as reproducing
from flawmap.run import roc, weights
from flawmap.run.reproduce import KINDS, MODELS, OWN, SCORES, Recipe, Row, Size, names, read, reproduce
from flawmap.run.table import Job, Score, Table
from flawmap.run.weights import given, lacking

pytest.importorskip("matplotlib")

RECIPE = """
title = "A page of {kind}"
source = "A report, Fig. 1"
kind = "{kind}"
metrics = ["i_auroc", "p_ap"]
paper_is = "the report"
paper_on = "{on}"
says = "What is to be known."

[full]

[small]
categories = {categories}
options.patchcore = {{ size = 64 }}
{small}

[[rows]]
name = "PatchCore"
method = "patchcore"
group = "embedding"
paper = {{ i_auroc = 0.93, false_alarms = 0.36 }}

[[rows]]
name = "WRN"
method = "patchcore"
group = "large"
options = {{ backbone = "wide_resnet50_2.tv_in1k" }}
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


def _recipe(
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    small: str,
    categories: str = '["square"]',
    on: str = "square",
) -> str:
    folder = out / "recipes"
    folder.mkdir(exist_ok=True)
    (folder / f"page-{kind}.toml").write_text(RECIPE.format(kind=kind, small=small, categories=categories, on=on))
    monkeypatch.setattr(reproducing, "_folder", lambda: folder)
    monkeypatch.setattr(weights, "_here", lambda method, name: not name.startswith("wide"))
    return f"page-{kind}"


def _page(world: Path, out: Path, name: str, **wishes: object) -> str:
    return Path(reproduce(name, world.parent, out, device="cpu", **wishes)["page"]).read_text()


def _row(page: str, start: str) -> list[str]:
    [line] = [line for line in page.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_every_kind_has_a_function_and_every_shipped_recipe_a_kind() -> None:
    assert {read(name).kind for name in names()} <= KINDS.keys()
    assert KINDS.keys() >= MODELS | SCORES | OWN
    for kind in KINDS:
        assert callable(reproducing._page(kind))


def test_a_book_lists_every_other_page_of_its_report_once() -> None:
    for name in names():
        if read(name).kind == "book":
            report = name.split("-")[0]
            assert sorted(read(name).pages) == [n for n in names() if n.startswith(f"{report}-") and n != name]


@pytest.mark.parametrize("kind", ["roc", "escape"])
def test_a_threshold_from_the_answers_is_called_an_oracle_and_one_from_good_parts_is_not(
    kind: str, world: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = _page(world, out, _recipe(out, monkeypatch, kind, "held_out = 0.5"))
    assert f"![A page of {kind}](page-{kind}-square.svg)" in page
    assert (out / f"page-{kind}-square.svg").read_bytes().startswith(b"<?xml")
    [row] = Table(out).rows().values()
    assert row["held_out"] == 0.5
    if kind == "roc":
        assert re.search(r"\| 0 \| pictures \| 1\.000 \| .* \| no escape, ORACLE \| 0 of 6, 0% \(0% to 46%\) \|", page)
        assert f"| {row['threshold']:.4g} | calibrated, at most {row['promise']:.1%} promised |" in page
    else:
        cells = _row(page, "PatchCore")
        assert cells[:4] == ["PatchCore", "0", "36%", "0 of 6, 0% (0% to 46%)"]
        assert cells[6].startswith(f"{row['false_alarms']['count']} of 6, ")
        assert cells[8].startswith(f"{row['escapes']['count']} of 6, ")
        assert _row(page, "WRN")[3] == "not run: no weights here"
    assert "What is to be known." in page


@pytest.mark.parametrize("by", ["metric", "category", "row", "group"])
def test_bars_stand_beside_a_table_with_the_reports_value(
    by: str, world: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = f'seeds = [0, 1]\nfigure = {{ by = "{by}", low = 0.5 }}'
    page = _page(world, out, _recipe(out, monkeypatch, "bars", small, on="" if by == "row" else "square"))
    assert "](page-bars.svg)" in page
    if by == "row":
        assert "**printed: the report**" in page
        assert _row(page.partition("**printed")[2], "PatchCore") == ["PatchCore", "embedding", "0.930", "—"]
        return
    cells = _row(page, "PatchCore")
    assert cells[1:6] == ["embedding", "64", "2", "1.000 ± 0.000", "0.930"]
    assert _row(page, "WRN")[4] == "not run: no weights here"
    assert "- WRN: patchcore, size 64, backbone wide_resnet50_2.tv_in1k." in page
    assert "- *Not run:* WRN: no weights here; give a folder with wide_resnet50_2.tv_in1k.safetensors" in page


def test_few_parts_are_a_curve_with_all_at_its_end(world: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = "shots = [2, 4, 0]\ndraws = 2\nlimits.patchcore = { shots = [2, 0] }"
    page = _page(world, out, _recipe(out, monkeypatch, "few", small))
    assert "**square**: 24 good pictures to train on, of 24 parts" in page
    cells = _row(page.partition("P-AP, parts")[0], "PatchCore")
    assert cells[1] == "2/0/2"
    assert cells[3] == "not asked for"
    assert _row(page, "of each draw")[1:] == ["2, 2", "not run", "24"]


def test_all_parts_are_one_draw_so_that_seeds_stand_for_draws() -> None:
    size = Size(categories=("x",), shots=(2, 0), draws=2)
    recipe = Recipe("r", "t", "s", "few", (Row("A", "patchcore"),), size, size)
    jobs = [(job.shots, job.draw, job.seed) for _, job in recipe.jobs(size, [])]
    assert jobs == [(2, 0, 0), (None, 0, 0), (2, 1, 0), (None, 0, 1)]


def test_a_grey_category_has_the_same_pictures_without_colours(
    world: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = 'figure.by = "category"'
    name = _recipe(out, monkeypatch, "bars", small, '["square", "square (grey)"]')
    page = _page(world, out, name, only="size 64, seed 0")
    assert "**square (grey)**" in page
    colour, grey = (row["data_sha256"] for row in Table(out).rows().values() if row["seed"] == 0 and not row["shots"]
                    and not row["held_out"])  # fmt: skip
    assert colour != grey
    sample = next(s for s in find(world) if not s.good)
    changed = reproducing._in_grey(sample)
    assert (changed.name, changed.part, changed.mask, changed.kind) == (
        sample.name,
        sample.part,
        sample.mask,
        sample.kind,
    )
    pixels = decode(changed.source)
    assert (pixels == pixels[..., :1]).all()
    luma = decode(sample.source)[10, 20] @ np.array([0.299, 0.587, 0.114])
    assert pixels[10, 20, 0] == round(float(luma))


def test_weights_of_a_folder_go_to_the_rows_that_name_their_backbone(tmp_path: Path) -> None:
    file = tmp_path / "wide_resnet50_2.tv_in1k.safetensors"
    assert given("simplenet", {"preset": "paper"}, tmp_path) == {}
    file.touch()
    assert given("simplenet", {"preset": "paper"}, tmp_path) == {"weights": str(file)}
    assert given("simplenet", {}, tmp_path) == {}
    assert given("draem", {}, tmp_path) == {}
    teacher = tmp_path / "efficientad-small-128-384.safetensors"
    teacher.touch()
    assert given("efficientad", {}, tmp_path) == {"teacher": str(teacher)}
    assert not lacking(Job("efficientad", "x", {"teacher": str(teacher)}))
    assert not lacking(Job("simplenet", "x"))
    assert "vit_small_patch14_dinov2.lvd142m.safetensors" in lacking(
        Job("simplenet", "x", {"backbone": "vit_small_patch14_dinov2.lvd142m", "size": 252, "stages": [7, 11]})
    )


def test_a_run_on_given_weights_leaves_no_path_behind_and_counts_without_them(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    from flawmap.features.backbone import Backbone

    name = _recipe(tmp_path, monkeypatch, "bars", 'figure.by = "metric"')
    recipe = tmp_path / "recipes" / f"{name}.toml"
    recipe.write_text(recipe.read_text().replace("wide_resnet50_2.tv_in1k", "mobilenetv3_small_050.lamb_in1k"))
    monkeypatch.setattr(weights, "_here", lambda method, name: not name.startswith("mobile"))
    net = Backbone("mobilenetv3_small_050.lamb_in1k", (1, 2, 3), 64, pretrained=False).net
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(net.state_dict(), folder / "mobilenetv3_small_050.lamb_in1k.safetensors")
    _page(world, tmp_path, name, weights=folder, only="WRN")
    [line] = (tmp_path / "table.jsonl").read_text().splitlines()
    assert str(tmp_path) not in line
    [row] = Table(tmp_path).rows().values()
    assert len(row["weights_sha256"]) == 64
    page = _page(world, tmp_path, name, train=False)
    assert _row(page, "WRN")[4] == f"{row['i_auroc']:.3f}"
    assert str(tmp_path) not in page


def test_a_folder_of_weights_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        reproduce("sdu-figure-9", tmp_path, tmp_path, weights=tmp_path / "no")


def test_a_book_of_which_nothing_is_called_so_is_an_error(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = _recipe(tmp_path, monkeypatch, "bars", 'figure.by = "metric"')
    text = f'title = "All"\nsource = "A report"\nkind = "book"\npages = ["{name}"]\n[full]\n[small]\n'
    (tmp_path / "recipes" / "page-all.toml").write_text(text)
    with pytest.raises(UsageError, match="nothing of page-all is called so"):
        reproduce("page-all", world.parent, tmp_path, only="nothing of this name")


def test_a_part_of_good_and_defective_pictures_leaves_the_curve_of_pictures(tmp_path: Path) -> None:
    scores = [Score("a", "p", "good", 0.1), Score("b", "p", "square", 0.9)]
    assert {s.kind for s in roc._parts(scores)} == {"square"}
    assert roc._oracle(None) == "good and defective ones are needed"


def test_a_book_is_one_file_of_all_pages_and_says_what_was_not_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("markdown_it")
    _recipe(tmp_path, monkeypatch, "bars", 'figure.by = "metric"')
    name = _recipe(tmp_path, monkeypatch, "few", "shots = [2]", '["elsewhere"]')
    pages = f'pages = ["page-bars", "{name}"]'
    text = f'title = "All"\nsource = "A report"\nkind = "book"\n{pages}\n[full]\n[small]\n'
    (tmp_path / "recipes" / "page-all.toml").write_text(text)
    found = reproduce("page-all", world.parent, tmp_path, train=False)
    html = Path(found["html"]).read_text()
    assert html.count('src="data:image/svg+xml;base64,') == 1
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert "not run" in html
    assert "Not complete:" in html
    assert "none of elsewhere" in html
    markdown = Path(found["page"]).read_text()
    assert markdown.startswith("# All\n")
    assert "## A page of bars" in markdown

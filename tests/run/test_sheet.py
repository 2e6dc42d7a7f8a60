from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap import cli
from flawmap.errors import DataError, FlawmapError, UsageError
from flawmap.report.heatmap import LINE
from flawmap.report.sheet import APART, GAP, TEXT
from flawmap.run import sheet as module
from flawmap.run.sheet import CELL, COLUMNS, GROUPS, PICTURES, synthesis_sheet
from flawmap.synthesis import PRESETS, Painted


def cells(page: Path, cell: int) -> list[list[np.ndarray]]:
    """For each picture: itself, mask, result, outlined result."""
    array = np.asarray(Image.open(page))
    wide, high = len(COLUMNS) * (cell + GAP) - GAP + APART, cell + GAP + TEXT
    found = []
    for number in range(PICTURES):
        x, y = GAP + number % GROUPS * wide, GAP + TEXT + number // GROUPS * high
        found.append([array[y : y + cell, x + n * (cell + GAP) :][:, :cell] for n in range(len(COLUMNS))])
    return found


@pytest.mark.parametrize("preset", PRESETS)
def test_the_sheet_shows_picture_mask_and_result(world: Path, tmp_path: Path, preset: str):
    page = synthesis_sheet(world, tmp_path / "deep" / "sheet.png", preset, size=192)
    shown, marked = cells(page, 192), 0
    assert len(shown) == 10
    for clean, mask, result, outlined in shown:
        assert set(np.unique(mask)) <= {0, 255}
        inside = mask[..., 0] == 255
        assert np.array_equal(clean[~inside], result[~inside])
        assert np.array_equal(result[inside], outlined[inside])
        if inside.any():
            marked += 1
            assert (clean[inside] != result[inside]).any()
            assert (outlined == LINE).all(axis=-1).any()
    assert marked >= 8


def test_the_page_lies_and_is_legible_at_224_pixels(world: Path, tmp_path: Path):
    with Image.open(synthesis_sheet(world, tmp_path / "sheet.png")) as page:
        assert 1.3 < page.size[0] / page.size[1] < 1.5
        assert page.size[0] < 2000


@pytest.mark.parametrize(("size", "cell"), [(32, CELL[0]), (64, CELL[0]), (200, 200), (640, CELL[1])])
def test_small_pictures_are_enlarged_and_large_ones_shrunk(world: Path, tmp_path: Path, size: int, cell: int):
    with Image.open(synthesis_sheet(world, tmp_path / "sheet.png", size=size)) as page:
        assert page.size[0] == GROUPS * (len(COLUMNS) * (cell + GAP) - GAP) + (GROUPS - 1) * APART + 2 * GAP


def test_the_same_call_writes_the_same_bytes_and_another_recipe_others(world: Path, tmp_path: Path):
    pages = [synthesis_sheet(world, tmp_path / f"{n}.png", name, size=64) for n, name in enumerate(("pouta",) * 2)]
    other = synthesis_sheet(world, tmp_path / "other.png", "memseg", size=64)
    assert pages[0].read_bytes() == pages[1].read_bytes() != other.read_bytes()


def test_pictures_are_good_ones_spread_over_the_data_set(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words: dict[str, list[str]] = {}
    real = module.sheet
    monkeypatch.setattr(module, "sheet", lambda rows, **more: words.update(more) or real(rows, **more))
    synthesis_sheet(world, tmp_path / "sheet.png", size=64)
    names = [note.split(":")[0] for note in words["notes"]]
    assert names[0] == "train/good/000.png"
    assert names[-1] == "train/good/023.png"
    assert len(set(names)) == 10
    assert all(name.startswith("train/good/") for name in names)


def test_the_words_say_recipe_source_seed_opacity_place_and_share(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words: dict[str, str] = {}
    rows: list[list[np.ndarray]] = []
    real = module.sheet

    def spy(shown: list[list[np.ndarray]], **more: str) -> Image.Image:
        words.update(more)
        rows[:] = shown
        return real(shown, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "sheet", spy)
    synthesis_sheet(world, tmp_path / "sheet.png", size=64)
    lines = words["caption"].splitlines()
    assert lines[0] == "Recipe pouta, opacity 0.15 to 1, seed 0, 64 x 64 px."
    assert lines[1] == "Painted with drawn textures and the picture's cells, on the whole picture."
    shares = [100 * row[1].mean() for row in rows]
    assert f"median {np.median(shares):.2g} %, {min(shares):.2g} to {max(shares):.2g} %" in lines[2]
    assert f": {shares[3]:.2g} % painted, mean change " in words["notes"][3]
    synthesis_sheet(world, tmp_path / "sheet.png", "draem", str(world / "train"), 64, "bright:80")
    assert "opacity 0.2 to 1" in words["caption"]
    assert f"pictures of {world / 'train'}, on the part only (bright:80)" in words["caption"]
    assert "turned first, 30 % of the time" in words["caption"]


def test_the_note_measures_share_and_change():
    clean, mask = np.full((3, 10, 10), 0.5, np.float32), np.zeros((10, 10), np.float32)
    assert module._note(Painted(clean, clean, mask)) == "stays clean, nothing found to paint"
    mask[:5] = 1
    image = np.where(mask > 0, clean + np.float32(0.2), clean)
    assert module._note(Painted(image, clean, mask)) == "50 % painted, mean change 20 % of white"


def test_a_foreground_is_kept_on_the_sheet(world: Path, tmp_path: Path):
    page = synthesis_sheet(world, tmp_path / "sheet.png", "memseg", size=192, foreground="bright:140")
    for clean, mask, _, _ in cells(page, 192):
        grey = np.asarray(Image.fromarray(clean).convert("L"))
        assert grey[mask[..., 0] == 255].min() > 140


def test_three_pictures_are_enough(world: Path, tmp_path: Path):
    (few := tmp_path / "few").mkdir()
    for number in range(3):
        shutil.copy(world / f"train/good/{number:03}.png", few)
    shown = cells(synthesis_sheet(few, tmp_path / "sheet.png", size=192), 192)
    assert len({clean.tobytes() for clean, *_ in shown}) == 3
    assert len({mask.tobytes() for _, mask, *_ in shown}) == 10  # the same picture gets another defect


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"preset": "nsa"}, "no recipe 'nsa'"),
        ({"size": 16}, "at least 32"),
        ({"size": 5000}, "at most 4096"),
        ({"foreground": "light"}, "give bright, dark"),
        ({"textures": "nowhere"}, "no folder nowhere"),
    ],
)
def test_what_cannot_be_painted_is_refused_and_nothing_is_written(
    world: Path, tmp_path: Path, wrong: dict[str, object], words: str
):
    with pytest.raises(UsageError, match=words):
        synthesis_sheet(world, tmp_path / "new" / "sheet.png", **wrong)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_without_good_pictures_is_refused(world: Path, tmp_path: Path):
    shutil.copytree(world / "test/square", tmp_path / "parts/test/square")
    with pytest.raises((DataError, FlawmapError), match=r"good|train"):
        synthesis_sheet(tmp_path / "parts", tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_the_command_line_writes_the_sheet_with_all_its_options(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "sheet.png"
    options = ["--synthesis", "draem", "--textures", str(world / "train"), "--foreground", "dark", "--size", "64"]
    assert cli.main(["data", str(world), "--show-synthesis", str(out), *options]) == 0
    assert str(out) in capsys.readouterr().out
    expected = synthesis_sheet(world, tmp_path / "same.png", "draem", str(world / "train"), 64, "dark")
    assert out.read_bytes() == expected.read_bytes()
    assert cli.main(["data", str(world), "--show-synthesis", str(out), "--foreground", "light"]) == 2


def test_without_textures_of_ones_own_the_sheet_needs_no_torch(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "flawmap.run.feed", None)
    assert synthesis_sheet(world, tmp_path / "sheet.png", size=32).exists()

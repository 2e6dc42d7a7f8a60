from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import mannwhitneyu

from flawmap.errors import DataError, UsageError
from flawmap.images.woven import KINDS, draw, write

SMALL = {"good": 3, "test_good": 2, "per_kind": 1, "size": 32}


def _pngs(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def test_a_seed_draws_the_same_part_twice_and_another_seed_another():
    assert np.array_equal(draw(3, 64)[0], draw(3, 64)[0])
    assert np.abs(draw(3, 64)[0].astype(int) - draw(4, 64)[0]).mean() > 10


def test_a_good_part_is_rgb_with_an_empty_mask():
    image, mask = draw(0, 96)
    assert image.shape == (96, 96, 3)
    assert image.dtype == np.uint8
    assert mask.shape == (96, 96)
    assert mask.dtype == bool
    assert mask.sum() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [32, 101])
def test_outside_its_mask_a_defective_part_is_the_good_one_of_its_seed(kind: str, size: int):
    for seed in range(12):
        good, flawed, mask = draw(seed, size)[0], *draw(seed, size, kind)
        assert np.array_equal(good[~mask], flawed[~mask])
        assert 12 <= mask.sum() < size * size
        # Both carry the same noise: rounding and shot noise take little of the 2 grey levels that make the mask.
        changed = np.abs(flawed.astype(int) - good).max(2)[mask]
        assert np.mean(changed >= 2) > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_defects_run_from_hard_to_easy(kind: str):
    strengths = []
    for seed in range(16):
        good, flawed, mask = draw(seed, 128)[0], *draw(seed, 128, kind)
        strengths.append(np.abs(flawed.astype(float) - good)[mask].mean() * np.sqrt(mask.sum()))
    assert max(strengths) > 1.8 * min(strengths)


def test_a_hole_is_darker_than_the_cloth():
    for seed in range(5):
        image, mask = draw(seed, 128, "hole")
        assert image[mask].mean() < 0.75 * image[~mask].mean()


def test_good_parts_differ_within_a_process():
    means = [draw(seed, 64)[0].mean() for seed in range(30)]
    assert 2 < np.std(means) < 10


def test_no_plain_statistic_tells_good_from_bad():
    good = [draw(1000 + n, 128)[0] for n in range(40)]
    bad = [draw(n, 128, KINDS[n % 5])[0] for n in range(40)]
    statistics = {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max, "p99": lambda x: np.percentile(x, 99)}
    for name, statistic in statistics.items():
        auroc = mannwhitneyu([statistic(x) for x in bad], [statistic(x) for x in good]).statistic / 1600
        assert 0.1 < auroc < 0.9, name


@pytest.mark.parametrize(("seed", "size", "kind"), [(0, 31, "good"), (-1, 64, "good"), (0, 64, "scratch")])
def test_what_cannot_be_drawn_is_refused(seed: int, size: int, kind: str):
    with pytest.raises(UsageError):
        draw(seed, size, kind)


def test_write_lays_out_a_category_as_mvtec_does(tmp_path: Path):
    folder = write(tmp_path / "deep" / "woven", **SMALL)
    assert _pngs(folder) == sorted(
        [f"train/good/{n:03}.png" for n in range(3)]
        + [f"test/good/{n:03}.png" for n in range(2)]
        + [f"test/{kind}/000.png" for kind in KINDS]
        + [f"ground_truth/{kind}/000_mask.png" for kind in KINDS]
    )
    assert [path.name for path in folder.parent.iterdir()] == ["woven"]  # no temporary folder is left
    with Image.open(folder / "ground_truth/hole/000_mask.png") as mask:
        assert mask.mode == "L"
        assert mask.size == (32, 32)
        assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_no_two_written_parts_share_their_cloth_and_the_seed_counts(tmp_path: Path):
    first, other = write(tmp_path / "a", **SMALL), write(tmp_path / "b", **SMALL, seed=1)
    pictures = [
        (folder / name).read_bytes() for folder in (first, other) for name in _pngs(folder) if "mask" not in name
    ]
    assert len(set(pictures)) == 20
    assert np.array_equal(np.asarray(Image.open(first / "test/good/000.png")), draw(3, 32)[0])
    assert np.array_equal(np.asarray(Image.open(other / "train/good/002.png")), draw(1_000_002, 32)[0])


def test_a_complete_folder_is_kept_and_a_gap_or_other_settings_draw_it_anew(tmp_path: Path):
    folder = write(tmp_path / "woven", **SMALL)
    picture = folder / "train/good/001.png"
    original = picture.read_bytes()
    picture.write_bytes(b"touched")
    write(folder, **SMALL)
    assert picture.read_bytes() == b"touched"
    (folder / "test/hole/000.png").unlink()
    write(folder, **SMALL)
    assert picture.read_bytes() == original
    assert (folder / "test/hole/000.png").is_file()
    write(folder, **(SMALL | {"good": 1}))
    assert not picture.exists()
    assert json.loads((folder / "woven.json").read_text())["good"] == 1


def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"notes\.txt"):
        write(tmp_path, **SMALL)
    folder = write(tmp_path / "woven", **SMALL)
    (folder / "train/good/mine.png").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"mine\.png"):
        write(folder, **(SMALL | {"seed": 1}))
    assert write(folder, **SMALL) == folder
    assert (folder / "train/good/mine.png").read_bytes() == b"mine"
    with pytest.raises(DataError, match="is a file"):
        write(tmp_path / "notes.txt", **SMALL)


def test_an_unreadable_settings_file_counts_as_a_stranger(tmp_path: Path):
    (tmp_path / "woven.json").write_text("[1, 2")
    with pytest.raises(DataError, match=r"woven\.json"):
        write(tmp_path, **SMALL)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match="No space left"):
        write(tmp_path / "woven", **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"good": 0}, {"test_good": -1}, {"per_kind": -1}, {"size": 8}, {"seed": -1}])
def test_numbers_that_make_no_sense_are_refused_before_anything_is_written(tmp_path: Path, wrong: dict[str, int]):
    with pytest.raises(UsageError):
        write(tmp_path / "woven", **(SMALL | wrong))
    assert list(tmp_path.iterdir()) == []

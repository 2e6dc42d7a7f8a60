from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DataError, UsageError
from flawmap.images.decode import decode
from flawmap.run.bulk import listing
from flawmap.run.calibrate import calibrate
from flawmap.run.inspect import inspect
from flawmap.run.model import Model


def _printed(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def lots(world: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two folders whose pictures have the same names: good ones, defective ones."""
    for lot, kind in (("monday", "good"), ("tuesday", "square")):
        shutil.copytree(world / "test" / kind, tmp_path / lot)
    return tmp_path / "monday", tmp_path / "tuesday"


def test_the_same_name_in_two_folders_is_two_parts(
    crossed: Model, lots: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    assert inspect(crossed, [str(lot) for lot in lots], as_json=True) == 0
    found = _printed(capsys)
    assert [row["part"] for row in found] == [str(lot / f"{i:03}.png") for lot in lots for i in range(6)]
    for row in found:
        assert row["score"] == crossed.inspect(row["part"]).score
        assert len(row["views"]) == 1
    assert [row["verdict"] for row in found[6:]] == ["NOK"] * 6


def test_maps_and_overlays_of_the_same_name_do_not_overwrite_each_other(
    crossed: Model, lots: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    maps, overlays = tmp_path / "maps", tmp_path / "overlays"
    sources = [str(lot / "001.png") for lot in lots]
    assert inspect(crossed, sources, maps=maps, overlay=overlays) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    kept = {path.stem: np.load(path) for path in maps.iterdir()}
    assert len(kept) == len(list(overlays.iterdir())) == 2
    for source in sources:
        (stem,) = (stem for stem in kept if stem.endswith(f"{Path(source).parent.name}_001"))
        assert kept[stem].dtype == np.float32
        np.testing.assert_array_equal(kept[stem], crossed.inspect(source).map)
        assert decode(overlays / f"{stem}.png").shape == (64, 64, 3)


def test_what_is_printed_is_what_the_model_finds(
    crossed: Model, lots: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    assert inspect(crossed, [str(lots[1] / "000.png")], as_json=True) == 0
    (row,) = _printed(capsys)
    found = crossed.inspect(lots[1] / "000.png")
    assert (row["part"], row["verdict"], row["p_value"]) == ("000.png", "NOK", found.p_value)
    assert (row["score"], row["threshold"]) == (found.score, found.threshold)
    regions = row["views"][0]["regions"]
    assert len(regions) == len(found.regions[0]) > 0
    assert regions[0] == {
        "box": list(found.regions[0][0].box),
        "area_px": found.regions[0][0].area_px,
        "centroid": list(found.regions[0][0].centroid),
        "peak": found.regions[0][0].peak,
        "area_mm2": None,
        "contour": [list(corner) for corner in found.regions[0][0].contour],
    }
    assert inspect(crossed, [str(lots[1] / "000.png")]) == 0
    left, top, right, bottom = found.regions[0][0].box
    line = capsys.readouterr().out
    assert line.startswith(f"NOK  {found.score:10.4f}  p {found.p_value:.4f}  000.png  at ")
    assert f"at {left},{top} {right - left}x{bottom - top}" in line


def test_views_of_a_part_are_judged_together(held: Model, lots: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    assert inspect(held, [str(lots[1])], part_pattern=r"00([0-9])", as_json=True) == 1
    captured = capsys.readouterr()
    assert all(json.loads(line)["verdict"] is None for line in captured.out.splitlines())
    assert captured.err.count("judges parts of 2 views, this part has 1") == 6

    assert inspect(held, [str(lot) for lot in lots], part_pattern=r"00([0-9])", as_json=True) == 0
    found = _printed(capsys)
    assert [row["part"] for row in found] == list("012345")
    for row in found:
        names = [view["name"] for view in row["views"]]
        assert names == [str(lot / f"00{row['part']}.png") for lot in lots]
        assert row["score"] == max(view["score"] for view in row["views"])


def test_a_picture_that_cannot_be_judged_is_an_error_and_the_others_are_judged(
    crossed: Model, lots: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    good = lots[0] / "000.png"
    whole = good.read_bytes()
    lot = tmp_path / "lot"
    lot.mkdir()
    (lot / "a.png").write_bytes(whole)
    (lot / "b.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full((64, 64), 900, np.uint16)).save(lot / "c.png")
    (lot / "d.png").write_bytes(b"")
    (lot / "e.png").write_bytes(whole)
    assert inspect(crossed, [str(lot)], as_json=True) == 3
    captured = capsys.readouterr()
    found = {row["part"]: row for row in map(json.loads, captured.out.splitlines())}
    assert {name for name, row in found.items() if row["verdict"] is None} == {"b.png", "c.png", "d.png"}
    assert found["a.png"]["score"] == found["e.png"]["score"] == crossed.inspect(good).score
    for name, reason in (("b.png", "truncated"), ("c.png", "16 bits a channel"), ("d.png", "empty")):
        assert reason in found[name]["error"]
        assert any(line.startswith(f"flawmap: {name}: no verdict: ") for line in captured.err.splitlines())
    assert inspect(crossed, [str(lot)]) == 3
    assert [line.split()[4] for line in capsys.readouterr().out.splitlines()] == ["a.png", "e.png"]


def test_verdicts_say_by_which_policy_they_are_and_those_of_an_oracle_are_warned_about(
    crossed: Model, banded: Model, world: Path, lots: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    oracle = calibrate(crossed, world, policy="f1-oracle")
    (lots[0] / "004.png").write_bytes(b"")
    capsys.readouterr()
    for model, policy in ((crossed, "false-alarm"), (banded, "cost"), (oracle, "f1-oracle")):
        for as_json in (False, True):
            assert inspect(model, [str(lots[0])], as_json=as_json) == 3
            captured = capsys.readouterr()
            said = captured.err.count("an oracle: read off the answers, no operating point")
            assert said == (policy == "f1-oracle")  # once, however many parts there are
            assert len(captured.out.splitlines()) == (6 if as_json else 5)
            if as_json:
                assert [json.loads(line)["policy"] for line in captured.out.splitlines()] == [policy] * 6


def test_a_part_between_the_thresholds_is_for_review(banded: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files = banded.bundle.files
    for name in ("above-review.png", "below-threshold.png", "above-threshold.png"):
        (tmp_path / name).write_bytes(files[f"golden/{name}"])
    assert inspect(banded, [str(tmp_path)], as_json=True) == 0
    found = {row["part"]: row["verdict"] for row in _printed(capsys)}
    assert found == {"above-review.png": "REVIEW", "above-threshold.png": "NOK", "below-threshold.png": "REVIEW"}


def test_a_model_that_is_not_calibrated_says_so_on_every_line(
    alone: Model, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    Image.fromarray(np.full((64, 64), 2000, np.uint16)).save(tmp_path / "a.png")
    assert inspect(alone, [str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("no verdict (not calibrated)")
    assert inspect(alone, [str(tmp_path)], as_json=True) == 0
    (row,) = _printed(capsys)
    assert (row["verdict"], row["p_value"], row["threshold"], row["policy"]) == (None, None, None, None)


class _Pipe:
    """Standard input that holds these bytes."""

    closed = False

    def __init__(self, content: bytes, terminal: bool = False) -> None:
        self.buffer, self._terminal = io.BytesIO(content), terminal

    def isatty(self) -> bool:
        return self._terminal


def test_a_picture_from_standard_input_is_judged_as_the_file_is(
    crossed: Model,
    lots: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    picture = lots[1] / "000.png"
    monkeypatch.setattr("sys.stdin", _Pipe(picture.read_bytes()))
    wishes = {"maps": tmp_path / "maps", "overlay": tmp_path / "seen"}
    assert inspect(crossed, ["-", str(lots[0] / "000.png")], as_json=True, **wishes) == 0
    row, other = _printed(capsys)
    assert (row["part"], row["views"][0]["name"], row["verdict"]) == ("stdin", "stdin", "NOK")
    assert row["score"] == crossed.inspect(picture).score
    assert (other["part"], other["verdict"]) == (str(lots[0] / "000.png"), "OK")
    np.testing.assert_array_equal(np.load(tmp_path / "maps/stdin.npy"), crossed.inspect(picture).map)
    assert decode(tmp_path / "seen/stdin.png").shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"not a picture", "not a PNG"), (b"\x89PNG\r\n\x1a\ncut", "header cannot be read")],
)
def test_standard_input_that_is_no_picture_gets_no_verdict(
    crossed: Model, content: bytes, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stdin", _Pipe(content))
    assert inspect(crossed, ["-"], as_json=True) == 3
    captured = capsys.readouterr()
    assert json.loads(captured.out)["verdict"] is None
    assert captured.err.startswith("flawmap: stdin: no verdict: ")
    assert words in captured.err


def test_standard_input_that_cannot_be_meant_is_refused(
    crossed: Model, lots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stdin", _Pipe(b"", terminal=True))
    with pytest.raises(UsageError, match="is a terminal; pipe a picture in"):
        inspect(crossed, ["-"])
    with pytest.raises(UsageError, match="given twice"):
        inspect(crossed, ["-", "-"])
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UsageError, match="is closed"):
        inspect(crossed, ["-"])
    monkeypatch.chdir(lots[0])
    (lots[0] / "000.png").rename("stdin")
    monkeypatch.setattr("sys.stdin", _Pipe((lots[0] / "001.png").read_bytes()))
    with pytest.raises(UsageError, match="stdin is given twice"):
        inspect(crossed, ["-", "stdin"])


def test_standard_input_without_an_end_is_refused(crossed: Model, monkeypatch: pytest.MonkeyPatch):
    small = Model(crossed.bundle)
    monkeypatch.setattr(small, "intake", replace(crossed.intake, max_mpx=0.01))
    monkeypatch.setattr("sys.stdin", _Pipe(b"\xff\xd8\xff" + bytes(2**26 + 100_000)))
    with pytest.raises(DataError, match="stdin: more than 67188864 bytes"):
        inspect(small, ["-"])


def test_a_picture_given_twice_is_refused(crossed: Model, lots: tuple[Path, Path], tmp_path: Path):
    lot = str(lots[0])
    (tmp_path / "link").symlink_to(lot)
    (tmp_path / "linked.png").symlink_to(f"{lot}/000.png")
    (tmp_path / "hard.png").hardlink_to(f"{lot}/000.png")
    (tmp_path / "list.csv").write_text(f"path\n{lot}/000.png\nmonday/000.png\n")
    (tmp_path / "other.csv").write_text("path\nhard.png\nmonday/000.png\n")
    for twice in (
        [lot, lot],
        [lot, f"{lot}/000.png"],
        [f"{lot}/000.png"] * 2,
        [lot, f"{lots[1]}/../monday"],
        [lot, str(tmp_path / "link")],
        [str(tmp_path), lot],
        [lot, str(tmp_path / "linked.png")],
        [lot, str(tmp_path / "hard.png")],
        [str(tmp_path / "list.csv")],
        [str(tmp_path / "other.csv")],
    ):
        with pytest.raises(
            UsageError, match="is given twice, by itself, in a folder or by a link; give every picture once"
        ):
            inspect(crossed, twice)
        with pytest.raises(UsageError, match="is given twice"):
            listing(twice)


def test_pictures_that_several_cameras_took_of_a_part_are_its_views(
    held: Model, lots: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    """Also where the whole name is the part. A view that is missing is an error of that part alone."""
    cameras = [str(lot) for lot in lots]
    for pattern, names in ((r"(.+)", [f"00{i}.png" for i in range(6)]), (r"^(\d+)", [f"00{i}" for i in range(6)])):
        assert inspect(held, cameras, part_pattern=pattern, as_json=True) == 0
        found = _printed(capsys)
        assert [row["part"] for row in found] == names
        assert all(len(row["views"]) == 2 for row in found)
        assert listing(cameras, pattern).parts == [name for name in names for _ in range(2)]
    (lots[1] / "003.png").unlink()
    assert inspect(held, cameras, part_pattern=r"(.+)", as_json=True) == 1
    found = _printed(capsys)
    assert [row["part"] for row in found if row["verdict"] is None] == ["003.png"]
    assert "judges parts of 2 views, this part has 1" in found[3]["error"]


def test_pictures_that_differ_in_the_suffix_have_maps_of_their_own(
    crossed: Model, lots: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    lot = lots[0]
    (lot / "a").mkdir()
    for name in ("000.bmp", "a_b.png", "a/b.png"):
        Image.open(lot / "001.png").save(lot / name)
    assert inspect(crossed, [str(lot)], maps=tmp_path / "maps", as_json=True) == 0
    found = [path.name for path in (tmp_path / "maps").iterdir()]
    assert {"000.npy", "000.png.npy", "a_b.npy", "a_b.png.npy"} <= set(found)
    assert len(found) == len(_printed(capsys)) == 9


def test_a_name_makes_no_line_of_its_own(crossed: Model, lots: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    (lots[1] / "000.png").rename(lots[1] / "x\nOK  0.1  p 0.9  y.png")
    assert inspect(crossed, [str(lots[1])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("NOK") for line in lines)
    assert r"x\nOK  0.1  p 0.9  y.png" in lines[-1]

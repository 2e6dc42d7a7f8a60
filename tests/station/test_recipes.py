"""The recipes of a station: which may judge, the switch, the way back."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

import flawmap
from flawmap.errors import BundleError, CalibrationError, GateError, UsageError
from flawmap.run.bundle import Bundle, read
from flawmap.station.recipes import BACK, Recipes


def changed(flaw: Path, to: Path, **files: bytes | None) -> Path:
    """The bundle with other files in it, and a manifest that fits; None: without the file."""
    bundle = read(flaw)
    content = {**bundle.files, **{name.replace("__", "."): data for name, data in files.items()}}
    return Bundle({name: data for name, data in content.items() if data is not None}, str(to)).write(to)


def noted(flaw: Path, to: Path, note: str) -> Path:
    """One that judges alike and is another bundle."""
    return changed(flaw, to, card__md=f"# {note}".encode())


def test_a_switch_and_the_way_back(flaw: Path, tmp_path: Path) -> None:
    recipes = Recipes({"a": flaw, "b": noted(flaw, tmp_path / "b.flaw", "b")})
    a, b = recipes.get("a"), recipes.get("b")
    assert a.bundle != b.bundle
    assert a.calibration == b.calibration
    assert (recipes.active, recipes.previous, recipes.names) == (a, None, ["a", "b"])
    with pytest.raises(UsageError, match="nothing to go back to"):
        recipes.roll_back()
    assert recipes.use("b") is b
    assert recipes.use("b") is b
    assert recipes.previous is a
    assert recipes.roll_back() is a
    with pytest.raises(UsageError, match="'c'; there are: a, b"):
        recipes.use("c")
    assert recipes.active is a


def test_a_bundle_that_changed_on_the_disk_is_used_when_asked_for_and_the_way_back_is_the_old_one(
    flaw: Path, tmp_path: Path
) -> None:
    path = shutil.copy(flaw, tmp_path / "r.flaw")
    recipes = Recipes({"r": path})
    first = recipes.active
    assert recipes.use("r", reload=True) is first  # it is the same
    noted(flaw, path, "two")
    assert recipes.use("r") is first
    second = recipes.use("r", reload=True)
    assert second.bundle == read(path).sha256 != first.bundle
    assert (second.version, recipes.previous) == (2, first)
    assert recipes.roll_back() is first
    assert recipes.get("r") is first
    noted(flaw, path, "three")
    third = recipes.use("r", reload=True)
    assert (third.version, third.bundle not in (first.bundle, second.bundle)) == (3, True)


def test_old_bundles_do_not_pile_up(flaw: Path, tmp_path: Path) -> None:
    path = shutil.copy(flaw, tmp_path / "r.flaw")
    recipes = Recipes({"r": path})
    for n in range(BACK + 2):
        noted(flaw, path, f"{n}")
        recipes.use("r", reload=True)
    for _ in range(BACK):
        recipes.roll_back()
    with pytest.raises(UsageError):
        recipes.roll_back()


@pytest.mark.parametrize("how", ["cut", "flipped", "gone", "empty", "text", "graph", "no graph", "another threshold"])
def test_a_bundle_that_is_not_sound_does_not_judge_and_the_old_one_stays(how: str, flaw: Path, tmp_path: Path) -> None:
    path = shutil.copy(flaw, tmp_path / "r.flaw")
    recipes = Recipes({"r": path, "other": flaw})
    before = recipes.active
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        middle = len(content) // 3
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    elif how == "gone":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("no bundle")
    elif how == "graph":
        changed(flaw, path, model__onnx=b"no graph")
    elif how == "no graph":
        changed(flaw, path, model__onnx=None)
    else:
        with zipfile.ZipFile(flaw) as archive:
            said = archive.read("calibration.json")
        changed(flaw, path, calibration__json=said[:-2])
    with pytest.raises(BundleError):
        recipes.use("r", reload=True)
    assert (recipes.active, recipes.get("r"), recipes.previous) == (before, before, None)


def test_one_without_a_promise_or_golden_pictures_may_not_judge(flaw: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="not calibrated"):
        Recipes({"r": changed(flaw, tmp_path / "a.flaw", calibration__json=None)})
    files = {name: data for name, data in read(flaw).files.items() if not name.startswith("golden")}
    with pytest.raises(BundleError, match="golden"):
        Recipes({"r": Bundle(files, "x").write(tmp_path / "b.flaw")})


def test_one_whose_golden_scores_do_not_come_out_here_may_not_judge(flaw: Path, tmp_path: Path) -> None:
    import json

    golden = json.loads(read(flaw).files["golden.json"])

    def moved(value: object) -> object:
        if isinstance(value, dict):
            return {k: v * 1.5 if k == "score" else moved(v) for k, v in value.items()}
        return [moved(v) for v in value] if isinstance(value, list) else value

    path = changed(flaw, tmp_path / "r.flaw", golden__json=json.dumps(moved(golden)).encode())
    with pytest.raises(GateError, match="it may not judge here"):
        Recipes({"r": path})


@pytest.mark.parametrize("name", ["", "a b", "../a", "a\n", "x" * 101, "-a", "é"])
def test_a_name_is_one_that_a_plc_can_say(name: str, flaw: Path) -> None:
    with pytest.raises(UsageError):
        Recipes({name: flaw})


def test_a_station_needs_a_bundle() -> None:
    with pytest.raises(UsageError):
        Recipes({})


def test_the_least_p_value_is_that_at_the_threshold(flaw: Path, recipes: Recipes, world: Path) -> None:
    recipe, model = recipes.active, flawmap.load(flaw)
    for path in [*sorted((world / "test/good").glob("*.png")), *sorted((world / "test/square").glob("*.png"))]:
        found = model.inspect(path)
        assert found.p_value is not None
        assert (found.verdict == "OK") == (found.p_value > recipe.least_p)

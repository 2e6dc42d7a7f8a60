"""The nearest good patch: found as a slow loop finds it, and cut out of the picture that it came from."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from scipy.spatial.distance import cdist

from flawmap.detectors.patchcore import PatchCore
from flawmap.images.decode import decode
from flawmap.images.intake import Intake
from flawmap.images.protocol import Protocol
from flawmap.run.engine import TorchEngine
from flawmap.run.fit import fit
from flawmap.run.model import Model, load
from flawmap.run.nearest import LEARNT, SIZES, Near, around, crop, nearest, sizes
from flawmap.run.roles import CALIBRATION, CROSSED, FIT, SCALE

Box = tuple[int, int, int, int]


def _detector(model: Model) -> PatchCore:
    engine = TorchEngine.from_bundle(model.bundle.config, model.bundle.files["weights.safetensors"])
    assert isinstance(engine.detector, PatchCore)
    return engine.detector


def _patches(detector: PatchCore, model: Model, picture: Path) -> np.ndarray:
    """(h, w, D) float64"""
    with torch.inference_mode():
        found = detector.embed(detector.backbone(torch.from_numpy(model.intake(picture)[0][None])))
    return found[0].permute(1, 2, 0).double().numpy()


def _cell(box: Box, intake: Intake, size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """Which cell of the grid holds the middle of a box."""
    left, top, right, bottom = intake.seen(size)
    across, down = (box[0] + box[2]) / 2 - left, (box[1] + box[3]) / 2 - top
    return int(down * grid[0] / (bottom - top)), int(across * grid[1] / (right - left))


def _check(model: Model, root: Path, picture: Path) -> Near:
    """Held against a loop over every patch of the picture and every row of the memory."""
    near, detector = nearest(model, picture), _detector(model)
    assert near is not None
    patches = _patches(detector, model, picture)
    gap_PM = cdist(patches.reshape(-1, patches.shape[2]), detector.memory_MD.double().numpy())
    strangest = divmod(int(gap_PM.min(1).argmax()), patches.shape[1])
    assert near.distance == pytest.approx(gap_PM.min(1).max(), rel=1e-4, abs=1e-4)
    assert _cell(near.at, model.intake, decode(picture).shape[:2], detector.grid) == strangest
    # The patch that is shown is the one remembered: its features, computed anew from the training picture.
    row = int(gap_PM[gap_PM.min(1).argmax()].argmin())
    shown = _cell(near.box, model.intake, decode(root / near.name).shape[:2], detector.grid)
    again = _patches(detector, model, root / near.name)[shown]
    scale = float(detector.memory_MD.norm(dim=1).mean())
    assert np.linalg.norm(again - detector.memory_MD[row].double().numpy()) <= 1e-4 * scale
    return near


def test_the_nearest_patch_is_that_of_a_slow_loop(crossed: Model, world: Path) -> None:
    near = {picture: _check(crossed, world, picture) for picture in sorted((world / "test").rglob("*.png"))}
    assert {found.name.rpartition("/")[0] for found in near.values()} == {"train/good"}
    assert len({(found.name, found.box) for found in near.values()}) > 3
    for picture, found in near.items():
        if picture.parent.name == "square":
            mask = np.asarray(Image.open(world / "ground_truth/square" / f"{picture.stem}_mask.png")) > 0
            left, top, right, bottom = found.at
            assert (right - left, bottom - top) == (8, 8)
            assert mask[max(top - 8, 0) : bottom + 8, max(left - 8, 0) : right + 8].any(), picture.name


def test_parts_held_out_of_the_fit_are_not_counted(world: Path, tmp_path: Path) -> None:
    """Rows of the memory number the fitted pictures alone; data.jsonl lists the others between them."""
    model = fit(world, options={"size": 64}, held_out=0.4, false_alarm=0.1, out=tmp_path)
    rows = [json.loads(line) for line in model.bundle.files["data.jsonl"].splitlines()]
    roles = [row["role"] for row in rows]
    assert CALIBRATION in roles[: len(roles) - roles[::-1].index(FIT)]  # not all at the end
    for picture in sorted((world / "test").rglob("*.png"))[::3]:
        near = _check(model, world, picture)
        assert next(row["role"] for row in rows if row["name"] == near.name) == FIT


@pytest.mark.parametrize("resize", [None, 80])
def test_pictures_of_several_sizes_and_crops_are_measured_in_their_own_pixels(
    resize: int | None, world: Path, tmp_path: Path
) -> None:
    root = tmp_path / "parts"
    shutil.copytree(world, root)
    wanted = [(64, 64), (150, 90), (80, 133)]
    pictures = {kind: sorted((root / kind).rglob("*.png")) for kind in ("train", "test")}
    for number, path in [entry for paths in pictures.values() for entry in enumerate(paths)]:
        Image.fromarray(decode(path)).resize(wanted[number % 3]).save(path)
    options, protocol = {"size": 64, "keep": 0.5}, Protocol("cropped", size=64, resize=resize)
    model = fit(root, options=options, folds=2, out=tmp_path / "runs", protocol=protocol)
    assert model.intake.resize == resize
    assert model.bundle.config[SIZES][:3] == [[64, 64], [90, 150], [133, 80]]
    shown = [_check(model, root, picture) for picture in pictures["test"]]
    for near in shown:
        left, top, right, bottom = model.intake.seen(_size(root / near.name))
        assert left <= near.box[0] < near.box[2] <= right
        assert top <= near.box[1] < near.box[3] <= bottom
    assert len({_size(root / near.name) for near in shown}) > 1


def _size(picture: Path) -> tuple[int, int]:
    high, wide = decode(picture).shape[:2]
    return high, wide


def test_a_fitted_picture_is_near_itself(crossed: Model, world: Path) -> None:
    near = [_check(crossed, world, world / name) for name in ("train/good/003.png", "test/square/000.png")]
    assert near[0].distance < 0.5 * near[1].distance


def test_saved_loaded_and_calibrated_anew_it_says_the_same(crossed: Model, world: Path, tmp_path: Path) -> None:
    picture = world / "test/square/001.png"
    found = nearest(crossed, picture)
    assert found is not None
    again = load(crossed.save(tmp_path / "model.flaw"))
    assert nearest(again, picture) == found
    assert nearest(load(tmp_path / "model.flaw", "torch"), picture) == found
    assert nearest(crossed, decode(picture)) == found


def test_what_cannot_tell_says_nothing(crossed: Model, held: Model, world: Path, paired: Path) -> None:
    assert nearest(held, paired / "test/square/000.png") is None  # SimpleNet remembers no patches
    picture = world / "test/square/000.png"
    state = load_tensors(crossed.bundle.files["weights.safetensors"])
    assert len(state.pop("origin_M3")) == len(state["memory_MD"])
    old = Model(crossed.bundle.replace({"weights.safetensors": save_tensors(state)}))
    assert nearest(old, picture) is None
    assert old.inspect(picture).score == crossed.inspect(picture).score
    assert TorchEngine.from_bundle(old.bundle.config, old.bundle.files["weights.safetensors"]).detector is not None
    config = {key: value for key, value in crossed.bundle.config.items() if key != SIZES}
    assert nearest(Model(crossed.bundle.replace({"config.json": json.dumps(config).encode()})), picture) is None


def test_without_torch_there_is_no_evidence_and_no_error(crossed: Model, world: Path, tmp_path: Path) -> None:
    bundle, picture = crossed.save(tmp_path / "model.flaw"), world / "test/square/000.png"
    code = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'timm', 'onnx'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from flawmap.run.model import load\n"
        "from flawmap.run.nearest import nearest\n"
        f"model = load({str(bundle)!r})\n"
        f"print(model.inspect({str(picture)!r}).verdict, nearest(model, {str(picture)!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "NOK None\n", "")


def test_the_roles_are_those_of_what_begin_is_shown() -> None:
    assert LEARNT == (FIT, CROSSED)
    assert SCALE not in LEARNT


def test_the_bundle_grows_by_12_bytes_a_vector_and_the_graph_not_at_all(crossed: Model) -> None:
    state = load_tensors(crossed.bundle.files["weights.safetensors"])
    rows = len(state["memory_MD"])
    whole = len(save_tensors(state))
    less = len(save_tensors({key: value for key, value in state.items() if key != "origin_M3"}))
    assert 12 * rows <= whole - less <= 12 * rows + 128
    assert crossed.bundle.config[SIZES] == [[64, 64]]
    assert b"origin_M3" not in crossed.bundle.files["model.onnx"]


def test_the_crop_is_the_patch_with_its_surroundings(crossed: Model, world: Path) -> None:
    near = nearest(crossed, world / "test/square/000.png")
    assert near is not None
    found = crop(world, near)
    assert found is not None
    assert found.shape == (24, 24, 3)
    whole = decode(world / near.name)
    left, top, right, bottom = near.box
    x, y = min(max(left - 8, 0), 40), min(max(top - 8, 0), 40)
    np.testing.assert_array_equal(found, whole[y : y + 24, x : x + 24])
    assert x <= left
    assert right <= x + 24
    assert y <= top
    assert bottom <= y + 24


def test_the_training_picture_is_found_from_above_and_inside_and_by_its_hash_alone(
    crossed: Model, world: Path, tmp_path: Path
) -> None:
    near = nearest(crossed, world / "test/square/000.png")
    assert near is not None
    found = crop(world, near)
    assert found is not None
    for root in (str(world), world / "train", world / "train/good"):
        np.testing.assert_array_equal(found, crop(root, near))
    inside = near._replace(name=Path(near.name).name)  # as if train/good alone had been fitted
    np.testing.assert_array_equal(found, crop(world, inside))
    listed = tmp_path / "list.csv"
    shutil.copytree(world / "train", tmp_path / "train")
    listed.write_text("path\n")
    np.testing.assert_array_equal(found, crop(listed, near))
    changed = tmp_path / near.name
    changed.write_bytes(changed.read_bytes() + b"\0")
    assert crop(tmp_path, near) is None  # another file of that name
    assert crop(tmp_path / "nowhere", near) is None


def test_a_name_that_points_out_of_the_data_is_not_followed(world: Path) -> None:
    outside = world / "train/good/000.png"
    near = Near("x", (0, 0, 8, 8), 0.0, (0, 0, 8, 8), hashlib.sha256(outside.read_bytes()).hexdigest())
    assert crop(world, near._replace(name="train/good/000.png")) is not None
    for name in ("../train/good/000.png", str(outside), "", "picture 3"):
        assert crop(world / "test", near._replace(name=name)) is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("box", [(0, 0, 100, 100), (380, 250, 480, 350), (900, 500, 1000, 600), (700, 0, 780, 90)])
def test_a_large_window_is_made_of_block_means(box: Box, dtype: type) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (600, 1000, 3)).astype(dtype)
    found = around(pixels, box)
    wide, high = 3 * (box[2] - box[0]), 3 * (box[3] - box[1])
    left = min(max(box[0] - (box[2] - box[0]), 0), 1000 - wide)
    top = min(max(box[1] - (box[3] - box[1]), 0), 600 - high)
    block = next(n for n in range(1, 9) if max(wide, high) / n <= 128)
    assert found.dtype == dtype
    assert max(found.shape) <= 128
    assert found.shape == (high // block, wide // block, 3)
    for y in range(0, found.shape[0], 17):
        for x in range(0, found.shape[1], 17):
            square = pixels[top + y * block : top + (y + 1) * block, left + x * block : left + (x + 1) * block]
            np.testing.assert_allclose(found[y, x], square.mean(axis=(0, 1)), rtol=0, atol=0.5001)


def test_a_picture_smaller_than_the_window_is_shown_whole() -> None:
    pixels = np.arange(20 * 10 * 3, dtype=np.uint8).reshape(20, 10, 3)
    np.testing.assert_array_equal(around(pixels, (3, 5, 8, 12)), pixels)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_sizes_are_those_of_the_decoded_picture(suffix: str, orientation: int, tmp_path: Path) -> None:
    class Remembers:
        origin_M3 = None

    path = tmp_path / f"picture.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    more = {} if suffix == "bmp" else {"exif": exif}
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(path, **more)
    high, wide = decode(path).shape[:2]
    assert (high, wide) == ((50, 30) if orientation > 4 and suffix != "bmp" else (30, 50))
    assert sizes(Remembers(), [path, path]) == {SIZES: [[high, wide]]}
    assert sizes(Remembers(), [path, np.zeros((7, 9), np.uint8)]) == {SIZES: [[high, wide], [7, 9]]}
    assert sizes(object(), [path]) == {}


@pytest.mark.data
@pytest.mark.slow
def test_on_bottles_the_patch_that_is_shown_is_the_one_remembered(real: Callable[[str], Path], tmp_path: Path) -> None:
    bottle = real("mvtec/bottle")
    model = fit(bottle, out=tmp_path / "runs")
    for picture in sorted((bottle / "test").rglob("*.png"))[::20]:
        near = _check(model, bottle, picture)
        found = crop(bottle, near)
        assert found is not None
        assert found.shape == (24, 24, 3)

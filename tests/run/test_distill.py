"""Distilling a teacher: what it learns, what its file says, and that it goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flawmap.detectors import create
from flawmap.errors import DataError, UsageError
from flawmap.features.backbone import EMBEDDED, Backbone
from flawmap.run import distill as module
from flawmap.run.distill import Distilling, _crop, distill
from flawmap.run.fit import fit

TINY = {"size": 64, "width": 8, "dim": 12, "crops": 60, "steps": 150, "batch": 8, "rate": 1e-2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(20):
        blocks = int(random.integers(4, 20))
        colours = Image.fromarray(random.integers(0, 255, (blocks, blocks, 3), dtype=np.uint8))
        turned = colours.resize((160, 120), Image.Resampling.NEAREST).rotate(float(random.integers(90)))
        turned.save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    out = tmp_path_factory.mktemp("teachers") / "teacher.safetensors"
    return out, distill(photos, out, options=TINY, device="cpu")


def _notes(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["flawmap"])


def test_the_teacher_explains_pictures_that_were_held_out(made: tuple[Path, dict[str, str]]) -> None:
    path, _ = made
    assert _notes(path)["explained"] > 0.08


def test_its_file_says_how_it_was_made(made: tuple[Path, dict[str, str]], photos: Path) -> None:
    notes = _notes(made[0])
    assert {key: notes[key] for key in TINY} == TINY
    assert (notes["backbone"], notes["pdn"], notes["photos"]) == (EMBEDDED, "small", f"20 photos of {photos.name}")
    assert len(notes["backbone_sha256"]) == len(notes["photos_sha256"]) == 64
    assert str(photos.parent) not in json.dumps(notes)
    assert not list(made[0].parent.glob("*.work"))


def test_a_detector_takes_it(made: tuple[Path, dict[str, str]]) -> None:
    path, said = made
    assert f"--teacher {path} --pdn small --width 8 --dim 12" in said["use"]
    detector = create("efficientad", {"size": 64, "width": 8, "dim": 12, "ae_width": 4, "teacher": str(path)})
    state = load_file(path)
    assert all(torch.equal(value, state[key].float()) for key, value in detector.teacher.state_dict().items())  # type: ignore[union-attr]


def test_a_stopped_fit_does_not_go_on_with_another_teacher(
    made: tuple[Path, dict[str, str]], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tmp_path / "teacher.safetensors"
    options = {"size": 64, "width": 8, "dim": 12, "ae_width": 4, "steps": 3, "teacher": str(teacher)}

    def stop(*_: Any) -> bytes:
        raise KeyboardInterrupt

    teacher.write_bytes(made[0].read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr("flawmap.run.export.to_onnx", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(world, "efficientad", options=options, out=tmp_path / "runs", device="cpu")
    [begun] = (tmp_path / "runs").rglob("recipe.toml")
    with safe_open(teacher, "pt") as file:
        changed = {key: file.get_tensor(key) + 1 for key in file.keys()}  # noqa: SIM118
        save_file(changed, teacher, file.metadata())
    with pytest.raises(UsageError, match="no run of this recipe"):
        fit(world, "efficientad", options=options, out=tmp_path / "runs", device="cpu", resume=begun.parent)


def test_features_and_pictures_are_aligned(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets are those of the backbone at twice the size, the same place of the picture a feature of the teacher."""
    seen = []
    monkeypatch.setattr(module, "train", lambda *_, **__: seen.append(True))
    kept = {}

    def keep(store: Any, count: int) -> Any:
        kept["stages"] = [np.array(stage) for stage in store.stages]
        return torch.zeros(12, 1, 1), torch.ones(12, 1, 1)

    monkeypatch.setattr(module, "_spread", keep)
    distill(photos, tmp_path / "teacher.safetensors", options={**TINY, "crops": 10}, device="cpu")
    assert seen
    crop = _crop(np.random.default_rng((0, 0)), sorted(photos.glob("*.png"))[:-2], 128)
    small = crop.reshape(3, 64, 2, 64, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(kept["stages"][0][0], small, atol=1e-3)
    backbone = Backbone(EMBEDDED, (2, 3), 128)
    with torch.no_grad():
        fine, coarse = (F.avg_pool2d(f, 3, 1, 1) for f in backbone(torch.from_numpy(crop)[None]))
        joined = torch.cat([fine, F.interpolate(coarse, (16, 16), mode="bilinear", align_corners=False)], dim=1)[0]
    inner = joined[:, 4:12, 4:12]
    expected = F.adaptive_avg_pool1d(inner.flatten(1).T, 12).T.reshape(12, 8, 8)
    np.testing.assert_allclose(kept["stages"][1][0], expected.numpy(), atol=2e-3 * float(expected.abs().max()))


def test_it_goes_on_where_it_was_stopped(photos: Path, made: tuple[Path, dict[str, str]], tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    out, real = tmp_path / "teacher.safetensors", module.train

    def stopped(*arguments: Any, **named: Any) -> None:
        def tick(step: int, loss: float) -> None:
            if step == 60:
                raise KeyboardInterrupt

        monkeypatch.setattr("flawmap.run.train.CHECKPOINT_S", 0.0)
        monkeypatch.setattr("flawmap.run.train.CHECKPOINT_SHARE", 1e9)
        real(*arguments, **{**named, "tick": tick})

    monkeypatch.setattr(module, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        distill(photos, out, options=TINY, device="cpu")
    assert not out.exists()
    monkeypatch.setattr(module, "train", real)
    distill(photos, out, options=TINY, device="cpu")
    ours, theirs = load_file(out), load_file(made[0])
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_without_photos_it_learns_from_drawn_textures(tmp_path: Path) -> None:
    out = tmp_path / "teacher.safetensors"
    distill(None, out, options={**TINY, "crops": 10, "steps": 2}, device="cpu")
    assert _notes(out)["photos"] == "drawn textures"


def test_a_teacher_of_the_presets_shape_is_used_with_the_preset() -> None:
    assert module._shape(Distilling.configure({})) == "--preset small"
    assert module._shape(Distilling.configure({"width": 64})) == "--pdn small --width 64 --dim 96"


@pytest.mark.parametrize(
    ("photos_of", "out", "error", "words"),
    [
        ("none", "t.safetensors", UsageError, "there is no folder"),
        ("empty", "t.safetensors", DataError, "no pictures in it"),
        ("few", "t.safetensors", DataError, "1 pictures; a teacher wants at least 10"),
        ("empty", "t.pt", UsageError, "is a .safetensors file"),
    ],
)
def test_what_cannot_be_is_refused(
    photos_of: str, out: str, error: type[Exception], words: str, tmp_path: Path
) -> None:
    for name in ("empty", "few"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (80, 80)).save(tmp_path / "few" / "one.png")
    with pytest.raises(error, match=words):
        distill(tmp_path / photos_of, tmp_path / out, options={}, device="cpu")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"size": 250}, "multiple of 32"), ({"dim": 400}, r"stages 2,3 of tf_efficientnet_lite0 have 152 features")],
)
def test_shapes_that_cannot_be_taught_are_refused_and_leave_nothing(
    options: dict[str, Any], words: str, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        distill(photos, tmp_path / "t.safetensors", options={**TINY, **options}, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_of_two_processes_the_second_one_is_told(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: Any) -> float:
        with pytest.raises(UsageError, match="another process makes this teacher"):
            distill(photos, tmp_path / "t.safetensors", options=TINY, device="cpu")
        return 0.5

    monkeypatch.setattr(module, "_taught", busy)
    distill(photos, tmp_path / "t.safetensors", options=TINY, device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


def test_a_misspelt_option_is_answered(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean width"):
        distill(photos, tmp_path / "t.safetensors", options={"widht": 8}, device="cpu")

"""Cameras: a folder replayed, a film, and what is said of one that is not there."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DataError, MissingExtra, UsageError
from flawmap.images.camera import camera


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        Image.fromarray(np.full((8, 8), 50 * number, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def _film(folder: Path, frames: list[Any]) -> Path:
    """Frames of one colour each: blue, green, red."""
    cv2, path = pytest.importorskip("cv2"), folder / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 24))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no film")
    for colour in frames:
        writer.write(np.full((24, 32, 3), colour, np.uint8))
    writer.release()
    return path


def test_a_folder_is_replayed_in_order_and_over_again(folder: Path) -> None:
    seen = camera(f"replay:{folder}")
    assert [shot.name for shot in seen.grab(2)] == ["0.png", "1.png"]
    assert [shot.name for shot in seen.grab(3)] == ["2.png", "0.png", "1.png"]
    assert seen.grab()[0].content == (folder / "2.png").read_bytes()


def test_a_new_picture_comes_at_the_next_round_and_an_empty_folder_is_an_error(folder: Path) -> None:
    seen = camera(f"replay:{folder}")
    seen.grab(3)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "3.png")
    assert [shot.name for shot in seen.grab(4)] == ["0.png", "1.png", "2.png", "3.png"]
    for path in folder.glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="there is no picture in it"):
        seen.grab()


def test_a_picture_that_went_between_two_looks_is_an_error_that_names_it(folder: Path) -> None:
    seen = camera(f"replay:{folder}")
    seen.grab()
    (folder / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png: No such file"):
        seen.grab()
    assert seen.grab()[0].name == "2.png"


def test_a_film_gives_its_frames_without_loss_until_it_ends(tmp_path: Path) -> None:
    path = _film(tmp_path, [(200, 100, 40 * number) for number in range(3)])  # blue, green, red
    seen = camera(f"video:{path}")
    shots = seen.grab(3)
    assert [shot.name for shot in shots] == ["frame-000001.png", "frame-000002.png", "frame-000003.png"]
    pixels = np.asarray(Image.open(io.BytesIO(shots[2].content)))
    assert pixels.shape == (24, 32, 3)
    np.testing.assert_allclose(pixels.reshape(-1, 3).mean(0), (80, 100, 200), atol=6)  # JPEG's own loss; red first
    with pytest.raises(DataError, match="gives no picture"):
        seen.grab()
    seen.close()


@pytest.mark.parametrize(
    "name",
    ["", "replay", "replay:", "uvc:", "uvc:x", "file:a", "/dev/video0", "video:nowhere.avi", "genicam", "basler"],
)
def test_what_is_no_camera_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        camera(name)


def test_a_camera_that_is_not_there_is_an_error_without_its_password() -> None:
    pytest.importorskip("cv2")
    with pytest.raises(DataError, match="cannot be opened") as error:
        camera("rtsp://user:secret@127.0.0.1:1/stream")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("uvc:0", "cv2", "capture"),
        ("genicam:", "genicam", "capture"),
        ("basler:", "pypylon", "basler"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # its import fails
    with pytest.raises(MissingExtra, match=re.escape(f'pip install "flawmap[{extra}]"')):
        camera(name)


def test_a_replay_goes_on_behind_a_picture_and_has_nothing_to_set(folder: Path) -> None:
    seen = camera(f"replay:{folder}")
    seen.after("0.png")
    assert [shot.name for shot in seen.grab(3)] == ["1.png", "2.png", "0.png"]
    seen.after("no such.png")
    assert seen.grab()[0].name == "0.png"
    assert seen.adjust(4.0, None) == {"exposure": None, "gain": None}


def test_a_film_goes_on_behind_a_frame_and_cannot_be_set(tmp_path: Path) -> None:
    path = _film(tmp_path, [50 * number for number in range(4)])
    seen = camera(f"video:{path}")
    seen.after("frame-000002.png")
    shot = seen.grab()[0]
    assert shot.name == "frame-000003.png"
    assert np.asarray(Image.open(io.BytesIO(shot.content))).mean() == pytest.approx(100, abs=3)
    assert seen.adjust(None, None) == {"exposure": None, "gain": None}
    with pytest.raises(UsageError, match="its exposure cannot be set"):
        seen.adjust(4.0, None)

"""The clients in C++ and C# say what flawmap says of a picture, or give no verdict and say why."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL
import pytest
from PIL import Image

from flawmap.run.model import Model

pytestmark = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="the clients resize as Pillow does since version 13"
)


def _lines(done: subprocess.CompletedProcess[bytes]) -> list[tuple[str, float, str]]:
    found = [
        re.fullmatch(r"(\w+) +score (\S+) \(limit \S+\)  (.+)", line) for line in done.stdout.decode().splitlines()
    ]
    return [(match[1], float(match[2]), match[3]) for match in found if match]


def test_it_says_what_flawmap_says(client: Any, exported: Path, crossed: Model, world: Path, tmp_path: Path) -> None:
    assert crossed.calibration
    asked = sorted((world / "test").rglob("*.png"))
    with Image.open(asked[0]) as picture:
        others = {"grey": picture.convert("L"), "large": picture.resize((100, 300)), "palette": picture.quantize(30)}
        for name, other in {**others, "alpha": picture.convert("RGBA")}.items():
            asked.append(tmp_path / f"{name}.png")
            other.save(asked[-1])
    done = client.judge(exported, *asked)
    assert (done.returncode, done.stderr) == (0, b"")
    said = _lines(done)
    assert [name for _, _, name in said] == [str(path) for path in asked]
    for (verdict, score, _), path in zip(said, asked, strict=True):
        found = crossed.inspect(path)
        assert verdict == found.verdict
        assert score == pytest.approx(found.score, abs=1e-4 * crossed.calibration.scale)
    assert {verdict for verdict, _, _ in said} == {"OK", "NOK"}


def test_it_goes_on_after_a_picture_it_cannot_judge_and_the_exit_code_says_so(
    client: Any, exported: Path, world: Path, tmp_path: Path
) -> None:
    good, broken = world / "test/good/000.png", tmp_path / "broken.png"
    broken.write_bytes(good.read_bytes()[:700])
    done = client.judge(exported, broken, tmp_path, tmp_path / "nowhere.png", good)
    assert done.returncode == 3
    assert [(verdict, name) for verdict, _, name in _lines(done)] == [("OK", str(good))]
    assert [line.split(": ")[1] for line in done.stderr.decode().splitlines()] == [
        str(path) for path in (broken, tmp_path, tmp_path / "nowhere.png")
    ]


def _changed(exported: Path, folder: Path, name: str, change: Callable[[dict], object]) -> Path:
    shutil.copytree(exported, folder)
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))
    return folder


def test_it_sends_to_review_what_is_between_two_thresholds(
    client: Any, exported: Path, world: Path, tmp_path: Path
) -> None:
    asked = sorted((world / "test").rglob("*.png"))
    scores = sorted(score for _, score, _ in _lines(client.judge(exported, *asked)))
    band = {"review_threshold": scores[2], "threshold": scores[5]}
    folder = _changed(exported, tmp_path / "band", "calibration.json", lambda values: values.update(band))
    said = [verdict for verdict, _, _ in _lines(client.judge(folder, *asked))]
    assert [said.count(word) for word in ("OK", "REVIEW", "NOK")] == [3, 3, 6]


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("use.json", lambda values: values["intake"].update(tile=64), "asks for 'tile'"),
        ("use.json", lambda values: values["intake"].update(later=False), "asks for 'later'"),
        ("use.json", lambda values: values["intake"].update(white=4095), "16-bit|'white'"),
        ("use.json", lambda values: values["intake"].update(size=[32, 32]), "ONNX Runtime"),
        ("use.json", lambda values: values.pop("intake"), "intake"),
        ("calibration.json", lambda values: values.update(views=[2, 2]), "several views"),
        ("calibration.json", lambda values: values.update(rule="mean"), "by their mean"),
        ("calibration.json", lambda values: values.update(threshold=None), "threshold is missing"),
        ("calibration.json", lambda values: values.update(threshold=float("nan")), "not JSON|not a number"),
        ("calibration.json", lambda values: values.update(engine="openvino 2026 cpu fp32"), "openvino"),
    ],
)
def test_it_refuses_a_model_that_it_cannot_use_as_flawmap_does(
    client: Any, exported: Path, world: Path, tmp_path: Path, name: str, change: Callable[[dict], object], why: str
) -> None:
    folder = _changed(exported, tmp_path / "changed", name, change)
    done = client.judge(folder, world / "test/good/000.png")
    assert (done.returncode, done.stdout) == (1, b"")
    assert re.search(why, done.stderr.decode())


def test_it_refuses_without_a_calibration_or_a_graph_and_says_how_it_is_called(
    client: Any, exported: Path, world: Path, tmp_path: Path
) -> None:
    for name in ("calibration.json", "model.onnx"):
        folder = tmp_path / name
        shutil.copytree(exported, folder)
        (folder / name).unlink()
        done = client.judge(folder, world / "test/good/000.png")
        assert (done.returncode, done.stdout) == (1, b"")
        assert re.search(rb"is not there|Could not find file", done.stderr)
    assert client.judge(exported).returncode == 2

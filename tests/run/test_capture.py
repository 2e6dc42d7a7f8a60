"""Pictures by a plan: whatever is killed, stopped or refused, what is in the folder is whole, single, of its part."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from flawmap.cli import main
from flawmap.errors import DataError, UsageError
from flawmap.images.audit import audit
from flawmap.images.folder import find, sha256, strays
from flawmap.run.capture import capture, rehearse
from flawmap.run.fit import fit

PLAN = """
robot = "none"

[parts]
pattern = "b-##"
count = {parts}

[[setup]]
name = "top"
settle_s = {settle}

[[setup.view]]
name = "ring"

[[setup.view]]
name = "dark"
"""
HAND = """
robot = "hand"
[parts]
names = ["A", "B"]
[limits]
workspace = [[0, 100], [0, 100], [0, 50]]
speed = 20
[shift.three]
count = 3
step = [5, 0, 0]
[[setup]]
name = "top"
pose = [10, 20, 30, 0, 0, 0]
shift = "three"
speed = 5
settle_s = 0
[[setup.view]]
name = "ring"
light = "ring"
[[setup.view]]
name = "dark"
light = "dark"
"""


def _pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(noise.integers(60, 180, (24, 32)).astype(np.uint8)).save(folder / f"{number:03}.png")
    return folder


def _plan(path: Path, text: str = PLAN, **values: Any) -> Path:
    path.write_text(text.format(**{"parts": 4, "settle": 0, **values}) if values or text is PLAN else text)
    return path


def _words(plan: Path, out: Path, source: Path) -> list[str]:
    words = ["capture", plan, "--out", out, "--camera", f"replay:{source}"]
    return [sys.executable, "-m", "flawmap.cli", *map(str, words)]


def _taken(out: Path) -> list[dict[str, Any]]:
    """The sidecars, in the order in which they were written."""
    found = [json.loads(path.read_text()) for path in out.glob("*/*.json")]
    return sorted(found, key=lambda facts: facts["time"])


def _wait(until: Any, process: subprocess.Popen[Any]) -> None:
    end = time.monotonic() + 60
    while not until():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it did not come so far"
        time.sleep(0.002)


def _refuse_half(out: Path) -> None:
    """Nothing half-written counts: each picture that has a sidecar is the one that was taken."""
    for side in out.glob("*/*.json"):
        [sample] = find(side.with_suffix(".png"))
        assert sha256(sample) == json.loads(side.read_text())["sha256"]


def test_killed_twice_at_random_moments_it_ends_complete_and_without_doubles(tmp_path: Path) -> None:
    source, plan, out = (
        _pictures(tmp_path / "seen", 40),
        _plan(tmp_path / "plan.toml", parts=20, settle=0.01),
        tmp_path / "out",
    )
    for _ in range(2):
        process = subprocess.Popen(_words(plan, out, source), stderr=subprocess.PIPE, text=True)
        goal = len(list(out.glob("*/*.png"))) + random.randint(1, 12)
        _wait(lambda goal=goal: len(list(out.glob("*/*.png"))) >= goal, process)
        time.sleep(random.uniform(0, 0.03))
        process.kill()
        process.communicate()
        assert len(list(out.glob("*/*.png"))) < 40, "it was done before it was killed"
        _refuse_half(out)
        with pytest.raises(DataError, match=r"parts\.csv, line \d+: there is no file"):
            find(out)  # a killed capture is never fitted by mistake
    done = subprocess.run(_words(plan, out, source), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "going on: " in done.stderr
    samples = find(out)
    assert Counter(s.part for s in samples) == {f"b-{number:02}": 2 for number in range(1, 21)}
    originals = [(source / f"{number:03}.png").read_bytes() for number in range(40)]
    assert [facts["frame"] for facts in _taken(out)] == [f"{number:03}.png" for number in range(40)]
    names = [f"{facts['part']}/{facts['setup']}_{facts['view']}.png" for facts in _taken(out)]
    assert [(out / name).read_bytes() for name in names] == originals
    assert [p.name for p in out.rglob(".*")] == [".capture.lock"]


def test_killed_between_picture_and_sidecar_the_picture_is_taken_again(tmp_path: Path) -> None:
    source, plan, out = _pictures(tmp_path / "seen", 8), _plan(tmp_path / "plan.toml"), tmp_path / "out"
    capture(plan, out, f"replay:{source}")
    last = out / "b-04/top_dark"
    last.with_suffix(".json").unlink()
    last.with_suffix(".png").write_bytes(b"half")
    (out / "b-04/.top_dark.json.new").write_text("{")
    assert capture(plan, out, f"replay:{source}")["pictures"] == 8
    assert last.with_suffix(".png").read_bytes() == (source / "007.png").read_bytes()
    assert not (out / "b-04/.top_dark.json.new").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_order_the_folder_knows_the_parts_of_what_is_there(tmp_path: Path, how: signal.Signals) -> None:
    source, plan, out = (
        _pictures(tmp_path / "seen", 40),
        _plan(tmp_path / "plan.toml", parts=20, settle=0.03),
        tmp_path / "out",
    )
    # A shell's job in the background hears no Ctrl-C, and hands that on to what it starts; this one hears it.
    words, heard = _words(plan, out, source), partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    _wait(lambda: len(list(out.glob("*/*.json"))) >= 3, process)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    count = len(list(out.glob("*/*.json")))
    assert 3 <= count < 40
    assert f"stopped after {count} of 40 pictures" in said
    assert ("lacks 1 of 2" in said) == bool(count % 2)
    samples = find(out)
    assert [s.name for s in samples] == sorted(p.relative_to(out).as_posix() for p in out.glob("*/*.png"))
    assert len(samples) == count
    assert all(s.part == s.name.split("/")[0] for s in samples)


def test_a_fit_on_the_folder_knows_the_parts(world: Path, tmp_path: Path) -> None:
    plan, out = _plan(tmp_path / "plan.toml", parts=6), tmp_path / "out"
    capture(plan, out, f"replay:{world / 'train/good'}")
    model = fit(out, "patchcore", options={"size": 64}, folds=2, out=tmp_path / "runs")
    assert model.calibration is not None
    assert (model.calibration.parts, model.calibration.views) == (6, (2, 2))
    assert not audit(find(out)).spoils


def test_what_a_capture_lays_beside_its_pictures_is_not_told_as_strange(tmp_path: Path) -> None:
    source, plan, out = _pictures(tmp_path / "seen", 8), _plan(tmp_path / "plan.toml"), tmp_path / "out"
    capture(plan, out, f"replay:{source}")
    rehearse(plan, out)
    assert strays(out, find(out)) == []
    (out / "b-01/notes.json").write_text("{}")
    (out / "capture.toml").touch()
    assert strays(out, find(out)) == ["capture.toml", "b-01/notes.json"]
    (out / "capture.json").unlink()
    assert len(strays(out, find(out))) == 8 + 3  # of a folder that was not captured, all is told; plan.svg too


def test_a_folder_takes_one_plan_one_camera_and_one_capture_at_a_time(tmp_path: Path) -> None:
    source, plan, out = _pictures(tmp_path / "seen", 8), _plan(tmp_path / "plan.toml"), tmp_path / "out"
    capture(plan, out, f"replay:{source}")
    other = shutil.copytree(source, tmp_path / "other")
    with pytest.raises(UsageError, match="begun with another camera"):
        capture(plan, out, f"replay:{other}")
    with pytest.raises(UsageError, match="begun with another plan"):
        capture(_plan(tmp_path / "more.toml", parts=5), out, f"replay:{source}")
    with pytest.raises(UsageError, match=r"holds 000\.png, and is no folder of a capture"):
        capture(plan, source, f"replay:{source}")
    busy = _words(_plan(tmp_path / "slow.toml", settle=5), tmp_path / "busy", source)
    process = subprocess.Popen(busy, stderr=subprocess.PIPE)
    _wait(lambda: (tmp_path / "busy/parts.csv").exists(), process)
    with pytest.raises(UsageError, match="another capture is at work"):
        capture(tmp_path / "slow.toml", tmp_path / "busy", f"replay:{source}")
    process.kill()
    process.communicate()


def test_a_picture_that_was_changed_is_an_error_and_one_that_was_removed_is_taken_again(tmp_path: Path) -> None:
    source, plan, out = _pictures(tmp_path / "seen", 9), _plan(tmp_path / "plan.toml"), tmp_path / "out"
    capture(plan, out, f"replay:{source}")
    (out / "b-02/top_ring.png").unlink()
    capture(plan, out, f"replay:{source}")
    assert (out / "b-02/top_ring.png").read_bytes() == (source / "008.png").read_bytes()
    shutil.copy(source / "000.png", out / "b-03/top_ring.png")
    with pytest.raises(DataError, match=r"b-03/top_ring\.png: was changed since it was taken"):
        capture(plan, out, f"replay:{source}")


def test_the_same_picture_twice_is_a_missed_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, plan, out = _pictures(tmp_path / "seen", 7), _plan(tmp_path / "plan.toml"), tmp_path / "out"
    with pytest.raises(DataError, match=r"b-04/top_dark\.png: no picture passed in 3 tries.*is the very picture of"):
        capture(plan, out, f"replay:{source}")
    assert "stopped after 7 of 8 pictures; part b-04 lacks 1 of 2" in capsys.readouterr().err
    assert len(find(out)) == 7
    _pictures(source, 8)
    assert capture(plan, out, f"replay:{source}")["pictures"] == 8


def _spoilt(kind: str, picture: Image.Image) -> Image.Image:
    if kind == "saturated":
        return picture.point(lambda value: 255 if value > 170 else value)
    return picture.filter(ImageFilter.GaussianBlur(2)) if kind == "blurred" else picture.point(lambda v: v * 0.8)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("saturated", r"% of the pixels are saturated, checks\.saturation allows 1\.0%"),
        ("blurred", r"its sharpness is \d% of the reference's, checks\.focus asks for 50%"),
        ("dim", r"its brightness 0\.3\d\d differs from the reference's 0\.46\d by more than checks\.brightness, 10%"),
    ],
)
def test_what_does_not_pass_is_taken_again_and_not_kept(
    tmp_path: Path, kind: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = _pictures(tmp_path / "seen", 9), tmp_path / "out"
    shutil.copy(source / "008.png", tmp_path / "reference.png")
    text = PLAN.format(parts=4, settle=0).replace('name = "dark"', 'name = "dark"\nreference = "reference.png"')
    plan = _plan(tmp_path / "plan.toml", text)
    _spoilt(kind, Image.open(source / "003.png")).save(source / "003.png")
    capture(plan, out, f"replay:{source}")
    assert [facts["frame"] for facts in _taken(out)] == [f"{n:03}.png" for n in range(9) if n != 3]
    assert [facts["tries"] for facts in _taken(out)] == [1, 1, 1, 2, 1, 1, 1, 1]
    assert "b-02/top_dark.png, try 1 of 3: " in (said := capsys.readouterr().err)
    assert re.search(why, said), said


def test_a_sidecar_says_how_its_picture_was_taken(tmp_path: Path) -> None:
    source, out = tmp_path / "seen", tmp_path / "out"
    source.mkdir()
    for number in range(8):
        deep = np.random.default_rng(number).integers(0, 4096, (20, 30)).astype(np.uint16)
        Image.fromarray(deep).save(source / f"{number}.tif")
    text = PLAN.format(parts=4, settle=0) + "exposure = 4.5\nlight = 'ring'\n[checks]\nwhite = 4095\nsaturation = 0.1\n"
    text = text.replace('name = "ring"\n', 'name = "ring"\nlight = "ring"\nexposure = 2\n')
    capture(_plan(tmp_path / "plan.toml", text), out, f"replay:{source}")
    facts = json.loads((out / "b-01/top_dark.json").read_text())
    [sample] = find(out / "b-01/top_dark.png")
    assert facts["sha256"] == sha256(sample)
    assert (facts["part"], facts["setup"], facts["view"], facts["light"]) == ("b-01", "top", "dark", "ring")
    assert (facts["height"], facts["width"], facts["bits"]) == (20, 30, 16)
    assert (facts["exposure"], facts["asked"]) == (None, {"exposure": 4.5, "gain": None, "pose": None})
    pixels = np.asarray(Image.open(source / "1.tif"))
    np.testing.assert_array_equal(np.asarray(Image.open(out / "b-01/top_dark.png")), pixels)
    assert facts["measured"]["brightness"] == pytest.approx(pixels.mean() / 4095)


def _by_hand(words: Sequence[str], keys: bytes) -> tuple[int, str]:
    """With a terminal as stdin, at which one of these keys is pressed each time that Enter is asked for."""
    person, terminal = pty.openpty()
    said, pressed = b"", 0
    with subprocess.Popen(words, stdin=terminal, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        os.close(terminal)
        assert process.stderr
        while more := os.read(process.stderr.fileno(), 4096):
            said += more
            while pressed < min(len(keys), said.count(b"; then Enter ")):
                os.write(person, keys[pressed : pressed + 1])
                pressed += 1
    os.close(person)
    return process.returncode, said.decode()


def test_a_hand_is_told_what_to_do_and_only_what_changes(tmp_path: Path) -> None:
    source, plan, out = _pictures(tmp_path / "seen", 12), _plan(tmp_path / "plan.toml", HAND), tmp_path / "out"
    code, said = _by_hand(_words(plan, out, source), b"\n" * 7 + b"\x04")  # Ctrl-D: the person leaves
    assert code == 130
    assert "stopped after 7 of 12 pictures; part B lacks 5 of 6" in said
    code, more = _by_hand(_words(plan, out, source), b"\n" * 5)
    assert code == 0, more
    asked = [line.split("; then Enter ")[0] for line in said.splitlines() if "; then Enter " in line]
    assert asked[:3] == [
        "put in part A; setup top; move to 10 20 30 0 0 0; light: ring",
        "light: dark",
        "move to 15 20 30 0 0 0; light: ring",
    ]
    assert "put in part B; setup top; move to 10 20 30 0 0 0; light: dark; then" in more
    poses = [(facts["shift"], facts["pose"][0]) for facts in _taken(out)]
    assert poses == [(1, 10), (1, 10), (2, 15), (2, 15), (3, 20), (3, 20)] * 2
    assert [s.name for s in find(out)][:3] == ["A/top_dark_1.png", "A/top_dark_2.png", "A/top_dark_3.png"]


def test_a_plan_may_be_mended_until_there_is_a_picture_and_no_password_is_written_down(tmp_path: Path) -> None:
    source, out = _pictures(tmp_path / "seen", 2), tmp_path / "out"
    one = '[parts]\nnames = ["A"]\n[[setup]]\nname = "top"\nsettle_s = 0\n[[setup.view]]\nname = "plain"\n'
    plan = _plan(tmp_path / "plan.toml", 'camera = "rtsp://anna:secret@127.0.0.1:1/x"\n' + one)
    with pytest.raises(DataError):
        capture(plan, out)
    assert "secret" not in (out / "capture.json").read_text()
    plan.write_text(f'camera = "replay:{source}"\n' + one)
    assert capture(plan, out)["pictures"] == 1
    with pytest.raises(UsageError, match="begun with another plan"):
        capture(_plan(tmp_path / "other.toml", plan.read_text() + "gain = 1\n"), out)
    side = out / "A/top_plain.json"
    side.write_text(side.read_text().replace("replay of seen", "another camera"))
    assert capture(plan, out)["pictures"] == 1  # nothing is left to take
    plan_of_two = plan.read_text().replace('["A"]', '["A", "B"]')
    state = json.loads((out / "capture.json").read_text())
    plan.write_text(plan_of_two)
    state |= {"plan_sha256": hashlib.sha256(plan_of_two.encode()).hexdigest(), "plan": plan_of_two}
    (out / "capture.json").write_text(json.dumps(state))
    with pytest.raises(UsageError, match="its pictures are of another camera, and this is replay of seen"):
        capture(plan, out)


def test_a_hand_is_told_of_setups_that_have_no_pose(tmp_path: Path) -> None:
    text = 'robot = "hand"\n[parts]\nnames = ["A", "B"]\n[limits]\nworkspace = [[0, 9], [0, 9], [0, 9]]\nspeed = 1\n'
    for name, pose in (("up", "pose = [1, 2, 3, 0, 0, 0]\n"), ("down", "")):
        text += f'[[setup]]\nname = "{name}"\n{pose}settle_s = 0\n[[setup.view]]\nname = "plain"\n'
    source, plan, out = _pictures(tmp_path / "seen", 4), _plan(tmp_path / "plan.toml", text), tmp_path / "out"
    assert rehearse(plan, tmp_path / "dry")["seconds"] == round(4 * 0.3 + 4 * 10)
    code, said = _by_hand(_words(plan, out, source), b"\n" * 4)
    assert code == 0, said
    asked = [line.split("; then Enter ")[0] for line in said.splitlines() if "; then Enter " in line]
    up = "setup up; move to 1 2 3 0 0 0"
    assert asked == [f"put in part A; {up}", "setup down", f"put in part B; {up}", "setup down"]
    assert [facts["pose"] for facts in _taken(out)] == [[1, 2, 3, 0, 0, 0], None] * 2


def test_a_hand_without_a_terminal_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n" * 20))
    with pytest.raises(UsageError, match="stdin is no terminal"):
        capture(_plan(tmp_path / "plan.toml", HAND), tmp_path / "out", f"replay:{_pictures(tmp_path / 'seen', 12)}")


def test_a_dry_run_draws_every_pose_and_counts_the_seconds(tmp_path: Path) -> None:
    found = rehearse(_plan(tmp_path / "plan.toml", HAND), tmp_path / "out")
    # A part: 3 poses, 5 mm at 5 mm/s between two, and back by 10 mm before the second part; 6 pictures of 0.3 s; before
    # each of them light or pose has changed: 10 s of a person.
    assert (found["pictures"], found["moves"]) == (12, 6)
    assert found["seconds"] == round(12 * 0.3 + 2 * 2 * 5 / 5 + 10 / 5 + 12 * 10)
    svg = xml.etree.ElementTree.parse(tmp_path / "out/plan.svg").getroot()
    circles = [c.attrib for c in svg.iter("{http://www.w3.org/2000/svg}circle")]
    assert len(circles) == 6  # three shots, from above and from the side
    assert [float(c["cx"]) for c in circles[:3]] == [80.0, 95.0, 110.0]  # 300 px are 100 mm, from 50 px on
    assert {float(c["cy"]) for c in circles[:3]} == {290.0}
    assert {float(c["cy"]) for c in circles[3:]} == {242.0}  # 360 px are 100 mm: 108 px above the floor, at 350
    assert not (tmp_path / "out/capture.json").exists()


def test_the_command_line_takes_pictures_and_says_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = _pictures(tmp_path / "seen", 8), tmp_path / "out"
    plan = _plan(tmp_path / "plan.toml", f'camera = "replay:{source}"\n' + PLAN.format(parts=4, settle=0))
    assert main(["capture", str(plan), "--out", str(out), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 8
    assert main(["capture", str(plan), "--out", str(out), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"pictures": 8, "parts": 4, "folder": str(out)}
    assert "capture: 8 of 8" in said.err
    assert main(["capture", str(plan)]) == 2
    with (out / "parts.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8


def test_a_disk_that_is_full_leaves_nothing_half_written(tmp_path: Path) -> None:
    source, plan, out = _pictures(tmp_path / "seen", 8), _plan(tmp_path / "plan.toml"), tmp_path / "out"
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900)); import signal;"
    code += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from flawmap.cli import main; sys.exit(main(sys.argv[1:]))"
    Image.fromarray(np.random.default_rng(9).integers(60, 180, (48, 64)).astype(np.uint8)).save(source / "004.png")
    done = subprocess.run([sys.executable, "-c", code, *_words(plan, out, source)[3:]], capture_output=True, text=True)
    assert done.returncode == 1
    assert "stopped after" in done.stderr
    assert sorted(p.stem for p in out.glob("*/*.png")) == sorted(p.stem for p in out.glob("*/*.json"))
    _refuse_half(out)
    assert not list(out.rglob(".*.new"))

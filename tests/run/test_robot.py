"""A UR robot through ur-rtde, against the simulator's ports: it goes where it was sent, or it is said why not."""

from __future__ import annotations

import json
import math
import os
import pty
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from flawmap.errors import MissingExtra, UsageError
from flawmap.images.audit import audit
from flawmap.images.folder import find, sha256, strays
from flawmap.images.robot import Limits, RobotFault
from flawmap.images.ur import NEAR_DEG, NEAR_MM, UR, apart, from_ur, to_ur
from flawmap.images.ur_sim import DASHBOARD, FAULTS
from flawmap.run.capture import rehearse
from flawmap.run.fit import fit

pytest.importorskip("rtde_control", reason="ur-rtde is not installed: pip install flawmap[capture]")

LIMITS = Limits([(0, 400), (0, 300), (50, 500)], 400, 2000)
LIGHTS = {"ring": 0, "dark": 9, "back": 16}
PLAN = """
robot = "ur"
address = "{address}"
[parts]
pattern = "b-##"
count = {parts}
by_hand = false
[limits]
workspace = [[0, 400], [0, 300], [50, 500]]
speed = {speed}
acceleration = 2000
[lights]
ring = 0
"dark field" = 9
[shift.two]
count = 2
step = [5, 0, 0]
[[setup]]
name = "top"
pose = [210, 150, 300, 0, 170, 0]
shift = "two"
settle_s = 0
[[setup.view]]
name = "ring"
light = "ring"
[[setup.view]]
name = "dark"
light = "dark field"
[[setup]]
name = "side"
pose = [210, 170, 310, 20, 170, 10]
settle_s = 0
[[setup.view]]
name = "ring"
light = "ring"
"""


class Sim:
    """A simulator with an address of its own; each has the ports of a robot, which are fixed."""

    def __init__(self, log: Path, *words: str) -> None:
        self.log = log
        self.address = f"127.{random.randint(2, 250)}.{random.randint(0, 250)}.{random.randint(2, 250)}"
        words = ("-m", "flawmap.images.ur_sim", self.address, "--log", str(log), *words)
        self.process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline(), "it did not start"

    def fault(self, name: str) -> None:
        with socket.create_connection((self.address, DASHBOARD)) as dashboard, dashboard.makefile("rw") as file:
            file.write(f"fault {name}".strip() + "\n")
            file.flush()
            assert [file.readline(), file.readline()][1].strip() == f"fault {name}".strip()
        self.log.unlink(missing_ok=True)

    def said(self, what: str = "") -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in map(json.loads, lines) if what in ("", line["what"])]

    def wait(self, what: str, count: int = 1) -> list[dict[str, Any]]:
        end = time.monotonic() + 20
        while len(found := self.said(what)) < count:
            assert time.monotonic() < end, f"no {what}: {self.said()}"
            time.sleep(0.02)
        return found

    @property
    def lit(self) -> list[int]:
        return self.said("outputs")[-1]["on"]


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    at = Sim(tmp_path_factory.mktemp("sim") / "log.jsonl")
    yield at
    at.process.kill()
    at.process.communicate()


@pytest.fixture
def at(_shared: Sim) -> Sim:
    """One that is well; where it stands is left from the test before."""
    _shared.fault("")
    return _shared


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[Callable[..., Sim]]:
    begun: list[Sim] = []

    def start(*words: str) -> Sim:
        begun.append(Sim(tmp_path / f"{len(begun)}.jsonl", *words))
        return begun[-1]

    yield start
    for each in begun:
        each.process.kill()
        each.process.communicate()


@contextmanager
def _driven(at: Sim, limits: Limits = LIMITS) -> Iterator[UR]:
    arm = UR(at.address, limits, LIGHTS, by_hand=False)
    try:
        yield arm
    finally:
        arm.stop()
        arm.close()


def test_rotation_vectors_in_degrees_become_what_the_robot_takes_and_back() -> None:
    randoms = np.random.default_rng(0)
    for _ in range(50):
        turn = Rotation.random(random_state=int(randoms.integers(1 << 30)))
        pose = (*randoms.uniform(-900, 900, 3), *turn.as_rotvec(degrees=True))
        there = to_ur(pose)
        np.testing.assert_allclose(np.array(there[:3]) * 1000, pose[:3])
        assert (Rotation.from_rotvec(there[3:]).inv() * turn).magnitude() < 1e-9
        np.testing.assert_allclose(from_ur(there), pose, atol=1e-4)
    # Not roll, pitch, yaw: these three quarters of a turn are another rotation.
    angles = (90.0, 90.0, 0.0)
    one = Rotation.from_rotvec(to_ur((0, 0, 0, *angles))[3:])
    assert (one.inv() * Rotation.from_euler("xyz", angles, degrees=True)).magnitude() > 0.3


def test_poses_are_held_against_each_other_as_places_and_as_rotations() -> None:
    assert apart((0, 0, 0, 180, 0, 0), (3, 4, 0, -180, 0, 0)) == pytest.approx((5, 0), abs=1e-6)
    assert apart((0, 0, 0, 0, 0, 10), (0, 0, 0, 0, 0, -20)) == pytest.approx((0, 30))
    turn = Rotation.from_rotvec([0, math.radians(170), 0]) * Rotation.from_rotvec([0, 0, math.radians(7)])
    assert apart((0, 0, 0, 0, 170, 0), (0, 0, 0, *turn.as_rotvec(degrees=True)))[1] == pytest.approx(7)


def test_it_goes_there_in_a_line_settles_tells_its_pose_and_switches_one_light(at: Sim) -> None:
    with _driven(at) as arm:
        for pose, light, bit in (
            ((210, 150, 300, 0, 170, 0), "ring", 0),
            ((210, 190, 310, 20, 170, 10), "dark", 9),
            ((210, 190, 310, 20, 170, 10), "back", 16),
        ):
            arm.light(light)
            arm.move(pose, 200)
            begun = time.monotonic()
            arm.settle(0.3)
            assert time.monotonic() - begun >= 0.3
            mm, degrees = apart(arm.pose(), pose)
            assert mm <= NEAR_MM
            assert degrees <= NEAR_DEG
            assert at.lit == [bit]
        assert all(len(each["on"]) <= 1 for each in at.said("outputs"))  # two lights never burn at a time
    moves = at.said("move")
    assert [each["to_mm"] for each in moves] == [[210, 150, 300], [210, 190, 310], [210, 190, 310]]
    assert {each["speed_mm_s"] for each in moves} == {200}
    np.testing.assert_allclose(moves[1]["turned"], np.radians([20, 170, 10]), atol=1e-4)
    assert at.lit == []  # off at the end, and the program too
    assert at.said("halt")[-1]["why"] == "asked"


def test_what_lies_outside_the_limits_does_not_move_it(at: Sim) -> None:
    with _driven(at) as arm:
        for pose, speed, why in (
            ((401, 150, 300, 0, 180, 0), 100, r"x = 401 mm lies outside limits\.workspace"),
            ((200, 150, 300, 0, 180, 0), 401, r"a speed of 401 mm/s; limits\.speed allows"),
        ):
            with pytest.raises(UsageError, match=why):
                arm.move(pose, speed)
    assert at.said("move") == []
    small = Limits([(390, 400), (0, 300), (50, 500)], 400)
    at.log.unlink()
    with pytest.raises(
        UsageError, match=r"stands at x = \d+ mm, outside limits\.workspace, 390 to 400; bring it inside"
    ):
        UR(at.address, small, LIGHTS, by_hand=False)
    assert at.said() == []  # no program was sent


WORDS = {
    "protective": "is in a protective stop",
    "emergency": "is in an emergency stop",
    "cut": "the connection to the robot at .* is lost",
    "silent": "the connection to the robot at .* is lost",
    "halt": "the program of .* was stopped or paused",
    "off": r"is 2\.\d\d mm and \d\.\d\d° from where it was sent",
    "shaky": "is not steady",
    "dark": "digital output 0 of .* does not switch",
    "local": "is in local control; switch it to remote control",
    "locked": r"is stopped \(Safetymode: PROTECTIVE_STOP\)",
    "busy": "runs another program; stop that first",
    "mute": r"does not answer at port 30004 \(timed out\)",
}


def test_every_fault_of_the_simulator_is_tried() -> None:
    assert list(WORDS) == list(FAULTS)


def _slow(*values: Any) -> list[Any]:
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize(
    "fault", ["off", *_slow("emergency", "halt", "shaky", "dark", "local", "locked", "busy", "mute")]
)
def test_a_fault_is_called_by_its_name(at: Sim, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawmap.images.ur.STALL_S", 0.6)
    monkeypatch.setattr("flawmap.images.ur.BUSY_S", 0.6)
    monkeypatch.setattr("flawmap.images.ur.CONNECT_MS", 900)
    with _driven(at) as arm:
        arm.move((200, 150, 300, 0, 180, 0), 400)
    at.fault(fault)
    with pytest.raises(RobotFault, match=WORDS[fault]):
        _go(at)
    assert all(each["pose_mm"][0] < 300 or fault == "shaky" for each in at.said("still"))
    if fault in ("local", "locked", "busy", "mute"):
        assert at.said() == []  # no program was sent
    else:
        assert at.said("halt")  # the program does not wait for more
        assert fault == "dark" or at.lit == []


def _go(at: Sim) -> None:
    with _driven(at) as arm:
        arm.light("ring")
        arm.move((300, 150, 300, 0, 180, 0), 300)


def test_nobody_at_the_address_is_told_soon() -> None:
    begun = time.monotonic()
    with pytest.raises(RobotFault, match=r"127\.9\.9\.9 does not answer at the dashboard, port 29999"):
        UR("127.9.9.9", LIMITS, {}, by_hand=False)
    with pytest.raises(RobotFault, match="does not answer at the dashboard"):
        UR("no-such-robot.invalid", LIMITS, {}, by_hand=False)
    assert time.monotonic() - begun < 5
    with socket.create_server(("127.9.9.8", DASHBOARD)), pytest.raises(RobotFault, match="does not answer"):
        UR("127.9.9.8", LIMITS, {}, by_hand=False)  # it takes the connection, and says nothing
    assert time.monotonic() - begun < 15


def _pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(noise.integers(60, 180, (24, 32)).astype(np.uint8)).save(folder / f"{number:03}.png")
    return folder


def _capture(tmp_path: Path, address: str, camera: str = "", **values: Any) -> list[str]:
    """The words of the command, its plan written: 4 parts of 5 pictures, of a replay where no camera is named."""
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.format(**{"address": address, "parts": 4, "speed": 400, **values}))
    words = ["capture", str(plan), "--out", str(tmp_path / "out"), "--camera"]
    return [sys.executable, "-m", "flawmap.cli", *words, camera or f"replay:{_pictures(tmp_path / 'seen', 40)}"]


@pytest.mark.parametrize("fault", _slow("protective", "cut", "silent"))
def test_a_capture_stops_safely_and_goes_on_when_it_is_mended(
    sim: Callable[..., Sim], tmp_path: Path, fault: str
) -> None:
    at, out = sim("--fault", fault, "--after", "2"), tmp_path / "out"
    done = subprocess.run(_capture(tmp_path, at.address), capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert re.search(WORDS[fault], done.stderr), done.stderr
    assert "stopped after 4 of 20 pictures; part b-01 lacks 1 of 5; the same command goes on" in done.stderr
    assert "try 1 of 3" not in done.stderr  # a robot that is stopped is not asked again
    assert len(find(out)) == len(list(out.glob("*/*.json"))) == 4
    halts = at.wait("halt")
    assert halts[-1]["why"] == ("protective" if fault == "protective" else "watchdog")
    at.process.kill()
    at.process.wait()
    well = subprocess.Popen([sys.executable, "-m", "flawmap.images.ur_sim", at.address], stdout=subprocess.PIPE)
    try:
        assert well.stdout is not None
        assert well.stdout.readline()
        again = subprocess.run(_capture(tmp_path, at.address), capture_output=True, text=True, timeout=60)
        assert again.returncode == 0, again.stderr
        assert len(find(out)) == 20
    finally:
        well.kill()
        well.communicate()


@pytest.mark.parametrize("how", [signal.SIGTERM, *_slow(signal.SIGINT, signal.SIGKILL)])
def test_stopped_or_killed_on_its_way_the_arm_stops_there(at: Sim, tmp_path: Path, how: signal.Signals) -> None:
    with _driven(at) as arm:
        arm.move((120, 150, 300, 0, 170, 0), 400)
    at.log.unlink()
    words, heard = _capture(tmp_path, at.address, speed=4), partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    at.wait("move")  # of 90 mm at 4 mm/s
    time.sleep(0.3)
    process.send_signal(how)
    process.communicate(timeout=30)
    assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    [still] = at.wait("still")
    assert 120 < still["pose_mm"][0] < 209  # it was sent to 210
    assert still["stopped"]
    [halt] = at.wait("halt")
    assert halt["why"] == ("watchdog" if how == signal.SIGKILL else "asked")
    assert not list((tmp_path / "out").rglob("*.new"))


def test_it_does_not_move_before_a_person_has_put_in_the_part_and_pressed_enter(at: Sim, tmp_path: Path) -> None:
    words = _capture(tmp_path, at.address, parts=2)
    plan = tmp_path / "plan.toml"
    plan.write_text(plan.read_text().replace("by_hand = false", ""))
    # Three things to do a part, and a person: 10 s; 5 pictures of 0.3 s; ways of 5, 26 and, back, 26 mm at 400 mm/s.
    assert rehearse(plan, tmp_path / "drawn")["seconds"] == round(2 * (10 + 5 * 0.3))
    with pytest.raises(UsageError, match=r"a person changes the parts.*stdin is no terminal; .*parts\.by_hand = false"):
        UR(at.address, LIMITS, LIGHTS, by_hand=True)
    person, terminal = pty.openpty()
    process = subprocess.Popen(words, stdin=terminal, stderr=subprocess.PIPE, text=True)
    os.close(terminal)
    at.wait("program")
    time.sleep(0.7)
    assert at.said("move") == []
    os.write(person, b"\n\n\n")  # pressed too often: the next part is asked for all the same
    at.wait("move", 3)
    time.sleep(1.2)  # longer than the watchdog waits: while a person works the program goes on
    assert len(at.said("move")) == 3
    os.write(person, b"\n")
    _, said = process.communicate(timeout=60)
    os.close(person)
    assert process.returncode == 0, said
    assert [line.split("; then Enter")[0] for line in said.splitlines() if "; then Enter" in line] == [
        f"put in part b-0{number}, step back: the robot moves" for number in (1, 2)
    ]
    assert len(find(tmp_path / "out")) == 10


def test_without_the_library_it_is_told_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rtde_control", None)
    with pytest.raises(MissingExtra, match=r'robot ur needs ur-rtde: pip install "flawmap\[capture\]"'):
        UR("127.9.9.9", LIMITS, {}, by_hand=False)


def _check(out: Path, parts: int) -> None:
    """Complete, in order, without doubles, each where it was planned, each file the one that was taken."""
    samples = find(out)
    sides = [out / sample.name.replace(".png", ".json") for sample in samples]
    facts = sorted((json.loads(side.read_text()) for side in sides), key=lambda each: each["time"])
    shots = [("top", "ring", 1), ("top", "dark", 1), ("top", "ring", 2), ("top", "dark", 2), ("side", "ring", 1)]
    wanted = [(f"b-{number:02}", *shot) for number in range(1, parts + 1) for shot in shots]
    assert [(f["part"], f["setup"], f["view"], f["shift"]) for f in facts] == wanted
    assert len({f["pixels_sha256"] for f in facts}) == len(facts)
    places = {("top", 1): (210, 150, 300, 0, 170, 0), ("top", 2): (215, 150, 300, 0, 170, 0)}
    for each in facts:
        pose = places.get((each["setup"], each["shift"]), (210, 170, 310, 20, 170, 10))
        assert tuple(each["asked"]["pose"]) == pose
        mm, degrees = apart(each["pose"], pose)
        assert mm < NEAR_MM
        assert degrees < NEAR_DEG
        assert each["light"] == {"ring": "ring", "dark": "dark field"}[each["view"]]
    for sample, side in zip(samples, sides, strict=True):
        assert sha256(sample) == json.loads(side.read_text())["sha256"]
    assert strays(out, samples) == []
    assert not audit(samples, strays(out, samples)).spoils


def _killed_twice(words: list[str], out: Path, total: int) -> None:
    for _ in range(2):
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        goal, end = len(list(out.glob("*/*.json"))) + random.randint(1, 6), time.monotonic() + 60
        while len(list(out.glob("*/*.json"))) < goal:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.4))
        process.kill()
        process.communicate()
        assert len(list(out.glob("*/*.json"))) < total, "it was done before it was killed"
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_killed_twice_with_the_robot_it_ends_complete(at: Sim, tmp_path: Path) -> None:
    _killed_twice(_capture(tmp_path, at.address), tmp_path / "out", 20)
    _check(tmp_path / "out", 4)


@pytest.mark.slow
def test_a_genicam_camera_on_a_robot_killed_twice_gives_a_folder_that_is_fitted(
    at: Sim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pytest.importorskip("genicam", reason="the genicam wheel is not made for this platform")
    producers = Path(package.__file__).parent
    if not (producers / "viky.cti").exists():
        pytest.skip("this genicam wheel has no simulated cameras")
    monkeypatch.setenv("GENICAM_GENTL64_PATH", str(producers))
    # Its picture is white, but for a ball. Its film begins anew with each process: what was seen is refused, as always,
    # and the camera is asked again until the film has come to what is new.
    checks, out = "[checks]\nsaturation = 1\ntries = 100\n[limits]", tmp_path / "out"
    monkeypatch.setattr(sys.modules[__name__], "PLAN", PLAN.replace("[limits]", checks))
    _killed_twice(_capture(tmp_path, at.address, "genicam:1?PixelFormat=Mono8&Width=320&Height=200"), out, 20)
    _check(out, 4)
    tries = [json.loads(side.read_text())["tries"] for side in out.glob("*/*.json")]
    assert max(tries) > 1  # it began anew
    model = fit(out, "patchcore", options={"size": 64}, folds=2, out=tmp_path / "runs")
    assert model.calibration is not None
    assert (model.calibration.parts, model.calibration.views) == (4, (5, 5))


@pytest.mark.slow
@pytest.mark.data
def test_the_capture_of_the_lab_report_is_taken_again_whole(
    at: Sim, tmp_path: Path, real: Callable[[str], Path]
) -> None:
    """30 lay-ups, 3 shots each: its own 90 pictures, played by a camera that a robot carries."""
    source, script = real("glassfiber/glassfiber"), Path(__file__).resolve().parents[2] / "examples/05_robot_capture.py"
    octets = at.address.split(".")
    address = ".".join([*octets[:3], str(int(octets[3]) + 1)])  # it starts its own simulator
    words = [sys.executable, str(script), str(tmp_path), "--pictures", str(source), "--address", address]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    samples = find(tmp_path / "captured")
    assert (len(samples), len({sample.part for sample in samples})) == (90, 30)
    played = sorted((source / "train/good").iterdir())
    assert [(tmp_path / "captured" / s.name).read_bytes() for s in samples] == [p.read_bytes() for p in played]
    assert "30 good parts promise" in said
    auroc = re.search(r"'i_auroc': {?[^0-9]*([0-9.]+)", said)
    assert auroc
    assert float(auroc[1]) > 0.9

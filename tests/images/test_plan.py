"""Plans of pictures, and the limits of what moves: everything that cannot be meant is refused, with its key."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from flawmap.errors import UsageError
from flawmap.images.plan import read_plan
from flawmap.images.robot import Hand, Limits, robot

PLAN = """
camera = "uvc:0"
robot = "hand"

[parts]
pattern = "bottle-####"
count = 3
first = 8

[limits]
workspace = [[0, 400], [0, 300], [50, 500]]
speed = 100

[shift.three]
count = 3
step = [5, 0, 0]

[checks]
tries = 2

[[setup]]
name = "top"
pose = [200, 150, 300, 0, 0, 0]
shift = "three"
speed = 50
settle_s = 0.5

[[setup.view]]
name = "ring"
light = "ring"
exposure = 40
gain = 1.5

[[setup.view]]
name = "dark"
exposure = 200
gain = 1
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "plan.toml"
    path.write_text(text)
    return path


def test_a_plan_is_read_into_its_shots_in_their_order(tmp_path: Path) -> None:
    plan = read_plan(_write(tmp_path, PLAN))
    shots = list(plan.shots())
    assert plan.parts == ["bottle-0008", "bottle-0009", "bottle-0010"]
    assert len(shots) == plan.per_part * 3 == 18
    assert [shot.name for shot in shots[:3]] == [f"bottle-0008/top_{end}.png" for end in ("ring_1", "dark_1", "ring_2")]
    assert [shot.pose for shot in shots[:6:2]] == [(x, 150, 300, 0, 0, 0) for x in (200, 205, 210)]
    view = shots[0].view
    assert (view.light, view.exposure, view.gain, shots[0].setup.speed) == ("ring", 40.0, 1.5, 50.0)
    assert len({shot.name.lower() for shot in shots}) == 18


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("camera =", "kamera =", r"kamera: unknown; known here are robot, camera, address, lights, parts"),
        ('"hand"', '"ur5"', r"robot: no robot 'ur5'; there are none, hand, ur"),
        ('"hand"', '"none"', r"robot: none moves nothing"),
        ("count = 3\nfirst", 'count = "3"\nfirst', r"parts\.count: is '3'; give a whole number"),
        ("count = 3\nfirst", "count = true\nfirst", r"parts\.count: is True; give a whole number"),
        ("count = 3\nfirst", "names = []\nfirst", r"parts: give pattern and count"),
        ("count = 3\nfirst", f"count = {'9' * 400}\nfirst", r"parts\.count: is 9+; give a whole number below 1e\+12"),
        ("count = 3\nfirst", f"count = {'9' * 5000}\nfirst", r"the plan is not TOML"),
        ("count = 3\nfirst", "count = 0\nfirst", r"parts\.count: is 0; give a number from 1 to"),
        ("count = 3\nfirst", "first", r"parts: give pattern and count"),
        ("count = 3\nfirst", 'names = ["A"]\ncount = 3\nfirst', r"parts: give pattern and count"),
        ('"bottle-####"', '"bottle"', r"parts\.pattern: is 'bottle'; give one row of #"),
        ('"bottle-####"', '"../####"', r"parts: '\.\./0008' is no name of a part"),
        ('pattern = "bottle-####"\ncount = 3\nfirst = 8', 'names = ["A", "a"]', r"parts: 'a' stands there twice"),
        ('pattern = "bottle-####"\ncount = 3\nfirst = 8', 'names = ["Bad"]', r"'Bad' would be taken for a kind"),
        ('pattern = "bottle-####"\ncount = 3\nfirst = 8', 'names = ["good"]', r"'good' would be taken for a kind"),
        ("[0, 400]", "[0, 205]", r"setup\[1\]\.pose, shot 3 of shift three: x = 210 mm lies outside limits\.workspace"),
        ("[0, 400]", "[400, 0]", r"limits\.workspace: a least is above its most"),
        ("[0, 400], ", "", r"limits\.workspace: give least and most of x, y and z"),
        ("speed = 50", "speed = 101", r"setup\[1\]\.pose.*a speed of 101 mm/s; limits\.speed allows above 0, to 100"),
        ("speed = 50", "speed = 0", r"a speed of 0 mm/s"),
        ("200, 150, 300, 0", "nan, 150, 300, 0", r"setup\[1\]\.pose: is nan; give a number"),
        ("300, 0, 0, 0]", "300]", r"setup\[1\]\.pose: has 3 numbers; give 6"),
        ('shift = "three"', 'shift = "two"', r"setup\[1\]\.shift: no shift 'two'; there are: three"),
        ("step = [5, 0, 0]", "step = [0, 0, 0]", r"shift\.three\.step: is zero"),
        ("pose = [200, 150, 300, 0, 0, 0]\n", "", r"setup\[1\]\.shift: a shift starts from a pose"),
        ('name = "dark"', 'name = "RING"', r"setup\[1\]\.view: 'RING' stands there twice"),
        ('name = "dark"', 'name = "a_b"', r"setup\[1\]\.view\[2\]\.name: 'a_b' is no name"),
        ('name = "dark"', "", r"setup\[1\]\.view\[2\]\.name: missing; give a text"),
        ('name = "dark"', 'name = "dark"\nreference = "r.png"', r"view\[2\]\.reference: there is no file"),
        ("gain = 1.5", "gian = 1.5", r"setup\[1\]\.view\[1\]\.gian: unknown"),
        ("exposure = 200\n", "", r"setup\[1\]\.view\[2\]\.exposure: missing; other views set it"),
        ("tries = 2", "tries = 1.5", r"checks\.tries: is 1\.5; give a whole number"),
        ("tries = 2", "saturation = 2", r"checks\.saturation: is 2; give a number from 0 to 1"),
        ("settle_s = 0.5", "settle_s = -1", r"setup\[1\]\.settle_s: is -1; give a number from 0 to 600"),
        ("[parts]", "[parts", r"the plan is not TOML"),
        ("[checks]\ntries = 2", "", None),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_key(tmp_path: Path, before: str, after: str, why: str | None) -> None:
    assert PLAN.count(before) == 1 or before == "speed = 50"
    path = _write(tmp_path, PLAN.replace(before, after))
    if why is None:  # what may be left out
        assert read_plan(path).checks.tries == 3
        return
    with pytest.raises(UsageError, match=why) as error:
        read_plan(path)
    assert str(error.value).startswith(f"{path}: ")


def test_poses_without_limits_are_refused(tmp_path: Path) -> None:
    start, end = PLAN.index("[limits]"), PLAN.index("[shift")
    with pytest.raises(UsageError, match="limits: missing"):
        read_plan(_write(tmp_path, PLAN[:start] + PLAN[end:]))


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_hand_refuses_a_pose_outside_before_anybody_moves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", _Terminal("\n"))
    monkeypatch.setattr("flawmap.images.robot._forget_typed", lambda: None)  # it is no real one
    hand = Hand(Limits([(0, 100), (0, 100), (0, 100)], 10))
    hand.move((1, 2, 3, 0, 0, 0), 10)
    for pose, speed in (((101, 0, 0, 0, 0, 0), 10), ((0, -1, 0, 0, 0, 0), 10), ((0, 0, 0, 0, 0, 0), 11)):
        with pytest.raises(UsageError, match="limits"):
            hand.move(pose, speed)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no place"):
        hand.move((0, 0, 0, float("nan"), 0, 0), 10)
    assert hand.pose() == (1, 2, 3, 0, 0, 0)
    hand.settle(0)
    assert capsys.readouterr().err == "move to 1 2 3 0 0 0; then Enter "
    with pytest.raises(UsageError, match="limits: missing"):
        Hand(None).move((1, 2, 3, 0, 0, 0), 10)


def test_a_fixed_camera_does_not_move_and_others_are_not_known() -> None:
    with pytest.raises(UsageError, match="moves nothing"):
        robot("none").move((0, 0, 0, 0, 0, 0), 1)
    with pytest.raises(UsageError, match="no robot 'ur5'; there are none, hand, ur"):
        robot("ur5")


def test_the_plan_of_the_page_can_be_taken(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/capture.md").read_text("utf-8")
    plan = read_plan(_write(tmp_path, page.split("```toml\n")[1].split("```")[0]))
    assert (len(plan.parts), plan.per_part, plan.camera) == (300, 6, "uvc:0")


UR = """robot = "ur"
address = "192.168.1.10"

[lights]
ring = 0
"dark field" = 16
"""


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("", "", None),
        ('address = "192.168.1.10"', "", r"address: is ''; give the robot's, as 192\.168\.1\.10"),
        ("192.168.1.10", "10.0.0.1:30004", r"address: is '10\.0\.0\.1:30004'.*its ports are fixed"),
        ("ring = 0", "ring = 18", r"lights\.ring: is 18; give a number from 0 to 17"),
        ("ring = 0", "ring = true", r"lights\.ring: is True; give a whole number"),
        ("ring = 0", '"" = 3\nring = 0', r"lights: one has no name"),
        ("ring = 0", "ring = 16", r"lights: two of them have one output"),
        ("ring = 0", "rung = 0", r"setup\[1\]\.view: no light 'ring' in \[lights\]; there are: rung, dark field"),
        ('shift = "three"\n', "", None),
        (
            'pose = [200, 150, 300, 0, 0, 0]\nshift = "three"\n',
            "",
            r"setup\[1\]\.pose: missing; robot ur goes to poses",
        ),
        ("speed = 100", "speed = 100\nacceleration = 0", r"limits\.acceleration: is 0; give a number from 1"),
        ("first = 8", "by_hand = 1", r"parts\.by_hand: is 1; give true or false"),
        ('robot = "ur"', 'robot = "hand"', r"address: is for robot ur, and the robot is hand; leave it out"),
    ],
)
def test_a_robot_has_an_address_poses_and_lights_that_it_knows(
    tmp_path: Path, before: str, after: str, why: str | None
) -> None:
    text = PLAN.replace('robot = "hand"\n', UR)
    path = _write(tmp_path, text.replace(before, after, 1) if before else text)
    if why is not None:
        with pytest.raises(UsageError, match=why):
            read_plan(path)
        return
    plan = read_plan(path)
    assert (plan.address, plan.lights, plan.by_hand) == ("192.168.1.10", {"ring": 0, "dark field": 16}, True)
    assert plan.limits is not None
    assert plan.limits.acceleration == 300


def test_the_plan_of_a_robot_on_the_page_can_be_taken(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/capture.md").read_text("utf-8")
    first, robot = (block.split("```")[0] for block in page.split("```toml\n")[1:3])
    head = robot.split("[lights]")[0]
    text = head + first.split("\n", 2)[2] + "\n[lights]" + robot.split("[lights]")[1]
    plan = read_plan(_write(tmp_path, 'camera = "uvc:0"\n' + text))
    assert (plan.robot, plan.address, plan.lights) == ("ur", "192.168.1.10", {"ring": 0, "dark field": 1})

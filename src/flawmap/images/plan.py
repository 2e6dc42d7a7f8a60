"""A plan of pictures: parts -> setups, each a pose with its shifts -> views, each a light with its exposure and gain.

A TOML file, checked as a whole before anything moves; docs/capture.md shows one. Every error names the key.
"""

from __future__ import annotations

import hashlib
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from flawmap.errors import UsageError
from flawmap.images.folder import NOT_GOOD
from flawmap.images.robot import KINDS, Limits, Pose
from flawmap.types import GOOD

PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(?<!\.)")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")  # of setups and views: _ stands between them in a file's name
MOST_SHOTS = 1_000_000
LARGEST = 1e12  # of any number in a plan
_KINDS: dict[type, str] = {
    **{str: "a text", int: "a whole number", float: "a number", list: "a list", dict: "a table"},
    bool: "true or false",
}
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
OUTPUTS = 18  # digital outputs of a UR robot: 8 standard, 8 configurable, 2 of the tool
_NEEDED = object()


@dataclass(frozen=True)
class View:
    name: str
    light: str = ""  # "": none is switched
    exposure: float | None = None  # in the camera's own unit; None: as the camera is set
    gain: float | None = None
    reference: Path | None = None  # a picture as it should be: brightness and focus are held against it


@dataclass(frozen=True)
class Setup:
    name: str
    views: Sequence[View]
    poses: Sequence[Pose | None] = (None,)  # one a shift
    speed: float = 0.0  # mm/s
    settle_s: float = 0.0


@dataclass(frozen=True)
class Checks:
    """What a picture has to pass to be kept."""

    saturation: float = 0.01  # most, as a share of the pixels
    brightness: float = 0.1  # most that it differs from that of the reference, as a share of it
    focus: float = 0.5  # least sharpness, as a share of that of the reference
    white: int | None = None  # level that counts as white: 4095 of a camera of 12 bits
    tries: int = 3


class Shot(NamedTuple):
    part: str
    setup: Setup
    shift: int  # from 0
    view: View

    @property
    def pose(self) -> Pose | None:
        return self.setup.poses[self.shift]

    @property
    def name(self) -> str:
        """part/setup_view.png, or part/setup_view_2.png where the setup has shifts."""
        shift = f"_{self.shift + 1}" if len(self.setup.poses) > 1 else ""
        return f"{self.part}/{self.setup.name}_{self.view.name}{shift}.png"


@dataclass(frozen=True)
class Plan:
    text: str
    parts: Sequence[str]
    setups: Sequence[Setup]
    camera: str = ""
    robot: str = "none"
    limits: Limits | None = None
    checks: Checks = field(default_factory=Checks)
    address: str = ""  # of a robot
    lights: Mapping[str, int] = field(default_factory=dict)  # name -> digital output of the robot
    by_hand: bool = True  # a person changes the parts, where a robot moves

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def per_part(self) -> int:
        return sum(len(setup.poses) * len(setup.views) for setup in self.setups)

    def shots(self) -> Iterator[Shot]:
        """In the order in which they are taken."""
        for part in self.parts:
            for setup in self.setups:
                for shift in range(len(setup.poses)):
                    yield from (Shot(part, setup, shift, view) for view in setup.views)


def read_plan(path: Path) -> Plan:
    """UsageError: it cannot be read, or cannot be meant; the error names the key."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # Notepad begins a file with a mark
        values = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{path}: the plan cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, a number of thousands of digits
        raise UsageError(f"{path}: the plan is not TOML ({error})") from error
    try:
        return _plan(text, values, path.parent)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


class _Table:
    """A table of the plan, read key by key; what is left at the end is misspelt."""

    def __init__(self, values: Any, where: str = "") -> None:
        if not isinstance(values, dict):
            raise UsageError(f"{where}: {values!r} is no table; write it as [{where.split('[')[0]}]")
        self._left, self._where, self._known = dict(values), where, list[str]()

    def key(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def get(self, key: str, kind: type, default: Any = _NEEDED) -> Any:
        self._known.append(key)
        if key not in self._left:
            if default is _NEEDED:
                raise UsageError(f"{self.key(key)}: missing; give {_KINDS[kind]}")
            return default
        return _of(self._left.pop(key), kind, self.key(key))

    def number(self, key: str, default: Any, low: float, high: float = math.inf, kind: type = float) -> Any:
        """Within [low, high]."""
        found = self.get(key, kind, default)
        if found is not None and not low <= found <= high:
            bounds = f"from {low:g}" + (f" to {high:g}" if high < math.inf else " on")
            raise UsageError(f"{self.key(key)}: is {found:g}; give a number {bounds}")
        return found

    def names(self) -> list[str]:
        return list(self._left)

    def end(self) -> None:
        if self._left:
            wrong = ", ".join(self.key(key) for key in self._left)
            raise UsageError(f"{wrong}: unknown; known here are {', '.join(self._known)}")


def _of(value: Any, kind: type, where: str) -> Any:
    """A whole number is a number, too; true and false are none."""
    if type(value) in (int, float) and not abs(value) < LARGEST:
        raise UsageError(f"{where}: is {str(value)[:20]}; give {_KINDS[kind]} below {LARGEST:g}")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UsageError(f"{where}: is {value!r}; give {_KINDS[kind]}")
    return value


def _plan(text: str, values: Mapping[str, Any], folder: Path) -> Plan:
    table = _Table(values)
    robot = table.get("robot", str, "none")
    if robot not in KINDS:
        raise UsageError(f"robot: no robot {robot!r}; there are {', '.join(KINDS)}")
    camera = table.get("camera", str, "")
    address = table.get("address", str, "")
    lights = _lights(_Table(table.get("lights", dict, {}), "lights"))
    parts, by_hand = _parts(_Table(table.get("parts", dict), "parts"))
    limits = _limits(table.get("limits", dict, None))
    shifts = {name: _shift(_Table(v, f"shift.{name}")) for name, v in table.get("shift", dict, {}).items()}
    checks = _checks(_Table(table.get("checks", dict, {}), "checks"))
    each = enumerate(table.get("setup", list), 1)
    setups = [_setup(_Table(value, f"setup[{number}]"), limits, shifts, folder) for number, value in each]
    table.end()
    if not setups:
        raise UsageError("setup: none is given; write [[setup]]")
    _refuse_twice([setup.name for setup in setups], "setup")
    plan = Plan(text, parts, setups, camera, robot, limits, checks, address, lights, by_hand in (None, True))
    if robot == "none":
        _refuse_moved(setups)
    if robot == "ur":
        _refuse_unknown(plan)
    elif address or lights or by_hand is not None:
        given = "address" if address else "lights" if lights else "parts.by_hand"
        raise UsageError(f"{given}: is for robot ur, and the robot is {robot}; leave it out")
    _refuse_left_over(setups)
    if plan.per_part * len(parts) > MOST_SHOTS:
        raise UsageError(f"parts: {plan.per_part * len(parts)} pictures are planned, more than {MOST_SHOTS}")
    return plan


def _lights(table: _Table) -> dict[str, int]:
    if "" in table.names():
        raise UsageError("lights: one has no name; that is what a view without a light has")
    lights = {name: table.number(name, _NEEDED, 0, OUTPUTS - 1, int) for name in table.names()}
    if len(set(lights.values())) < len(lights):
        raise UsageError("lights: two of them have one output; give each its own")
    return lights


def _parts(table: _Table) -> tuple[list[str], bool | None]:
    """Their names; whether a person changes them, where that is said."""
    names = table.get("names", list, None)
    pattern = table.get("pattern", str, None)
    count = table.number("count", None, 1, MOST_SHOTS, int)
    first = table.number("first", 1, 0, kind=int)
    by_hand = table.get("by_hand", bool, None)
    table.end()
    if (names is None) == (pattern is None) or (pattern is None) != (count is None):
        raise UsageError('parts: give pattern and count, as pattern = "bottle-####", count = 20; or names alone')
    if names is None:
        if len(re.findall("#+", pattern)) != 1:
            raise UsageError(f'parts.pattern: is {pattern!r}; give one row of # for the number, as "bottle-####"')
        width = pattern.count("#")
        names = [re.sub("#+", f"{number:0{width}}", pattern) for number in range(first, first + count)]
    if not names:
        raise UsageError("parts.names: is empty; name the parts")
    for name in names:
        if not PART.fullmatch(_of(name, str, "parts.names")):
            raise UsageError(f"parts: {name!r} is no name of a part; letters, digits, dots, dashes, underscores; to 64")
        if name.lower() in NOT_GOOD | {GOOD}:
            raise UsageError(f"parts: {name!r} would be taken for a kind or a split by flawmap fit; call it otherwise")
    _refuse_twice(names, "parts")
    return names, by_hand


def _limits(values: Any) -> Limits | None:
    if values is None:
        return None
    table = _Table(values, "limits")
    rows = table.get("workspace", list)
    if len(rows) != 3 or not all(isinstance(row, list) and len(row) == 2 for row in rows):
        raise UsageError(
            "limits.workspace: give least and most of x, y and z in mm, as [[0, 400], [0, 300], [50, 500]]"
        )
    workspace = [(_of(row[0], float, "limits.workspace"), _of(row[1], float, "limits.workspace")) for row in rows]
    if any(low > high for low, high in workspace):
        raise UsageError("limits.workspace: a least is above its most")
    speed = table.number("speed", _NEEDED, 0.001)
    limits = Limits(workspace, speed, table.number("acceleration", Limits.acceleration, 1, 10_000))
    table.end()
    return limits


def _shift(table: _Table) -> list[tuple[float, float, float]]:
    """By how much each shot of it is moved."""
    count = table.number("count", _NEEDED, 1, 1000, int)
    step = _numbers(table.get("step", list), 3, table.key("step"))
    table.end()
    if count > 1 and not any(step):
        raise UsageError(f"{table.key('step')}: is zero, so that all its shots are the same")
    return [(number * step[0], number * step[1], number * step[2]) for number in range(count)]


def _checks(table: _Table) -> Checks:
    plain = Checks()
    checks = Checks(
        saturation=table.number("saturation", plain.saturation, 0, 1),
        brightness=table.number("brightness", plain.brightness, 0),
        focus=table.number("focus", plain.focus, 0),
        white=table.number("white", None, 1, 65535, int),
        tries=table.number("tries", plain.tries, 1, 100, int),
    )
    table.end()
    return checks


def _setup(table: _Table, limits: Limits | None, shifts: Mapping[str, Any], folder: Path) -> Setup:
    name = _name(table)
    pose = table.get("pose", list, None)
    shift = table.get("shift", str, None)
    speed = table.number("speed", limits.speed if limits else 0.0, 0)
    settle = table.number("settle_s", 0.2, 0, 600)
    where = table.key("view")
    each = enumerate(table.get("view", list), 1)
    views = [_view(_Table(value, f"{where}[{number}]"), folder) for number, value in each]
    table.end()
    if not views:
        raise UsageError(f"{where}: none is given; write [[setup.view]]")
    _refuse_twice([view.name for view in views], where)
    if shift is not None and shift not in shifts:
        raise UsageError(f"{table.key('shift')}: no shift {shift!r}; there are: {', '.join(shifts) or 'none'}")
    if pose is None:
        if shift is not None:
            raise UsageError(f"{table.key('shift')}: a shift starts from a pose; give {table.key('pose')}")
        return Setup(name, views, settle_s=settle)
    x, y, z, *turned = _numbers(pose, 6, table.key("pose"))
    if limits is None:
        raise UsageError("limits: missing; where there are poses give limits.workspace and limits.speed")
    steps = shifts[shift] if shift is not None else [(0.0, 0.0, 0.0)]
    poses: list[Any] = [(x + dx, y + dy, z + dz, *turned) for dx, dy, dz in steps]
    for number, moved in enumerate(poses, 1):
        limits.refuse(moved, speed, table.key("pose") + (f", shot {number} of shift {shift}" if shift else ""))
    return Setup(name, views, poses, speed, settle)


def _view(table: _Table, folder: Path) -> View:
    reference = table.get("reference", str, None)
    view = View(
        name=_name(table),
        light=table.get("light", str, ""),
        exposure=table.get("exposure", float, None),
        gain=table.get("gain", float, None),
        reference=None if reference is None else folder / reference,
    )
    table.end()
    if view.reference is not None and not view.reference.is_file():
        raise UsageError(f"{table.key('reference')}: there is no file {view.reference}; paths are relative to the plan")
    return view


def _name(table: _Table) -> str:
    name = table.get("name", str)
    if not NAME.fullmatch(name):
        raise UsageError(f"{table.key('name')}: {name!r} is no name; letters, digits and dashes, up to 64")
    return name


def _numbers(values: Sequence[Any], count: int, where: str) -> list[float]:
    if len(values) != count:
        raise UsageError(f"{where}: has {len(values)} numbers; give {count}")
    return [_of(value, float, where) for value in values]


def _refuse_twice(names: Sequence[str], where: str) -> None:
    """In any case of the letters: some disks know no other."""
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            raise UsageError(f"{where}: {name!r} stands there twice; give each its own name")
        seen.add(name.lower())


def _refuse_moved(setups: Sequence[Setup]) -> None:
    """A fixed camera sees one setup in one light."""
    if len(setups) > 1 or setups[0].poses != (None,):
        raise UsageError("robot: none moves nothing, so give one setup without pose; or take robot hand")
    if len({view.light for view in setups[0].views}) > 1:
        raise UsageError("setup[1].view: robot none switches no light, so name one in all views; or take robot hand")


def _refuse_unknown(plan: Plan) -> None:
    """A robot has an address, goes to poses, and knows its lights."""
    if not HOST.fullmatch(plan.address):
        raise UsageError(f"address: is {plan.address!r}; give the robot's, as 192.168.1.10 (its ports are fixed)")
    for number, setup in enumerate(plan.setups, 1):
        if setup.poses == (None,):
            raise UsageError(f"setup[{number}].pose: missing; robot ur goes to poses")
        for view in setup.views:
            if view.light and view.light not in plan.lights:
                known = ", ".join(plan.lights) or "none"
                raise UsageError(f"setup[{number}].view: no light {view.light!r} in [lights]; there are: {known}")


def _refuse_left_over(setups: Sequence[Setup]) -> None:
    """A view that sets nothing would be taken with what the view before has set."""
    views = [(f"setup[{i}].view[{j}]", view) for i, s in enumerate(setups, 1) for j, view in enumerate(s.views, 1)]
    for key in ("exposure", "gain"):
        missing = [where for where, view in views if getattr(view, key) is None]
        if missing and len(missing) < len(views):
            raise UsageError(f"{missing[0]}.{key}: missing; other views set it, so give it in all of them or in none")

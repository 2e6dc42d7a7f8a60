"""What brings part, camera and light into place before a picture is taken, within limits that are held before it moves.

none   a fixed camera: nothing moves
hand   a person moves, switches the light, and presses Enter
ur     a robot of Universal Robots moves and switches (ur.py, extra `capture`)
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flawmap.errors import DataError, UsageError

Pose = tuple[float, float, float, float, float, float]  # x y z in mm, then the rotation vector rx ry rz in degrees
AXES = ("x", "y", "z")


class RobotFault(DataError):
    """A robot that is not where it was sent, or does not answer: nothing is tried again."""


@dataclass(frozen=True)
class Limits:
    """Where a robot may be, and how fast it may go."""

    workspace: Sequence[tuple[float, float]]  # least and most of x, y, z, mm
    speed: float  # mm/s
    acceleration: float = 300.0  # mm/s², with which a robot speeds up and slows down

    def refuse(self, pose: Sequence[float], speed: float, where: str) -> None:
        """UsageError: the pose lies outside, or the speed is above. `where` says whose they are."""
        if not all(math.isfinite(value) for value in pose):
            raise UsageError(f"{where}: the pose {list(pose)} is no place; give six numbers")
        for axis, value, (low, high) in zip(AXES, pose, self.workspace, strict=False):
            if not low <= value <= high:
                raise UsageError(
                    f"{where}: {axis} = {value:g} mm lies outside limits.workspace, {low:g} to {high:g}; "
                    "change the pose, or the limits where there is room"
                )
        if not 0 < speed <= self.speed:
            raise UsageError(f"{where}: a speed of {speed:g} mm/s; limits.speed allows above 0, to {self.speed:g}")


class Robot(Protocol):
    kind: str
    waits: bool  # for a person, before pictures

    def part(self, name: str) -> None:
        """This part is next."""
        ...

    def setup(self, name: str) -> None:
        """What follows is of this setup; where it has a pose, a move follows."""
        ...

    def move(self, pose: Pose, speed: float) -> None:
        """UsageError before anything moves: outside the limits."""
        ...

    def light(self, name: str) -> None:
        """This light and no other; "": none."""
        ...

    def settle(self, seconds: float) -> None:
        """Comes back when all is in place, and has been still for so long."""
        ...

    def pose(self) -> Pose | None:
        """Where it is, as far as is known. None: nobody knows."""
        ...

    def stop(self) -> None:
        """Holds still, now. May be called at any time, and twice."""
        ...

    def close(self) -> None:
        """Light off, connections at their end. May be called twice."""
        ...


class Fixed:
    """A fixed camera and one light; parts come by themselves, as those of a replay or on a belt."""

    kind, waits = "none", False

    def part(self, name: str) -> None: ...

    def setup(self, name: str) -> None: ...

    def move(self, pose: Pose, speed: float) -> None:
        raise UsageError("robot none moves nothing; leave poses and shifts out of the plan, or take robot hand")

    def light(self, name: str) -> None: ...

    def settle(self, seconds: float) -> None:
        time.sleep(seconds)

    def pose(self) -> None:
        return None

    def stop(self) -> None: ...

    def close(self) -> None: ...


class Hand:
    """A person is told on stderr what to do, all at once, and presses Enter when it is done."""

    kind, waits = "hand", True

    def __init__(self, limits: Limits | None) -> None:
        refuse_no_terminal("robot hand waits for Enter", "take none")
        self._limits = limits
        self._pose: Pose | None = None
        self._setup = self._light = ""
        self._to_do: list[str] = []

    def part(self, name: str) -> None:
        self._to_do.append(f"put in part {name}")

    def setup(self, name: str) -> None:
        if name != self._setup:
            self._to_do.append(f"setup {name}")
            self._pose = None  # until it is asked for
        self._setup = name

    def move(self, pose: Pose, speed: float) -> None:
        if self._limits is None:
            raise UsageError("limits: missing; without workspace and speed nothing is moved")
        self._limits.refuse(pose, speed, "move")
        if pose != self._pose:
            self._to_do.append("move to " + " ".join(f"{value:g}" for value in pose))
        self._pose = pose

    def light(self, name: str) -> None:
        if name != self._light:
            self._to_do.append(f"light: {name or 'off'}")
        self._light = name

    def settle(self, seconds: float) -> None:
        if self._to_do:
            wait_for_enter("; ".join(self._to_do))
            self._to_do.clear()
        time.sleep(seconds)

    def pose(self) -> Pose | None:
        """What was asked for; nothing measures where the hand went."""
        return self._pose

    def stop(self) -> None:
        self._to_do.clear()

    def close(self) -> None: ...


def refuse_no_terminal(why: str, instead: str) -> None:
    if not sys.stdin or sys.stdin.closed or not sys.stdin.isatty():
        raise UsageError(f"{why}, and stdin is no terminal; start it in one, or {instead}")


def wait_for_enter(what: str) -> None:
    """What was typed before does not count. KeyboardInterrupt at Ctrl-D: nobody is there any more."""
    _forget_typed()
    print(f"{what}; then Enter ", end="", file=sys.stderr, flush=True)
    if not sys.stdin.readline():
        raise KeyboardInterrupt


def _forget_typed() -> None:
    """An Enter pressed twice must not move the robot for the next part, with a hand in the cell."""
    try:
        import termios
    except ImportError:  # Windows
        import msvcrt

        while msvcrt.kbhit():  # type: ignore[attr-defined]
            msvcrt.getch()  # type: ignore[attr-defined]
    else:
        termios.tcflush(sys.stdin, termios.TCIFLUSH)


KINDS = ("none", "hand", "ur")


def robot(
    kind: str,
    limits: Limits | None = None,
    address: str = "",
    lights: Mapping[str, int] | None = None,
    by_hand: bool = True,
) -> Robot:
    """By its name, as at the top of this file. UsageError: there is no such kind, or it cannot work here.

    `address`, `lights` (name -> digital output) and `by_hand` (a person changes parts, and presses Enter) are of `ur`.
    """
    if kind == "none":
        return Fixed()
    if kind == "hand":
        return Hand(limits)
    if kind == "ur":
        from flawmap.images.ur import UR

        if limits is None:
            raise UsageError("limits: missing; without workspace and speed nothing is moved")
        return UR(address, limits, lights or {}, by_hand)
    raise UsageError(f"no robot {kind!r}; there are {', '.join(KINDS)}")

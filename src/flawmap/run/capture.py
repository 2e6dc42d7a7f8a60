"""A plan -> pictures in a folder, each whole with its sidecar, in an order that goes on where it stopped.

A picture counts when its sidecar lies beside it: the picture is written first, both under other names that are changed
when all bytes are on the disk. `parts.csv` names every planned picture while the work goes on, and those that are
there when it ends or stops: so flawmap fit refuses a folder whose capture was killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flawmap.errors import DataError, UsageError
from flawmap.images import camera as cameras
from flawmap.images.decode import MAX_MPX, read_pixels
from flawmap.images.folder import DRAWING, STATE
from flawmap.images.plan import Checks, Plan, Setup, Shot, View, read_plan
from flawmap.images.png import as_png
from flawmap.images.quality import brightness, saturation, sharpness
from flawmap.images.robot import Robot, RobotFault, robot
from flawmap.report.poses import Stop, drawing
from flawmap.run.claim import claimed
from flawmap.run.progress import Tick, progress, say
from flawmap.run.recipe import write_csv

LIST, LOCK = "parts.csv", ".capture.lock"
STOPS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
SHOT_S, HAND_S = 0.3, 10.0  # taken for a picture, and for what a person does, where time is estimated


class Taken(NamedTuple):
    png: bytes
    facts: dict[str, Any]


class Levels(NamedTuple):
    """Brightness and sharpness of a reference."""

    brightness: float
    sharpness: float


def capture(path: Path, out: Path, camera: str = "") -> dict[str, Any]:
    """Takes what of the plan is not in `out` yet. `camera` is used in place of the plan's.

    UsageError: the plan cannot be meant, or `out` is of another. DataError: the camera gives no picture that passes.
    """
    plan = read_plan(path)
    name = camera or plan.camera
    if not name:
        raise UsageError(f"{path}: camera: missing; name one there, or with --camera")
    levels = _references(plan)
    _claim(out)
    with claimed(out / LOCK) as ours:
        if not ours:
            raise UsageError(f"{out}: another capture is at work in this folder; wait for it, or give another folder")
        _begin(plan, name, out)
        done = _done(plan, out, verify=True)
        write_csv(out / LIST, ["path", "part"], [(shot.name, shot.part) for shot in plan.shots()])
        if len(done) < plan.per_part * len(plan.parts):
            _work(plan, name, out, levels, done)
        _list(plan, out, done)
    return {"pictures": len(done), "parts": len(plan.parts), "folder": str(out)}


def rehearse(path: Path, out: Path) -> dict[str, Any]:
    """Draws the plan into `out`, and estimates; nothing is opened and nothing moves."""
    plan = read_plan(path)
    seconds, moves = _estimate(plan)
    asks = plan.robot == "hand" or (plan.robot == "ur" and plan.by_hand)
    person = f", {HAND_S:g} s for each thing that a person does" if asks else ""
    assumes = f"{SHOT_S:g} s for a picture{person}"
    shots = plan.per_part * len(plan.parts)
    note = f"{len(plan.parts)} parts, {shots} pictures, {moves} moves, about {_clock(seconds)}, at {assumes}"
    stops = [_stop(setup) for setup in plan.setups]
    out.mkdir(parents=True, exist_ok=True)
    text = drawing(f"{path.name}: one part", stops, plan.limits.workspace if plan.limits else None, note)
    _put(out / DRAWING, text.encode())
    told = {"parts": len(plan.parts), "pictures": shots, "moves": moves, "seconds": round(seconds)}
    return {**told, "assumes": assumes, "drawing": str(out / DRAWING)}


def _claim(out: Path) -> None:
    """A folder of a capture, or an empty one."""
    strange = [] if not out.is_dir() else sorted(p.name for p in out.iterdir() if p.name not in (DRAWING, LOCK))
    if strange and not (out / STATE).is_file() and any(not name.endswith(".new") for name in strange):
        raise UsageError(f"{out}: holds {strange[0]}, and is no folder of a capture; give an empty one")
    out.mkdir(parents=True, exist_ok=True)


def _begin(plan: Plan, camera: str, out: Path) -> None:
    """One folder, one plan, one camera: else its pictures are not of one kind."""
    for left in out.rglob(".*.new"):
        left.unlink()
    shown = cameras.without_password(camera)
    text = plan.text.replace(plan.camera, cameras.without_password(plan.camera)) if plan.camera else plan.text
    state = {"plan_sha256": plan.sha256, "camera": shown, "plan": text}
    # As long as there is no picture, a plan may be mended.
    if not (out / STATE).exists() or not any(out.glob("*/*.json")):
        _put(out / STATE, json.dumps(state, indent=1).encode())
        return
    before = _json(out / STATE)
    for key, what in (("plan_sha256", "plan"), ("camera", "camera")):
        if before.get(key) != state[key]:
            raise UsageError(
                f"{out}: was begun with another {what} ({STATE} has it); go on with that, or give a new folder"
            )


def _done(plan: Plan, out: Path, verify: bool) -> dict[str, dict[str, Any]]:
    """Name of a picture -> its sidecar. What a killed process left half done is removed.

    DataError: a picture is not the one that was taken.
    """
    found = {}
    for shot in plan.shots():
        path = out / shot.name
        side = path.with_suffix(".json")
        if path.exists() and side.exists():
            facts = _json(side)
            if lacking := sorted({"frame", "camera", "pixels_sha256"} - facts.keys()):
                raise DataError(f"{side}: lacks {lacking[0]}; remove it, and its picture is taken again")
            if verify and hashlib.sha256(path.read_bytes()).hexdigest() != facts.get("sha256"):
                raise DataError(f"{path}: was changed since it was taken; put it back, or remove it to take it again")
            found[shot.name] = facts
        else:
            path.unlink(missing_ok=True)
            side.unlink(missing_ok=True)
    return found


def _work(plan: Plan, name: str, out: Path, levels: Mapping[Path, Levels], done: dict[str, dict[str, Any]]) -> None:
    total = plan.per_part * len(plan.parts)
    seen = cameras.camera(name)
    if others := {facts["camera"] for facts in done.values()} - {seen.name}:
        seen.close()
        raise UsageError(f"{out}: its pictures are of {min(others)}, and this is {seen.name}; give a new folder")
    last = [done[shot.name] for shot in plan.shots() if shot.name in done][-1:]
    if last:
        seen.after(last[0]["frame"])
        say(f"going on: {len(done)} of {total} pictures are there")
    arm: Robot | None = None
    try:
        with _terminable():
            arm = robot(plan.robot, plan.limits, plan.address, plan.lights, plan.by_hand)
            # A bar would be drawn over what a person is asked.
            words = nullcontext(lambda count: say(f"{count} of {total} pictures"))
            with words if arm.waits else progress("capture", total) as tick:
                _shoot(_Station(plan, arm, seen, levels, done), out, tick)
    except BaseException:
        if arm is not None:
            arm.stop()
        done = _done(plan, out, verify=False)  # the last may have come to the disk without having been counted
        _list(plan, out, done)
        say(f"stopped after {len(done)} of {total} pictures{_lacking(plan, done)}; the same command goes on")
        raise
    finally:
        if arm is not None:
            arm.close()
        seen.close()


def _shoot(station: _Station, out: Path, tick: Tick) -> None:
    done, at = station.done, ()
    for shot in station.plan.shots():
        if shot.name in done:
            continue
        at = station.go(shot, at)
        taken = station.take(shot)
        path = out / shot.name
        path.parent.mkdir(exist_ok=True)
        _put(path, taken.png)
        _put(path.with_suffix(".json"), json.dumps(taken.facts, indent=1).encode())
        done[shot.name] = taken.facts
        tick(len(done))


class _Station:
    """Robot, light and camera, and what a picture has to pass."""

    def __init__(
        self, plan: Plan, arm: Robot, camera: cameras.Camera, levels: Mapping[Path, Levels], done: dict[str, Any]
    ) -> None:
        self.plan, self.done = plan, done
        self._robot, self._camera, self._levels = arm, camera, levels
        self._pixels = {facts["pixels_sha256"]: name for name, facts in done.items()}

    def go(self, shot: Shot, at: tuple[Any, ...]) -> tuple[Any, ...]:
        """Part, setup, pose and light of a shot; what is so already is left so. Gives where it is now."""
        here = (shot.part, shot.setup.name, shot.shift)
        if here[:1] != at[:1]:
            self._robot.part(shot.part)
        self._robot.setup(shot.setup.name)
        if here != at and shot.pose is not None:
            self._robot.move(shot.pose, shot.setup.speed)
        self._robot.light(shot.view.light)
        return here

    def take(self, shot: Shot) -> Taken:
        """DataError: no picture passed in so many tries, with the reason of the last."""
        why = ""
        for number in range(1, self.plan.checks.tries + 1):
            try:
                return self._take(shot, number)
            except RobotFault:
                raise
            except DataError as error:
                why = str(error)
                say(f"{shot.name}, try {number} of {self.plan.checks.tries}: {why}")
        raise DataError(f"{shot.name}: no picture passed in {self.plan.checks.tries} tries; the last: {why}")

    def _take(self, shot: Shot, number: int) -> Taken:
        setting = self._camera.adjust(shot.view.exposure, shot.view.gain)
        self._robot.settle(shot.setup.settle_s)
        frame = self._camera.grab()[0]
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        png, pixels = as_png(frame.content, MAX_MPX)
        digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype}".encode() + pixels.tobytes()).hexdigest()
        if digest in self._pixels:
            raise DataError(
                f"{frame.name} is the very picture of {self._pixels[digest]}: a frame was missed, or the pictures of a "
                "replay or film are at their end; look at the camera, or plan fewer parts"
            )
        found = measured(pixels, self.plan.checks, shot.view, self._levels)
        self._pixels[digest] = shot.name
        pose = self._robot.pose()
        asked = {"exposure": shot.view.exposure, "gain": shot.view.gain, "pose": shot.pose}
        facts = {
            **{"part": shot.part, "setup": shot.setup.name, "view": shot.view.name, "shift": shot.shift + 1},
            **{"time": when, "camera": self._camera.name, "frame": frame.name},
            **{"exposure": setting["exposure"], "gain": setting["gain"], "asked": asked},
            **{"exposure_unit": self._camera.exposure_unit if setting["exposure"] is not None else None},
            **{"robot": self._robot.kind, "pose": pose, "light": shot.view.light},
            **{"height": pixels.shape[0], "width": pixels.shape[1], "bits": 8 * pixels.dtype.itemsize},
            **{"sha256": hashlib.sha256(png).hexdigest(), "pixels_sha256": digest, "plan_sha256": self.plan.sha256},
            **{"measured": found, "tries": number},
        }
        return Taken(png, facts)


def measured(pixels: np.ndarray, checks: Checks, view: View, levels: Mapping[Path, Levels]) -> dict[str, float]:
    """Saturation, brightness, sharpness of a picture. DataError: one is beyond what the plan allows."""
    found = {
        "saturation": saturation(pixels, checks.white),
        "brightness": brightness(pixels, checks.white),
        "sharpness": sharpness(pixels, checks.white),
    }
    if found["saturation"] > checks.saturation:
        raise DataError(
            f"{found['saturation']:.1%} of the pixels are saturated, checks.saturation allows {checks.saturation:.1%}; "
            "take less light or a shorter exposure"
        )
    if view.reference is None:
        return found
    wanted = levels[view.reference]
    if abs(found["brightness"] - wanted.brightness) > checks.brightness * wanted.brightness:
        raise DataError(
            f"its brightness {found['brightness']:.3f} differs from the reference's {wanted.brightness:.3f} by more "
            f"than checks.brightness, {checks.brightness:.0%}; look at lamp and exposure"
        )
    if found["sharpness"] < checks.focus * wanted.sharpness:
        raise DataError(
            f"its sharpness is {found['sharpness'] / wanted.sharpness:.0%} of the reference's, checks.focus asks for "
            f"{checks.focus:.0%}; look at focus and distance"
        )
    return found


def _references(plan: Plan) -> dict[Path, Levels]:
    """DataError: a reference cannot be read, or is brighter than white."""
    paths = {view.reference for setup in plan.setups for view in setup.views if view.reference is not None}
    levels, white = {}, plan.checks.white
    for path in sorted(paths):
        pixels = np.asarray(read_pixels(path, MAX_MPX))
        try:
            levels[path] = Levels(brightness(pixels, white), sharpness(pixels, white))
        except DataError as error:
            raise DataError(f"{path}: {error}, as checks.white") from error
    return levels


def _list(plan: Plan, out: Path, done: Iterable[str]) -> None:
    there = set(done)
    write_csv(out / LIST, ["path", "part"], [(s.name, s.part) for s in plan.shots() if s.name in there])


def _lacking(plan: Plan, done: Iterable[str]) -> str:
    there = set(done)
    counts = {part: 0 for part in plan.parts}
    for shot in plan.shots():
        counts[shot.part] += shot.name in there
    half = next((part for part, count in counts.items() if 0 < count < plan.per_part), None)
    return f"; part {half} lacks {plan.per_part - counts[half]} of {plan.per_part}" if half else ""


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM stops as Ctrl-C does, and so does a terminal that is closed."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, stop) for each in STOPS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _put(path: Path, content: bytes) -> None:
    """Whole and on the disk, or not at all."""
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: is damaged ({error}); remove it, and its picture is taken again") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: is damaged; remove it, and its picture is taken again")
    return found


def _stop(setup: Setup) -> Stop:
    lines = []
    for view in setup.views:
        more = [f"{what} {value:g}" for what, value in (("exposure", view.exposure), ("gain", view.gain)) if value]
        lines.append(", ".join([view.name, *([f"light {view.light}"] if view.light else []), *more]))
    points = [pose[:3] for pose in setup.poses if pose is not None]
    shots = len(setup.poses) * len(setup.views)
    return Stop(f"{setup.name}: {shots} picture{'s' * (shots > 1)}, settles {setup.settle_s:g} s", points, lines)


def _estimate(plan: Plan) -> tuple[float, int]:
    """Seconds, and how often something is moved."""
    seconds, moves = 0.0, 0
    at = before = None
    for shot in plan.shots():
        here = (shot.part, shot.setup.name, shot.view.light)
        asked = here != before or (shot.pose is not None and shot.pose != at)
        if plan.robot != "hand":
            asked = plan.robot == "ur" and plan.by_hand and here[:1] != (before or ())[:1]
        if shot.pose is not None and shot.pose != at:
            moves += 1
            seconds += (
                0.0 if at is None else float(np.linalg.norm(np.subtract(shot.pose[:3], at[:3]))) / shot.setup.speed
            )
        seconds += SHOT_S + shot.setup.settle_s + (HAND_S if asked else 0.0)
        at, before = shot.pose or at, here
    return seconds, moves


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"

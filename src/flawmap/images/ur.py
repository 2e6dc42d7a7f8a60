"""A robot of Universal Robots (CB3, e-Series) that carries the camera or the part, through ur-rtde (extra `capture`).

It moves in straight lines only: a box is convex, so a line between two places inside stays inside. What is held is the
tool centre point, not elbow, tool or cable: the robot's own safety settings are not replaced.

The program on the robot stops by itself when it has not heard from here for 1 / WATCHDOG_HZ seconds: after a crash, a
kill, a pulled cable. The library ur-rtde would connect again by itself and start its program anew; that is not used:
what is lost is a RobotFault.
"""

from __future__ import annotations

import ctypes
import importlib
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from flawmap.errors import MissingExtra, UsageError
from flawmap.images.robot import AXES, Limits, Pose, RobotFault, refuse_no_terminal, wait_for_enter

NEAR_MM, NEAR_DEG = 0.5, 0.2  # most that the reported pose may differ from the one that was asked for
FREQUENCY = 125.0  # Hz; what CB3 gives, and enough
POLL_S, KICK_S, WATCHDOG_HZ = 0.02, 0.1, 1.0
CONNECT_MS, SILENT_S = 3000, 1.0
STALL_S, STEADY_S, BUSY_S, LIGHT_S = 3.0, 10.0, 3.0, 1.0  # so long is waited for it
BRAKE_M_S2 = 2.0
PLAYING = 2  # of runtime_state
RTDE = 30004
VARIABLES = ["timestamp", "actual_TCP_pose", "actual_digital_output_bits", "runtime_state", "safety_status_bits"]
STOPS = (  # bits of safety_status_bits
    (0b1110_0000, "is in an emergency stop"),
    (0b0000_0100, "is in a protective stop"),
    (0b0001_0000, "is in a safeguard stop"),
    (0b111_0000_1000, "was stopped by its safety system"),
)
MEND = "look why, set it right at the pendant"


def to_ur(pose: Sequence[float]) -> list[float]:
    """mm and degrees -> metres and radians; the rotation stays a vector, axis times angle."""
    return [*(value / 1000 for value in pose[:3]), *(float(value) for value in np.radians(pose[3:]))]


def from_ur(pose: Sequence[float]) -> Pose:
    x, y, z = (round(value * 1000, 4) for value in pose[:3])
    rx, ry, rz = (round(float(value), 4) for value in np.degrees(pose[3:]))
    return (x, y, z, rx, ry, rz)


def apart(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """mm and degrees between two poses. Two vectors can say one rotation: (180, 0, 0) and (-180, 0, 0)."""
    turns = [Rotation.from_rotvec(pose[3:], degrees=True) for pose in (one, other)]
    return float(np.linalg.norm(np.subtract(one[:3], other[:3]))), float(
        np.degrees((turns[0].inv() * turns[1]).magnitude())
    )


class UR:
    kind = "ur"

    def __init__(self, address: str, limits: Limits, lights: Mapping[str, int], by_hand: bool) -> None:
        """RobotFault: it does not answer, or may not be moved. UsageError: it stands outside the workspace."""
        if by_hand:
            refuse_no_terminal("a person changes the parts, and presses Enter", "give parts.by_hand = false")
        try:
            names = ("dashboard_client", "rtde_receive", "rtde_control", "rtde_io")
            dashboard, receive, control, outputs = (importlib.import_module(name) for name in names)
        except ImportError as error:
            raise MissingExtra("ur-rtde", "capture", "robot ur") from error
        self.address, self.waits = address, by_hand
        self._limits, self._lights, self._client = limits, lights, dashboard.DashboardClient
        self._state: Any = None
        self._control: Any = None
        self._io: Any = None
        self._target: Pose | None = None
        self._stamp, self._heard = 0.0, time.monotonic()
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._ready()
        self._answers()
        try:
            self._state = receive.RTDEReceiveInterface(address, FREQUENCY, VARIABLES)
            self._inside()
            self._control = control.RTDEControlInterface(address, FREQUENCY)
            self._io = outputs.RTDEIOInterface(address)
            watched = self._control.setWatchdog(WATCHDOG_HZ)
        except RuntimeError as error:
            self.close()
            raise RobotFault(f"{self} cannot be driven ({error}); {MEND}") from error
        except BaseException:
            self.close()
            raise
        if not watched:
            self.close()
            raise RobotFault(f"{self} does not take commands; {MEND}")
        threading.Thread(target=self._kick, name="watchdog", daemon=True).start()

    def __str__(self) -> str:
        return f"the robot at {self.address}"

    def part(self, name: str) -> None:
        """Before anything moves: it stands still while a hand is near."""
        if self.waits:
            wait_for_enter(f"put in part {name}, step back: the robot moves")

    def setup(self, name: str) -> None: ...

    def move(self, pose: Pose, speed: float) -> None:
        self._limits.refuse(pose, speed, "move")
        self._refuse_stopped()
        self._inside()
        with self._lock:  # asynchronous: Ctrl-C is heard on the way
            sent = self._control.moveL(to_ur(pose), speed / 1000, self._limits.acceleration / 1000, True)
        if not sent:
            self._refuse_stopped()
            raise RobotFault(f"{self} did not take a move; {MEND}")
        self._target = pose
        before, moved = self._read(), time.monotonic()
        while True:
            time.sleep(POLL_S)
            self._refuse_stopped()
            here = self._read()
            if self._off(here) == "" and self._steady():
                return
            if max(apart(here, before)) > 0.02:
                before, moved = here, time.monotonic()
            elif time.monotonic() - moved > STALL_S:
                why = self._off(here) or "is not steady"
                raise RobotFault(f"{self} {why}, {STALL_S:g} s after it came to rest; {MEND}")

    def light(self, name: str) -> None:
        wanted = {output: bool(name) and each == name for each, output in self._lights.items()}
        for output in sorted(wanted, key=wanted.__getitem__):  # first off, then on
            self._switch(output, wanted[output])
        end = time.monotonic() + LIGHT_S
        while wrong := [output for output, on in wanted.items() if self._state.getDigitalOutState(output) != on]:
            self._refuse_silent()
            if time.monotonic() > end:
                raise RobotFault(f"digital output {wrong[0]} of {self} does not switch; is it taken for another use?")
            time.sleep(POLL_S)

    def settle(self, seconds: float) -> None:
        begun = still = time.monotonic()
        while True:
            self._refuse_stopped()
            steady, now = self._steady(), time.monotonic()
            if not steady:
                still = now
            elif now - still >= seconds:
                break
            if now - begun > seconds + STEADY_S:
                raise RobotFault(f"{self} was never steady for {seconds:g} s in {now - begun:.0f} s; {MEND}")
            time.sleep(POLL_S)
        if self._target is not None and (off := self._off(self._read())):
            raise RobotFault(f"{self} {off}; {MEND}")

    def pose(self) -> Pose:
        """As the robot reports it. RobotFault: it has left its place since it settled."""
        self._refuse_stopped()
        here = self._read()
        if self._target is not None and (off := self._off(here)):
            raise RobotFault(f"{self} {off}; {MEND}")
        return here

    def stop(self) -> None:
        """Brakes; when its program cannot, that is ended at the dashboard, so that nobody resumes it."""
        if self._control is None:
            return
        if self._alive() and self._state.getRuntimeState() == PLAYING and not self._stopped_by():
            with self._lock:
                self._control.stopL(BRAKE_M_S2)
        else:
            self._dashboard_stop()

    def close(self) -> None:
        state, alive = self._state, self._state is not None and self._alive()
        if alive and self._io is not None:
            try:
                self.light("")
            except (RobotFault, RuntimeError) as error:
                print(f"the light may be on: {error}", file=sys.stderr)
        self._ended.set()
        with self._lock:
            if alive and self._control is not None and state.getRuntimeState() == PLAYING:
                self._control.stopScript()
            for each in (self._control, self._io, state):
                if each is not None and alive:
                    each.disconnect()
                elif each is not None:
                    ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))  # never freed: that would wait for an answer
            self._control = self._io = self._state = None

    def _ready(self) -> None:
        """RobotFault: it does not answer at the dashboard, or may not be moved."""
        client = self._client(self.address)
        try:
            client.connect(CONNECT_MS)
            mode, safety = client.robotmode().strip(), client.safetymode().strip()
            version = tuple(int(number) for number in client.polyscopeVersion().split(".")[:2])
            remote = version < (5, 6) or client.isInRemoteControl()
            busy = self._busy(client)
        except (RuntimeError, ValueError) as error:
            raise RobotFault(
                f"{self} does not answer at the dashboard, port 29999 ({error}); look at address, cable and power"
            ) from error
        finally:
            client.disconnect()
        if not mode.endswith("RUNNING"):
            raise RobotFault(f"{self} is not running ({mode}); power it on and release its brakes")
        if safety.rpartition(" ")[2] not in ("NORMAL", "REDUCED"):
            raise RobotFault(f"{self} is stopped ({safety}); {MEND}")
        if not remote:
            raise RobotFault(f"{self} is in local control; switch it to remote control at the pendant")
        if busy:
            raise RobotFault(f"{self} runs another program; stop that first")

    def _answers(self) -> None:
        """The library would wait without end for a port that is silent."""
        try:
            with socket.create_connection((self.address, RTDE), CONNECT_MS / 1000) as asked:
                asked.sendall(b"\0\5V\0\2")  # protocol 2?
                heard = asked.recv(4)
        except OSError as error:
            raise RobotFault(f"{self} does not answer at port {RTDE} ({error}); look at its firewall") from error
        if heard != b"\0\4V\1":
            raise RobotFault(f"{self} does not speak RTDE, protocol 2, at port {RTDE}")

    def _busy(self, client: Any) -> bool:
        """The program of a capture that was killed ends by itself, soon."""
        end = time.monotonic() + BUSY_S
        while client.running():
            if time.monotonic() > end:
                return True
            time.sleep(0.1)
        return False

    def _dashboard_stop(self) -> None:
        client = self._client(self.address)
        try:
            client.connect(CONNECT_MS)
            client.stop()
        except RuntimeError:
            print(f"{self} cannot be reached; its program stops by itself in {1 / WATCHDOG_HZ:g} s", file=sys.stderr)
        finally:
            client.disconnect()

    def _read(self) -> Pose:
        return from_ur(self._state.getActualTCPPose())

    def _inside(self) -> None:
        """UsageError: it stands outside the workspace, so that the way to the next pose would lie outside, too."""
        here = self._read()
        for axis, value, (low, high) in zip(AXES, here, self._limits.workspace, strict=False):
            if not low - NEAR_MM <= value <= high + NEAR_MM:
                raise UsageError(
                    f"{self} stands at {axis} = {value:g} mm, outside limits.workspace, {low:g} to {high:g}; bring it "
                    "inside with the pendant"
                )

    def _off(self, here: Pose) -> str:
        """How far it is from where it was sent, in words; "": near enough."""
        assert self._target is not None
        mm, degrees = apart(here, self._target)
        return f"is {mm:.2f} mm and {degrees:.2f}° from where it was sent" if mm > NEAR_MM or degrees > NEAR_DEG else ""

    def _steady(self) -> bool:
        with self._lock:
            return self._control.isSteady()

    def _switch(self, output: int, on: bool) -> None:
        """0 to 7 are the standard outputs, 8 to 15 the configurable ones, 16 and 17 those of the tool."""
        if output < 8:
            self._io.setStandardDigitalOut(output, on)
        elif output < 16:
            self._io.setConfigurableDigitalOut(output - 8, on)
        else:
            self._io.setToolDigitalOut(output - 16, on)

    def _alive(self) -> bool:
        """Whether the robot's clock goes on here."""
        stamp, now = self._state.getTimestamp(), time.monotonic()
        if stamp != self._stamp:
            self._stamp, self._heard = stamp, now
        return self._state.isConnected() and now - self._heard < SILENT_S

    def _refuse_silent(self) -> None:
        if not self._alive():
            raise RobotFault(f"the connection to {self} is lost; its program stops by itself; look at cable and power")

    def _stopped_by(self) -> str:
        bits = self._state.getSafetyStatusBits()
        return next((words for mask, words in STOPS if bits & mask), "")

    def _refuse_stopped(self) -> None:
        self._refuse_silent()
        if by := self._stopped_by():
            raise RobotFault(f"{self} {by}; {MEND}")
        if self._state.getRuntimeState() != PLAYING:
            raise RobotFault(f"the program of {self} was stopped or paused; {MEND}")

    def _kick(self) -> None:
        """Tells the robot that there is somebody; from a thread, since taking a picture may last."""
        while not self._ended.wait(KICK_S):
            with self._lock:
                if self._ended.is_set() or not self._alive():
                    return
                try:
                    self._control.kickWatchdog()
                except RuntimeError:
                    return

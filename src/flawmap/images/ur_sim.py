"""A simulated controller of a UR robot, for rehearsals and tests: python -m flawmap.images.ur_sim 127.0.0.2

Speaks what the library ur-rtde uses, at its ports, over TCP: the dashboard (29999), the port for programs (30003) and
RTDE (30004, protocol 2). Ports are fixed, so each simulator has a loopback address of its own. It does not interpret
URScript: when the control program of ur-rtde has come, it answers the numbers of commands that this program knows:
move in a line, stop, is steady, watchdog. The arm is a point that speeds up, goes straight, turns evenly, and slows
down; there are no joints, so no pose is out of reach. Protocol: Universal Robots, Real-Time Data Exchange Guide.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

DASHBOARD, SCRIPT, RTDE = 29999, 30003, 30004
STEP_S = 0.008
VERSION = (5, 12, 0, 1101319)
PLAYING, STOPPED = 2, 1  # runtime_state
READY, DONE = 1, 2  # output_int_register_0, as the control program of ur-rtde sets it
NO_COMMAND, MOVE_LINE, STOP_LINE, WATCHDOG, IS_STEADY, STOP_SCRIPT = 0, 3, 33, 35, 47, 255  # input_int_register_0
NORMAL, PROTECTIVE, EMERGENCY = 1 << 0, 1 << 2, 1 << 7  # safety_status_bits
STILL_S = 0.1  # so long after a move the arm is steady
STOP_M_S2 = 5.0  # a protective stop brakes so hard
FORMATS = {"DOUBLE": "d", "VECTOR6D": "6d", "INT32": "i", "UINT32": "I", "UINT64": "Q", "UINT8": "B"}
OUTPUTS = {
    **{"timestamp": "DOUBLE", "actual_TCP_pose": "VECTOR6D", "actual_digital_output_bits": "UINT64"},
    **{"runtime_state": "UINT32", "robot_status_bits": "UINT32", "safety_status_bits": "UINT32"},
    **{f"output_int_register_{n}": "INT32" for n in range(24)},
    **{f"output_double_register_{n}": "DOUBLE" for n in range(24)},
}
LIGHTS = {"standard": 0, "configurable": 8, "tool": 16}  # -> its first bit of actual_digital_output_bits
INPUTS = {
    **{f"{kind}_digital_output{end}": "UINT8" for kind in LIGHTS for end in ("_mask", "")},
    **{f"input_int_register_{n}": "INT32" for n in range(24)},
    **{f"input_double_register_{n}": "DOUBLE" for n in range(24)},
}
FAULTS = {
    "protective": "a protective stop in the middle of a move",
    "emergency": "an emergency stop in the middle of a move",
    "cut": "all connections end in the middle of a move, and none is taken any more",
    "silent": "in the middle of a move nothing is sent any more, as with a cable that is pulled",
    "halt": "somebody stops the program in the middle of a move",
    "off": "the arm stops 2 mm before the end of each move",
    "shaky": "the arm is never steady",
    "dark": "digital outputs stay off",
    "local": "the robot is in local control",
    "locked": "the robot stands in a protective stop from the beginning",
    "busy": "another program runs",
    "mute": "RTDE takes connections and says nothing",
}


class Controller:
    """The arm, its program, its registers. Times in s, lengths in m, turns as rotation vectors in rad."""

    def __init__(self, pose: Sequence[float], fault: str = "", after: int = 0, log: Path | None = None) -> None:
        self.pose, self.log = np.array(pose, float), log
        self.inputs: dict[str, Any] = dict.fromkeys(INPUTS, 0)
        self.registers = dict.fromkeys([name for name in OUTPUTS if "register" in name], 0)
        self.runtime, self.lights, self.moves = STOPPED, 0, 0
        self.suffer(fault, after)
        self.lost = ""  # "cut" or "silent", once it has happened
        self._executing = False
        self._waits = 0  # the command that lasts
        self._way: tuple[np.ndarray, np.ndarray, float] | None = None  # from, to, length
        self._gone = self._speed = self._most = self._rate = 0.0
        self._stopping, self._still = False, 0.0  # since when
        self._kicked, self._watch = 0.0, 0.0  # when the command register was written; at least so often a second

    def suffer(self, fault: str, after: int = 0) -> None:
        """From now on, when so many more moves are done."""
        self.fault, self.after = fault, self.moves + after
        self.safety = PROTECTIVE if fault == "locked" else NORMAL
        self.runtime = PLAYING if fault == "busy" else self.runtime

    def note(self, what: str, **more: Any) -> None:
        if self.log is not None:
            line = {"what": what, "pose_mm": [round(float(v), 3) for v in self.pose[:3] * 1000], **more}
            with self.log.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def write(self, names: Sequence[str], values: Sequence[Any]) -> None:
        """A package of input registers and outputs."""
        self.inputs |= dict(zip(names, values, strict=True))
        if "input_int_register_0" in names:
            self._kicked = time.monotonic()
        for kind, first in LIGHTS.items():
            if f"{kind}_digital_output_mask" in names and self.fault != "dark":
                mask = self.inputs[f"{kind}_digital_output_mask"] << first
                value = self.inputs[f"{kind}_digital_output"] << first
                before, self.lights = self.lights, (self.lights & ~mask) | (value & mask)
                if before != self.lights:
                    self.note("outputs", on=[bit for bit in range(18) if self.lights >> bit & 1])

    def values(self, names: Sequence[str]) -> list[Any]:
        now = {
            **{"timestamp": time.monotonic(), "actual_TCP_pose": self.pose, "runtime_state": self.runtime},
            **{"actual_digital_output_bits": self.lights, "robot_status_bits": 1 | (self.runtime == PLAYING) << 1},
            **{"safety_status_bits": self.safety, **self.registers},
        }
        return [value for name in names for value in (now[name] if name == "actual_TCP_pose" else [now[name]])]

    def play(self) -> None:
        """The control program has come."""
        self.runtime, self._executing, self._waits, self._watch = PLAYING, False, 0, 0.0
        self._way, self._speed = None, 0.0  # what ran before is at its end
        self.registers["output_int_register_0"] = READY
        self.note("program")

    def halt(self, why: str) -> None:
        if self.runtime == PLAYING:
            self.runtime = STOPPED
            self.note("halt", why=why)
        self._stop(STOP_M_S2)

    def step(self, seconds: float) -> None:
        self._move(seconds)
        if self.runtime != PLAYING or self.fault == "busy":
            return
        if self._watch and time.monotonic() - self._kicked > 1 / self._watch:
            self.halt("watchdog")
            return
        command = self.inputs["input_int_register_0"]
        if self._waits:
            if self._way is None:
                self._waits = 0
                self.registers["output_int_register_0"] = DONE
        elif command == NO_COMMAND:
            self._executing = False
            self.registers["output_int_register_0"] = READY
        elif not self._executing:
            self._executing = True
            self._run(command)

    def _run(self, command: int) -> None:
        numbers = [self.inputs[f"input_double_register_{n}"] for n in range(8)]
        beside = self.inputs["input_int_register_1"] == 1  # asynchronous
        if command == STOP_SCRIPT:
            self.halt("asked")
            return
        if command == MOVE_LINE:
            self._begin(np.array(numbers[:6]), numbers[6], numbers[7])
        elif command == STOP_LINE:
            self._stop(numbers[0])
        elif command == WATCHDOG:
            self._watch = numbers[0]
        elif command == IS_STEADY:
            still = self._way is None and time.monotonic() - self._still > STILL_S and self.fault != "shaky"
            self.registers["output_int_register_1"] = int(still)
        else:
            self.halt(f"command {command} is none that is simulated")
            return
        if command in (MOVE_LINE, STOP_LINE) and not beside:
            self._waits = command
        else:
            self.registers["output_int_register_0"] = DONE

    def _begin(self, target: np.ndarray, speed: float, rate: float) -> None:
        turn = (Rotation.from_rotvec(self.pose[3:]).inv() * Rotation.from_rotvec(target[3:])).magnitude()
        length = max(float(np.linalg.norm(target[:3] - self.pose[:3])), float(turn) * 0.05)
        self.moves += 1
        asked = {"to_mm": [round(float(v), 3) for v in target[:3] * 1000], "speed_mm_s": round(speed * 1000, 3)}
        self.note("move", **asked, turned=[round(float(v), 5) for v in target[3:]])
        if length > 0:
            self._way = (self.pose.copy(), target, length)
            self._gone, self._speed, self._most, self._rate, self._stopping = 0.0, 0.0, speed, rate, False

    def _stop(self, rate: float) -> None:
        self._stopping, self._rate = True, max(rate, 0.01)

    def _move(self, seconds: float) -> None:
        if self._way is None:
            return
        start, end, length = self._way
        left = length - self._gone
        if self._stopping:
            self._speed = max(0.0, self._speed - self._rate * seconds)
        else:
            self._speed = min(self._speed + self._rate * seconds, self._most, math.sqrt(2 * self._rate * left) + 1e-4)
        self._gone = min(length, self._gone + self._speed * seconds)
        short = 0.002 if self.fault == "off" else 0.0
        if self._gone >= length - short or (self._stopping and self._speed == 0):
            self._way, self._still = None, time.monotonic()
        share = min(self._gone, max(length - short, 0.0)) / length
        turned = (Rotation.from_rotvec(start[3:]).inv() * Rotation.from_rotvec(end[3:])).as_rotvec() * share
        turns = (Rotation.from_rotvec(start[3:]) * Rotation.from_rotvec(turned)).as_rotvec()
        self.pose = np.concatenate([start[:3] + (end[:3] - start[:3]) * share, turns])
        if self._way is None:
            self.pose = end.copy() if share == 1 else self.pose
            self.note("still", stopped=self._stopping)
        if self._gone > length / 2 and self.moves > self.after:
            self._fail()

    def _fail(self) -> None:
        if self.fault in ("protective", "emergency") and self.safety == NORMAL:
            self.safety = PROTECTIVE if self.fault == "protective" else EMERGENCY
            self.halt(self.fault)
        if self.fault == "halt":
            self.halt("somebody")
        if self.fault in ("cut", "silent"):
            self.lost = self.fault

    def answer(self, question: str) -> str:
        """What the dashboard answers."""
        mode = {NORMAL: "NORMAL", PROTECTIVE: "PROTECTIVE_STOP", EMERGENCY: "ROBOT_EMERGENCY_STOP"}[self.safety]
        if question == "stop":
            self.halt("dashboard")
        if question.startswith("fault") and question[6:] in ("", *FAULTS):  # a real one does not know this
            self.suffer(question[6:])
            return question
        return {
            "polyscopeversion": "URSoftware {}.{}.{}.{} (simulated)".format(*VERSION),
            "get serial number": "20190000001",
            "robotmode": "Robotmode: RUNNING",
            "safetymode": f"Safetymode: {mode}",
            "safetystatus": f"Safetystatus: {mode}",
            "running": f"Program running: {str(self.runtime == PLAYING).lower()}",
            "is in remote control": str(self.fault != "local").lower(),
            "stop": "Stopped",
            "quit": "Disconnected",
        }.get(question, f"could not understand: '{question}'")


class Simulator:
    """Its three ports, and the clock."""

    def __init__(self, controller: Controller, address: str) -> None:
        self._of, self._address = controller, address
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self) -> None:
        servers = [
            await asyncio.start_server(self._kept(handle), self._address, port)
            for port, handle in ((DASHBOARD, self._dashboard), (SCRIPT, self._script), (RTDE, self._rtde))
        ]
        print(f"simulated UR controller at {self._address}", flush=True)
        before = time.monotonic()
        while True:
            await asyncio.sleep(STEP_S)
            now = time.monotonic()
            self._of.step(now - before)
            before = now
            if self._of.lost == "cut" and servers:
                for server in servers:
                    server.close()
                servers = []
                for writer in self._writers:
                    writer.transport.abort()

    def _kept(self, handle: Any) -> Any:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.add(writer)
            try:
                await handle(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass  # it has hung up
            finally:
                self._writers.discard(writer)
                writer.close()

        return connected

    async def _dashboard(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"Connected: Universal Robots Dashboard Server\n")
        while line := await reader.readline():
            if self._of.lost:
                continue
            writer.write(self._of.answer(line.decode(errors="replace").strip().lower()).encode() + b"\n")
            await writer.drain()

    async def _script(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        text = b""
        while piece := await reader.read(65536):
            text += piece
            if b"RTDE Control Script Terminated" in text and text.rstrip().endswith(b"end"):
                if self._of.safety == NORMAL and self._of.fault != "busy":
                    self._of.halt("another program")
                    self._of.play()
                text = b""

    async def _rtde(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        recipes: list[list[str]] = []
        outputs: list[str] = []
        sending: asyncio.Task[None] | None = None
        every = STEP_S

        def reply(kind: int, content: bytes) -> None:
            writer.write(struct.pack(">HB", 3 + len(content), kind) + content)

        async def send() -> None:
            codes = ">" + "".join(FORMATS[OUTPUTS[name]] for name in outputs)
            while True:
                if not self._of.lost:
                    reply(ord("U"), b"\1" + struct.pack(codes, *self._of.values(outputs)))
                    await writer.drain()
                await asyncio.sleep(every)

        try:
            while True:
                size, kind = struct.unpack(">HB", await reader.readexactly(3))
                content = await reader.readexactly(size - 3)
                match chr(kind):
                    case _ if self._of.fault == "mute":
                        pass
                    case "V":
                        reply(kind, b"\1" if content == b"\0\2" else b"\0")
                    case "v":
                        reply(kind, struct.pack(">4I", *VERSION))
                    case "O":
                        every = max(STEP_S, 1 / struct.unpack(">d", content[:8])[0])
                        outputs = content[8:].decode().strip(",").split(",")
                        reply(kind, b"\1" + ",".join(OUTPUTS.get(name, "NOT_FOUND") for name in outputs).encode())
                    case "I":
                        recipes.append(content.decode().strip(",").split(","))
                        types = ",".join(INPUTS.get(name, "NOT_FOUND") for name in recipes[-1])
                        reply(kind, bytes([len(recipes)]) + types.encode())
                    case "S":
                        reply(kind, b"\1")
                        sending = asyncio.create_task(send())
                    case "P":
                        if sending is not None:
                            sending.cancel()
                        reply(kind, b"\1")
                    case "U" if not self._of.lost:
                        names = recipes[content[0] - 1]
                        codes = ">" + "".join(FORMATS[INPUTS[name]] for name in names)
                        self._of.write(names, struct.unpack(codes, content[1:]))
        finally:
            if sending is not None:
                sending.cancel()


def main() -> None:
    words = argparse.ArgumentParser(description="a simulated controller of a UR robot")
    words.add_argument("address", help="of this machine, as 127.0.0.2")
    words.add_argument("--pose", type=float, nargs=6, default=[200, 150, 300, 0, 180, 0], help="mm, and degrees")
    words.add_argument(
        "--fault", default="", choices=["", *FAULTS], help="; ".join(f"{k}: {v}" for k, v in FAULTS.items())
    )
    words.add_argument("--after", type=int, default=0, help="so many moves without the fault")
    words.add_argument("--log", type=Path, help="what happens, a line of JSON each")
    args = words.parse_args()
    pose = [*(value / 1000 for value in args.pose[:3]), *(math.radians(value) for value in args.pose[3:])]
    controller = Controller(pose, args.fault, args.after, args.log)
    try:
        asyncio.run(Simulator(controller, args.address).serve())
    except KeyboardInterrupt:
        return
    except OSError as error:
        sys.exit(
            f"{args.address}: the ports of a robot cannot be had ({error.strerror}); another simulator may run there"
        )


if __name__ == "__main__":
    main()

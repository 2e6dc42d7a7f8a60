"""A robot takes a data set: thirty lay-ups, three shots of each, 5 mm apart, as the lab report on glass fibre did.

python examples/05_robot_capture.py OUT [--pictures glassfiber/glassfiber] [--parts 30] [--size 256]

Robot and camera are simulated: a controller of a UR robot at 127.0.0.2, and pictures that are played, real ones of
--pictures (a folder with train/good and test/), else drawn fabric. All between is what a cell runs: plan, limits,
moves, sidecars, and a folder that is fitted as it is. With a robot of your own, `address` is its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from PIL import Image

import flawmap
from flawmap.images.woven import draw
from flawmap.run.capture import capture, rehearse

SHOTS, STEP_MM, PX_PER_MM = 3, 5, 2
PLAN = """
robot = "ur"
address = "{address}"
[parts]
pattern = "layup-##"
count = {parts}
by_hand = false          # they come by themselves; with true a person is asked to put each in
[limits]
workspace = [[0, 400], [0, 300], [150, 500]]
speed = 100
[lights]
dome = 0
[shift.three]
count = {shots}
step = [{step}, 0, 0]
[checks]
saturation = 0.1         # 57 of the lab report's 90 pictures have more than 1 % white pixels, up to 6.5 %
[[setup]]
name = "above"
pose = [200, 150, 400, 0, 180, 0]
shift = "three"
settle_s = 0.1
[[setup.view]]
name = "dome"
light = "dome"
"""


def shots(folder: Path, stem: str, seed: int, size: int, kind: str = "") -> list[str]:
    """A cloth under a camera that is moved: crops of one drawing, and of its mask."""
    step = STEP_MM * PX_PER_MM
    cloth, mask = draw(seed, size + (SHOTS - 1) * step, kind) if kind else draw(seed, size + (SHOTS - 1) * step)
    names = [f"{folder.name}/{stem}_{number}.png" for number in range(SHOTS)]
    for number, name in enumerate(names):
        window = (slice(0, size), slice(number * step, number * step + size))
        path = folder.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(cloth[window]).save(path)
        if kind:
            path = folder.parents[1] / "ground_truth" / kind / f"{path.stem}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((mask[window] > 0).astype("uint8") * 255).save(path)
    return names


def fabric(root: Path, parts: int, size: int) -> Path:
    """Sound lay-ups in train/good; in test/ sound and torn ones, each a part of three pictures."""
    rows = ["path,part"]
    for number in range(parts):
        shots(root / "train/good", f"{number:03}", number, size)
    for kind, seed in (("good", 5000), ("hole", 6000)):
        for number in range(max(2, parts // 3)):
            names = shots(root / "test" / kind, f"{number:03}", seed + number, size, kind if kind != "good" else "")
            rows += [f"test/{name},{kind}-{number}" for name in names]
    (root / "parts.csv").write_text("\n".join(rows) + "\n")
    return root


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("out", type=Path)
    words.add_argument("--pictures", type=Path)
    words.add_argument("--parts", type=int, default=30)
    words.add_argument("--size", type=int, default=256)
    words.add_argument("--address", default="127.0.0.2", help="of the simulated robot, on this machine")
    args = words.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    source = args.pictures or fabric(args.out / "fabric", args.parts, args.size)
    plan, captured = args.out / "plan.toml", args.out / "captured"
    plan.write_text(PLAN.format(parts=args.parts, shots=SHOTS, step=STEP_MM, address=args.address))
    print(rehearse(plan, captured)["drawing"])

    robot = subprocess.Popen([sys.executable, "-m", "flawmap.images.ur_sim", args.address], stdout=subprocess.PIPE)
    try:
        assert robot.stdout is not None
        assert robot.stdout.readline(), "the simulated robot did not start"
        print(capture(plan, captured, f"replay:{source / 'train/good'}"))
    finally:
        robot.kill()
        robot.communicate()

    model = flawmap.fit(captured, out=args.out / "runs", options={"size": args.size})
    model.save(args.out / "layup.flaw")
    assert model.calibration
    print(model.calibration.sentence)
    found = flawmap.evaluate(model, source, args.out / "evaluation")
    print({name: found.metrics.get(name) for name in ("i_auroc", "p_auroc", "parts", "escapes", "false_alarms")})
    print(*found.notes, sep="\n")
    print(args.out / "evaluation/report.html")


if __name__ == "__main__":
    main()

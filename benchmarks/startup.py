"""Start-up: `flawmap inspect` of one picture in a fresh process, beside ONNX Runtime loading the same graph alone.

python benchmarks/startup.py [--python .venv/bin/python] [--rounds 15]

--python is that of an environment with flawmap and without torch, as at the line (pip install flawmap); by default that
which runs this. All commands once a round; the first round, which finds the files not in memory, is not counted.
Aims: at most 1.5 times ONNX Runtime with the graph, and ready for the first picture in less than a second.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from paired import CATEGORY, Times, bundle, in_turn, made_by, middle, quartiles, ratio, section
from results import DATA

RAW = "onnxruntime: import, load the same graph"
READY = "flawmap.load: ready for the first picture"
GOOD, FLAWED = "flawmap inspect, a good picture", "flawmap inspect, a picture with a defect"
AIM, AIM_S = 1.5, 1.0


def commands(python: str, path: Path, scratch: Path) -> dict[str, list[str]]:
    with zipfile.ZipFile(path) as held:
        graph = held.extract("model.onnx", scratch)
    load = "import onnxruntime, sys; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    test = DATA / CATEGORY / "test"
    good, flawed = (sorted(test.glob(kind))[0] for kind in ("good/*.png", "broken_large/*.png"))
    inspect = [python, "-m", "flawmap.cli", "inspect", str(path)]
    return {
        "python -c pass": [python, "-c", "pass"],
        "import flawmap": [python, "-c", "import flawmap"],
        "flawmap --help": [python, "-m", "flawmap.cli", "--help"],
        RAW: [python, "-c", load, graph],
        READY: [python, "-c", "import flawmap, sys; flawmap.load(sys.argv[1])", str(path)],
        GOOD: [*inspect, str(good)],
        FLAWED: [*inspect, str(flawed)],
    }


def cpu(command: list[str]) -> float:
    """Seconds of the processor that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    path = bundle("simplenet")
    torch = subprocess.run([args.python, "-c", "import torch"], capture_output=True, check=False).returncode == 0
    with tempfile.TemporaryDirectory() as folder:
        words = commands(args.python, path, Path(folder))
        spent: Times = {name: [] for name in words}
        run = {name: (lambda name=name, each=each: spent[name].append(cpu(each))) for name, each in words.items()}
        took = in_turn(run, args.rounds, warm_up=1)
    spent = {name: seconds[1:] for name, seconds in spent.items()}
    lines = [
        f"{made_by('startup.py')} Each command in a fresh process, with {'' if torch else 'no '}torch installed; "
        f"medians of {args.rounds} rounds, the middle half of them in brackets. SimpleNet on Lite0, 256 px. Other work "
        "on the machine disturbs the wall's time more than the processor's.",
        "",
        "| | ms | ms of the processor | times ONNX Runtime with the graph | the same, processor |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {quartiles(took[name], 1e3, 0)} | {quartiles(spent[name], 1e3, 0)} | "
            f"{quartiles(ratio(took, name, RAW))} | {quartiles(ratio(spent, name, RAW))} |"
            for name in words
        ),
        "",
        f"Aims: inspecting a good picture in at most {AIM} times ({middle(ratio(took, GOOD, RAW)):.2f}; by the "
        f"processor {middle(ratio(spent, GOOD, RAW)):.2f}), ready in less than {AIM_S:.0f} s "
        f"({middle(took[READY]):.2f} s). A good picture needs no SciPy; the first one with a defect "
        "imports scipy.ndimage for its regions.",
    ]
    section("Start-up", lines)


if __name__ == "__main__":
    main()

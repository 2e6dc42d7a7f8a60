"""flawmap beside anomalib: same pictures, same backbone weights, same size, one judge. docs/peers.md.

python benchmarks/peers/run.py [--venv DIR] [--category mvtec/bottle] [--cases patchcore-1 ...] [--page]

Each side runs in fresh processes, one after the other, and takes turns with the other one. Rows that are in
benchmarks/out/peers.jsonl are not made again; a run that fails is a row with its reason. anomalib gets its own
environment, which is made where it is not there. Pictures are found through FLAWMAP_DATA (default ../shared/data),
textures and photos for DRAEM and EfficientAD beside them in `sources`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cases import CASES, Case
from page import page
from results import DATA, commit

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "out"
TABLE, WORK = OUT / "peers.jsonl", OUT / "peers"
PAGE = HERE.parents[1] / "docs" / "peers.md"
ANOMALIB = "anomalib==2.7.0"
ROUNDS = 3  # of judging the test pictures, the sides taking turns
EVERY = 4  # where nothing is judged, so many of the test pictures tell the time
WITH = ("onnx", "onnxscript", "openvino")  # of its extra `openvino`: what the export to OpenVINO needs


class Used(NamedTuple):
    found: dict[str, Any]
    wall_s: float
    cpu_s: float
    peak_mb: float


class Failed(Exception):
    """A child process ended badly; the text is its last words."""


def environment(folder: Path) -> Path:
    """anomalib's python, in an environment that is made where it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making {folder} with {ANOMALIB}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", ANOMALIB, *WITH], check=True)
    return python


def child(python: str | Path, script: str, verb: str, job: Mapping[str, Any], timeout_s: float) -> Used:
    """One verb of one side in a fresh process, with what the system counted: all its processes' CPU, the largest peak.

    This process imports nothing large: a child starts with its parent's peak.
    """
    folder = Path(job["folder"])
    path, out, log = folder / f"{verb}-job.json", folder / f"{verb}.json", folder / f"{verb}.log"
    path.write_text(json.dumps({**job, "out": str(out)}))
    words = [str(python), str(HERE / script), verb, str(path)]
    begun = time.perf_counter()
    with log.open("w") as words_out:
        process = subprocess.Popen(
            words, stdout=words_out, stderr=subprocess.STDOUT, cwd=folder, env=_env(), start_new_session=True
        )
        code, used = _wait(process.pid, begun + timeout_s)
    if code is None:
        raise Failed(f"not done after {timeout_s:.0f} s")
    if code != 0:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        raise Failed(f"exit {code}: {' '.join(last)[-300:]}")
    wall = time.perf_counter() - begun
    return Used(json.loads(out.read_text()), wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def _wait(pid: int, until: float) -> tuple[int | None, Any]:
    while True:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), used
        if time.perf_counter() > until:
            os.killpg(pid, signal.SIGKILL)
            _, _, used = os.wait4(pid, 0)
            return None, used
        time.sleep(0.02)


def _env() -> dict[str, str]:
    """No network, and this checkout's flawmap. anomalib unpickles its own .pt only when told to."""
    added = {"HF_HUB_OFFLINE": "1", "TRUST_REMOTE_CODE": "1", "XDG_CACHE_HOME": str(WORK / "cache")}
    return {**os.environ, **added, "PYTHONPATH": str(HERE.parents[1] / "src")}


def prepare(sources: Path) -> dict[str, Any]:
    """What both sides are given: weights, a random teacher, folders of textures and photos."""
    WORK.mkdir(parents=True, exist_ok=True)
    given = {
        "folder": str(WORK),
        "weights": str(WORK / "lite0.safetensors"),
        "teacher": str(WORK / "teacher.safetensors"),
        "peer_teacher": str(
            WORK / "cache/anomalib/pre_trained/efficientad_pretrained_weights/pretrained_teacher_small.pth"
        ),
        "textures": str(sources / "textures_dtd"),
        "photos": str(sources / "photos_imagenet"),
        "photos_by_class": str(WORK / "photos"),
    }
    (WORK / "photos").mkdir(exist_ok=True)
    if not (WORK / "photos" / "any").exists():  # anomalib reads a folder of folders
        (WORK / "photos" / "any").symlink_to(sources / "photos_imagenet")
    return given | child(sys.executable, "flawmap_side.py", "prepare", given, 600).found


def tested(pictures: Path) -> list[dict[str, Any]]:
    """The test pictures in one order for both sides."""
    found = []
    for image in sorted(p for p in (pictures / "test").glob("*/*") if p.suffix.lower() in (".png", ".jpg", ".jpeg")):
        kind = image.parent.name
        mask = pictures / "ground_truth" / kind / f"{image.stem}_mask.png"
        good = kind == "good"
        found.append({"image": str(image), "good": good, "mask": None if good else str(mask)})
    return found


def job_of(case: Case, seed: int, pictures: Path, folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    def filled(options: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v.format(**given) if isinstance(v, str) else v for k, v in options.items()}

    return {
        "folder": str(folder),
        "pictures": str(pictures),
        "test": tested(pictures)[:: 1 if case.trained_out else EVERY],
        "seed": seed,
        "method": case.method,
        "options": filled(case.options),
        "held_out": case.held_out,
        "peer": case.peer,
        "arguments": filled(case.arguments),
        "batch": case.batch,
        "trainer": dict(case.trainer),
        "mean": given["mean"] if case.normalise else None,
        "std": given["std"] if case.normalise else None,
        "weights": given["weights"],
    }


class Side:
    """One side of a case with one seed: its fit, and what its model says of the test pictures."""

    def __init__(self, side: str, python: Path, job: dict[str, Any], timeout_s: float) -> None:
        self.name, self.job, self.timeout_s, self.row = side, job, timeout_s, {}
        self.runs, self.script = {
            "flawmap": (Path(sys.executable), "flawmap_side.py"),
            "anomalib": (python, "anomalib_side.py"),
        }[side]
        shutil.rmtree(job["folder"], ignore_errors=True)
        Path(job["folder"]).mkdir(parents=True)

    def _child(self, verb: str) -> Used:
        print(f"{time.strftime('%H:%M:%S')} {Path(self.job['folder']).name} {verb}", flush=True)
        return child(self.runs, self.script, verb, self.job, self.timeout_s)

    def fit(self) -> None:
        used = self._child("fit")
        self.row |= {key: used.found[key] for key in ("fit_s", "steps", "step_s")}
        self.row |= {"fit_process_s": used.wall_s, "fit_cpu_s": used.cpu_s, "fit_peak_mb": used.peak_mb}
        if self.name == "anomalib":
            try:
                self._child("export")
            except Failed as reason:
                self.row["openvino_why"] = str(reason)

    def predict(self) -> None:
        """One round; the least of all rounds counts."""
        self._least("", self._child("predict"))
        if self.name == "anomalib" and "openvino_why" not in self.row:
            try:
                self._least("openvino_", self._child("openvino"))
            except Failed as reason:
                self.row["openvino_why"] = str(reason)

    def _least(self, engine: str, used: Used) -> None:
        values = {key: used.found[key] for key in ("picture_s", "picture_fast_s", "picture_cpu_s")}
        values["predict_peak_mb"] = used.peak_mb
        for key, value in values.items():
            self.row[engine + key] = min(value, self.row.get(engine + key, value))
        if not engine:
            self.job["scores"] = used.found["scores"]

    def judge(self) -> None:
        self.row |= child(sys.executable, "flawmap_side.py", "judge", self.job, self.timeout_s).found


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in TABLE.read_text().splitlines()] if TABLE.exists() else []


def machine() -> str:
    """Processor, cores and memory."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB, no GPU used"


def compare(case: Case, sides: Sequence[Side]) -> None:
    """Fills the rows of the sides, which take turns; one that fails says why and leaves the others alone."""
    rest = [*[Side.predict] * ROUNDS, Side.judge] if case.trained_out else [Side.predict]
    for stage in [Side.fit, *rest]:
        for side in sides:
            if "why" in side.row:
                continue
            try:
                stage(side)
            except Failed as reason:
                side.row["why"] = str(reason)


def missing(name: str, category: str, seed: int) -> dict[str, dict[str, Any]]:
    """The rows that are not there yet: side -> what names its row. The other side begins at every odd seed."""
    sides = ["flawmap", "anomalib"] if CASES[name].peer else ["flawmap"]
    keys = {side: {"case": name, "side": side, "category": category, "seed": seed} for side in sides}
    done = rows()
    left = {side: key for side, key in keys.items() if not any(key.items() <= row.items() for row in done)}
    return dict(list(left.items())[:: -1 if seed % 2 else 1])


def add(name: str, category: str, seed: int, given: Mapping[str, Any], python: Path, timeout_s: float) -> None:
    """Measures the rows of a case and a seed that are not there yet, and appends them."""
    keys = missing(name, category, seed)
    sides = []
    for side in keys:
        job = job_of(CASES[name], seed, DATA / category, WORK / f"{name}-{side}-{seed}", given)
        sides.append(Side(side, python, job, timeout_s))
    compare(CASES[name], sides)
    made = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "machine": machine(), "load": os.getloadavg()}
    with TABLE.open("a") as file:
        for side in sides:
            file.write(json.dumps({**keys[side.name], **side.row, **made}) + "\n")
            if "why" not in side.row:
                shutil.rmtree(side.job["folder"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venv", type=Path, default=OUT / "peers-venv", help="anomalib's environment")
    parser.add_argument("--category", default="mvtec/bottle")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="default: those of each case")
    parser.add_argument("--sources", type=Path, default=DATA.parent / "sources", help="textures_dtd, photos_imagenet")
    parser.add_argument("--timeout", type=float, default=6000, help="seconds a process may take")
    parser.add_argument("--page", action="store_true", help="only put the page together")
    asked = parser.parse_args()
    if not asked.page:
        python, given = environment(asked.venv.resolve()), prepare(asked.sources.resolve())
        for name in asked.cases:
            for seed in asked.seeds or CASES[name].seeds:
                add(name, asked.category, seed, given, python, asked.timeout)
                PAGE.write_text(page(rows()), encoding="utf-8")
    PAGE.write_text(page(rows()), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()

"""The torch-free road, in two venvs: `make` fits and notes what was found, `prove` finds the same without torch.

python tests/torch_free.py make FOLDER     with the extra train
python tests/torch_free.py prove FOLDER    with `pip install flawmap` alone
python tests/torch_free.py station FOLDER  with the extra serve
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

METHODS = {"patchcore": {"most": 500}, "efficientad": {"preset": "small", "steps": 3}}
NOT_OURS = {"pip", "setuptools"}  # a venv has them before anything is installed
MOST_PACKAGES, MOST_MB = 19, 350
MOST_STARTS = (
    8  # time from a process's start to its first verdict, in starts of Python with numpy, Pillow, ONNX Runtime
)


def make(folder: Path) -> None:
    import flawmap
    from flawmap.images import woven

    parts = woven.write(folder / "parts", good=30, test_good=4, per_kind=1, size=128)
    rows = [f"{path.relative_to(parts).as_posix()},{number // 2}" for number, path in enumerate(_good(parts))]
    (folder / "pairs.csv").write_text("path,part\n" + "\n".join(f"parts/{row}" for row in rows) + "\n")
    for method, options in METHODS.items():
        model = flawmap.fit(parts, method, options={"size": 64, **options}, out=folder / "runs")
        model.save(folder / f"{method}.flaw")
    views = flawmap.fit(folder / "pairs.csv", "patchcore", options={"size": 64, "most": 500}, out=folder / "runs")
    views.save(folder / "views.flaw")
    for name in (*METHODS, "views"):
        (folder / f"{name}.json").write_text(json.dumps(doors(folder, name, folder / f"made-{name}")))


def prove(folder: Path) -> None:
    for package in ("torch", "timm", "onnx"):
        assert importlib.util.find_spec(package) is None, f"{package} is installed here: this proves nothing"
    for name in (*METHODS, "views"):
        expected, found = (
            json.loads((folder / f"{name}.json").read_text()),
            doors(folder, name, folder / f"line-{name}"),
        )
        _alike(json.loads(json.dumps(found)), expected, found["scale"], name)
        _masks_alike(folder / f"line-{name}", folder / f"made-{name}")
        print(f"torch-free: {name}, {len(found) - 1} doors, the same scores, verdicts, regions, maps and overlays")
    _other_verbs(folder)
    _installed()
    _first_verdict(folder)


def station(folder: Path) -> None:
    """`flawmap serve` answers what the command line says of the same files, and stops whole."""
    import signal
    import urllib.request

    from flawmap.cli import main

    assert importlib.util.find_spec("torch") is None, "torch is installed here: this proves nothing"
    ledger, expected = folder / "station.db", json.loads((folder / "patchcore.json").read_text())["files"]
    words = [sys.executable, "-m", "flawmap.cli", "serve", str(folder / "patchcore.flaw"), "--port", "0"]
    process = subprocess.Popen([*words, "--ledger", str(ledger)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    address = next(word for line in process.stderr for word in line.split() if word.startswith("http://"))
    pictures = sorted((folder / "parts" / "test").rglob("*.png"))
    for picture, said in zip(pictures, expected, strict=True):
        sent = urllib.request.Request(f"{address}/v1/inspect", picture.read_bytes(), {"content-type": "image/png"})
        found = json.load(urllib.request.urlopen(sent, timeout=30))
        assert found["verdict"] == said["verdict"], (picture, found, said)
        assert abs(found["score"] - said["score"]) <= 1e-4 * max(abs(said["score"]), 1.0), (picture, found, said)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert main(["ledger", "verify", str(ledger)]) == 0
    print(f"torch-free: a station, {len(pictures)} parts over HTTP, the same verdicts, its ledger whole")


def doors(folder: Path, name: str, out: Path) -> dict[str, Any]:
    """What every door says: arrays, bytes, files, folders, lists, standard input, several views, a new calibration."""
    import flawmap
    from flawmap.images.decode import decode

    bundle, parts = folder / f"{name}.flaw", folder / "parts"
    model, pictures = flawmap.load(bundle), sorted((parts / "test").rglob("*.png"))
    assert model.calibration is not None
    said: dict[str, Any] = {"scale": model.calibration.scale}
    if name == "views":
        pairs = list(zip(pictures[::2], pictures[1::2], strict=False))
        said["views"] = [_told(model.inspect_part(pair)) for pair in pairs]
        said["views of arrays"] = [_told(model.inspect_part([decode(view) for view in pair])) for pair in pairs]
        said["list"] = _lines(["inspect", str(bundle), str(folder / "pairs.csv"), "--json"])
        return said
    said["files"] = _lines(["inspect", str(bundle), *map(str, pictures), "--json", *_kept(out)])
    said["folder"] = _lines(["inspect", str(bundle), str(parts / "test"), "--json"])
    said["stdin"] = _lines(["inspect", str(bundle), "-", "--json"], pictures[-1].read_bytes())
    said["arrays"] = [_told(model.inspect(decode(path))) for path in pictures]
    said["bytes"] = [_told(model.inspect(path.read_bytes())) for path in pictures]
    _lines(
        ["calibrate", str(bundle), str(parts / "test/good"), "--false-alarm", "0.5", "--save", str(out / "new.flaw")]
    )
    made = flawmap.load(out / "new.flaw").calibration
    assert made is not None
    said["calibrate"] = {"score": made.threshold, "scores": list(made.scores), "sentence": made.sentence}
    return said


def _good(parts: Path) -> list[Path]:
    return sorted((parts / "train/good").glob("*.png"))


def _kept(out: Path) -> list[str]:
    return ["--maps", str(out / "maps"), "--overlay", str(out / "seen")]


def _told(found: Any) -> dict[str, Any]:
    boxes = [[[region.box, region.area_px] for region in view] for view in found.regions]
    return {"verdict": found.verdict, "score": found.score, "p_value": found.p_value, "boxes": boxes}


def _lines(words: list[str], piped: bytes = b"") -> list[dict[str, Any]]:
    """What `flawmap WORDS` prints, as JSON lines where it is JSON."""
    from flawmap.cli import main

    said, before = io.StringIO(), sys.stdin
    sys.stdin = SimpleNamespace(buffer=io.BytesIO(piped), closed=False, isatty=lambda: False)  # type: ignore[assignment]
    try:
        with contextlib.redirect_stdout(said):
            assert main(words) == 0, words
    finally:
        sys.stdin = before
    return [json.loads(line) for line in said.getvalue().splitlines() if line.startswith("{")]


def _alike(found: Any, expected: Any, scale: float, where: str) -> None:
    """Equal, numbers to within 1e-4 of the scale of scores (single precision on another processor)."""
    assert type(found) is type(expected), (where, found, expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            _alike(found[key], value, scale, f"{where}, {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, pair in enumerate(zip(found, expected, strict=True)):
            _alike(*pair, scale, f"{where}, {number}")
    elif isinstance(expected, float):
        assert abs(found - expected) <= 1e-4 * max(scale, 1.0), (where, found, expected)
    else:
        assert found == expected, (where, found, expected)


def _masks_alike(found: Path, expected: Path) -> None:
    """Maps to within single precision, overlays to within a grey level."""
    from PIL import Image

    kept = sorted(path.relative_to(expected) for path in expected.rglob("*.*") if path.suffix in (".npy", ".png"))
    for name in kept:
        read = np.load if name.suffix == ".npy" else Image.open
        ours, theirs = (np.asarray(read(root / name)).astype(float) for root in (found, expected))
        allowed = 1e-3 * np.ptp(theirs) if name.suffix == ".npy" else 1
        assert np.abs(ours - theirs).max() <= allowed, name


def _other_verbs(folder: Path) -> None:
    from flawmap.cli import main

    bundle, parts = str(folder / "patchcore.flaw"), str(folder / "parts")
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["evaluate", bundle, parts, "--out", str(folder / "evaluation")]) == 0
        assert main(["doctor", bundle]) == 0
        assert main(["report", bundle, "--out", str(folder / "report.html")]) == 0
        assert main(["data", parts]) == 0
        assert main(["list"]) == 0
        assert main(["fit", parts]) == 1  # says which extra brings torch


def _installed() -> None:
    """How much `pip install flawmap` brings: the files of all packages, as pip recorded them, and their bytecode."""
    size: dict[str, int] = {}
    for package in importlib.metadata.distributions():
        files = {Path(str(package.locate_file(file))) for file in package.files or ()}
        files |= {
            cached
            for file in files
            if file.suffix == ".py"
            for cached in file.parent.glob(f"__pycache__/{file.stem}.*")
        }
        size[package.metadata["Name"]] = sum(file.stat().st_size for file in files if file.is_file())
    ours = {name: bytes_ for name, bytes_ in size.items() if name not in NOT_OURS}
    total = sum(ours.values()) / 1e6
    print(f"installed: {len(ours)} packages, {total:.0f} MB without pip and setuptools")
    print("  " + ", ".join(f"{name} {ours[name] / 1e6:.1f}" for name in sorted(ours, key=lambda name: -ours[name])))
    assert len(ours) <= MOST_PACKAGES, sorted(ours)
    assert total < MOST_MB, f"{total:.0f} MB"


def _first_verdict(folder: Path) -> None:
    """From the start of a process to its first verdict, over that of one that only imports what any verdict takes."""
    picture = next((folder / "parts/test/good").glob("*.png"))
    verdict = ["-m", "flawmap.cli", "inspect", str(folder / "patchcore.flaw"), str(picture)]
    bare = ["-c", "import numpy, PIL.Image, onnxruntime"]
    seconds = {what: min(_seconds(words) for _ in range(3)) for what, words in (("verdict", verdict), ("bare", bare))}
    ratio = seconds["verdict"] / seconds["bare"]
    print(f"first verdict: {seconds['verdict']:.2f} s, {ratio:.1f} times the import of numpy, Pillow and ONNX Runtime")
    assert ratio < MOST_STARTS, f"{ratio:.1f} times"


def _seconds(words: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


if __name__ == "__main__":
    {"make": make, "prove": prove, "station": station}[sys.argv[1]](Path(sys.argv[2]))

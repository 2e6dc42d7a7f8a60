"""The same verdict everywhere: torch, bundle in ONNX Runtime, and the command line, on every test picture.

python benchmarks/parity.py [--categories mvtec/bottle elpv/mono aws_lookout/cookie] [--methods patchcore pouta:small]
python benchmarks/parity.py --bundles MODEL.flaw --categories glassfiber/glassfiber

Prints the largest difference of a score in units of its scale (allowed: 1e-4) and how many verdicts flip (allowed: 0).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from results import DATA


def fitted(method: str, category: str, folder: Path) -> Path:
    import flawmap

    method, _, preset = method.partition(":")
    options = {"preset": preset} if preset else {}
    return flawmap.fit(DATA / category, method, options=options, out=folder / "runs").save(folder / "model.flaw")


def compare(bundle: Path, category: str) -> tuple[int, float, float, int]:
    """Pictures; largest difference torch - ONNX and CLI - ONNX in units of the scale; verdicts that flip."""
    import flawmap
    from flawmap.images.folder import find

    onnx, torch = flawmap.load(bundle), flawmap.load(bundle, engine="torch")
    assert onnx.calibration is not None
    paths = [s.source for s in find(DATA / category) if s.split == "test"]
    command = [sys.executable, "-m", "flawmap.cli", "inspect", str(bundle), *map(str, paths), "--json"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    worst_torch = worst_cli = 0.0
    flips = 0
    for path, line in zip(paths, said, strict=True):
        ours, trained, cli = onnx.inspect(path), torch.inspect(path), json.loads(line)
        scale = onnx.calibration.scale
        worst_torch = max(worst_torch, abs(ours.score - trained.score) / scale)
        worst_cli = max(worst_cli, abs(ours.score - cli["score"]) / scale)
        flips += not (ours.verdict == trained.verdict == cli["verdict"])
    return len(paths), worst_torch, worst_cli, flips


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--categories", nargs="+", default=["mvtec/bottle", "elpv/mono", "aws_lookout/cookie"])
    parser.add_argument(
        "--methods", nargs="+", default=["patchcore", "simplenet"], help="or with a preset: pouta:small"
    )
    parser.add_argument("--bundles", nargs="+", type=Path, help="compare these instead of fitting")
    args, bad = parser.parse_args(), 0
    for category in args.categories:
        for method in args.bundles or args.methods:
            with tempfile.TemporaryDirectory() as folder:
                bundle = method if args.bundles else fitted(method, category, Path(folder))
                n, torch, cli, flips = compare(bundle, category)
                method = bundle.name if args.bundles else method
            bad += flips + (torch > 1e-4) + (cli > 1e-4)
            print(
                f"{method:10} {category:20} {n:4} pictures  torch {torch:.1e}  cli {cli:.1e}  flips {flips}", flush=True
            )
    return 4 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

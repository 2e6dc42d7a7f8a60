"""The torch-free road, in two venvs: `make` fits and notes what was found, `prove` finds the same without torch.

python tests/torch_free.py make FOLDER     with the extra train
python tests/torch_free.py prove FOLDER    with `pip install flawmap` alone
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
from pathlib import Path

METHODS = {"patchcore": {"most": 500}, "efficientad": {"preset": "small", "steps": 3}}


def make(folder: Path) -> None:
    import flawmap
    from flawmap.images import woven

    parts = woven.write(folder / "parts", good=30, test_good=4, per_kind=1, size=128)
    pictures = sorted((parts / "test").rglob("*.png"))
    for method, options in METHODS.items():
        model = flawmap.fit(parts, method, options={"size": 64, **options}, out=folder / "runs")
        model.save(folder / f"{method}.flaw")
        found = {}
        for path in pictures:
            inspection = model.inspect(path)
            found[str(path)] = {"score": inspection.score, "verdict": inspection.verdict}
        (folder / f"{method}.json").write_text(json.dumps(found))


def prove(folder: Path) -> None:
    for package in ("torch", "timm", "onnx"):
        assert importlib.util.find_spec(package) is None, f"{package} is installed here: this proves nothing"
    for method in METHODS:
        _prove(folder, method)


def _prove(folder: Path, method: str) -> None:
    import flawmap
    from flawmap.cli import main

    model = flawmap.load(folder / f"{method}.flaw")
    expected = json.loads((folder / f"{method}.json").read_text())
    assert model.calibration is not None
    for path, entry in expected.items():
        found = model.inspect(path)
        assert abs(found.score - entry["score"]) <= 1e-4 * model.calibration.scale, (path, found.score, entry)
        assert found.verdict == entry["verdict"], path
    bundle, parts = str(folder / f"{method}.flaw"), str(folder / "parts")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["inspect", bundle, *expected, "--json"]) == 0
        assert main(["evaluate", bundle, parts, "--out", str(folder / "evaluation")]) == 0
        assert main(["doctor", bundle]) == 0
        assert main(["report", bundle, "--out", str(folder / "report.html")]) == 0
        assert main(["data", parts]) == 0
        assert main(["list"]) == 0
        assert main(["fit", parts]) == 1  # says which extra brings torch
    lines = [json.loads(line) for line in said.getvalue().splitlines() if line.startswith("{")]
    assert [line["verdict"] for line in lines] == [entry["verdict"] for entry in expected.values()]
    print(f"torch-free: {method}, {len(expected)} pictures, the same scores and verdicts")


if __name__ == "__main__":
    {"make": make, "prove": prove}[sys.argv[1]](Path(sys.argv[2]))

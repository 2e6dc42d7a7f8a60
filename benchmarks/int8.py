"""What int8 costs and brings, in ONNX Runtime and OpenVINO, on real pictures: the table of docs/export.md.

python benchmarks/int8.py --run mvtec/bottle patchcore      a row a method, kept in benchmarks/out; fits what is missing
python benchmarks/int8.py --why mvtec/bottle patchcore      what each choice of quantise.py is worth
python benchmarks/int8.py                                   the rows that are there, into the page

Each method is fitted with its defaults (efficientad: preset small and 300 steps) at 5 % false alarms, so that none
is cross-fitted. Loss and flips are those of `flawmap export --precision int8`, with its gate opened to see them all.
Speed: one picture at a time from the network's input to its score, one thread, best of 5 rounds of 10, the two
precisions in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
from results import DATA, HERE, commit

from flawmap.run import loss as gates

PAGE = HERE.parent / "docs" / "export.md"
ESCAPED = gates.MOST_ESCAPED
OPTIONS = {"efficientad": {"preset": "small", "steps": 300}}
BEGIN, END = "<!-- benchmarks/int8.py -->", "<!-- end -->"


def bundle_of(category: str, method: str, out: Path) -> Path:
    import flawmap

    path = out / f"{category.replace('/', '-')}-{method}.flaw"
    if not path.exists():
        options = OPTIONS.get(method, {})
        flawmap.fit(DATA / category, method, options=options, false_alarm=0.05, out=out / "runs").save(path)
    return path


def row(category: str, method: str, out: Path) -> dict[str, Any]:
    from flawmap.errors import GateError
    from flawmap.run.bundle import read
    from flawmap.run.deliver import export_bundle
    from flawmap.run.engine import OnnxEngine, OpenVinoEngine

    path = bundle_of(category, method, out)
    gates.MOST_ESCAPED = 1.0  # open for these rows, to see them all
    found: dict[str, Any] = {
        "category": category,
        "method": method,
        "commit": commit(),
        "day": time.strftime("%Y-%m-%d"),
    }
    fp32 = read(path).files["model.onnx"]
    for name, engine in (("onnx", OnnxEngine), ("openvino", OpenVinoEngine)):
        target = path.with_suffix(f".{name}.flaw")
        asked = {"engine": name, "kind": "int8", "form": "bundle", "pictures": DATA / category}
        try:
            export_bundle(path, target, **asked, most_lost=1.0, most_flipped=1.0)
        except GateError as error:
            found[name] = {"refused": str(error)}
            continue
        made = read(target)
        int8, loss = made.files["model.onnx"], made.config["int8"]["loss"]
        size = made.config["intake"]["size"]
        passes = loss["lost"] <= gates.MOST_LOST and loss["flips"] <= gates.MOST_FLIPPED * loss["judged"]
        passes = passes and loss["escapes"] <= ESCAPED * loss["defective"]
        slow, fast = _times(engine(fp32, threads=1), engine(int8, threads=1), tuple(size))
        found[name] = {"loss": loss, "passes": passes, "bytes": [len(fp32), len(int8)], "ms": [slow, fast]}
    return found


def why(category: str, method: str, out: Path) -> list[str]:
    """Mean change of a score, in units of the scale, over every fourth test picture, by what is quantised."""
    import onnx

    import flawmap
    from flawmap.images.folder import find
    from flawmap.run import int8, quantise
    from flawmap.run.engine import OnnxEngine, OpenVinoEngine
    from flawmap.run.export import to_onnx

    model, torchs = (flawmap.load(bundle_of(category, method, out), engine) for engine in ("onnx", "torch"))
    samples = find(DATA / category)
    images = [model.intake(s.source)[0][None] for s in samples if s.split == "test"][::4]
    fitted = [s for s in samples if s.split == "train"][:: max(1, len(samples) // 32)]
    graph = to_onnx(torchs.engine.detector)
    chosen, _ = quantise._nodes(onnx.load_from_string(graph))
    all_of_it = [n for n in onnx.load_from_string(graph).graph.node if n.op_type in quantise.OPERATORS]
    frozen = any(n.name.startswith(quantise.NETWORK) for n in all_of_it)
    every = [n for n in all_of_it if not frozen or n.name.startswith(quantise.NETWORK)]
    names = [n.name for n in every]
    variants = {
        "all of the network": (names, 7),
        "without the first": (names[1:], 7),
        "without it and grouped ones": ([n.name for n in every[1:] if not quantise._grouped(n)], 7),
        "as flawmap does": (chosen, 7),
        "the same with 8 bits": (chosen, 8),
    }
    before = np.array([float(model.engine(image).score[0]) for image in images])
    lines, nodes = ["| quantised | nodes | onnx | openvino |", "|---|---|---|---|"], quantise._nodes
    for name, (taken, bits) in variants.items():
        quantise.BITS, quantise._nodes = bits, lambda _, t=taken: (t, [n.name for n in all_of_it if n.name not in t])
        content, count = quantise.quantised(graph, int8._inputs(model.intake, fitted))
        gaps = []
        for engine in (OnnxEngine(content), OpenVinoEngine(content)):
            after = np.array([float(engine(image).score[0]) for image in images])
            gaps.append(np.abs(after - before).mean() / model.calibration.scale)
        lines.append(f"| {name} | {count} | {gaps[0]:.3f} | {gaps[1]:.3f} |")
        print(lines[-1], flush=True)
    quantise.BITS, quantise._nodes = 7, nodes
    return lines


def _times(first: Any, second: Any, size: tuple[int, int]) -> tuple[float, float]:
    """Milliseconds a picture of each."""
    image = np.random.default_rng(0).random((1, 3, *size), dtype=np.float32)
    best = [float("inf")] * 2
    for _ in range(5):
        for place, engine in enumerate((first, second)):
            engine(image)
            begun = time.perf_counter()
            for _ in range(10):
                engine(image)
            best[place] = min(best[place], (time.perf_counter() - begun) * 100)
    return best[0], best[1]


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| | engine | I-AUROC painted | I-AUROC test | flips (to OK, to NOK) | gate | MiB | ms a picture | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for found in rows:
        for name in ("onnx", "openvino"):
            one = found[name]
            head = f"| {found['method']}, {found['category']} | {name} |"
            if "refused" in one:
                lines.append(f"{head} refused | | | no | | | |")
                continue
            loss, (large, small), (slow, fast) = one["loss"], one["bytes"], one["ms"]
            areas = [
                f"{pair[0]:.4f} → {pair[1]:.4f}" if pair else ""
                for pair in (loss["auroc_painted"], loss["auroc_labelled"])
            ]
            lines.append(
                f"{head} {areas[0]} | {areas[1]} | {loss['flips']} of {loss['judged']} ({loss['escapes']}, "
                f"{loss['alarms']}) | {'passes' if one['passes'] else '**refuses**'} | {large / 2**20:.1f} → "
                f"{small / 2**20:.1f} | {slow:.1f} → {fast:.1f} | {slow / fast:.2f} |"
            )
    return lines


def _processor() -> str:
    """Which instructions for int8 it has, for the ratios hang on them."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    known = [name for name in ("avx2", "avx512_vnni", "avx_vnni", "amx_int8") if name in flags]
    return f"{platform.machine()} with {', '.join(known) or 'unknown instructions'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", nargs="+", metavar=("CATEGORY", "METHOD"))
    parser.add_argument("--why", nargs=2, metavar=("CATEGORY", "METHOD"))
    parser.add_argument("--out", type=Path, default=HERE / "out" / "int8")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "int8.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    if args.why:
        print("\n".join(why(*args.why, args.out)))
        return
    if args.run:
        category, *methods = args.run
        for method in methods:
            rows = [r for r in rows if (r["category"], r["method"]) != (category, method)]
            rows.append(row(category, method, args.out))
            kept.write_text("".join(json.dumps(r) + "\n" for r in rows))
            print("\n".join(table(rows[-1:])[2:]), flush=True)
        return
    made = (
        f"Made by `python benchmarks/int8.py` on {max(r['day'] for r in rows)}, commit "
        f"{', '.join(sorted({r['commit'] for r in rows}))}: {os.cpu_count()} cores ({_processor()}), one thread. A "
        "ratio above 1 is faster in int8."
    )
    text = "\n".join([BEGIN, made, "", *table(rows), END])
    page = PAGE.read_text()
    PAGE.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: text, page, flags=re.DOTALL))
    print(PAGE)


if __name__ == "__main__":
    main()

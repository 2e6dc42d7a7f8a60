"""The table of docs/results.md: every method on every category of real pictures, several seeds, last step, no tuning.

python benchmarks/results.py [--methods patchcore simplenet] [--seeds 0 1 2] [--categories mvtec/bottle ...] [--page]

Behind it stand the pages that `flawmap reproduce NAME --out benchmarks/out/reproduce` has written (--page: only put
the page together).

Rows already in the run table (benchmarks/out/results.jsonl) are not run again: stop it at any time and start it again.
The test pictures of a category are judged once per row, for the table, and nothing is chosen by them. The pictures are
found through FLAWMAP_DATA (default ../shared/data).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("FLAWMAP_DATA") or HERE.parents[1] / "shared" / "data")
TABLE = HERE / "out" / "results.jsonl"
PAGE = HERE.parent / "docs" / "results.md"
REPRODUCED = HERE / "out" / "reproduce"
NAMES = [f"pouta-table-{number}" for number in (1, 5, 4, 3, 6)]
NAMES += [
    f"sdu-{name}"
    for name in ("figure-9", "figure-12-13", "choice", "figure-4", "figure-10", "figure-11", "last-or-best")
]
NAMES += [f"sdu-{name}" for name in ("masks", "figure-2", "grey", "backbones", "figure-5", "table-1", "speed")]
CHARTS = {  # copied beside the page; pages with other pictures are shown without them
    "sdu-figure-10-glassfiber-glassfiber.svg",
    "sdu-figure-11-glassfiber-glassfiber.svg",
    "sdu-figure-12-13-glassfiber-glassfiber.svg",
    "sdu-last-or-best.svg",
    "sdu-masks-glassfiber-glassfiber.svg",
}
MARK = "<!-- below: flawmap reproduce -->"
# One plain pixel statistic separates good from bad in these (the data's own notes): no I-AUROC in averages.
TRIVIAL = {"kaggle_pill/round_pill", "aws_lookout/cookie", "bsdata/ball_screw"}
# Their masks are boxes and ellipses: no P-AP and PRO in averages.
COARSE = {"deeppcb/pcb_group20085", "dagm/class8"}
METRICS = {"i_auroc": "I-AUROC", "p_auroc": "P-AUROC", "p_ap": "P-AP", "pro": "PRO"}


def categories() -> list[str]:
    found = sorted(str(p.parent.parent.relative_to(DATA)) for p in DATA.glob("*/*/train/good"))
    if not found:
        sys.exit(f"no data sets in {DATA}; set FLAWMAP_DATA")
    return found


def run(method: str, category: str, seed: int, scratch: Path) -> dict[str, Any]:
    """One row: fit, evaluate, and what it took."""
    from flawmap import evaluate, fit

    begun = time.monotonic()
    model = fit(DATA / category, method, seed=seed, out=scratch)
    fitted = time.monotonic() - begun
    found = evaluate(model, DATA / category, scratch / "evaluation")
    row = {
        "method": method,
        "category": category,
        "seed": seed,
        "fit_s": round(fitted, 1),
        "evaluate_s": round(time.monotonic() - begun - fitted, 1),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "promise": model.calibration.promise if model.calibration else None,
        "parts": model.calibration.parts if model.calibration else 0,
        "options": model.bundle.config["options"],
        **{key: found.metrics.get(key) for key in (*METRICS, "part_auroc", "false_alarms", "escapes", "why")},
    }
    shutil.rmtree(scratch)
    return row


def commit() -> str:
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in TABLE.read_text().splitlines()] if TABLE.exists() else []


def page(found: Sequence[dict[str, Any]]) -> str:
    import platform

    import onnxruntime

    dates = sorted({row["date"] for row in found})
    commits = sorted({row["commit"] for row in found})
    lines = [
        "# Results",
        "",
        "Made by `python benchmarks/results.py`; every row fits on `train/good` and judges all of `test` once.",
        f"Dates {', '.join(dates)}; commits {', '.join(commits)}; {os.cpu_count()} cores, no GPU, "
        f"Python {platform.python_version()}, ONNX Runtime {onnxruntime.__version__}.",
        "",
        "Protocol `plain`: pictures squashed to 256 px, no crop; maps brought to the picture's own size; labels from "
        "the folder; masks as given; the last step of training; defaults of "
        "`docs/defaults.md`, the same for every category. "
        "I-AUROC counts pictures. PRO is MVTec's official rule to 30 % false positives. Mean ± sd over seeds.",
        "",
        "False alarms and escapes count parts at the threshold that the good training parts alone decided; *promised* "
        "is the false-alarm rate on average that their number supports; a part with another number of views than the "
        "calibration knows gets no verdict and is not counted. `—` is undefined or not run.",
    ]
    for method in dict.fromkeys(row["method"] for row in found):
        lines += ["", f"## {method}", "", *_table([row for row in found if row["method"] == method])]
    lines += [
        "",
        "In *italics*: one plain pixel statistic separates good from bad (I-AUROC stays out of the mean), or the masks "
        "are boxes or ellipses (P-AP and PRO stay out of the mean).",
        "",
    ]
    return "\n".join(lines)


def _table(found: Sequence[dict[str, Any]]) -> list[str]:
    seeds = len({row["seed"] for row in found})
    head = ["category", *METRICS.values(), "false alarms (promised)", "escapes", "fit s"]
    lines = [f"{seeds} seeds.", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    means: dict[str, list[float]] = {key: [] for key in METRICS}
    for category in dict.fromkeys(row["category"] for row in sorted(found, key=lambda r: r["category"])):
        group = [row for row in found if row["category"] == category]
        cells = []
        for key in METRICS:
            values = [row[key] for row in group if row[key] is not None]
            left_out = category in TRIVIAL if key == "i_auroc" else key != "p_auroc" and category in COARSE
            if values and not left_out:
                means[key].append(statistics.mean(values))
            cells.append(f"*{_spread(values)}*" if left_out and values else _spread(values))
        promise = f" ({group[0]['promise']:.1%})" if group[0]["promise"] else ""
        cells += [_rate(group, "false_alarms") + promise, _rate(group, "escapes")]
        cells.append(f"{statistics.mean(row['fit_s'] for row in group):.0f}")
        lines.append(f"| {category.split('/')[1]} | {' | '.join(cells)} |")
    mean = [f"{statistics.mean(v):.3f} ({len(v)})" if v else "—" for v in means.values()]
    lines.append(f"| **mean** (of so many) | {' | '.join(mean)} |  |  |  |")
    return lines


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "—"
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {sd:.3f}"


def _rate(group: Sequence[dict[str, Any]], key: str) -> str:
    rates = [row[key] for row in group if row[key] and row[key]["n"]]
    if not rates:
        return "—"
    counts = [rate["count"] for rate in rates]
    return f"{'/'.join(map(str, counts))} of {rates[0]['n']}"


def reproduced() -> str:
    """The pages of experiments, as they are but for pictures."""
    pages = [REPRODUCED / f"{name}.md" for name in NAMES]
    text = "\n".join(path.read_text(encoding="utf-8").strip() + "\n" for path in pages if path.exists())
    return re.sub(r"!\[.*?\]\((.*?)\)\n", _chart, text)


def _chart(link: re.Match[str]) -> str:
    if link[1] not in CHARTS:
        return ""
    shutil.copyfile(REPRODUCED / link[1], PAGE.parent / link[1])
    return link[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["patchcore", "simplenet"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--categories", nargs="+", default=categories())
    parser.add_argument("--page", action="store_true", help="run nothing")
    args = parser.parse_args()
    if not args.page:
        fill(args)
    # Without a table here, what was measured elsewhere stays as it is.
    first = page(rows()) if rows() else PAGE.read_text(encoding="utf-8").split(MARK)[0].rstrip() + "\n"
    PAGE.write_text(f"{first}\n{MARK}\n\n{reproduced()}", encoding="utf-8")
    print(PAGE)


def fill(args: argparse.Namespace) -> None:
    TABLE.parent.mkdir(exist_ok=True)
    done = {(row["method"], row["category"], row["seed"]) for row in rows()}
    for seed in args.seeds:
        for method in args.methods:
            for category in args.categories:
                if (method, category, seed) in done:
                    continue
                print(f"== {method} {category} seed {seed}", file=sys.stderr, flush=True)
                row = run(method, category, seed, TABLE.parent / f"scratch-{os.getpid()}")
                with TABLE.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

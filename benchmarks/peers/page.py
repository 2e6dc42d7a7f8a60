"""docs/peers.md from the rows of benchmarks/out/peers.jsonl."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import CASES, Case

Row = dict[str, Any]
COSTS = {  # key: head, factor, digits
    "fit_s": ("fit s", 1, 1),
    "fit_cpu_s": ("CPU s", 1, 0),
    "fit_peak_mb": ("peak MB", 1, 0),
    "step_s": ("step ms", 1000, 0),
    "picture_s": ("picture ms", 1000, 1),
    "picture_fast_s": ("fast", 1000, 1),
    "predict_peak_mb": ("its peak MB", 1, 0),
    "openvino_picture_s": ("OpenVINO ms", 1000, 1),
    "openvino_picture_fast_s": ("fast", 1000, 1),
}
QUALITY = {"i_auroc": "I-AUROC", "p_auroc": "P-AUROC", "p_ap": "P-AP", "pro": "PRO"}

RULES = Path(__file__).with_name("rules.md")


def page(found: Sequence[Row]) -> str:
    lines = ["# Beside anomalib", ""]
    if not found:
        return "\n".join([*lines, "Not measured yet: `python benchmarks/peers/run.py`.", ""])
    dates, commits = (sorted({row[key] for row in found}) for key in ("date", "commit"))
    lines += [
        "Made by `python benchmarks/peers/run.py`: flawmap and anomalib 2.7.0 on the same pictures with the same "
        f"backbone weights. Dates {', '.join(dates)}; commits {', '.join(commits)}; "
        f"{'; '.join(sorted({row['machine'] for row in found}))}.",
        "",
        _noise(found),
    ]
    for category in dict.fromkeys(row["category"] for row in found):
        lines += ["", f"## {category}", "", *_table([row for row in found if row["category"] == category])]
    lines += ["", *_behind(found), *_missing(found), RULES.read_text(encoding="utf-8")]
    return "\n".join(lines)


def _noise(found: Sequence[Row]) -> str:
    loads = [row["load"][0] for row in found if row.get("load")]
    span = f" (load averages of {min(loads):.1f} to {max(loads):.1f} when a row was written)" if loads else ""
    return (
        f"Other work ran on the machine beside both sides{span}, and not evenly: seconds are longer than on an idle "
        "one, and a ratio of two of them is rough. CPU seconds and peaks suffer least. A row is made anew once its "
        "line is taken out of `benchmarks/out/peers.jsonl`."
    )


def _table(found: Sequence[Row]) -> list[str]:
    heads = ["", *(head for head, _, _ in COSTS.values()), *QUALITY.values()]
    lines = [
        "Costs are medians over the seeds, figures mean ± sd. The bold row is anomalib over flawmap for costs (above 1 "
        "flawmap is the cheaper one; OpenVINO against flawmap's *picture ms*), and flawmap minus anomalib for figures.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
    ]
    for name, case in CASES.items():
        sides = {
            side: [r for r in found if r["case"] == name and r["side"] == side and "why" not in r]
            for side in ("flawmap", "anomalib")
        }
        for side, group in sides.items():
            if group:
                lines.append(_row(f"{_called(case, side)} ({_seeds(group)})", group))
        if all(sides.values()):
            lines.append(_ratios(sides["flawmap"], sides["anomalib"]))
    return lines


def _behind(found: Sequence[Row]) -> list[str]:
    """Where anomalib is cheaper by a twentieth or more, or its maps and scores are judged better."""
    lines = []
    for name, case in CASES.items():
        ours, theirs = ([r for r in found if r["case"] == name and r["side"] == s] for s in ("flawmap", "anomalib"))
        worse = [
            f"{_named(key)} ({_figure(key, other)} against {_figure(key, own)})"
            for key in COSTS
            if (own := _median(ours, key.removeprefix("openvino_"))) and (other := _median(theirs, key))
            if other < 0.95 * own
        ]
        for key, head in QUALITY.items():
            own, other = _mean(ours, key), _mean(theirs, key)
            if own is not None and other is not None and own - other < -0.0005:
                worse.append(f"{head} ({other:.3f} against {own:.3f})")
        if worse:
            lines.append(f"- {case.title}: {', '.join(worse)}")
    return ["## Where anomalib is ahead", "", *lines, ""] if lines else []


def _figure(key: str, value: float) -> str:
    _, factor, digits = COSTS[key]
    return f"{value * factor:,.{digits}f}"


def _named(key: str) -> str:
    return {"picture_fast_s": "fast picture ms", "openvino_picture_fast_s": "fast OpenVINO ms"}.get(key, COSTS[key][0])


def _mean(group: Sequence[Row], key: str) -> float | None:
    values = [row[key] for row in group if row.get(key) is not None]
    return statistics.mean(values) if values else None


def _called(case: Case, side: str) -> str:
    return f"{case.title}: {side}" if case.peer else case.title


def _seeds(group: Sequence[Row]) -> str:
    return "1 seed" if len(group) == 1 else f"{len(group)} seeds"


def _row(label: str, group: Sequence[Row]) -> str:
    cells = []
    for key in COSTS:
        value = _median(group, key)
        cells.append("—" if value is None else _figure(key, value))
    for key in QUALITY:
        values = [row[key] for row in group if row.get(key) is not None]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.3f}{spread}" if values else "—")
    return f"| {' | '.join([label, *cells])} |"


def _ratios(ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    cells = []
    for key in COSTS:
        own = _median(ours, key.removeprefix("openvino_"))
        other = _median(theirs, key)
        cells.append(f"**{other / own:.1f}**" if own and other else "—")
    for key in QUALITY:
        own, other = _mean(ours, key), _mean(theirs, key)
        cells.append("—" if own is None or other is None else f"**{own - other:+.3f}**")
    return f"| **ratio, difference** | {' | '.join(cells)} |"


def _median(group: Sequence[Row], key: str) -> float | None:
    values = [row[key] for row in group if row.get(key) is not None]
    return statistics.median(values) if values else None


def _missing(found: Sequence[Row]) -> list[str]:
    """What was not run, and why; what anomalib could not export."""
    lines = []
    for row in found:
        what = f"{_called(CASES[row['case']], row['side'])}, {row['category']}, seed {row['seed']}"
        if "why" in row:
            lines.append(f"- {what}: {row['why']}")
        elif "openvino_why" in row:
            lines.append(f"- {what}, OpenVINO: {row['openvino_why']}")
    for name, case in CASES.items():
        for side in ("flawmap", *(("anomalib",) if case.peer else ())):
            seen = {row["seed"] for row in found if row["case"] == name and row["side"] == side}
            if left := [str(seed) for seed in case.seeds if seed not in seen]:
                lines.append(
                    f"- {_called(case, side)}, seed {', '.join(left)}: not yet; `run.py --cases {name}` adds it"
                )
    return ["## Not run", "", *lines, ""] if lines else []

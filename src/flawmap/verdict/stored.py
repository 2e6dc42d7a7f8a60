"""calibration.json -> Calibration: made anew from its own parts and wishes, and compared with what the file says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from typing import Any

from flawmap.errors import BundleError, CalibrationError
from flawmap.verdict.calibration import POLICIES, Calibration
from flawmap.verdict.parts import LARGEST, RULES, UNITS
from flawmap.verdict.policies import rebuilt

_NUMBER = (int, float)
_JSON: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": _NUMBER,
    "float | None": (*_NUMBER, type(None)),
    "bool": (bool,),
    "tuple[int, int]": (list,),
    "tuple[float, ...]": (list,),
    "tuple[str, ...]": (list,),
    "dict[str, float]": (dict,),
}


def read(values: Mapping[str, Any]) -> Calibration:
    """What `Calibration.to_dict` wrote. BundleError for anything missing, unknown or changed by hand."""
    known = {f.name: f for f in fields(Calibration)}
    needed = {name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    if wrong := sorted((needed - values.keys()) | (values.keys() - known.keys())):
        raise BundleError(f"calibration: missing or unknown {', '.join(map(repr, wrong))}; fit or calibrate again")
    for name, value in values.items():
        kind = str(known[name].type)
        if not isinstance(value, _JSON[kind]) or (isinstance(value, bool) and kind != "bool"):
            raise BundleError(f"calibration: {name} is {value!r}, not {kind}; fit or calibrate again")
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    found = Calibration(**plain)
    wrong = BundleError("calibration: threshold, rank and part scores contradict each other; calibrate again")
    if not _consistent(found):
        raise wrong
    try:
        again = rebuilt(found)
    except CalibrationError as error:
        raise wrong from error
    if not _same(found, again):
        raise wrong
    # What is promised is said anew, by the facts: the sentence in the file is for people who read files.
    return replace(found, sentence=again.sentence)


def _same(read: Calibration, again: Calibration) -> bool:
    """But for what machines may compute differently in the last digits, and what an older flawmap did not write."""
    near = ["threshold", "margin", "scale", *(["map_threshold"] if read.peaks else [])]
    if read.review_threshold is not None and again.review_threshold is not None:
        near.append("review_threshold")
    differ = {f.name for f in fields(Calibration) if getattr(read, f.name) != getattr(again, f.name)}
    for name in near:
        gap = abs(getattr(read, name) - getattr(again, name))
        if gap <= 1e-9 * max(again.scale, abs(getattr(again, name))):
            differ.discard(name)
    differ -= {"sentence", *(() if read.peaks else ("peaks", "map_threshold"))}
    if all(
        abs(read.costs[k] - again.costs[k]) <= 1e-9 * max(again.scale, 1e-300) for k in read.costs.keys() & again.costs
    ):
        differ -= {"costs"} if read.costs.keys() == again.costs.keys() else set()
    return not differ


def _consistent(c: Calibration) -> bool:
    """Whether a calibration that was read can have been written by `to_dict`."""
    optional = [x for x in (c.target, c.confidence, c.review_threshold, c.pitch_mm) if x is not None]
    lists = (c.scores, c.peaks, c.defect_scores)
    numbers = (*(x for values in lists for x in values), c.threshold, c.map_threshold, c.margin, c.scale, *optional)
    sound = (
        c.policy in POLICIES
        and c.unit in UNITS
        and c.rule in RULES
        and all(isinstance(x, int | float) and abs(x) <= 2 * LARGEST for x in (*numbers, *c.costs.values()))
        and len(c.views) == 2
        and all(isinstance(v, int) and not isinstance(v, bool) for v in c.views)
        and 1 <= c.views[0] <= c.views[1]
        and c.parts == len(c.scores)
        and len(c.peaks) in (0, c.parts)
        and all(values == tuple(sorted(values)) for values in lists)
        and len(c.defect_kinds) == len(c.defect_scores)
        and c.margin >= 0
        and 1 <= c.min_area_px <= 10**9
        and (c.pitch_mm is None or c.pitch_mm > 0)
        and c.images >= c.parts
        and (c.review_threshold is None or c.review_threshold <= c.threshold)
    )
    if not sound:
        return False
    if c.policy == "false-alarm":
        return 1 <= c.rank <= c.parts and c.target is not None and c.threshold == c.scores[-c.rank] + c.margin
    return c.rank == c.refused + 1

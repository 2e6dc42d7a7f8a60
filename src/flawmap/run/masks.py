"""The audit of masks with what a model adds to it: how far its figures hang on the outlines; and the page of it all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flawmap.errors import DataError, UsageError
from flawmap.images.decode import decode, size_of
from flawmap.images.folder import find
from flawmap.images.masks.audit import TABLE, MaskAudit, audit_masks, worst
from flawmap.images.masks.checks import SPECK_PX
from flawmap.images.masks.levels import Marks, read_mask
from flawmap.images.masks.second import second_masks
from flawmap.report.masks import Shown, page
from flawmap.run.coarse import METRICS, OFFSETS, banded, figures, kept, read_all
from flawmap.run.model import Model, load
from flawmap.run.reproduce import TITLES
from flawmap.types import Sample

BANDS = (1, 2, 4, 8)  # pixels to both sides of the outline that are ignored
SHOWN = 24  # pictures on the page
CAP = 2**17  # bins of each of some fourteen figures that are taken side by side

Change = tuple[str, int]  # ("offset", 2), ("band", 4), ("second", 0)


@dataclass(frozen=True, slots=True)
class Dependence:
    """Figures of one model under changed masks; not a number where no mask is left."""

    model: str
    found: Mapping[Change, Mapping[str, float]]
    left_out: Mapping[Change, int]  # defective pictures whose mask is gone
    why: str = ""  # there are none

    def to_dict(self) -> dict[str, Any]:
        rows: dict[str, dict[str, Any]] = {"offset": {}, "band": {}, "second": {}}
        for change, each in self.found.items():
            values = {key: None if np.isnan(value) else value for key, value in each.items()}
            rows[change[0]][str(change[1])] = {**values, "left_out": self.left_out[change]}
        second = rows.pop("second").get("0")
        return {"model": self.model, **rows, **({"second": second} if second else {}), **_why(self.why)}

    def lines(self) -> Iterator[str]:
        """A person's table."""
        heads = [*(TITLES[metric] for metric in METRICS), "pieces", "gone"]
        yield f"{'masks, with ' + self.model:<36}" + "".join(f" {head:>8}" for head in heads)
        if self.why:
            yield f"undefined: {self.why}"
        for change, each in self.found.items():
            cells = ["-" if np.isnan(value) else f"{value:.4f}" for value in (each[metric] for metric in METRICS)]
            cells += [str(each["components"]), str(self.left_out[change])]
            yield f"{called(change):<36}" + "".join(f" {cell:>8}" for cell in cells)


def called(change: Change) -> str:
    what, pixels = change
    if what == "second":
        return "those of the second folder"
    if what == "band":
        return f"{pixels} px to both sides ignored"
    return f"{abs(pixels)} px {'larger' if pixels > 0 else 'smaller'}" if pixels else "as given"


def masks_audit(
    data: Path | str,
    second: Path | None = None,
    bundle: Path | None = None,
    out: Path | None = None,
    speck_px: int = SPECK_PX,
) -> tuple[MaskAudit, Dependence | None, Path | None]:
    """What `flawmap masks audit` tells, and with `out`, a new folder, its page."""
    if speck_px < 1:
        raise UsageError(f"--speck {speck_px}: give pixels, 1 or more")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already; move it away, or name another with --out")
    samples = find(data, kind=None) if Path(data).is_file() else find(data)
    found = audit_masks(samples, second, speck_px)
    hangs = None if bundle is None else depends(bundle, samples, second)
    if out is None:
        return found, hangs, None
    out.mkdir(parents=True, exist_ok=True)
    others = {} if second is None else second_masks(samples, second)
    shown = _shown(found, samples, others)
    title = Path(data).resolve().name
    path = page(title, list(found.sentences()), found.findings, _table(hangs), shown, out / "masks.html")
    return found, hangs, path


def depends(bundle: Path, samples: Sequence[Sample], second: Path | None = None) -> Dependence:
    """Each test picture is judged once, and held against all of the masks."""
    model = load(bundle)
    tested = [sample for sample in samples if sample.split == "test" and sample.kind is not None]
    try:
        given = read_all(tested)
        masks: dict[Change, dict[str, Marks]] = {("offset", by): kept(given, tested, by) for by in OFFSETS}
        for width in BANDS:
            masks["band", width] = {name: banded(each, width) for name, each in given.items()}
        if second is not None:
            paths = second_masks(tested, second)
            sizes = {s.name: size_of(s.source) for s in tested if s.name in paths}
            masks["second", 0] = given | {name: read_mask(paths[name], sizes[name], name) for name in sizes}
        found = figures(model, tested, masks, CAP)
    except DataError as error:
        return Dependence(_name(model, bundle), {}, {}, str(error))
    defective = {sample.name for sample in tested if not sample.good}
    gone = {
        change: len(defective - {name for name, each in of.items() if each.defect.any()})
        for change, of in masks.items()
    }
    return Dependence(_name(model, bundle), found, gone)


def _name(model: Model, bundle: Path) -> str:
    return f"{model.bundle.config['title']} ({bundle.name})"


def _said(found: MaskAudit, name: str) -> Iterator[str]:
    """What there is to say of a picture, without its name."""
    for code, words in found.of.get(name, []):
        more = words.removeprefix(name).removeprefix(": ")
        yield f"{code}: {more or TABLE[code][1]}"
    if (edge := found.offsets.get(name)) is not None and edge.pixels is None:
        yield f"edge not told: {edge.why}"
    agreed = next((each for each in found.agreements if each.name == name), None)
    if agreed is not None and agreed.iou is not None:
        words = f"two people: IoU {agreed.iou:.3f}"
        if agreed.mean_px is not None:
            words += f", {agreed.mean_px:.1f} px between outlines (95 % {agreed.hausdorff95_px:.1f} px)"
        yield words


def _why(why: str) -> dict[str, str]:
    return {"why": why} if why else {}


def _table(hangs: Dependence | None) -> dict[str, Any] | None:
    """For the page: columns, rows of words, and the two plots' lines."""
    if hangs is None:
        return None
    rows = [
        (
            called(change),
            [None if np.isnan(each[m]) else each[m] for m in METRICS],
            int(each["components"]),
            hangs.left_out[change],
        )
        for change, each in hangs.found.items()
    ]
    given = hangs.found.get(("offset", 0), {})
    lines = {
        what: {TITLES[m]: [(by, each[m]) for (kind, by), each in hangs.found.items() if kind == what] for m in METRICS}
        for what in ("offset", "band")
    }
    for metric in METRICS if given else ():
        lines["band"][TITLES[metric]].insert(0, (0, given[metric]))
    return {
        "model": hangs.model,
        "why": hangs.why,
        "titles": [TITLES[m] for m in METRICS],
        "rows": rows,
        "lines": lines,
    }


def _shown(found: MaskAudit, samples: Sequence[Sample], others: Mapping[str, Path]) -> Iterator[Shown]:
    """The worst pictures, read again one at a time; one that cannot be read has words only."""
    by_name = {sample.name: sample for sample in samples}
    for name in worst(found, SHOWN):
        sample, shown = by_name[name], Shown(name, list(_said(found, name)))
        try:
            image = decode(sample.source)
            masks = [None if sample.mask is None else read_mask(sample.mask, image.shape[:2], name)]
            masks += [read_mask(others[name], image.shape[:2], name)] if name in others else []
            yield replace(shown, image=image, masks=masks)
        except DataError:
            yield shown

"""The masks of a data set: what is wrong with them, whether they lie on the pictures' edges, and whether two people
drew the same. Every picture that has a mask, or should, is decoded once."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from flawmap.errors import DataError
from flawmap.images.decode import MAX_MPX, decode, label
from flawmap.images.findings import Finding, Severity, gathered, many, told
from flawmap.images.masks.checks import BASIC, SHAPES, SPECK_PX, Looked, look, shapes, without
from flawmap.images.masks.edges import Offset, offset
from flawmap.images.masks.levels import DEFECT, Marks, marks
from flawmap.images.masks.second import Agreement, agree, overall, second_masks
from flawmap.types import Sample

OFF_PX = 2  # from here on an outline beside the edge is a finding: one pixel is within the blur of most pictures
APART = 0.5  # two people's IoU below this is a finding
TABLE: dict[str, tuple[Severity, str]] = {
    **BASIC,
    **SHAPES,
    "mask-wide": ("warning", f"whose mask runs {OFF_PX} px or more outside the edge in the picture"),
    "mask-narrow": ("warning", f"whose mask runs {OFF_PX} px or more inside the edge in the picture"),
    "annotators-apart": ("warning", f"of which two people marked less than {APART:.0%} alike (IoU)"),
    "second-only": ("warning", "that have a mask in the second folder and none in the data"),
    "second-missing": ("warning", "that have a mask in the data and none in the second folder"),
}


@dataclass(slots=True)
class MaskAudit:
    pictures: int  # looked at: with a mask, or of a defect
    masks: int
    ignored: dict[str, int] = field(default_factory=dict)  # masks that have pixels to ignore, and so many pixels
    findings: tuple[Finding, ...] = ()  # errors first
    of: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # picture -> its codes, and what is to be said
    offsets: dict[str, Offset] = field(default_factory=dict)  # of defective pictures with a mask
    agreements: tuple[Agreement, ...] = ()

    @property
    def spoils(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)

    @property
    def told(self) -> dict[str, int]:
        """The offsets that could be told: pixels; below zero the mask is too wide."""
        return {name: each.pixels for name, each in self.offsets.items() if each.pixels is not None}

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"spoils": self.spoils, "pictures": self.pictures, "masks": self.masks}
        found |= {"ignored": self.ignored} if self.ignored else {}
        found["findings"] = [asdict(finding) for finding in self.findings]
        found["edges"] = {"told": len(self.told), "of": len(self.offsets), "median_px": self._median()}
        found["edges"]["pictures"] = {name: asdict(each) for name, each in self.offsets.items()}
        if self.agreements:
            found["second"] = overall(self.agreements) | {"each": [asdict(each) for each in self.agreements]}
        return found

    def _median(self) -> float | None:
        return float(median(self.told.values())) if self.told else None

    def sentences(self) -> Iterator[str]:
        """What was measured, in a person's words."""
        yield f"{many(self.masks, 'mask')} of {many(self.pictures, 'picture')} with a defect or a mask"
        if self.ignored:
            yield f"to ignore: {self.ignored['pixels']} pixels in {many(self.ignored['masks'], 'mask')}"
        if self.offsets:
            words = f"outlines against the pictures' edges: told of {len(self.told)} of {len(self.offsets)}"
            middle = self._median()
            yield words if middle is None else f"{words}, median {middle:+g} px (below zero: drawn too wide)"
        if self.agreements:
            found = overall(self.agreements)
            words = [f"two people, {many(found['pictures'], 'picture')}"]
            for key, name, form in (
                ("iou", "IoU", ".3f"),
                ("mean_px", "boundary distance in px", ".1f"),
                ("hausdorff95_px", "95 % Hausdorff in px", ".1f"),
            ):
                if found[key] is not None:
                    words.append(f"{name} {found[key]:{form}} (worst {found[f'{key}_worst']:{form}})")
            yield ", ".join(words)

    def text(self) -> str:
        lines = [*self.sentences(), "", *told(self.findings)]
        return "\n".join(lines if self.findings else [*lines, "nothing found"])


def audit_masks(
    samples: Sequence[Sample], second: Path | None = None, speck_px: int = SPECK_PX, max_mpx: float = MAX_MPX
) -> MaskAudit:
    """DataError: no picture has a mask or needs one, or the second folder holds no mask of them."""
    wanted = [s for s in samples if s.mask is not None or (s.split == "test" and s.kind and not s.good)]
    if not any(sample.mask is not None for sample in wanted):
        raise DataError(
            "no picture has a mask: put them in ground_truth/<kind>/<stem>_mask.png, or name them in a list"
        )
    others = {} if second is None else second_masks(samples, second)
    found = MaskAudit(len(wanted), sum(sample.mask is not None for sample in wanted))
    found.of = {sample.name: [] for sample in samples}
    ignoring, digests, agreements = [], dict[str, list[str]](), []
    for sample in wanted:
        looked = _look(sample, found, speck_px, max_mpx)
        if looked is None or looked.levels is None:
            continue
        if looked.ignored:
            ignoring.append(looked.ignored)
        if (looked.levels == DEFECT).any():
            content = f"{looked.levels.shape}".encode() + looked.levels.tobytes()
            digests.setdefault(hashlib.sha256(content).hexdigest(), []).append(sample.name)
        if sample.name in others:
            agreements += _second(sample, marks(looked.levels), others[sample.name], found)
    found.ignored = {"masks": len(ignoring), "pixels": sum(ignoring)} if ignoring else {}
    found.agreements = tuple(agreements)
    _between(samples, found, digests, others)
    troubles: dict[str, list[str]] = defaultdict(list)
    for said in found.of.values():
        for code, words in said:
            troubles[code].append(words)
    found.findings = tuple(sorted(gathered(troubles, TABLE), key=lambda finding: finding.severity))
    found.of = {name: said for name, said in found.of.items() if said}
    return found


def _look(sample: Sample, found: MaskAudit, speck_px: int, max_mpx: float) -> Looked | None:
    """What one picture and its mask say; None for a picture that cannot be read."""
    said = found.of[sample.name]
    try:
        image = decode(sample.source, max_mpx)
    except DataError as error:
        reason = str(error).removeprefix(f"{label(sample.source)}: ")
        said.append(("unreadable", f"{sample.name}: {reason}"))
        return None
    looked = look(sample, image.shape[:2])
    said += [*looked.troubles, *shapes(looked, sample.name, speck_px)]
    if looked.levels is not None and not sample.good and (looked.levels == DEFECT).any():
        each = found.offsets[sample.name] = offset(image, *marks(looked.levels))
        if each.pixels is not None and abs(each.pixels) >= OFF_PX:
            side, code = ("inside", "mask-wide") if each.pixels < 0 else ("outside", "mask-narrow")
            said.append((code, f"{sample.name}: the edge lies {abs(each.pixels)} px {side}"))
    return looked


def _second(sample: Sample, own: Marks, path: Path, found: MaskAudit) -> list[Agreement]:
    looked = look(replace(sample, mask=path), own.defect.shape)
    found.of[sample.name] += [(code, f"{words} (second)") for code, words in looked.troubles]
    if looked.levels is None:
        return []
    agreed = agree(sample.name, own, marks(looked.levels))
    if agreed.iou is not None and agreed.iou < APART:
        found.of[sample.name].append(("annotators-apart", f"{sample.name}: {agreed.iou:.2f}"))
    return [agreed]


def _between(
    samples: Sequence[Sample], found: MaskAudit, digests: dict[str, list[str]], others: dict[str, Path]
) -> None:
    """What is only seen beside the other pictures."""
    for name in without(samples):
        found.of[name].append(("mask-missing", name))
    for names in digests.values():
        for name in names if len(names) > 1 else ():
            other = next(each for each in names if each != name)
            found.of[name].append(("mask-copied", f"{name} = {other}"))
    for sample in samples if others else ():
        if sample.mask is None and sample.name in others:
            found.of[sample.name].append(("second-only", sample.name))
        if sample.mask is not None and sample.name not in others:
            found.of[sample.name].append(("second-missing", sample.name))


def worst(found: MaskAudit, most: int) -> list[str]:
    """The pictures with the most to say of them: errors first, then by findings, disagreement and offset."""
    errors = {name for name, said in found.of.items() if any(TABLE[code][0] == "error" for code, _ in said)}
    iou = {each.name: 1 - each.iou for each in found.agreements if each.iou is not None}
    off = {name: abs(pixels) for name, pixels in found.told.items()}
    weight = {
        name: (name in errors, sum(code != "mask-edge" for code, _ in said), iou.get(name, 0.0), off.get(name, 0))
        for name, said in {**{key: [] for key in iou}, **found.of}.items()
    }
    return sorted(weight, key=lambda name: (*(-float(each) for each in weight[name]), name))[:most]

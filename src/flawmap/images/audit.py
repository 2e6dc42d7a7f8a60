"""What a data set holds and what in it would spoil a result, before anything is fitted.

Every picture is decoded once. Equal pixels make exact duplicates. Near duplicates are pairs of different parts whose
32 x 32 thumbnails still correlate above 0.98 after the mean thumbnail of the other pictures is taken off: without that
step all parts under a fixed camera would look alike.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from flawmap.errors import DataError
from flawmap.images.decode import MAX_MPX, decode, label, probe
from flawmap.images.findings import SHOWN, Finding, Severity, gathered, many, told
from flawmap.images.masks.checks import BASIC, look, without
from flawmap.types import Sample

THUMB = 32
NEAR = 0.98


@dataclass(frozen=True, slots=True)
class Group:
    """The pictures of one kind in one split."""

    split: str
    kind: str | None
    pictures: int
    parts: int
    masks: int


@dataclass(frozen=True, slots=True)
class Audit:
    groups: tuple[Group, ...]
    sizes: dict[str, int]  # "width x height" -> pictures
    modes: dict[str, int]  # "RGB 8-bit" -> pictures
    findings: tuple[Finding, ...]  # errors first
    ignored: dict[str, int] = field(default_factory=dict)  # masks that have pixels to ignore, and so many pixels

    @property
    def spoils(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        found = {"spoils": self.spoils} | asdict(self)
        return found if self.ignored else {key: value for key, value in found.items() if key != "ignored"}

    def text(self) -> str:
        """A person's table."""
        lines = [f"{'split':<6} {'kind':<20} {'pictures':>8} {'parts':>6} {'masks':>6}"]
        lines += [f"{g.split:<6} {g.kind or '?':<20} {g.pictures:>8} {g.parts:>6} {g.masks:>6}" for g in self.groups]
        lines += ["", f"sizes: {_counted(self.sizes)}", f"pixels: {_counted(self.modes)}"]
        if self.ignored:
            lines.append(f"to ignore: {self.ignored['pixels']} pixels in {many(self.ignored['masks'], 'mask')}")
        lines += ["", *told(self.findings)]
        return "\n".join(lines if self.findings else [*lines, "nothing found that would spoil a result"])


@dataclass(slots=True)
class _Seen:
    """What one pass over the pictures leaves in memory."""

    samples: list[Sample] = field(default_factory=list)  # the readable ones
    digests: list[str] = field(default_factory=list)
    thumbs: list[np.ndarray] = field(default_factory=list)
    sizes: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    bits: Counter[int] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    troubles: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # code -> "name: reason"


# code -> severity and what follows "3 pictures"
TROUBLES: dict[str, tuple[Severity, str]] = {
    **BASIC,
    "blank": ("warning", "of one single value throughout"),
}


def audit(samples: Iterable[Sample], strays: Sequence[str] = (), max_mpx: float = MAX_MPX) -> Audit:
    """Decodes every picture and mask once; `strays` are files beside them that were left out."""
    samples = list(samples)
    seen = _Seen()
    for sample in samples:
        _look(sample, seen, max_mpx)
    seen.troubles["mask-missing"] = without(samples)
    findings = gathered(seen.troubles, TROUBLES)
    findings += [*_parts(samples), *_exact(seen), *_near(seen), *_mixed(seen)]
    if strays:
        findings.append(
            Finding("warning", "strays", f"{many(len(strays), 'file')} outside the layout, left out", tuple(strays))
        )
    findings.sort(key=lambda finding: finding.severity)  # stable, "error" before "warning"
    return Audit(
        _groups(samples),
        dict(seen.sizes.most_common()),
        dict(seen.modes.most_common()),
        tuple(findings),
        dict(seen.ignored),
    )


def _look(sample: Sample, seen: _Seen, max_mpx: float) -> None:
    try:
        header = probe(sample.source, max_mpx)
        pixels = decode(sample.source, max_mpx)
    except DataError as error:
        reason = str(error).removeprefix(f"{label(sample.source)}: ")
        seen.troubles["unreadable"].append(f"{sample.name}: {reason}")
        return
    seen.samples.append(sample)
    seen.digests.append(hashlib.sha256(f"{pixels.shape} {pixels.dtype}".encode() + pixels.tobytes()).hexdigest())
    grey = Image.fromarray(pixels[..., 0].astype(np.float32) + pixels[..., 1] + pixels[..., 2])
    seen.thumbs.append(np.asarray(grey.resize((THUMB, THUMB), Image.Resampling.BOX)).ravel())
    seen.sizes[f"{pixels.shape[1]} x {pixels.shape[0]}"] += 1
    seen.modes[f"{header.mode} {header.bits}-bit"] += 1
    seen.bits[header.bits] += 1
    if pixels.min() == pixels.max():
        seen.troubles["blank"].append(sample.name)
    mask = look(sample, pixels.shape[:2])
    for code, name in mask.troubles:
        seen.troubles[code].append(name)
    if mask.ignored:
        seen.ignored.update(masks=1, pixels=mask.ignored)


def _groups(samples: list[Sample]) -> tuple[Group, ...]:
    members: dict[tuple[str, str | None], list[Sample]] = defaultdict(list)
    for sample in samples:
        members[sample.split, sample.kind].append(sample)
    order = sorted(members, key=lambda key: (key[0] != "train", key[1] != "good", key[1] or ""))
    return tuple(
        Group(
            *key, len(members[key]), len({s.part for s in members[key]}), sum(s.mask is not None for s in members[key])
        )
        for key in order
    )


def _parts(samples: list[Sample]) -> Iterator[Finding]:
    splits: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        splits[sample.part].add(sample.split)
    if torn := sorted(part for part, where in splits.items() if len(where) > 1):
        yield Finding("error", "part-across-splits", f"{many(len(torn), 'part')} in train and in test", tuple(torn))


def _exact(seen: _Seen) -> Iterator[Finding]:
    same: dict[str, list[Sample]] = defaultdict(list)
    for sample, digest in zip(seen.samples, seen.digests, strict=True):
        same[digest].append(sample)
    found: dict[str, list[str]] = defaultdict(list)
    for group in same.values():
        if len(group) > 1:
            across = len({sample.split for sample in group}) > 1
            torn = len({sample.kind for sample in group}) > 1
            code = "duplicate-across-splits" if across else "duplicate-across-kinds" if torn else "duplicate"
            found[code].append(" = ".join(sample.name for sample in group))
    for code, names in found.items():
        where = {"duplicate": "in one split", "duplicate-across-kinds": "under different kinds"}.get(
            code, "in train and test"
        )
        severity = "warning" if code == "duplicate" else "error"
        yield Finding(severity, code, f"{many(len(names), 'picture')} more than once, {where}", tuple(names))


def _near(seen: _Seen) -> Iterator[Finding]:
    """One finding within splits and one across, with one partner a picture, however many pairs there are."""
    within: dict[str, str] = {}
    across: dict[str, str] = {}
    for i, j in _close_pairs(np.array(seen.thumbs)):
        one, other = seen.samples[i], seen.samples[j]
        if one.part == other.part or seen.digests[i] == seen.digests[j]:
            continue
        if one.split == other.split:
            within.setdefault(one.name, other.name)
            within.setdefault(other.name, one.name)
        else:
            test, train = (one, other) if one.split == "test" else (other, one)
            across.setdefault(test.name, train.name)
    for code, partners, whom in (
        ("near-duplicate-across-splits", across, "of the test set much like one in train"),
        ("near-duplicate", within, "much like another in their split"),
    ):
        if partners:
            message = f"{many(len(partners), 'picture')} {whom}; where they show one part, say so in parts.csv"
            yield Finding("warning", code, message, tuple(f"{name} ~ {partners[name]}" for name in sorted(partners)))


def _close_pairs(thumbs_ND: np.ndarray, rows: int = 1024) -> Iterator[tuple[int, int]]:
    """i < j whose thumbnails, of unit contrast and less the mean of all others, correlate above NEAR."""
    count = len(thumbs_ND)
    if count < 2:
        return
    centred = thumbs_ND - thumbs_ND.mean(axis=1, keepdims=True)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    # Less the mean m of the others, u_i becomes (1 + c) a_i + c a_j with a = u - mean(u) and c = 1 / (n - 2).
    a = unit - unit.mean(axis=0) if count > 2 else unit
    c = 1 / (count - 2) if count > 2 else 0.0
    own = (a * a).sum(axis=1)
    for start in range(0, count, rows):
        block, gram = own[start : start + rows, None], a[start : start + rows] @ a.T
        dot = (1 + c) * c * (block + own) + ((1 + c) ** 2 + c**2) * gram
        left = (1 + c) ** 2 * block + 2 * (1 + c) * c * gram + c**2 * own
        right = (1 + c) ** 2 * own + 2 * (1 + c) * c * gram + c**2 * block
        close = dot > NEAR * np.sqrt(np.maximum(left * right, 1e-12))
        i, j = np.nonzero(np.triu(close, k=start + 1))
        yield from zip((i + start).tolist(), j.tolist(), strict=True)


def _mixed(seen: _Seen) -> Iterator[Finding]:
    if len(seen.bits) > 1:
        depths = _counted({f"{bits}-bit": count for bits, count in seen.bits.items()})
        yield Finding("error", "mixed-depth", f"{depths}; a model takes one depth, because their scales differ")
    elif len(seen.modes) > 1:
        yield Finding("warning", "mixed-modes", f"{_counted(seen.modes)}; grey is repeated into three channels")
    if len(seen.sizes) > 1:
        yield Finding(
            "warning",
            "mixed-sizes",
            f"{len(seen.sizes)} sizes; each is stretched to the network's size, whatever its shape",
        )


def _counted(counts: dict[str, int]) -> str:
    shown = sorted(counts.items(), key=lambda item: -item[1])[:SHOWN]
    return ", ".join(f"{what} ({count})" for what, count in shown) + f" and {len(counts) - SHOWN} more" * (
        len(counts) > SHOWN
    )

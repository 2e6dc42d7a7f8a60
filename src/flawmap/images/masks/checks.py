"""What can be wrong with one mask, told from the mask and the label of its picture; no other picture is asked.

`BASIC` is what both audits look for, `SHAPES` what the audit of masks adds: what a slip of the hand leaves behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from flawmap.errors import DataError
from flawmap.images.decode import each_mask, mask_values
from flawmap.images.findings import Severity, many
from flawmap.images.masks.levels import DEFECT, IGNORE, levels_in
from flawmap.types import Sample

GREY_LEVELS = 16  # a mask with more is no longer two levels with soft edges
LISTED = 8  # values of a mask that are listed
SPECK_PX = 12  # a disc 4 px across: less than the slip of a brush, and yet a defect as heavy as any in PRO
FULL = 0.9  # share of the picture
SPIKE_PX = 8  # thin pieces that reach less far are a rough edge
_TOUCHING = np.ones((3, 3))

# code -> severity and what follows "3 pictures"
BASIC: dict[str, tuple[Severity, str]] = {
    "unreadable": ("error", "that cannot be read"),
    "mask-misfit": ("error", "whose mask cannot be read or has another size"),
    "mask-empty": ("error", "of a defect whose mask has no defect in it; mend the mask, or remove it"),
    "mask-on-good": ("error", "called good whose mask has a defect in it"),
    "mask-grey": ("warning", "whose mask has many grey levels; above half is read as defect"),
    "mask-only-ignored": ("warning", "of a defect of which only pixels to ignore are marked; no pixel metric has it"),
    "mask-missing": ("warning", "of a defect without a mask while others have one; left out of the pixel metrics"),
}
SHAPES: dict[str, tuple[Severity, str]] = {
    "mask-values": ("warning", "whose mask holds other values than 0, 128 and 255; above half is read as defect"),
    "mask-copied": ("warning", "with the same mask as another picture"),
    "mask-full": ("warning", f"whose mask covers {FULL:.0%} or more of it"),
    "mask-specks": ("warning", "with specks beside the defect, each of which weighs in PRO as much as it"),
    "mask-holes": ("warning", "with holes in the mask, whose pixels count as good"),
    "mask-spikes": ("warning", f"with pieces 1 or 2 px thin that stick out {SPIKE_PX} px or farther"),
    "mask-edge": ("warning", "whose mask reaches the picture's edge: right where the defect goes on beyond it"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Looked:
    """A mask as it was read; None where there is none, or none that can be used."""

    levels: np.ndarray | None
    values: tuple[int, ...]  # that stand in it
    greys: int  # how many, of several files the most
    troubles: tuple[tuple[str, str], ...]  # code of BASIC; the picture's name, and what more is to say

    @property
    def ignored(self) -> int:
        return 0 if self.levels is None else int(np.count_nonzero(self.levels == IGNORE))


def look(sample: Sample, size_hw: tuple[int, int]) -> Looked:
    """Reads the mask once, and says what of BASIC is wrong with it."""
    if sample.mask is None:
        return Looked(None, (), 0, ())
    levels, values, greys = np.zeros(size_hw, np.uint8), set[int](), 0
    try:
        for given in each_mask(sample.mask):
            found = mask_values(given, size_hw, sample.name)
            held = np.flatnonzero(np.bincount(found.ravel())).tolist()
            values.update(held)
            greys = max(greys, len(held))
            levels = np.maximum(levels, levels_in(found, given)[0])
    except DataError as error:
        return Looked(None, (), 0, (("mask-misfit", f"{sample.name}: {error}"),))
    return Looked(levels, tuple(sorted(values)), greys, tuple(_basic(sample, levels, greys)))


def _basic(sample: Sample, levels: np.ndarray, greys: int) -> Iterator[tuple[str, str]]:
    defect = bool((levels == DEFECT).any())
    if greys > GREY_LEVELS:
        yield "mask-grey", f"{sample.name}: {greys} levels"
    if sample.good and defect:
        yield "mask-on-good", sample.name
    if not sample.good and not defect:
        yield "mask-only-ignored" if levels.any() else "mask-empty", sample.name


def without(samples: Iterable[Sample]) -> list[str]:
    """Names of the defective test pictures that have no mask, where others have one."""
    samples = list(samples)
    if all(sample.mask is None for sample in samples):
        return []
    return [s.name for s in samples if s.split == "test" and s.kind and not s.good and s.mask is None]


def shapes(looked: Looked, name: str, speck_px: int = SPECK_PX) -> list[tuple[str, str]]:
    """What of SHAPES is to be said of one mask; `mask-copied` takes several (`copies`)."""
    found: list[tuple[str, str]] = []
    if looked.levels is None:
        return found
    if looked.greys <= GREY_LEVELS and max(looked.values) > 15 and set(looked.values) - {0, IGNORE, DEFECT}:
        listed = ", ".join(map(str, looked.values[:LISTED])) + (", ..." if len(looked.values) > LISTED else "")
        found.append(("mask-values", f"{name}: {listed}"))
    defect = looked.levels == DEFECT
    if not defect.any():
        return found
    if (share := defect.mean()) >= FULL:
        found.append(("mask-full", f"{name}: {share:.0%}"))
    specks, holes, spikes = _specks(defect, speck_px), _holes(looked.levels), _spikes(defect)
    if specks:
        found.append(("mask-specks", f"{name}: {many(len(specks), 'speck')} of {_sizes(specks)} px"))
    if holes:
        found.append(("mask-holes", f"{name}: {many(len(holes), 'hole')} of {_sizes(holes)} px"))
    if spikes:
        found.append(("mask-spikes", f"{name}: {spikes}"))
    sides = {"left": defect[:, 0], "top": defect[0], "right": defect[:, -1], "bottom": defect[-1]}
    if touched := [side for side, pixels in sides.items() if pixels.any()]:
        found.append(("mask-edge", f"{name}: {', '.join(touched)}"))
    return found


def _specks(defect: np.ndarray, least: int) -> list[int]:
    """Sizes of the 8-connected pieces below `least`, where another is not: a defect that is small is none."""
    from scipy.ndimage import label

    sizes = np.bincount(np.asarray(label(defect, structure=_TOUCHING)[0]).ravel())[1:]  # type: ignore[index]
    return [] if sizes.max() < least else sorted(sizes[sizes < least].tolist())


def _holes(levels: np.ndarray) -> list[int]:
    """Sizes of the 4-connected pieces of good pixels that the mask encloses."""
    from scipy.ndimage import label

    labels: np.ndarray = np.asarray(label(levels == 0)[0])  # type: ignore[index]
    inside = np.ones(labels.max() + 1, bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1], [0]):
        inside[edge] = False
    return sorted(np.bincount(labels.ravel())[inside].tolist())


def _spikes(defect: np.ndarray) -> int:
    """Pieces that a square of 3 x 3 px does not fit into, SPIKE_PX long or longer, on a piece that it fits into."""
    from scipy.ndimage import binary_opening, find_objects, label

    padded = np.pad(defect, 1, mode="edge")  # what goes on beyond the edge is not thin there
    body: np.ndarray = binary_opening(padded, structure=_TOUCHING)[1:-1, 1:-1]
    pieces: np.ndarray = np.asarray(label(defect, structure=_TOUCHING)[0])  # type: ignore[index]
    thick = np.unique(pieces[body])
    thin = np.asarray(label(defect & ~body & np.isin(pieces, thick), structure=_TOUCHING)[0])  # type: ignore[index]
    return sum(max(s.stop - s.start for s in box) >= SPIKE_PX for box in find_objects(thin))


def _sizes(sizes: list[int]) -> str:
    return f"{sizes[0]}" if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"

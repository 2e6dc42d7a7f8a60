"""Features as points: t-SNE plots beside pictures, drawn with matplotlib (extra `research`)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flawmap.errors import MissingExtra

# Okabe and Ito's colours, which survive colour blindness; encoder and decoder differ in shape as well.
LOOKS = {
    "encoder, normal": ("#56B4E9", "o"),
    "decoder, normal": ("#009E73", "^"),
    "encoder, defect": ("#D55E00", "o"),
    "decoder, defect": ("#CC79A7", "^"),
}


@dataclass(frozen=True)
class Cloud:
    """Points (N, 2), the group of each, and pictures (H, W, 3) uint8 with a word each that stand beside them."""

    title: str
    points: np.ndarray
    groups: Sequence[str]
    pictures: Sequence[tuple[str, np.ndarray]]


def clouds(found: Sequence[Cloud], caption: str) -> bytes:
    """A PNG: one row a cloud."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtra("matplotlib", "research", "this figure") from error
    from matplotlib.figure import Figure

    beside = max(len(cloud.pictures) for cloud in found)
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "flawmap"}):
        figure = Figure(figsize=(4.2 + 2.1 * beside, 3.5 * len(found) + 0.9), layout="constrained")
        grid = figure.add_gridspec(len(found), 1 + beside, width_ratios=[2.0, *[1.0] * beside])
        for row, cloud in enumerate(found):
            axes = figure.add_subplot(grid[row, 0])
            for name, (colour, marker) in LOOKS.items():
                inside = np.array([group == name for group in cloud.groups])
                axes.scatter(*cloud.points[inside].T, s=11, c=colour, marker=marker, alpha=0.75, lw=0, label=name)
            axes.set(title=cloud.title, xticks=[], yticks=[])
            for place, (word, picture) in enumerate(cloud.pictures):
                beside_axes = figure.add_subplot(grid[row, 1 + place])
                beside_axes.imshow(picture)
                beside_axes.set_title(word)
                beside_axes.axis("off")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, markerscale=2, frameon=False)
        figure.suptitle(caption, fontsize=9)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    return file.getvalue()

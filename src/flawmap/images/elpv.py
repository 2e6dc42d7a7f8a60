"""Real photographs without a download: solar cells by electroluminescence, from the elpv-dataset package.

2,624 cells of 44 modules, 300x300 px, 8-bit grey, each with the probability that it is defective as experts gave it:

                  0 (good)   1/3   2/3   1 (defective)   all
monocrystalline        588   117    56             313  1074
polycrystalline        920   178    50             402  1550

Only the certain ones are taken: 0 is good, 1 is defective (cracks, inactive areas and the like). There are no masks.
The list does not tell which module a cell was cut from, so a cell counts as a part. Cells that stand next to each
other in it do look alike (brightness correlates 0.75), hence the draw over all of them: what is promised from it holds
for other cells of these modules, not for another module or camera.

Deitsch et al., Automatic classification of defective photovoltaic module cells in electroluminescence images,
Solar Energy 185 (2019); Buerhop-Lutz et al., EU PVSEC 2018.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np

from flawmap.errors import DataError, MissingExtra, UsageError
from flawmap.types import GOOD, Sample

LICENCE = (
    "ELPV dataset, pictures and labels: CC BY-NC-SA 4.0 (name the authors, no commercial use, share alike); "
    "https://github.com/zae-bayern/elpv-dataset"
)
DEFECTIVE = "defective"
_PROBABILITY = {GOOD: 0.0, DEFECTIVE: 1.0}


def _data() -> Path:
    """The package's folder of pictures and labels, found without importing the package."""
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("elpv-dataset", "demo", "the demo on photographs of solar cells")
    return Path(spec.submodule_search_locations[0]) / "data"


def _cells(data: Path, kind: str) -> dict[str, list[Path]]:
    """The certain cells of a kind of module, good and defective, in the order of the list."""
    labels = data / "labels.csv"
    cells: dict[str, list[Path]] = {GOOD: [], DEFECTIVE: []}
    try:
        for row in labels.read_text("utf-8").splitlines():
            name, probability, module = row.split()
            for label, certain in _PROBABILITY.items():
                if module == kind and float(probability) == certain:
                    cells[label].append(data / name)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {labels} ({error}): install elpv-dataset again") from error
    return cells


def samples(
    kind: Literal["mono", "poly"] = "mono",
    *,
    good: int = 200,
    test_good: int = 100,
    defective: int = 100,
    seed: int = 0,
) -> list[Sample]:
    """A seeded draw: `good` good cells to train on, `test_good` other good ones and `defective` ones to test on.

    Names are "train/good/cell0004.png" and the like, sorted within each of the three. Raises MissingExtra
    without the package, UsageError for more cells than there are, DataError where the package is damaged.
    """
    if kind not in ("mono", "poly"):
        raise UsageError(f"unknown kind {kind!r} of solar cell: choose mono or poly")
    if min(good, test_good, defective, seed) < 0:
        raise UsageError("numbers of solar cells and their seed are at least 0")
    cells = _cells(_data(), kind)
    wanted = {GOOD: good + test_good, DEFECTIVE: defective}
    for label, count in wanted.items():
        if count > len(cells[label]):
            raise UsageError(f"{count} {label} {kind} cells asked for, {len(cells[label])} exist: ask for fewer")
    rng = np.random.default_rng(seed)
    drawn = {label: [cells[label][i] for i in rng.permutation(len(cells[label]))[:n]] for label, n in wanted.items()}
    return [
        *_samples(drawn[GOOD][:good], "train", GOOD),
        *_samples(drawn[GOOD][good:], "test", GOOD),
        *_samples(drawn[DEFECTIVE], "test", DEFECTIVE),
    ]


def _samples(paths: list[Path], split: Literal["train", "test"], kind: str) -> list[Sample]:
    paths = sorted(paths)
    if missing := next((path for path in paths if not path.is_file()), None):
        raise DataError(f"{missing} is listed but missing: install elpv-dataset again")
    return [Sample(path, f"{split}/{kind}/{path.name}", path.stem, split, kind) for path in paths]

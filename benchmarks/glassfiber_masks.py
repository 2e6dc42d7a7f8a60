"""What is wrong with the masks of glass fibre, and how far figures hang on them: the tables of docs/masks-audit.md.

    python benchmarks/glassfiber_masks.py --work DIR [--methods patchcore padim simplenet]

Models are fitted with their defaults on the good pictures, last step, seed 0, and are kept in DIR; so are the masks
that were drawn again (glassfiber_redrawn.json: corners on the grid between pixels, of a second border the inside is cut
out). The pictures are found by FLAWMAP_DATA, else in ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from results import commit

from flawmap.images.decode import decode
from flawmap.images.folder import find
from flawmap.images.masks.audit import MaskAudit, audit_masks
from flawmap.images.masks.edges import offset
from flawmap.images.masks.levels import on_picture, read_mask, save_levels
from flawmap.images.masks.outline import filled
from flawmap.images.masks.second import overall, second_masks
from flawmap.run.coarse import METRICS, read_all
from flawmap.run.coarse import figures as under
from flawmap.run.fit import fit
from flawmap.run.masks import Dependence, called, depends
from flawmap.run.model import load
from flawmap.run.reproduce import TITLES
from flawmap.types import Sample

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("FLAWMAP_DATA") or HERE.parents[1] / "shared" / "data") / "glassfiber" / "glassfiber"
PAGE = HERE.parent / "docs" / "masks-audit.md"
MARKS = ("<!-- from here: python benchmarks/glassfiber_masks.py -->", "<!-- to here -->")
KIND, SIDE = "defective", 512


def redrawn(folder: Path) -> Path:
    """The corners as masks, in a folder laid out as ground_truth."""
    for name, borders in json.loads((HERE / "glassfiber_redrawn.json").read_text()).items():
        mask = np.zeros((SIDE, SIDE), bool)
        for corners in borders:
            mask ^= on_picture(filled(KIND, np.array(corners, float), mask.shape), mask.shape)
        save_levels(mask * np.uint8(255), folder / KIND / f"{name}_mask.png")
    return folder


def models(methods: list[str], work: Path) -> Iterator[tuple[str, Path]]:
    for method in methods:
        bundle = work / f"{method}.flaw"
        if not bundle.exists():
            fit(DATA, method, out=work / "runs").save(bundle)
        yield method, bundle


def findings(found: MaskAudit) -> Iterator[str]:
    yield from ("| finding | pictures | |", "|---|---|---|")
    for finding in found.findings:
        names = [name.removeprefix(f"test/{KIND}/").replace(".png", "") for name in finding.names]
        yield f"| `{finding.code}` | {len(names)} | {'; '.join(names)} |"
    told = sorted(found.told.values())
    yield from ("", f"Edge found in {len(told)} of {len(found.offsets)}: {', '.join(f'{px:+d}' for px in told)} px.")
    for name, each in found.offsets.items():
        if each.pixels is None:
            yield f"Not told of {Path(name).stem}: {each.why}."


def agreement(found: MaskAudit, second: dict[str, Path], samples: dict[str, Sample]) -> Iterator[str]:
    yield "| picture | IoU | boundary, mean px | 95 % Hausdorff, px | area before, after, px | edge before, after, px |"
    yield "|---|---|---|---|---|---|"
    for each in found.agreements:
        image = decode(samples[each.name].source)
        again = offset(image, *read_mask(second[each.name], image.shape[:2], each.name)).pixels
        edges = ", ".join("—" if px is None else f"{px:+d}" for px in (found.offsets[each.name].pixels, again))
        cells = f"{each.iou:.3f} | {each.mean_px:.2f} | {each.hausdorff95_px:.1f}"
        yield f"| {Path(each.name).stem} | {cells} | {each.area_px[0]}, {each.area_px[1]} | {edges} |"
    total = overall(found.agreements)
    means = f"{total['iou']:.3f} | {total['mean_px']:.2f} | {total['hausdorff95_px']:.1f}"
    yield f"| *mean of {total['pictures']}* | {means} | | |"


def figures(hangs: dict[str, Dependence]) -> Iterator[str]:
    titles = " / ".join(TITLES[m] for m in METRICS)
    yield "| masks | " + " | ".join(f"{name}: {titles}" for name in hangs) + " | pieces | gone |"
    yield "|---" * (len(hangs) + 3) + "|"
    first = next(iter(hangs.values()))
    for change, any_of in first.found.items():
        cells = [
            " / ".join("—" if np.isnan(each.found[change][m]) else f"{each.found[change][m]:.3f}" for m in METRICS)
            for each in hangs.values()
        ]
        words = "drawn again" if change[0] == "second" else called(change)
        yield f"| {words} | {' | '.join(cells)} | {any_of['components']} | {first.left_out[change]} |"


def alone(bundles: dict[str, Path], samples: list[Sample], folder: Path) -> Iterator[str]:
    """Only the pictures that were drawn again, with all good ones."""
    paths = second_masks(samples, folder)
    tested = [s for s in samples if s.split == "test" and (s.good or s.name in paths)]
    again = {name: read_mask(path, (SIDE, SIDE), name) for name, path in paths.items()}
    masks = {"as given": read_all(tested), "drawn again": again}
    found = {name: under(load(bundle), tested, masks) for name, bundle in bundles.items()}
    yield from ("| model | masks | " + " | ".join(TITLES[m] for m in METRICS) + " |", "|---" * 5 + "|")
    for name, each in found.items():
        for which, values in each.items():
            yield f"| {name} | {which} | {' | '.join(f'{values[m]:.3f}' for m in METRICS)} |"


def lines(methods: list[str], work: Path) -> Iterator[str]:
    samples = find(DATA)
    folder = redrawn(work / "second")
    found = audit_masks(samples, folder)
    bundles = dict(models(methods, work))
    hangs = {name: depends(bundle, samples, folder) for name, bundle in bundles.items()}
    yield (
        f"Made by `python benchmarks/glassfiber_masks.py --work DIR` on {time.strftime('%Y-%m-%d')}, commit "
        f"{commit()}: {os.cpu_count()} cores ({platform.machine()}), no GPU, Python {platform.python_version()}. Every "
        "model is that of its last step, at its defaults, seed 0."
    )
    yield from ("", "### Findings", "", *findings(found))
    by_name = {sample.name: sample for sample in samples}
    yield from ("", "### Drawn again", "", *agreement(found, second_masks(samples, folder), by_name))
    yield from ("", "### Figures under changed masks", "", *figures(hangs))
    yield from ("", "### The pictures drawn again, alone", "", *alone(bundles, samples, folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for models and masks")
    parser.add_argument("--methods", nargs="+", default=["patchcore", "padim", "simplenet"])
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    made = "\n".join(lines(given.methods, given.work))
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    PAGE.write_text(f"{before}{MARKS[0]}\n{made}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()

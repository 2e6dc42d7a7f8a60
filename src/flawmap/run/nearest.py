"""Why a picture is strange: its strangest place, and the good patch that the memory bank holds nearest to it.

Only a method that remembers patches can tell (PatchCore, `origin_M3`), and only with torch: the exported graph says
map and score, no more, so that judging pays nothing for it. Where something is lacking there is no evidence, and no
error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from flawmap.errors import MissingExtra
from flawmap.images.decode import decode, size_of
from flawmap.run.engine import TorchEngine

if TYPE_CHECKING:
    from flawmap.images.decode import Source
    from flawmap.run.bundle import Bundle
    from flawmap.run.model import Model

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are outside

SIZES = "fitted_sizes"  # in config.json: (height, width) of the pictures that were remembered
LEARNT = ("fit", "fit and calibration (cross-fitted)")  # roles (run/roles.py, which needs torch) that `begin` is shown
CONTEXT = 3  # a crop is so many patches wide and high
MOST_PX = 128  # longest side of a crop


class Near(NamedTuple):
    """The good patch nearest to the strangest place of a picture."""

    name: str  # of the training picture, as in data.jsonl
    box: Box  # the patch in the training picture, in its own pixels
    distance: float  # between the two patches' features, before the score is re-weighted
    at: Box  # the strangest place, in pixels of the inspected picture
    sha256: str  # of the training picture's file


class _Memory(NamedTuple):
    detector: Any
    device: str
    origin_M3: np.ndarray  # picture, row and column of the grid
    pictures: list[tuple[str, str]]  # name and SHA-256, in the order in which they were remembered
    sizes: list[tuple[int, int]]  # height, width of each


_kept: WeakKeyDictionary[Bundle, _Memory | None] = WeakKeyDictionary()  # a network is built once a bundle


def nearest(model: Model, picture: Source) -> Near | None:
    """None: the method cannot tell, the bundle was made before it could, or torch is not installed.

    A picture that was fitted is near itself. DataError when the picture cannot be read.
    """
    if model.bundle not in _kept:
        _kept[model.bundle] = _memory(model)
    memory = _kept[model.bundle]
    if memory is None:
        return None
    import torch

    image, size = model.intake(picture)
    with torch.inference_mode():
        found = memory.detector.closest(torch.from_numpy(image[None]).to(memory.device))
    cell, row, distance = (value[0].item() for value in found)
    number, *origin = memory.origin_M3[row].tolist()
    grid = memory.detector.grid
    name, sha256 = memory.pictures[number]
    return Near(
        name=name,
        box=_box(origin, grid, model.intake.seen(memory.sizes[number])),
        distance=distance,
        at=_box(divmod(cell, grid[1]), grid, model.intake.seen(size)),
        sha256=sha256,
    )


def crop(source_root: str | Path, near: Near) -> np.ndarray | None:
    """The good patch with what surrounds it, (h, w, 3) uint8 or uint16, read from the training picture.

    `source_root` is the folder (or the list) that was fitted, one above it with the good pictures in train/good, or
    one inside. None: there is no file of that name and SHA-256.
    """
    root = Path(source_root)
    root = root.parent if root.is_file() else root
    parts = PurePosixPath(near.name).parts
    if not parts or Path(near.name).is_absolute() or ".." in parts:  # a bundle must not point out of the data
        return None
    places = [root.joinpath(*parts[start:]) for start in range(len(parts))]
    for path in [*places, root.joinpath("train", "good", *parts)]:
        try:
            content = path.read_bytes() if path.is_file() else b""
        except OSError:
            continue
        if hashlib.sha256(content).hexdigest() == near.sha256:
            return around(decode(content), near.box)
    return None


def around(pixels: np.ndarray, box: Box) -> np.ndarray:
    """A box with its surroundings, three times as wide and high, out of (H, W, 3); at most 128 px, else block means.

    At the border the window is moved inside, so that all windows show as much.
    """
    left, top, right, bottom = box
    rows, columns = _window(top, bottom, pixels.shape[0]), _window(left, right, pixels.shape[1])
    found = pixels[rows, columns]
    block = -(-max(found.shape[:2]) // MOST_PX)
    if block == 1:
        return found.copy()
    high, wide = (max(side // block, 1) for side in found.shape[:2])
    found = found[: high * block, : wide * block]
    return np.rint(found.reshape(high, found.shape[0] // high, wide, -1, 3).mean(axis=(1, 3))).astype(pixels.dtype)


def sizes(detector: Any, sources: Iterable[Source]) -> dict[str, list[list[int]]]:
    """For config.json, where the detector knows the origin of what it remembers: sizes of the pictures it was shown.

    One for all of them where they are of one size.
    """
    if not hasattr(detector, "origin_M3"):
        return {}
    found = [list(size_of(source)) for source in sources]
    return {SIZES: found[:1] if all(size == found[0] for size in found) else found}


def _memory(model: Model) -> _Memory | None:
    bundle = model.bundle
    weights, config = bundle.files.get("weights.safetensors", b""), bundle.config
    if SIZES not in config or b'"origin_M3"' not in weights[: 8 + int.from_bytes(weights[:8], "little")]:
        return None
    try:
        engine = model.engine if isinstance(model.engine, TorchEngine) else TorchEngine.from_bundle(config, weights)
    except (MissingExtra, ModuleNotFoundError):
        return None
    rows = [json.loads(line) for line in bundle.files["data.jsonl"].splitlines()]
    pictures = [(row["name"], row["sha256"]) for row in rows if row.get("role") in LEARNT]
    sizes = [(high, wide) for high, wide in config[SIZES]]
    origin_M3 = engine.detector.origin_M3.cpu().numpy()
    return _Memory(
        engine.detector, engine.device, origin_M3, pictures, sizes * len(pictures) if len(sizes) == 1 else sizes
    )


def _box(cell: Iterable[int], grid: tuple[int, int], seen: Box) -> Box:
    """A cell (row, column) of the grid in pixels of a picture of which the network sees `seen`; all it touches."""
    (row, column), (left, top, right, bottom) = cell, seen
    (first, last), (above, below) = _span(column, grid[1], right - left), _span(row, grid[0], bottom - top)
    return left + first, top + above, left + last, top + below


def _span(place: int, count: int, length: int) -> tuple[int, int]:
    return place * length // count, -(-(place + 1) * length // count)


def _window(first: int, last: int, length: int) -> slice:
    side = min(CONTEXT * (last - first), length)
    start = min(max((first + last - side) // 2, 0), length - side)
    return slice(start, start + side)

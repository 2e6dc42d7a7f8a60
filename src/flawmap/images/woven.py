"""Woven parts that flawmap draws itself: a 2/2 twill under slightly uneven light, five kinds of defects, exact masks.

The process is fixed (colours, weave, camera); parts differ as cloth does: each yarn has its own thickness, tone and
waviness, and each part its own shift, rotation, scale, light and noise. One pitch (a yarn and its gap) is about 10 px
whatever the size, so a larger picture shows more cloth.

The mask is a rule, not an outline: the scene is rendered without and with its defect, before the sensor's noise, and
the mask is every pixel where a channel differs by more than 2 grey levels. All other pixels are those of the good part.

These are drawings: good for demos and tests, no evidence of how a detector does on a line.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from flawmap.errors import DataError, UsageError
from flawmap.types import GOOD

PITCH = 10.0  # px from yarn to yarn
VISIBLE = 2.0  # grey levels: a smaller change is not part of the mask
YARN_RGB = np.array([[190, 186, 174], [108, 123, 137]], np.float32)  # warp, weft
TABLE_RGB = np.array([40, 38, 36], np.float32)  # what shows through the cloth
SMALLEST = 32  # px: three pitches, the least that holds a defect
SETTINGS = "woven.json"  # beside the pictures: what they were drawn with
DRAWING = 1  # raised when the same seed draws another picture


@dataclass(frozen=True)
class _Cloth:
    """What a seed settles about a part; a defect changes a copy. Two of a thing: of the warp, of the weft."""

    across: tuple[np.ndarray, np.ndarray]  # (H, W) position across the yarns, in pitches
    traits: np.ndarray  # (2, 5, yarns): thickness in pitches, tone, waviness in pitches, its frequency, its phase
    grain: tuple[np.ndarray, np.ndarray]  # (H, W) fibres, standard deviation about 1
    light: np.ndarray  # (H, W, 3)
    noise: np.ndarray  # (H, W, 3) standard normal
    present: tuple[np.ndarray | float, np.ndarray | float] = (1.0, 1.0)  # 0 where the yarn is missing
    doubled: tuple[np.ndarray | float, np.ndarray | float] = (0.0, 0.0)  # 1 where two yarns lie side by side as one

    @property
    def size(self) -> int:
        return len(self.noise)


def _cloth(rng: np.random.Generator, size: int) -> _Cloth:
    from scipy.ndimage import uniform_filter1d

    def white(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    y, x = np.mgrid[:size, :size].astype(np.float32) - (size - 1) / 2
    u, v = _turned(x, y, np.radians(rng.normal(0, 0.8)), PITCH * rng.normal(1, 0.012))
    bow = rng.uniform(-np.pi, np.pi, 4).astype(np.float32)
    u, v = (
        u + 0.12 * np.sin(v / 5 + bow[0]) + 0.05 * np.sin(v / 1.9 + u / 4 + bow[1]) + rng.uniform(0, 4),
        v + 0.20 * np.sin(u / 6 + bow[2]) + 0.06 * np.sin(u / 2.3 - v / 5 + bow[3]) + rng.uniform(0, 4),
    )
    yarns = int(1.5 * size / PITCH) + 8
    traits = white(2, 5, yarns)
    traits *= np.array([0.045, 0.045, 0.025, 0.02, 3], np.float32)[:, None]
    traits += np.array([[0.93, 1, 0.03, 0.09, 0], [0.90, 1, 0.03, 0.11, 0]], np.float32)[..., None]
    grain = tuple(uniform_filter1d(white(size, size), 9, axis=axis) * 3 for axis in (0, 1))

    half = size / 2
    slope, _ = _turned(x, y, rng.uniform(0, 2 * np.pi), half)
    light = rng.normal(1, 0.035) + rng.uniform(0.02, 0.06) * slope - 0.07 * (x * x + y * y) / half**2  # and vignetting
    tint = rng.normal(1, 0.006, 3).astype(np.float32)
    return _Cloth((u, v), traits, (grain[0], grain[1]), light[..., None] * tint, white(size, size, 3))


def _turned(x: np.ndarray, y: np.ndarray, angle: float, unit: float) -> tuple[np.ndarray, np.ndarray]:
    """The positions x, y in axes turned by `angle` (radians), in units of `unit` px; float32 stays float32."""
    cosine, sine = float(np.cos(angle) / unit), float(np.sin(angle) / unit)
    return cosine * x + sine * y, cosine * y - sine * x


def _yarns(cloth: _Cloth, system: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Height, brightness and cover (how much of the pixel it fills) of the warp (0) or the weft (1), each (H, W)."""
    across, along = cloth.across[system], cloth.across[1 - system]
    index = np.floor(across)
    yarn = index.astype(np.intp) % cloth.traits.shape[2]
    thickness, tone, wave, frequency, phase = np.take(cloth.traits[system], yarn, axis=1)
    turn = 2 * np.pi * frequency * along + phase
    crimp = np.cos(np.pi / 2 * (along + index - 1)) * (1, -1)[system]  # over two yarns, under two, one further each row
    thickness = thickness * (1 + 0.05 * np.sin(1.7 * turn + 1) + 0.05 * crimp)
    offset = 2 * (across - index - 0.5 - wave * np.sin(turn)) / thickness  # -1 and 1 are the yarn's edges
    side = np.abs(offset)
    doubled = cloth.doubled[system]
    belly = np.sqrt(np.clip(1 - (side + doubled * (np.abs(2 * side - 1) - side)) ** 2, 0, 1))
    cover = np.clip((1 - side) * thickness * (PITCH / 2) + 0.5, 0, 1) * cloth.present[system]
    twist = np.sin(2 * np.pi * (1.9 * along + 0.55 * offset) + phase)
    bright = tone * (0.48 + 0.40 * belly + 0.21 * crimp) * (1 + 0.055 * cloth.grain[system] + 0.035 * twist)
    return 0.8 * crimp + 0.7 * belly + 0.5 * doubled, bright, cover


def _render(cloth: _Cloth) -> np.ndarray:
    """The part as the lens shows it, before noise: (H, W, 3) float32 in grey levels."""
    (high, bright, cover), (low, dim, under) = _yarns(cloth, 0), _yarns(cloth, 1)
    high, low = high - 4 * (1 - cover), low - 4 * (1 - under)
    warp = np.clip((high - low) * 2.2 + 0.5, 0, 1)  # soft, so that edges are not stairs
    height = np.maximum(high, low)
    slope = np.zeros_like(height)
    slope[1:, 1:] = height[1:, 1:] - height[:-1, :-1]
    shade = 1 + 0.16 * np.clip(slope, -1, 1)
    covered = np.maximum(cover, under)
    parts = np.stack([warp * bright * shade * covered, (1 - warp) * dim * shade * covered, 1 - covered], -1)
    return _lens(parts @ np.vstack([YARN_RGB, TABLE_RGB]) * cloth.light)


def _lens(picture: np.ndarray) -> np.ndarray:
    from scipy.ndimage import correlate1d

    blur = np.array([0.18, 0.64, 0.18], np.float32)
    return correlate1d(correlate1d(picture.astype(np.float32), blur, axis=0), blur, axis=1)


def _place(rng: np.random.Generator, cloth: _Cloth) -> tuple[int, int]:
    """Row and column of a pixel in the middle three quarters of the picture."""
    row, column = rng.integers(cloth.size // 8, cloth.size - cloth.size // 8, 2)
    return int(row), int(column)


def _fibre_ends(rng: np.random.Generator, across: np.ndarray, spread: float) -> np.ndarray:
    """(H, W) how far each fibre (six a yarn) sticks out where its yarn is torn, in pitches."""
    table = rng.normal(0, spread, 509).astype(np.float32)
    return table[np.floor(across * 6).astype(np.intp) % len(table)]


def _strands(curves: list[np.ndarray], width: float, size: int) -> np.ndarray:
    """(H, W) cover in [0, 1] of fibres drawn along curves, (N, 2) arrays of x, y in pixels."""
    fine = 4
    canvas = Image.new("L", (size * fine, size * fine))
    pen = ImageDraw.Draw(canvas)
    for curve in curves:
        pen.line(
            [tuple(point) for point in (curve * fine).tolist()], fill=255, width=round(width * fine), joint="curve"
        )
    return np.asarray(canvas.reduce(fine), np.float32) / 255


def _curve(
    rng: np.random.Generator, start: tuple[float, float], heading: float, length: float, curl: float
) -> np.ndarray:
    """(N, 2) x, y of a smooth random walk with steps of about 1 px; `curl` is its total turning, in radians."""
    steps = max(4, round(length))
    along = np.linspace(0, 1, steps)
    bend = curl * (rng.normal() * along + rng.normal() * 0.5 * np.sin(2 * np.pi * along + rng.uniform(0, 6)))
    angle = heading + bend
    return np.cumsum(np.stack([np.cos(angle), np.sin(angle)], 1) * (length / steps), 0) + start


def _over(picture: np.ndarray, cover: np.ndarray, colour: np.ndarray, cloth: _Cloth, shadow: float = 0.3) -> np.ndarray:
    """Lay something thin on the part, with its soft shadow to the lower right."""
    from scipy.ndimage import gaussian_filter, shift

    shade = 1 - shadow * gaussian_filter(shift(cover, (1.5, 1), order=1), 1)
    return picture * shade[..., None] * (1 - cover[..., None]) + colour * cloth.light * cover[..., None]


def _broken_yarn(rng: np.random.Generator, cloth: _Cloth) -> np.ndarray:
    """A stretch of one yarn is gone, or half its fibres are; its ends are frayed."""
    system, (row, column) = int(rng.integers(2)), _place(rng, cloth)
    across, along = cloth.across[system], cloth.across[1 - system]
    half = rng.uniform(0.7, 5)
    distance = np.abs(along - along[row, column]) - half + _fibre_ends(rng, across, 0.35)
    torn = np.clip(-distance * PITCH, 0, 1) * (np.floor(across) == np.floor(across[row, column]))
    if rng.random() < 0.3:
        torn *= _fibre_ends(rng, across, 1) > -0.2
    present = list(cloth.present)
    present[system] = 1 - torn
    picture = _render(replace(cloth, present=(present[0], present[1])))
    ends, axis = [], (np.pi / 2, 0.0)[system]
    for side in (-1, 1):
        x, y = column + side * half * PITCH * np.cos(axis), row + side * half * PITCH * np.sin(axis)
        for _ in range(rng.integers(1, 4)):
            heading = axis + np.pi * (side > 0) + rng.normal(0, 0.4)
            ends.append(_curve(rng, (x, y), heading, rng.uniform(0.4, 1) * PITCH, 0.7))
    return _over(picture, 0.8 * _strands(ends, 0.8, cloth.size), YARN_RGB[system], cloth)


def _double_yarn(rng: np.random.Generator, cloth: _Cloth) -> np.ndarray:
    """Two yarns lie where one belongs, over a stretch or across the part, and push their neighbours away."""
    system, (row, column) = int(rng.integers(2)), _place(rng, cloth)
    across, along = cloth.across[system], cloth.across[1 - system]
    half = rng.choice([rng.uniform(2, 6), 1e3], p=[0.7, 0.3])
    stretch = 1 / (1 + np.exp(np.clip((np.abs(along - along[row, column]) - half) * 2.5, -30, 30)))
    axis = np.floor(across[row, column]) + 0.5
    distance = across - axis
    swollen = axis + distance * (1 - rng.uniform(0.4, 0.68) * stretch * np.exp(-((distance / 1.25) ** 2)))
    doubled = stretch * (np.floor(swollen) == np.floor(axis))
    fields, pairs = list(cloth.across), [0.0, 0.0]
    fields[system], pairs[system] = swollen, doubled
    return _render(replace(cloth, across=(fields[0], fields[1]), doubled=(pairs[0], pairs[1])))


def _blob(rng: np.random.Generator, cloth: _Cloth, radius: float, ragged: float) -> np.ndarray:
    """(H, W) signed distance in px to a wobbly ellipse, negative inside."""
    row, column = _place(rng, cloth)
    y, x = np.mgrid[: cloth.size, : cloth.size].astype(np.float32)
    stretch = rng.uniform(1, 1.3)
    long, wide = _turned(x - column, y - row, rng.uniform(0, np.pi), 1)
    long, wide = long / stretch, wide * stretch
    turn = np.arctan2(wide, long)
    wobble = sum(rng.normal(0, ragged / k) * np.sin(k * turn + rng.uniform(0, 6)) for k in range(2, 6))
    return np.hypot(long, wide) - radius * (1 + wobble)


def _stain(rng: np.random.Generator, cloth: _Cloth) -> np.ndarray:
    """Oil: semi-transparent, smooth at its edge, darker where it dried last, drawn along by the yarns."""
    radius = min(rng.uniform(0.7, 3.2) * PITCH, cloth.size / 5)
    distance = _blob(rng, cloth, radius, 0.12) + 0.6 * (cloth.grain[0] + cloth.grain[1])
    soft = rng.uniform(0.12, 0.4) * radius
    soaked = np.clip(0.5 - distance / (2 * soft), 0, 1)
    soaked = soaked * soaked * (3 - 2 * soaked) * (1 + 0.3 * np.exp(-((distance / soft + 0.8) ** 2)))
    strength = rng.uniform(0.08, 0.42)
    return _render(cloth) * (1 - strength * soaked[..., None] * np.array([0.82, 0.95, 1.15], np.float32))


def _hole(rng: np.random.Generator, cloth: _Cloth) -> np.ndarray:
    """Both systems of yarns are cut; the table shows, and fibres stand into the hole from its edge."""
    radius = rng.uniform(0.45, 1.7) * PITCH
    distance = _blob(rng, cloth, radius, 0.10)
    cut = [np.clip(0.5 + distance + PITCH * _fibre_ends(rng, field, 0.16), 0, 1) for field in cloth.across]
    picture = _render(replace(cloth, present=(cut[0], cut[1])))
    rim = np.argwhere(np.abs(distance) < 1.5)
    middle = rim.mean(0)
    loose = []
    for row, column in rim[rng.integers(len(rim), size=rng.integers(3, 9))]:
        inwards = np.arctan2(middle[0] - row, middle[1] - column) + rng.normal(0, 0.6)
        loose.append(_curve(rng, (column, row), inwards, rng.uniform(0.3, 0.9) * radius, 0.5))
    return _over(picture, 0.75 * _strands(loose, 0.7, cloth.size), YARN_RGB[rng.integers(2)], cloth)


def _foreign_fibre(rng: np.random.Generator, cloth: _Cloth) -> np.ndarray:
    """A thin curved fibre, bright or dark, lies on the cloth."""
    row, column = _place(rng, cloth)
    curve = _curve(rng, (column, row), rng.uniform(0, 2 * np.pi), rng.uniform(1.5, 12) * PITCH, 2.0)
    colour = np.array([[238, 236, 228], [34, 30, 32], [150, 60, 50]], np.float32)[rng.choice(3, p=[0.4, 0.45, 0.15])]
    cover = _strands([curve], rng.uniform(0.8, 2.2), cloth.size) * rng.uniform(0.6, 1)
    return _over(_render(cloth), cover, colour, cloth)


_DEFECTS: dict[str, Callable[[np.random.Generator, _Cloth], np.ndarray]] = {
    "broken_yarn": _broken_yarn,
    "double_yarn": _double_yarn,
    "stain": _stain,
    "hole": _hole,
    "foreign_fibre": _foreign_fibre,
}
KINDS = tuple(_DEFECTS)


def draw(seed: int, size: int = 256, kind: str = GOOD) -> tuple[np.ndarray, np.ndarray]:
    """The part of a seed, (size, size, 3) uint8, and its mask, (size, size) bool, empty when it is good.

    Every kind of a seed shows the same cloth. Raises UsageError for an unknown kind, a size below 32 or a seed below 0.
    """
    if kind != GOOD and kind not in _DEFECTS:
        raise UsageError(f"unknown kind {kind!r} of woven part: choose from {', '.join((GOOD, *KINDS))}")
    if size < SMALLEST or seed < 0:
        raise UsageError(
            f"cannot draw a woven part of {size} px, seed {seed}: size is at least {SMALLEST}, seed at least 0"
        )
    cloth = _cloth(np.random.default_rng([seed, 0]), size)
    picture = _render(cloth)
    mask = np.zeros((size, size), bool)
    if kind != GOOD:
        flawed = _DEFECTS[kind](np.random.default_rng([seed, 1 + KINDS.index(kind)]), cloth)
        mask = np.abs(flawed - picture).max(2) > VISIBLE
        picture = np.where(mask[..., None], flawed, picture)
    noise = cloth.noise * (0.8 + 0.12 * np.sqrt(np.maximum(picture, 0)))  # read-out and shot noise
    return np.clip(picture + noise + 0.5, 0, 255).astype(np.uint8), mask


def _listing(good: int, test_good: int, per_kind: int) -> Iterator[tuple[str, str, str]]:
    """Kind, picture and mask of every part, as paths with "/" in the MVTec layout; a good part has no mask."""
    for split, count in (("train", good), ("test", test_good)):
        for n in range(count):
            yield GOOD, f"{split}/{GOOD}/{n:03}.png", ""
    for kind in KINDS:
        for n in range(per_kind):
            yield kind, f"test/{kind}/{n:03}.png", f"ground_truth/{kind}/{n:03}_mask.png"


def _files(good: int, test_good: int, per_kind: int, **_: int) -> set[str]:
    """Every file of a category that was drawn with these settings, as paths with "/"."""
    return {SETTINGS} | {name for _, *names in _listing(good, test_good, per_kind) for name in names if name}


def _stands(folder: Path, settings: dict[str, int]) -> bool:
    """Whether the folder is complete and of these settings; DataError where it holds what was not drawn here."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise DataError(f"{folder} is a file: give another folder for the woven parts")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    try:
        drawn = json.loads((folder / SETTINGS).read_text("utf-8"))
        ours = _files(**drawn)
    except (OSError, ValueError, TypeError):
        drawn, ours = None, set()
    if drawn == settings and ours <= found:
        return True
    if found - ours:
        raise DataError(f"{folder} holds {min(found - ours)}, which is no woven part: give another folder, or empty it")
    return False


def write(
    folder: str | Path, *, good: int = 100, test_good: int = 25, per_kind: int = 8, size: int = 256, seed: int = 0
) -> Path:
    """Draw a category in the MVTec layout and give back its folder; no two of its parts share their cloth.

    It appears complete or not at all. A complete folder of the same settings (kept in its woven.json) is left as it is;
    one of other settings, or with pictures missing, is drawn anew. Raises UsageError for a number that makes no sense,
    DataError where the folder cannot be written or holds anything that was not drawn here.
    """
    if good < 1 or test_good < 0 or per_kind < 0 or size < SMALLEST or seed < 0:
        raise UsageError(
            f"cannot draw {good} + {test_good} good woven parts and {per_kind} of a kind, {size} px, seed {seed}: "
            f"good is at least 1, size at least {SMALLEST}, the others at least 0"
        )
    settings = {"drawing": DRAWING, "good": good, "test_good": test_good, "per_kind": per_kind}
    settings |= {"size": size, "seed": seed}
    place = Path(folder).resolve()
    try:
        if not _stands(place, settings):
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as temporary:
                _write(Path(temporary, "new"), settings)
                if place.exists():
                    place.rename(Path(temporary, "old"))
                Path(temporary, "new").rename(place)
    except OSError as error:
        raise DataError(f"cannot write the woven parts to {folder}: {error.strerror or error}") from error
    return Path(folder)


def _write(folder: Path, settings: dict[str, int]) -> None:
    listing = _listing(settings["good"], settings["test_good"], settings["per_kind"])
    for n, (kind, picture, mask) in enumerate(listing):
        pixels, flawed = draw(settings["seed"] * 1_000_000 + n, settings["size"], kind)
        for name, array in ((picture, pixels), (mask, flawed.astype(np.uint8) * 255)):
            if name:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / name)
    (folder / SETTINGS).write_text(json.dumps(settings) + "\n", "utf-8")

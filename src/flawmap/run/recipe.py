"""A run: one fit with its recipe, its log and its folder. The recipe says all that decides the outcome."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import secrets
import sys
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from flawmap.errors import DataError, UsageError
from flawmap.images.decode import each_mask
from flawmap.images.folder import sha256
from flawmap.images.loco import regions as saturating
from flawmap.images.masks.levels import sidecar
from flawmap.run.progress import say
from flawmap.types import Sample

# What a picture was for, in data.jsonl: all that begins with "fit" was learnt from.
FIT, SCALE, CALIBRATION = "fit", "fit: scale of the maps", "calibration"
CROSSED = "fit and calibration (cross-fitted)"


@dataclass(frozen=True)
class Recipe:
    data: str  # where the pictures come from, as given
    data_sha256: str  # over names, parts and contents of all pictures that were used
    method: str = "patchcore"
    options: Mapping[str, Any] = field(default_factory=dict)  # all options of the method, defaults written out
    given: Mapping[str, str] = field(default_factory=dict)  # what options name: SHA-256 of weights and of folders
    seed: int = 0
    held_out: float = 0.2  # share of the parts that fitting does not see, where the method does not cross-fit
    folds: int = 5  # of cross-fitting
    shots: int | None = None  # so many good parts only, of the draw `draw`
    draw: int | None = None
    resize: int | None = None  # pixels of the shorter side before the middle is taken; None: squashed
    tile: int | None = None  # pixels of a tile at the picture's own resolution; None: the picture as a whole
    overlap: int | None = None
    scales: Sequence[float] | None = None
    roi: Sequence[int] | None = None  # left, top, right, bottom
    ignore: Sequence[Any] | None = None  # polygons of (x, y)
    false_alarm: float | None = None  # None: max(1 %, 1 / (parts + 1))
    confidence: float | None = None  # with which the rate holds; None: on average over calibrations
    device: str = "cpu"

    def write(self, path: Path) -> None:
        values = {key: value for key, value in asdict(self).items() if value is not None}
        tables = {name: values.pop(name) for name in ("options", "given")}
        lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
        for name, table in tables.items():
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
        lines.append("")
        _replace(path, "\n".join(lines))

    @classmethod
    def read(cls, path: Path) -> Recipe:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not a recipe ({error})") from error
        known = {f.name for f in fields(cls)}
        if wrong := (values.keys() - known) | ({"data", "data_sha256"} - values.keys()):
            raise DataError(f"{path}: unknown or missing {', '.join(sorted(wrong))}; known: {', '.join(sorted(known))}")
        return cls(**values)


class Log:
    """One JSON object a line, appended and flushed: what was done, when, and how long it took."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _drop_torn_line(path)

    def add(self, **entry: Any) -> None:
        self.many([entry])

    def many(self, entries: Iterable[Mapping[str, Any]]) -> None:
        now = round(time.time(), 3)
        with self.path.open("a") as file:
            file.write("".join(json.dumps({"time": now, **entry}) + "\n" for entry in entries))
            file.flush()
            os.fsync(file.fileno())

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []


def run_folder(root: Path, recipe: Recipe, resume: bool | str | Path) -> Path:
    """A new folder, or that of a run to go on with: the one named, or the newest unfinished one of this recipe."""
    run = None
    if isinstance(resume, (str, Path)):
        run = Path(resume)
        if not same(run / "recipe.toml", recipe):
            raise UsageError(f"{run}: no run of this recipe (method, options, seed and pictures must be the same)")
        if (run / "bundle.flaw").exists():
            raise UsageError(f"{run}: this run is finished; its bundle is {run / 'bundle.flaw'}")
    elif resume:
        run = unfinished(root, recipe)
        say(f"going on with {run}" if run else "no unfinished run of this recipe: starting a new one")
    if run is None:
        run = new_folder(root, recipe)
        write_json(run / "env.json", environment())
        recipe.write(run / "recipe.toml")
    return run


def new_folder(root: Path, recipe: Recipe) -> Path:
    """runs/<method>/<dataset>/<category>/<time>-s<seed>, and `latest` beside it pointing to it."""
    source = Path(recipe.data).resolve()
    name = source.stem if source.suffix else source.name
    parent = root / recipe.method / (source.parent.name or "data") / (name or "data")
    stem = time.strftime("%Y%m%d-%H%M%S") + f"-s{recipe.seed}"
    for number in range(1, 1000):
        folder = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
    else:
        raise UsageError(f"{parent}: no free folder for a run")
    link = parent / f".latest-{os.getpid()}"
    try:
        link.symlink_to(folder.name)
        os.replace(link, parent / "latest")
    except OSError:
        link.unlink(missing_ok=True)  # a file system without links: the name has the time
    return folder


def unfinished(root: Path, recipe: Recipe) -> Path | None:
    """The newest run of the same recipe that has no bundle yet."""
    for path in sorted(root.glob(f"{recipe.method}/**/recipe.toml"), reverse=True):
        if not (path.parent / "bundle.flaw").exists() and not path.parent.is_symlink() and same(path, recipe):
            return path.parent
    return None


def same(path: Path, recipe: Recipe) -> bool:
    try:
        return _plain(Recipe.read(path)) == _plain(recipe)
    except DataError:
        return False


def environment() -> dict[str, Any]:
    """Versions that decide numbers, and the machine."""
    packages = ["flawmap", "numpy", "scipy", "pillow", "onnxruntime", "torch", "timm", "onnx", "safetensors"]
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "packages": versions,
    }


def write_data(
    path: Path,
    samples: Sequence[Sample],
    hashes: Sequence[str],
    roles: Sequence[str],
    left_out: Iterable[tuple[str, str]],
) -> None:
    """Every picture of a run with its hash, part and role; written once."""
    if path.exists():
        return
    rows = [
        {"name": s.name, "sha256": digest, "part": s.part, "role": role}
        for s, digest, role in zip(samples, hashes, roles, strict=True)
    ]
    rows += [{"name": name, "left_out": reason} for name, reason in left_out]
    _replace(path, "".join(json.dumps(row) + "\n" for row in rows))


def digest(samples: Iterable[Sample]) -> str:
    """SHA-256 over names, parts and contents: the same for the same pictures in any order."""
    rows = sorted(f"{s.name}\0{s.part}\0{sha256(s)}" for s in samples)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def truth(samples: Iterable[Sample]) -> str:
    """SHA-256 over what a person says of the pictures: split, kind, the masks' contents and what stands beside them."""
    rows = []
    for s in samples:
        masks = [sha256(replace(s, source=mask)) for mask in each_mask(s.mask)]
        regions = [saturation for _, saturation in saturating(s)]
        notes = [sidecar(mask) for mask in each_mask(s.mask) if isinstance(mask, Path)]
        said = "".join(f"\0{sha256(replace(s, source=note))}" for note in notes if note.is_file())
        rows.append(f"{s.name}\0{s.split}\0{s.kind}\0{masks}\0{regions}{said}")
    return hashlib.sha256("\n".join(sorted(rows)).encode(errors="surrogateescape")).hexdigest()


def peak_mb() -> int | None:
    """The most memory that this process held, in MiB; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


def write_json(path: Path, values: Any) -> None:
    _replace(path, json.dumps(values, indent=1, default=str))


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(head)
    table.writerows(rows)
    _replace(path, buffer.getvalue())


def _toml(value: Any) -> str:
    """JSON is TOML for what a recipe holds, but for surrogate pairs and the control character DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _plain(recipe: Recipe) -> Any:
    return json.loads(json.dumps(asdict(recipe)))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
    os.replace(temporary, path)


def _drop_torn_line(path: Path) -> None:
    """A run that was killed while writing leaves half a line: it never counted, since its work is done again."""
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n") and content:
        path.write_bytes(content[: content.rfind(b"\n") + 1])

"""A shard of many pictures: its pictures from the list of a job, judged into a Parquet file of its own.

OUT/shard-00000.parquet  a row a picture; it appears whole or not at all, so a shard that is there is done
OUT/_work/               what all runs on OUT share; readers of tables leave out folders that begin with _
    job.json             what is judged with what, for the runs to come
    bundle.flaw          the bundle as it was when the first run began
    pictures.parquet     every picture, a row group a shard; views of a part stand together
    claims/00000         the lock of the process that judges the shard
    at/00000             a line for every process that has begun the shard: the part it is at
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flawmap.errors import BundleError, DataError, FlawmapError, MissingExtra
from flawmap.run.claim import claimed
from flawmap.run.model import load
from flawmap.types import Inspection, Prediction, Verdict
from flawmap.verdict.regions import regions

MOST_DEATHS = 3  # of processes at one part, before it gets an error for a verdict
WRITING = -1  # stands for a part while the file is written
WIDE = 10  # bytes of a line of at/
MOST_FLOAT16 = 65504.0


def arrow() -> Any:
    """pyarrow with its Parquet half. MissingExtra: it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtra("pyarrow", "tables", "flawmap inspect --out") from error
    return pyarrow


@dataclass(frozen=True)
class Job:
    """What is judged with what. All of it is fixed by the first run on a folder."""

    out: Path
    asked: dict[str, Any]
    sizes: tuple[int, ...]  # pictures of each shard

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.asked, sort_keys=True).encode()).hexdigest()

    def table(self, shard: int) -> Path:
        return self.out / f"shard-{shard:05}.parquet"

    def left(self) -> list[int]:
        """Shards without their file."""
        there = set(os.listdir(self.out))
        return [shard for shard in range(len(self.sizes)) if self.table(shard).name not in there]


def read_job(out: Path) -> Job:
    """The job that was begun in a folder. DataError: none was, or its files are damaged."""
    pa, work = arrow(), out / "_work"
    try:
        asked = json.loads((work / "job.json").read_text())
        footer = pa.parquet.read_metadata(work / "pictures.parquet")
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(f"{work}: not a job that was begun ({error}); remove {out} and begin again") from error
    return Job(out, asked, tuple(footer.row_group(shard).num_rows for shard in range(footer.num_row_groups)))


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A hidden file to write into, which then takes the name: on the disk, whole or not at all."""
    unfinished = path.with_name(f".{path.name}")
    yield unfinished
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, path)


# ---- one shard


class Judge:
    """The model of a job in this process. `alive` is called after each part, and may raise to stop between two."""

    def __init__(self, out: Path, alive: Callable[[], None] = lambda: None) -> None:
        self.job, self.alive = read_job(out), alive
        self.model = load(out / "_work" / "bundle.flaw", self.job.asked["engine"])
        if self.model.bundle.sha256 != self.job.asked["bundle"]:
            raise BundleError(f"{self.model.bundle.origin} was changed since the job began; remove {out}, begin again")
        self._warm_up()
        self.maps: list[np.ndarray] = []  # of the part that is judged, as the network gives them
        if self.job.asked["maps"]:
            self.model.engine = _Keeping(self.model.engine, self.maps)

    def _warm_up(self) -> None:
        """What the first picture would pay for is paid before any is claimed: a kill meanwhile blames no picture."""
        map_BHW, _ = self.model.engine(np.zeros((1, 3, *self.model.intake.size), np.float32))
        regions(np.zeros_like(map_BHW[0]), 0.0)

    def __call__(self, shard: int) -> bool:
        """Judges the shard unless it is done. False: another process is at it."""
        with claimed(self.job.out / "_work" / "claims" / f"{shard:05}") as mine:
            if mine and not self.job.table(shard).exists():
                self._judge(shard)
        return mine

    def _judge(self, shard: int) -> None:
        parts = self._parts(shard)
        with _attempt(self.job.out / "_work" / "at" / f"{shard:05}") as (dead, at):
            deaths = Counter(dead)
            if deaths[WRITING] >= MOST_DEATHS:
                raise DataError(f"{self.job.table(shard)}: {MOST_DEATHS} processes died writing it; is the disk full?")
            # Where others died comes first: a part that kills its process then takes nothing done along.
            order = sorted(range(len(parts)), key=lambda number: number not in deaths)
            rows: dict[int, list[dict[str, Any]]] = {}
            for number in order:
                names, paths, part = parts[number]
                if deaths[number] < MOST_DEATHS:
                    at(number)
                    rows[number] = self._rows(names, paths, part)
                else:
                    why = f"{part}: the process that judged it died, {deaths[number]} times"
                    rows[number] = [_failed(name, part, why, FlawmapError.exit_code) for name in names]
                self.alive()
            at(WRITING)
            self._write(shard, [row for number in range(len(parts)) for row in rows[number]])

    def _parts(self, shard: int) -> list[tuple[list[str], list[Path], str]]:
        """Names and paths of its views, and the part."""
        listed = arrow().parquet.ParquetFile(self.job.out / "_work" / "pictures.parquet")
        parts: list[tuple[list[str], list[Path], str]] = []
        for row in listed.read_row_group(shard, use_threads=False).to_pylist():
            if not parts or parts[-1][2] != row["part"]:
                parts.append(([], [], row["part"]))
            parts[-1][0].append(row["name"])
            parts[-1][1].append(Path(row["path"]))
        return parts

    def _rows(self, names: list[str], paths: list[Path], part: str) -> list[dict[str, Any]]:
        self.maps.clear()
        try:
            found = self.model.inspect_part(paths, names=names, part=part)
        except FlawmapError as error:
            return [_failed(name, part, str(error), error.exit_code) for name in names]
        except Exception as error:  # of a million pictures one may meet what nobody foresaw; the others are judged
            why = f"{part}: {type(error).__name__}: {error}"
            return [_failed(name, part, why, FlawmapError.exit_code) for name in names]
        rows = _judged(found)
        for row, map in zip(rows, self.maps, strict=bool(self.maps)):
            row["map"] = np.clip(map, -MOST_FLOAT16, MOST_FLOAT16).astype("<f2").tobytes()
            row["map_shape"] = list(map.shape)
        return rows

    def _write(self, shard: int, rows: list[dict[str, Any]]) -> None:
        pa = arrow()
        codes = [row.pop("exit_code", 0) for row in rows]
        counts = Counter("errors" if row["error"] else row["verdict"] or "no verdict" for row in rows)
        note = {
            "job": self.job.sha256,
            "shard": shard,
            "counts": dict(counts),
            "exit_code": next((code for code in codes if code), 0),
            "engine": self.model.engine.name,
        }
        for row in rows:
            row["bundle_sha256"] = self.job.asked["bundle"]
        schema = _schema(pa, self.job.asked["maps"]).with_metadata({"flawmap": json.dumps(note)})
        with whole(self.job.table(shard)) as unfinished:
            pa.parquet.write_table(pa.Table.from_pylist(rows, schema=schema), unfinished, compression="zstd")


class _Keeping:
    """An engine that keeps its maps, in the network's size."""

    def __init__(self, engine: Any, maps: list[np.ndarray]) -> None:
        self.engine, self.maps, self.name = engine, maps, engine.name

    def __call__(self, image_B3HW: np.ndarray) -> Prediction:
        found = self.engine(image_B3HW)
        self.maps.extend(found.map)
        return found


@contextmanager
def _attempt(path: Path) -> Iterator[tuple[list[int], Callable[[int], None]]]:
    """Where earlier processes died in this shard, and how to say what is judged now.

    A process that dies leaves its line behind, one that stops for a reason takes it along.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with path.open("r+b", buffering=0) as file:
        dead = [int(line) for line in file.read().split()]

        def at(number: int) -> None:
            file.seek(WIDE * len(dead))
            file.write(b"%*d\n" % (WIDE - 1, number))

        try:
            yield dead, at
        except BaseException:
            # After a full count of deaths the error is told, and the next run tries again.
            file.truncate(0 if dead.count(WRITING) >= MOST_DEATHS else WIDE * len(dead))
            raise
    path.unlink()


def _failed(name: str, part: str, why: str, exit_code: int) -> dict[str, Any]:
    return {"name": name, "part": part, "error": why, "exit_code": exit_code, "verdict": None}


def _judged(found: Inspection) -> list[dict[str, Any]]:
    """A row a view; verdict, p-value and threshold are those of the part."""
    return [
        {
            "name": name,
            "part": found.part,
            "score": score,
            "verdict": found.verdict,
            "p_value": found.p_value,
            "threshold": found.threshold,
            "regions": [
                {
                    "box": list(r.box),
                    "area_px": r.area_px,
                    "area_mm2": r.area_mm2,
                    "centroid": list(r.centroid),
                    "peak": r.peak,
                }
                for r in regions
            ],
            "error": None,
        }
        for name, score, regions in zip(found.names, found.scores, found.regions, strict=True)
    ]


def _schema(pa: Any, maps: bool) -> Any:
    region = pa.struct(
        [
            ("box", pa.list_(pa.int32())),
            ("area_px", pa.int64()),
            ("area_mm2", pa.float64()),
            ("centroid", pa.list_(pa.float64())),
            ("peak", pa.float64()),
        ]
    )
    columns = [("name", pa.string()), ("part", pa.string()), ("score", pa.float64()), ("verdict", pa.string())]
    columns += [("p_value", pa.float64()), ("threshold", pa.float64()), ("regions", pa.list_(region))]
    columns += [("error", pa.string()), ("bundle_sha256", pa.string())]
    if maps:
        columns += [("map", pa.binary()), ("map_shape", pa.list_(pa.int32()))]
    return pa.schema(columns)


# ---- what came out


def summary(job: Job) -> tuple[dict[str, int], int]:
    """Counts of pictures by outcome, and the exit code of the first that could not be judged.

    Reads the end of each table only. DataError: a table has not the rows of its shard.
    """
    pa, counts, code = arrow(), Counter[str](), 0
    for shard, size in enumerate(job.sizes):
        path = job.table(shard)
        try:
            footer = pa.parquet.read_metadata(path)
            note = json.loads(footer.metadata[b"flawmap"])
            right = (note["job"], note["shard"], footer.num_rows) == (job.sha256, shard, size)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a table of this job ({error}); remove it and run again") from error
        if not right:
            raise DataError(f"{path}: not the {size} rows of its shard; remove it and run again")
        counts.update(note["counts"])
        code = code or note["exit_code"]
    said = {word: counts[word] for word in (*Verdict, "no verdict", "errors")}
    return {"pictures": sum(job.sizes), **said}, code


def first_errors(job: Job, most: int = 10) -> Iterator[str]:
    """What the first pictures without a verdict say."""
    pa = arrow()
    for shard in range(len(job.sizes)):
        if json.loads(pa.parquet.read_metadata(job.table(shard)).metadata[b"flawmap"])["counts"].get("errors"):
            for text in pa.parquet.read_table(job.table(shard), columns=["error"])["error"].to_pylist():
                if text and (most := most - 1) >= 0:
                    yield text
        if most <= 0:
            return

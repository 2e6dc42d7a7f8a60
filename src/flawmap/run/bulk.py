"""A million pictures: listed, cut into shards, and judged by worker processes that may die; see shards.py."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from flawmap.errors import DataError, FlawmapError, UsageError
from flawmap.images.folder import LAYOUT, PUBLISHED, _pictures, find, refuse_twice
from flawmap.run.bundle import Bundle
from flawmap.run.claim import claimed
from flawmap.run.inspect import ORACLE
from flawmap.run.model import load
from flawmap.run.progress import progress, say
from flawmap.run.shards import Job, Judge, arrow, first_errors, read_job, summary, whole

FORMAT = 2
MOST, MOST_WITH_MAPS, LEAST, SHARDS = 1000, 250, 16, 64  # pictures of a shard; shards wanted of a small job
LOOK_S = 0.2  # between two looks at the workers
MOST_EARLY = 10  # workers killed while they load, before the run gives up


def inspect_bulk(
    bundle: Path,
    sources: Sequence[str],
    out: Path,
    *,
    workers: int | None = None,
    engine: str = "onnx",
    part_pattern: str | None = None,
    maps: bool = False,
    ray: str | None = None,
) -> tuple[dict[str, Any], int]:
    """Judges all pictures into tables in `out`; what has its table is not judged again.

    workers  processes here, one a core unless given; with `ray` (an address, or local), actors of that cluster
    maps     keep each map, in the network's size, as float16
    Returns what is counted, and the exit code: 0, or that of the first picture that could not be judged.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} workers judge nothing; give 1 or more")
    model = load(bundle, engine)  # what is wrong with it is said before the folder is made
    if maps and (model.intake.tile is not None or model.intake.ignore is not None):
        raise UsageError(
            "tables keep what the network gives, not maps of tiles or polygons: use flawmap inspect --maps"
        )
    if model.calibration and model.calibration.policy == "f1-oracle":
        say(f"flawmap: {bundle}: {ORACLE}")
    job = open_job(out, model.bundle, sources, engine=engine, part_pattern=part_pattern, maps=maps)
    left = job.left()
    pictures, begun = sum(job.sizes[shard] for shard in left), time.perf_counter()
    if left and ray is None:
        _work_here(job, workers or _cores())
    elif left:
        from flawmap.run.cluster import judge

        judge(job, ray or "local", workers)
    seconds = time.perf_counter() - begun
    found, code = summary(job)
    for text in first_errors(job) if found["errors"] else ():
        say(f"flawmap: no verdict: {text}")
    rate = round(pictures / seconds, 1) if left else 0.0
    return {"tables": str(out), **found, "judged now": pictures, "pictures a second": rate}, code


# ---- what is to be judged


class Listing(NamedTuple):
    """Pictures in the order of their rows: names and parts as `flawmap inspect` gives them, paths absolute."""

    names: list[str]
    paths: list[str]
    parts: list[str]

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for entry in zip(*self, strict=True):
            try:
                digest.update("\0".join((*entry, "")).encode())
            except UnicodeEncodeError as error:
                raise DataError(f"{entry[0]!r}: the name is not UTF-8, which a table needs; rename it") from error
        return digest.hexdigest()

    def ends(self, size: int) -> list[int]:
        """Where shards end: each holds at least `size` pictures but for the last, and no part is cut."""
        ends, begun = [], 0
        for i in range(1, len(self.parts) + 1):
            if i == len(self.parts) or (i - begun >= size and self.parts[i] != self.parts[i - 1]):
                ends.append(begun := i)
        return ends


def listing(sources: Sequence[str], part_pattern: str | None = None) -> Listing:
    """All pictures of the sources: folders, lists or files, as `flawmap.images.folder.find` reads them.

    Views of a part stand together, where the first of them was found. DataError, UsageError: as `find`;
    UsageError: a picture is given twice.
    """
    names, paths, parts = [], [], []
    plain = [part_pattern is None and _plain(Path(source)) for source in sources]
    for source, quick in zip(sources, plain, strict=True):
        for name, path, part in _found(source, part_pattern, quick):
            full = path if len(sources) > 1 else name  # the same name in two folders is two pictures
            names.append(full)
            paths.append(os.path.abspath(path))
            parts.append(full if part_pattern is None and part == name else part)
    if plain != [True]:  # one plain folder has each name once; a look at every file would cost more than the list
        refuse_twice(paths)
    rank: dict[str, int] = {}
    ranks = [rank.setdefault(part, len(rank)) for part in parts]
    if len(rank) < len(parts):
        order = sorted(range(len(parts)), key=ranks.__getitem__)
        names, paths, parts = ([column[i] for i in order] for column in (names, paths, parts))
    return Listing(names, paths, parts)


def _found(source: str, part_pattern: str | None, plain: bool) -> Iterator[tuple[str, str, str]]:
    """Name, path and part. A plain folder is listed without an object a picture, which a million would feel."""
    root = Path(source)
    if plain and (names := _pictures(root)):
        yield from ((name, str(root / name), name) for name in names)
        return
    for sample in find(source, part_pattern=part_pattern, kind=None):
        yield sample.name, str(sample.source), sample.part


def _plain(root: Path) -> bool:
    """Whether `find` would take all pictures below the folder, each as a part of its own."""
    try:
        with os.scandir(root) as entries:
            folders = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return False  # `find` says what is wrong
    layout = any(name.lower() in LAYOUT for name in folders) or any(is_one(root, folders) for is_one, _ in PUBLISHED)
    return not layout and not (root / "parts.csv").exists()


def open_job(
    out: Path, bundle: Bundle, sources: Sequence[str], *, engine: str, part_pattern: str | None, maps: bool
) -> Job:
    """The job of a folder: begun, or gone on with where the same was begun before, here or by another process.

    UsageError: the folder holds the verdicts of another bundle, other pictures or other options.
    """
    arrow()
    pictures = listing(sources, part_pattern)
    asked = {
        "format": FORMAT,
        "bundle": bundle.sha256,
        "engine": engine,
        "maps": maps,
        "number of pictures": len(pictures.names),
        "list of pictures": pictures.sha256,
    }
    work = out / "_work"
    while not (work / "job.json").exists():
        with claimed(work / "claims" / "job") as mine:
            if mine and not (work / "job.json").exists():
                _begin(out, bundle, pictures, asked)
        if not mine:
            time.sleep(0.1)
    job = read_job(out)
    for what, value in asked.items():
        if job.asked.get(what) != value:
            raise UsageError(
                f"{out} holds the verdicts of another job: {what} is {value}, there it is {job.asked.get(what)}; "
                "give another folder, or remove this one"
            )
    return job


def _begin(out: Path, bundle: Bundle, pictures: Listing, asked: dict[str, Any]) -> None:
    if any(out.glob("*.parquet")):
        raise UsageError(f"{out} holds tables of something else; give an empty or a new folder")
    pa, work = arrow(), out / "_work"
    bundle.write(work / "bundle.flaw")
    most = MOST_WITH_MAPS if asked["maps"] else MOST
    size = max(LEAST, min(most, len(pictures.names) // SHARDS))
    with whole(work / "pictures.parquet") as unfinished, pa.parquet.ParquetWriter(unfinished, _listed(pa)) as writer:
        begin = 0
        for end in pictures.ends(size):
            columns = [column[begin:end] for column in pictures]
            writer.write_table(pa.table(columns, schema=_listed(pa)), row_group_size=end - begin)
            begin = end
    with whole(work / "job.json") as unfinished:
        unfinished.write_text(json.dumps(asked, indent=1))


def _listed(pa: Any) -> Any:
    return pa.schema([(name, pa.string()) for name in ("name", "path", "part")])


# ---- workers on this machine


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work_here(job: Job, workers: int) -> None:
    """Until every shard has its file. A worker that dies is replaced; one that stops with an error stops all.

    FlawmapError: workers stop with an error, or die before they judge.
    """
    if os.name == "nt" and workers > 1:
        raise UsageError("several workers need locks on files, which this system lacks: give --workers 1")
    running: list[subprocess.Popen[bytes]] = []
    total, early, before = sum(job.sizes), 0, len(job.sizes)
    try:
        with progress("inspect", total) as tick:
            while left := job.left():
                early, before = early if len(left) == before else 0, len(left)
                for worker in [worker for worker in running if worker.poll() is not None]:
                    running.remove(worker)
                    early = _heed(worker, early)
                while len(running) < min(workers, len(left)):
                    running.append(_start(job, max(1, _cores() // workers)))
                tick(total - sum(job.sizes[shard] for shard in left))
                time.sleep(LOOK_S)
            tick(total)
    finally:
        for worker in running:
            worker.terminate()
        for worker in running:
            worker.communicate()


def _start(job: Job, threads: int) -> subprocess.Popen[bytes]:
    few = {"FLAWMAP_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-P", "-m", "flawmap.run.bulk", str(job.out), str(os.getpid())]
    return subprocess.Popen(command, env={**few, **os.environ}, stdout=subprocess.PIPE)


def _heed(worker: subprocess.Popen[bytes], early: int) -> int:
    """What the end of a worker means: how many have died before they judged, while nothing was finished."""
    said, _ = worker.communicate()
    if worker.returncode > 0:
        raise FlawmapError(f"a worker stopped with exit code {worker.returncode}; what it said stands above")
    if worker.returncode == 0:  # it saw the last shard done a moment before we did
        return early
    say(f"flawmap: a worker was killed (signal {-worker.returncode}); another goes on with its shard")
    early = 0 if said else early + 1
    if early >= MOST_EARLY:
        raise FlawmapError(f"{early} workers in a row were killed while they loaded the bundle; is memory short?")
    return early


def work(out: Path, parent: int) -> None:
    """A worker: judges what nobody else is at until every shard has its file, or its parent is gone."""

    def alive() -> None:
        if os.getppid() != parent:
            sys.exit("flawmap: the process that started this worker is gone; run again to go on")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with suppress(KeyboardInterrupt):  # told to all processes of a terminal; the parent says so
        judge, job = Judge(out, alive), read_job(out)
        print("ready", flush=True)
        while left := job.left():
            for shard in left:
                judge(shard)
            alive()
            time.sleep(LOOK_S if job.left() else 0)  # others are at what is left; they may yet die


def _main(words: Sequence[str]) -> int:
    try:
        work(Path(words[0]), int(words[1]))
    except FlawmapError as error:
        print(f"flawmap: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))

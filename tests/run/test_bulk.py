from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flawmap.cli import main
from flawmap.errors import DataError, FlawmapError, MissingExtra, UsageError
from flawmap.run import bulk, shards
from flawmap.run.bulk import inspect_bulk, listing
from flawmap.run.calibrate import calibrate
from flawmap.run.fit import fit
from flawmap.run.inspect import _parts, inspect
from flawmap.run.model import Model

SMALL = 32


@pytest.fixture(autouse=True)
def _one_thread_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAWMAP_THREADS", "1")


@pytest.fixture(scope="module")
def bundle(crossed: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crossed.save(tmp_path_factory.mktemp("bundle") / "tiny.flaw")


def _draw(root: Path, count: int) -> Path:
    """Pictures of 32 x 32 with stripes, a thousand a folder."""
    random, (y, x) = np.random.default_rng(0), np.mgrid[:SMALL, :SMALL]
    for i in range(count):
        wave = 128 + 40 * np.sin((x + random.uniform(0, 8)) / 2.5) + 20 * np.cos(y / 3.5)
        picture = np.clip(wave + random.normal(0, 4, (SMALL, SMALL)), 0, 255).astype(np.uint8)
        folder = root / f"{i // 1000:02}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{i:05}.png")
    return root


def _rows(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out).to_pylist()


def _plain(model: Model, sources: Sequence[object], capsys: pytest.CaptureFixture[str], **more: Any) -> tuple[Any, int]:
    capsys.readouterr()
    code = inspect(model, [str(source) for source in sources], as_json=True, **more)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()], code


# ---- what is judged


def _write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(folder / name)
    return folder


def test_the_list_is_that_of_plain_inspect_whatever_is_given(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    nested = _write(tmp_path / "nested", "b/2.png", "b/10.png", "a.png", "a/1.png", ".hidden/3.png", "Thumbs/4.jpg")
    (nested / "notes.txt").write_text("no picture")
    (nested / "again").symlink_to(nested / "b")
    parted = _write(tmp_path / "parted", "1.png", "2.png", "3.png", "4.png")
    (parted / "parts.csv").write_text("path,part\n1.png,x\n4.png,x\n")
    (tmp_path / "list.csv").write_text("path,part\nparted/3.png,y\nnested/a.png,z\nparted/2.png,y\n")
    _write(tmp_path / "list", "5.png")
    monkeypatch.chdir(tmp_path)
    cases: list[tuple[list[str], str | None]] = [
        ([str(world)], None),
        (["nested"], None),
        (["nested/"], None),
        (["."], r"(.)\.(png|jpg)"),
        (["parted"], None),
        (["list.csv"], None),
        (["nested", "parted", "list/5.png"], None),
        (["nested/a", str(nested / "b")], r"(\d)\.png"),
    ]
    for sources, rule in cases:
        ours = listing(sources, rule)
        expected = [view for views in _parts(sources, rule, 64.0).values() for view in views]
        assert ours.names == [view.name for view in expected], sources
        assert ours.parts == [view.part for view in expected], sources
        assert ours.paths == [os.path.abspath(str(view.source)) for view in expected], sources
    assert listing(["parted"]).names == ["1.png", "4.png", "2.png", "3.png"]


def test_a_list_or_rule_that_makes_one_file_two_views_is_refused(tmp_path: Path):
    lot = _write(tmp_path / "lot", "7-left.png", "8-left.png")
    (lot / "7-right.png").symlink_to("7-left.png")
    (lot / "8-right.png").hardlink_to(lot / "8-left.png")
    lines = ("7-left.png,7\nlot/../lot/7-left.png", "7-left.png,7\nlot/7-right.png", "8-left.png,8\nlot/8-right.png")
    for number, line in enumerate(lines):
        (tmp_path / f"{number}.csv").write_text(f"path,part\nlot/{line},{line[0]}\n")
        with pytest.raises(UsageError, match="is given twice"):
            listing([str(tmp_path / f"{number}.csv")])
    with pytest.raises(UsageError, match=r"-right\.png is given twice"):
        listing([str(lot)], r"(\d)-")


def test_shards_never_cut_a_part():
    parts = ["a", "b", "b", "b", "c", "d", "d", "e"]
    assert bulk.Listing(parts, parts, parts).ends(2) == [4, 7, 8]
    assert bulk.Listing(parts, parts, parts).ends(1) == [1, 4, 5, 7, 8]
    assert bulk.Listing(parts, parts, parts).ends(100) == [8]


def test_a_name_that_no_table_can_hold_is_refused_before_the_work(tmp_path: Path):
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb"):
        pass
    with pytest.raises(DataError, match=r"udcff\.png': the name is not UTF-8"):
        _ = listing([str(tmp_path)]).sha256


# ---- the same as plain


def test_rows_are_to_the_bit_what_plain_inspect_says(
    crossed: Model, bundle: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    lot = tmp_path / "lot"
    for kind in ("good", "square"):
        shutil.copytree(world / "test" / kind, lot / kind)
    whole = (lot / "good/000.png").read_bytes()
    (lot / "good/002.png").write_bytes(whole[: len(whole) // 2])
    (lot / "good/004.png").write_bytes(b"")
    plain, code = _plain(crossed, [lot], capsys)
    assert (main(["inspect", str(bundle), str(lot), "--out", str(tmp_path / "o"), "--json"]), code) == (3, 3)
    printed = capsys.readouterr()
    counts = json.loads(printed.out)
    assert [counts[key] for key in ("pictures", "OK", "NOK", "no verdict", "errors")] == [12, 4, 6, 0, 2]
    assert printed.err.count("flawmap: no verdict: ") == 2
    rows = _rows(tmp_path / "o")
    assert [row["name"] for row in rows] == [row["part"] for row in plain] == [row["part"] for row in rows]
    assert {row["bundle_sha256"] for row in rows} == {crossed.bundle.sha256}
    for row, said in zip(rows, plain, strict=True):
        if "error" in said:
            assert said["error"] == row["error"]
            assert [row[key] for key in ("verdict", "score", "p_value", "regions")] == [None] * 4
        else:
            assert row["error"] is None
            keys = ("score", "verdict", "p_value", "threshold")
            assert [row[key] for key in keys] == [said[key] for key in keys]
            regions = said["views"][0]["regions"]
            assert all(region.pop("contour") for region in regions)  # left out of the tables
            assert row["regions"] == regions


def test_regions_of_the_tables_have_their_area_on_the_part(crossed: Model, world: Path, tmp_path: Path):
    pitched = calibrate(crossed, world / "test/good", pitch_mm=0.25).save(tmp_path / "pitched.flaw")
    inspect_bulk(pitched, [str(world / "test/square")], tmp_path / "o", workers=1)
    regions = [region for row in _rows(tmp_path / "o") for region in row["regions"]]
    assert len(regions) >= 6
    for region in regions:
        assert region["area_mm2"] == pytest.approx(region["area_px"] / 16)
        assert region.keys() == {"box", "area_px", "area_mm2", "centroid", "peak"}


def test_views_of_a_part_share_its_verdict_and_have_their_own_scores(
    held: Model, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    lots = [str(world / "test" / kind) for kind in ("good", "square")]
    bundle = held.save(tmp_path / "held.flaw")
    plain, _ = _plain(held, lots, capsys, part_pattern=r"00([0-9])")
    words = ["inspect", str(bundle), *lots, "--part-pattern", "00([0-9])", "--out", str(tmp_path / "o")]
    assert main([*words, "--workers", "1"]) == 0
    rows = _rows(tmp_path / "o")
    views = [(said["part"], said["verdict"], view) for said in plain for view in said["views"]]
    assert len(rows) == len(views) == 12
    for row, (part, verdict, view) in zip(rows, views, strict=True):
        assert (row["part"], row["verdict"], row["name"], row["score"]) == (part, verdict, view["name"], view["score"])


def test_maps_are_kept_as_the_network_gives_them(crossed: Model, bundle: Path, world: Path, tmp_path: Path):
    lot = world / "test" / "square"
    inspect_bulk(bundle, [str(lot)], tmp_path / "o", workers=1, maps=True)
    rows = _rows(tmp_path / "o")
    assert len(rows) == 6
    for row in rows:
        map = np.frombuffer(row["map"], "<f2").reshape(row["map_shape"])
        expected, _ = crossed.engine(crossed.intake(lot / row["name"])[0][None])
        assert map.shape == (64, 64)
        np.testing.assert_allclose(map, expected[0], rtol=2**-11)


def test_a_model_that_is_not_calibrated_gives_scores_and_no_verdict(alone: Model, tmp_path: Path):
    Image.fromarray(np.full((64, 64), 2000, np.uint16)).save(tmp_path / "a.png")
    bundle = alone.save(tmp_path / "alone.flaw")
    found, code = inspect_bulk(bundle, [str(tmp_path / "a.png")], tmp_path / "o", workers=1)
    assert (found["no verdict"], found["errors"], code) == (1, 0, 0)
    (row,) = _rows(tmp_path / "o")
    assert (row["score"], row["verdict"], row["error"]) == (alone.inspect(tmp_path / "a.png").score, None, None)


# ---- one folder, one job


def test_what_has_its_table_is_not_judged_again_and_what_lost_it_is(bundle: Path, tmp_path: Path):
    lot, out = _draw(tmp_path / "lot", 50), tmp_path / "o"
    first, _ = inspect_bulk(bundle, [str(lot)], out, workers=1)
    before, rows = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}, _rows(out)
    assert (first["judged now"], len(before)) == (50, 4)  # of 16, 16, 16 and 2
    (out / "shard-00001.parquet").unlink()
    again, _ = inspect_bulk(bundle, [str(lot)], out, workers=1)
    assert again["judged now"] == 16
    assert _rows(out) == rows
    after = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert [path.name for path in before if before[path] != after[path]] == ["shard-00001.parquet"]


def test_another_job_in_the_same_folder_is_refused(
    crossed: Model, alone: Model, bundle: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    good, out = str(world / "test/good"), tmp_path / "o"
    inspect_bulk(bundle, [good], out, workers=1)
    other = alone.save(tmp_path / "other.flaw")
    for changed, what in (
        ([str(other), good], "bundle is "),
        ([str(bundle), str(world / "test/square")], "list of pictures is "),
        ([str(bundle), good, str(world / "test/square/000.png")], "number of pictures is 7, there it is 6"),
        ([str(bundle), good, "--save-maps"], "maps is True, there it is False"),
    ):
        assert main(["inspect", *changed, "--out", str(out)]) == 2
        assert f"holds the verdicts of another job: {what}" in capsys.readouterr().err
    shutil.rmtree(out / "_work")
    with pytest.raises(UsageError, match="holds tables of something else"):
        inspect_bulk(bundle, [good], out)


def test_a_table_with_other_rows_than_its_shard_is_noticed(bundle: Path, world: Path, tmp_path: Path):
    good, out = str(world / "test/good"), tmp_path / "o"
    inspect_bulk(bundle, [good], out, workers=1)
    path = out / "shard-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 5), path)
    with pytest.raises(DataError, match=r"shard-00000.parquet: not the 6 rows of its shard; remove it"):
        inspect_bulk(bundle, [good], out)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a table of this job"):
        inspect_bulk(bundle, [good], out)


def test_words_that_make_no_sense_together_are_refused(bundle: Path, world: Path, tmp_path: Path):
    words = ["inspect", str(bundle), str(world / "test/good")]
    for more in (["--workers", "2"], ["--save-maps"], ["--ray", "local"]):
        assert main([*words, *more]) == 2
    out = ["--out", str(tmp_path / "o")]
    for more in (["--workers", "0"], ["--maps", str(tmp_path)], ["--overlay", str(tmp_path)], ["--engine", "abacus"]):
        assert main([*words, *out, *more]) == 2
    assert not (tmp_path / "o").exists()


def test_without_pyarrow_the_extra_is_named(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r'pyarrow: pip install "flawmap\[tables\]"'):
        inspect_bulk(bundle, [str(tmp_path)], tmp_path / "o")


def test_a_worker_needs_no_torch(bundle: Path, world: Path, tmp_path: Path):
    inspect_bulk(bundle, [str(world / "test/good")], tmp_path / "o", workers=1)
    (tmp_path / "o/shard-00000.parquet").unlink()
    code = f"from pathlib import Path; from flawmap.run import bulk; bulk.work(Path({str(tmp_path / 'o')!r}), "
    code += f"{os.getpid()}); import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ready", "False"]
    assert len(_rows(tmp_path / "o")) == 6


# ---- workers that die

DEADLY = """
import os, sys
from pathlib import Path
from flawmap.run import bulk
from flawmap.run.model import Model
inspect_part = Model.inspect_part
def deadly(self, views, **more):
    if any(view.name in {deadly} for view in views):
        os.kill(os.getpid(), 9)
    return inspect_part(self, views, **more)
Model.inspect_part = deadly
bulk.work(Path(sys.argv[1]), int(sys.argv[2]))
"""


def _workers_run(monkeypatch: pytest.MonkeyPatch, code: str) -> list[int]:
    """Workers run this instead; returns the list that their ids will be written to."""
    pids: list[int] = []

    def start(job: shards.Job, threads: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", code, str(job.out), str(os.getpid())]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        pids.append(worker.pid)
        return worker

    monkeypatch.setattr(bulk, "_start", start)
    return pids


def test_a_picture_that_kills_its_process_is_an_error_and_all_others_are_judged(
    crossed: Model, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lot = _draw(tmp_path / "lot", 40)
    pids = _workers_run(monkeypatch, DEADLY.format(deadly=["00007.png"]))
    found, code = inspect_bulk(bundle, [str(lot)], tmp_path / "o", workers=1)
    assert (found["pictures"], found["errors"], code) == (40, 1, 1)
    assert len(pids) == 1 + shards.MOST_DEATHS
    rows = {row["name"]: row for row in _rows(tmp_path / "o")}
    assert rows["00/00007.png"]["error"] == "00/00007.png: the process that judged it died, 3 times"
    assert rows["00/00007.png"]["verdict"] is None
    assert len(rows) == 40
    for name, row in rows.items():
        if name != "00/00007.png":
            assert row["score"] == crossed.inspect(lot / name).score


def test_workers_that_die_before_they_judge_end_the_run(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lot = _draw(tmp_path / "lot", 2)
    pids = _workers_run(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(FlawmapError, match="10 workers in a row were killed while they loaded the bundle"):
        inspect_bulk(bundle, [str(lot)], tmp_path / "o", workers=1)
    assert len(pids) == bulk.MOST_EARLY == 10
    _workers_run(monkeypatch, "import sys; sys.exit(5)")
    with pytest.raises(FlawmapError, match="a worker stopped with exit code 5"):
        inspect_bulk(bundle, [str(lot)], tmp_path / "o", workers=1)


def _command(bundle: Path, lot: Path, out: Path, workers: int = 2) -> list[str]:
    words = ["inspect", str(bundle), str(lot), "--out", str(out), "--workers", str(workers)]
    return [sys.executable, "-m", "flawmap.cli", *words]


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _tables(out: Path) -> int:
    return len(list(out.glob("shard-*.parquet")))


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _disturb(command: list[str], out: Path, kills: int, until: int, pause: tuple[float, float]) -> tuple[int, bool]:
    """Runs it and kills its workers at random; then the parent, when so many tables are there. (kills, killed it)."""
    chance, done = random.Random(0), 0
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while parent.poll() is None:
        time.sleep(chance.uniform(*pause))
        workers = _children(parent.pid)
        if _tables(out) >= until:
            parent.kill()
            assert parent.wait() == -signal.SIGKILL
            deadline = time.monotonic() + 30
            while any(Path(f"/proc/{pid}/exe").exists() for pid in workers) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not any(Path(f"/proc/{pid}/exe").exists() for pid in workers), "workers outlive their parent"
            return done, True
        if done < kills and workers:
            done += _kill(chance.choice(workers))
    return done, False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds workers in /proc")
def test_no_picture_is_lost_or_doubled_when_workers_and_their_parent_are_killed(bundle: Path, tmp_path: Path):
    lot, out = _draw(tmp_path / "lot", 400), tmp_path / "o"
    calm, _ = inspect_bulk(bundle, [str(lot)], tmp_path / "calm", workers=1)
    killed, parent_too = _disturb(_command(bundle, lot, out), out, kills=3, until=8, pause=(0.1, 0.4))
    assert (killed, parent_too) == (3, True)
    assert _tables(out) < 25
    found, code = inspect_bulk(bundle, [str(lot)], out, workers=1)
    assert (found["pictures"], found["errors"], code) == (400, 0, 0)
    assert found == {**calm, **{key: found[key] for key in ("tables", "judged now", "pictures a second")}}
    assert _rows(out) == _rows(tmp_path / "calm")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds workers in /proc")
def test_two_processes_share_a_folder(bundle: Path, tmp_path: Path):
    lot, out = _draw(tmp_path / "lot", 300), tmp_path / "o"
    both = [subprocess.Popen([*_command(bundle, lot, out, 1), "--json"], stdout=subprocess.PIPE) for _ in range(2)]
    found = [json.loads(process.communicate()[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [entry["pictures"] for entry in found] == [300, 300]
    assert sorted(row["name"] for row in _rows(out)) == listing([str(lot)]).names


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds workers in /proc")
def test_twenty_thousand_pictures_survive_kills(tmp_path: Path):
    """A few minutes. `pytest -m slow -s` prints what docs/scale.md tells."""
    lot, out = _draw(tmp_path / "lot", 20_000), tmp_path / "o"
    learnt = sorted((lot / "00").iterdir())[:40]
    bundle = fit(learnt, "patchcore", options={"size": 64}, out=tmp_path / "runs").save(tmp_path / "small.flaw")
    begun = time.monotonic()
    calm, _ = inspect_bulk(bundle, [str(lot)], tmp_path / "calm", workers=2)
    undisturbed, begun = time.monotonic() - begun, time.monotonic()
    first, parent_too = _disturb(_command(bundle, lot, out), out, kills=40, until=32, pause=(0.3, 1.5))
    assert parent_too
    second, parent_too = _disturb(_command(bundle, lot, out), out, kills=40, until=1_000, pause=(0.3, 1.5))
    assert not parent_too
    disturbed = time.monotonic() - begun
    assert min(first, second) >= 5
    found, code = inspect_bulk(bundle, [str(lot)], out, workers=2)
    assert (found["judged now"], found["pictures"], found["errors"], code) == (0, 20_000, 0, 0)
    assert [found[key] for key in ("OK", "NOK")] == [calm[key] for key in ("OK", "NOK")]
    rows = _rows(out)
    assert [row["name"] for row in rows] == [f"{i // 1000:02}/{i:05}.png" for i in range(20_000)]
    assert rows == _rows(tmp_path / "calm")
    print(f"\n20,000 pictures, OK {found['OK']}, NOK {found['NOK']}: {first + second} workers and the parent killed;")
    print(f"{undisturbed:.0f} s undisturbed, {disturbed:.0f} s disturbed; all rows equal, none lost, none doubled")

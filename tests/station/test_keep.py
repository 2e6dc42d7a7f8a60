"""Pictures that are kept: which, how many, and that no disk costs a verdict."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from flawmap.errors import UsageError
from flawmap.station.keep import PATIENCE_S, Keep, Rules
from flawmap.station.ledger import Ledger
from flawmap.station.line import Line, Picture
from flawmap.station.recipes import Recipes
from flawmap.types import Verdict

DAY = "2026-11-28"


def put(keep: Keep, content: bytes, day: str = DAY) -> tuple[str | None, str]:
    return keep.write(day, hashlib.sha256(content).hexdigest(), content)


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_rejects_the_borderline_and_one_of_n_are_kept(tmp_path: Path) -> None:
    keep = Keep(tmp_path, Rules(near=2.0, every=10))
    for verdict in (Verdict.NOK, Verdict.REVIEW, None):
        assert keep.wanted(1, verdict, 0.9, 0.01)
    assert [p for p in (0.001, 0.02, 0.0201, 0.5) if keep.wanted(1, Verdict.OK, p, 0.01)] == [0.001, 0.02]
    assert [n for n in range(1, 31) if keep.wanted(n, Verdict.OK, 0.9, 0.01)] == [10, 20, 30]
    assert [n for n in range(1, 31) if keep.wanted(n, Verdict.OK, None, 0.01)] == [10, 20, 30]
    none = Keep(tmp_path / "none", Rules(near=0, every=0))
    assert not any(none.wanted(n, Verdict.OK, 0.5, 0.01) for n in range(100))


def test_a_line_keeps_what_the_rules_say(tmp_path: Path, recipes: Recipes, pictures: dict[str, Picture]) -> None:
    line = Line(recipes, Ledger(tmp_path / "l.db"), Keep(tmp_path / "kept", Rules(near=0, every=3)))
    kinds = ["good"] * 7 + ["bad", "broken"]
    rows = [line.inspect(f"p{n}", [pictures[kind]]) for n, kind in enumerate(kinds)]
    line.close()
    paths = [row["views"][0]["path"] for row in rows]
    assert [n for n, path in enumerate(paths) if path] == [2, 5, 7, 8]
    for row, kind in zip(rows, kinds, strict=True):
        if path := row["views"][0]["path"]:
            assert (tmp_path / "kept" / path).read_bytes() == pictures[kind].content
            assert path.startswith(f"{row['time'][:10]}/{row['views'][0]['sha256']}.")


@pytest.mark.parametrize("wrong", [{"near": -1}, {"near": float("nan")}, {"every": -1}, {"most_gb": 0}])
def test_rules_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Rules(**wrong)  # pyright: ignore[reportArgumentType]


def test_the_folder_has_a_ceiling_and_the_oldest_go_first(tmp_path: Path) -> None:
    keep = Keep(tmp_path, Rules(most_gb=10_000e-9, least_free_gb=0))
    contents = [bytes([n]) * 1000 for n in range(25)]
    for n, content in enumerate(contents):
        assert put(keep, content, f"2026-11-{10 + n // 5}")[1] == ""
        assert on_disk(tmp_path) <= 10_000
    left = {path.read_bytes() for path in tmp_path.rglob("*.bin")}
    assert left == set(contents[15:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2026-11-13", "2026-11-14"]


def test_what_a_run_before_left_counts_and_half_a_file_is_removed(tmp_path: Path) -> None:
    first = Keep(tmp_path, Rules(most_gb=5000e-9, least_free_gb=0))
    for n in range(4):
        put(first, bytes([n]) * 1000, f"2026-11-2{n}")
    first.close()
    (tmp_path / "2026-11-23" / "x.new").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("not ours")
    again = Keep(tmp_path, Rules(most_gb=5000e-9, least_free_gb=0))
    assert not (tmp_path / "2026-11-23" / "x.new").exists()
    for n in range(4, 7):
        assert put(again, bytes([n]) * 1000)[1] == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2026-11-22", "2026-11-23", DAY, "notes.txt"]


def test_a_picture_that_never_fits_and_a_disk_that_is_full_remove_nothing(tmp_path: Path) -> None:
    keep = Keep(tmp_path, Rules(most_gb=3000e-9, least_free_gb=0))
    put(keep, b"a" * 1000)
    assert put(keep, b"b" * 3001) == (None, "picture not kept: it is larger than all room for pictures")
    crowded = Keep(tmp_path, Rules(least_free_gb=1e9))
    assert put(crowded, b"c") == (None, "picture not kept: the disk has less room than is to be left free")
    assert on_disk(tmp_path) == 1000


def test_the_same_picture_is_written_once_a_day_and_anew_where_it_is_not_whole(tmp_path: Path) -> None:
    keep = Keep(tmp_path)
    name, _ = put(keep, b"\x89PNG" + b"x" * 100)
    assert name is not None
    assert name.endswith(".png")
    inode = (tmp_path / name).stat().st_ino
    assert put(keep, b"\x89PNG" + b"x" * 100) == (name, "")
    assert (tmp_path / name).stat().st_ino == inode
    (tmp_path / name).write_bytes(b"")  # as after a power cut
    assert put(keep, b"\x89PNG" + b"x" * 100) == (name, "")
    assert len(keep.read(name) or b"") == 104


def test_a_folder_that_has_gone_or_cannot_be_written_costs_a_note_and_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    keep = Keep(folder)
    folder.rmdir()
    folder.write_text("no folder")
    path, note = put(keep, b"a")
    assert (path, note[:18]) == (None, "picture not kept: ")
    folder.unlink()
    folder.mkdir()
    assert put(keep, b"a")[1] == ""


def test_one_that_cannot_be_removed_still_counts(tmp_path: Path) -> None:
    keep = Keep(tmp_path, Rules(most_gb=2500e-9, least_free_gb=0))
    name, _ = put(keep, b"a" * 1000, "2026-11-01")
    assert name is not None
    (tmp_path / name).unlink()
    (tmp_path / name / "odd").mkdir(parents=True)
    put(keep, b"b" * 1000)
    assert put(keep, b"c" * 1000)[0] is None
    (tmp_path / name / "odd").rmdir()
    (tmp_path / name).rmdir()
    assert put(keep, b"c" * 1000)[1] == ""
    assert on_disk(tmp_path) == 2000


def test_a_disk_that_does_not_answer_keeps_nobody_waiting_twice(tmp_path: Path) -> None:
    keep = Keep(tmp_path)
    name, _ = put(keep, b"first")
    assert name is not None
    stuck = tmp_path / DAY / f"{hashlib.sha256(b'second').hexdigest()}.new"
    os.mkfifo(stuck)  # to open it for writing waits for one who reads
    begun = time.monotonic()
    assert put(keep, b"second") == (None, "picture not kept: the disk does not answer")
    assert PATIENCE_S - 0.1 < time.monotonic() - begun < PATIENCE_S + 1
    begun = time.monotonic()
    for n in range(50):
        assert put(keep, b"%d" % n)[0] is None
    assert time.monotonic() - begun < 0.5
    reader = threading.Thread(target=stuck.read_bytes)
    reader.start()
    reader.join()
    time.sleep(0.2)
    assert put(keep, b"third")[1] == ""
    keep.close()
    assert put(keep, b"fourth") == (None, "picture not kept: the station has closed")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "a/../../secret", "x\0y", "", "no/such", "link", "\udcff" * 5, "x" * 5000]
)
def test_nothing_beyond_the_folder_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    keep = Keep(tmp_path / "kept")
    (tmp_path / "kept" / "link").symlink_to(tmp_path / "secret")
    assert keep.read(name) is None


def test_random_writes_never_pass_the_ceiling(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    keep = Keep(tmp_path, Rules(most_gb=20_000e-9, least_free_gb=0))
    for n in range(150):
        content = random.bytes(int(random.integers(1, 6000)))
        put(keep, content, f"2026-11-{10 + n // 10}")
        assert on_disk(tmp_path) == keep._bytes <= 20_000

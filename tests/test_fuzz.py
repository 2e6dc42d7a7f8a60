"""Bad input through every door: a proper inspection or a FlawmapError that names the picture, and nothing else.

Cases are valid files of every kind that is read, mutated from a seed. What counts as wrong: another exception, more
than MOST_S of processor time a picture, more than MOST_MB of memory for all of them, a verdict for a file that was cut.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import shutil
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flawmap
from flawmap.cli import main
from flawmap.errors import FlawmapError
from flawmap.images.decode import decode, probe
from flawmap.run.bundle import Bundle
from flawmap.run.model import Model
from flawmap.types import Inspection, Verdict

pytestmark = pytest.mark.filterwarnings("ignore")  # as at the line: Pillow only warns of some damage
MOST_S, MOST_MB = 5.0, 1000
QUICK, SLOW, SHARE = 1_500, 12_000, 1 / 3
NOISE = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """PatchCore on the tiny world, calibrated on parts held out."""
    root = tmp_path_factory.mktemp("fuzz")
    fitted = flawmap.fit(world, "patchcore", options={"size": 64, "most": 200}, held_out=0.5, out=root / "runs")
    return flawmap.load(fitted.save(root / "m.flaw"))


@pytest.fixture(scope="module")
def deep(model: Model) -> Model:
    """The same, as if it were fitted on 16-bit pictures."""
    config = model.bundle.config
    config = config | {"intake": config["intake"] | {"white": 65535}}
    return Model(Bundle(model.bundle.files | {"config.json": json.dumps(config).encode()}, "deep"))


# Valid files


def saved(picture: np.ndarray | Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, bits: int, colour: int, stream: bytes, more: bytes = b"", interlaced: int = 0
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    ends = chunk(b"IDAT", stream) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + ends


def adam7(picture: np.ndarray) -> bytes:
    """RGB, in the seven passes of an interlaced PNG."""
    rows = []
    for left, top, right, down in (
        *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
        *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
    ):
        rows += [b"\0" + row.tobytes() for row in picture[top::down, left::right]]
    return png(picture.shape[1], picture.shape[0], 8, 2, zlib.compress(b"".join(rows)), interlaced=1)


def tiffs(rgb: np.ndarray, grey: np.ndarray, wide: np.ndarray) -> Iterator[bytes]:
    tifffile = pytest.importorskip("tifffile")
    for picture, more in ((rgb, {"photometric": "rgb"}), (grey, {}), (wide, {"photometric": "rgb"})):
        for options in ({}, {"rowsperstrip": 7}, {"tile": (32, 32)}, {"compression": "zlib", "tile": (32, 32)}):
            for order in "<>":
                buffer = io.BytesIO()
                tifffile.imwrite(buffer, picture, byteorder=order, **options, **more)
                yield buffer.getvalue()
    yield from (saved(rgb, "TIFF", compression=how) for how in ("tiff_lzw", "packbits", "jpeg", "tiff_adobe_deflate"))
    yield saved(rgb, "TIFF", save_all=True, append_images=[Image.fromarray(rgb)])


@pytest.fixture(scope="module")
def valid(world: Path) -> list[bytes]:
    """Every kind that is read, and some that are refused."""
    rgb = decode(world / "test/good/000.png")[:48]
    grey, wide = rgb[..., 0], (rgb.astype(np.uint16) << 8) + NOISE.integers(0, 256, rgb.shape, dtype=np.uint16)
    rgba = np.dstack([rgb, np.full(grey.shape, 200, np.uint8)])
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a part" * 20
    palette = Image.fromarray(rgb).quantize(16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    pngs = [saved(each, "PNG") for each in (grey, rgb, rgba, palette, grey > 128, wide[..., 0].copy())]
    pngs += [saved(palette, "PNG", transparency=1), png(64, 48, 16, 2, zlib.compress(rows)), adam7(rgb)]
    pngs += [saved(rgb, "PNG", exif=exif), png(64, 48, 16, 2, zlib.compress(rows), chunk(b"tEXt", b"k\0by hand"))]
    jpegs = [saved(each, "JPEG", quality=q) for each in (grey, rgb) for q in (30, 95)]
    jpegs += [saved(rgb, "JPEG", progressive=True), saved(rgb, "JPEG", exif=exif), saved(rgb, "JPEG", optimize=True)]
    jpegs += [saved(rgb, "JPEG", restart_marker_rows=1), saved(Image.fromarray(rgb).convert("CMYK"), "JPEG")]
    bmps = [saved(each, "BMP") for each in (grey, rgb, palette, grey > 128)]
    return [*pngs, *jpegs, *bmps, *tiffs(rgb, grey, wide)]


# Mutations: each takes a valid file and returns another


def flip(chance: random.Random, data: bytes, begin: int = 0) -> bytes:
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        damaged[chance.randrange(begin, len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def flip_late(chance: random.Random, data: bytes) -> bytes:
    return flip(chance, data, len(data) // 3)


def cut(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data))]


def zeroed(chance: random.Random, data: bytes) -> bytes:
    """A tail of zeros, as after a copy that broke off."""
    keep = chance.randrange(len(data) // 4, len(data))
    return data[:keep] + bytes(len(data) - keep)


def spliced(chance: random.Random, data: bytes) -> bytes:
    begin, end = sorted(chance.randrange(len(data)) for _ in range(2))
    at = chance.randrange(len(data))
    return data[:at] + data[begin:end] + data[at + (end - begin) * chance.randrange(2) :]


def numbers(chance: random.Random, data: bytes) -> bytes:
    """A length, size or offset of the first or last bytes becomes an extreme one."""
    at = chance.randrange(min(len(data) - 4, 200)) if chance.randrange(2) else len(data) - chance.randrange(4, 260)
    value = chance.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x10000, 20_000, len(data), len(data) - 1])
    return data[:at] + struct.pack(chance.choice("<>") + "I", value) + data[at + 4 :]


def chunks(chance: random.Random, data: bytes) -> bytes:
    """Of a PNG: chunks doubled, left out, in another order, or with another header; CRCs are right."""
    if not data.startswith(b"\x89PNG"):
        return flip_late(chance, data)
    pieces, at = [], 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        pieces.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    what = chance.randrange(4)
    if what == 0:
        chance.shuffle(pieces)
    elif what == 1:
        pieces.insert(chance.randrange(len(pieces)), chance.choice(pieces))
    elif what == 2:
        del pieces[chance.randrange(1, len(pieces))]
    else:
        header = bytearray(pieces[0][1])
        place = chance.choice([2, 3, 6, 7, 8, 9, 12])
        header[place] = chance.choice([0, 1, 2, 3, 4, 6, 8, 16, 47, 200])
        pieces[0] = (b"IHDR", bytes(header))
    return data[:8] + b"".join(chunk(*piece) for piece in pieces)


def tailed(chance: random.Random, data: bytes) -> bytes:
    """Something behind the end."""
    return data + chance.randbytes(chance.randrange(1, 300))


MUTATIONS = (flip, flip_late, flip_late, cut, zeroed, spliced, numbers, chunks, tailed)


class Found(Counter):
    """Counts: cases, headers (probe succeeds), verdicts, refused."""

    def case(self, models: tuple[Model, Model], data: bytes, name: str, whole: bytes | None = None) -> None:
        """One case through the door of files; `whole` is the file that it is a beginning of."""
        begun = time.process_time()
        self["cases"] += 1
        bits = 8
        try:
            bits = probe(data).bits
            self["headers"] += 1
        except FlawmapError:
            pass
        try:
            found = models[bits == 16].inspect(data, name=name)
        except FlawmapError as error:
            self["refused"] += 1
            self["named"] += f"picture of {len(data)} bytes: " in str(error)
        else:
            self["verdicts"] += 1
            proper(found)
            if whole is not None:
                np.testing.assert_array_equal(decode(data), decode(whole), err_msg=name)
        assert time.process_time() - begun < MOST_S, name


def proper(found: Inspection) -> None:
    """An inspection with all that it promises."""
    assert found.verdict in (Verdict.OK, Verdict.NOK)
    assert np.isfinite(found.score)
    assert found.p_value is not None
    assert 0 < found.p_value <= 1
    for map in found.maps:
        assert map.dtype == np.float32
        assert map.size
        assert np.isfinite(map).all()


def storm(models: tuple[Model, Model], files: list[bytes], count: int, seed: int) -> Found:
    before, found, chance = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, Found(), random.Random(seed)
    for number in range(count):
        at, mutate = chance.randrange(len(files)), chance.choice(MUTATIONS)
        data = mutate(chance, files[at])
        found.case(models, data, f"case {number}: {mutate.__name__} of file {at}", files[at] if mutate is cut else None)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MOST_MB * 1024, f"{grown >> 10} MB more than before"
    assert found["cases"] == count == found["verdicts"] + found["refused"]
    assert found["named"] == found["refused"]
    assert found["headers"] >= SHARE * count, found
    assert min(found["verdicts"], found["refused"]) > count / 10, found  # both happen
    print(dict(found))
    return found


def test_every_valid_file_is_judged_or_refused_for_what_it_is(model: Model, deep: Model, valid: list[bytes]):
    found = Found()
    for number, data in enumerate(valid):
        found.case((model, deep), data, f"file {number}")
    assert found["refused"] == 3  # CMYK, a TIFF with JPEG data, whose end nobody checks, and a TIFF of two pages


def test_damaged_files_are_judged_or_refused(model: Model, deep: Model, valid: list[bytes]):
    storm((model, deep), valid, QUICK, seed=1)


@pytest.mark.slow
def test_ten_thousand_damaged_files_are_judged_or_refused(model: Model, deep: Model, valid: list[bytes]):
    storm((model, deep), valid, SLOW, seed=2)


def test_extreme_pictures_are_judged_in_time_or_refused(model: Model, deep: Model):
    """Large, thin and tiny ones, and bombs: what a few bytes declare or expand to."""
    zeros = zlib.compress(bytes(50_000_000))
    bombs = {
        "a pixel": png(1, 1, 8, 0, zlib.compress(b"\0\7")),
        "wide": png(20_000, 2, 8, 0, zlib.compress(bytes(2 * 20_001))),
        "high": png(2, 20_000, 8, 0, zlib.compress(bytes(3 * 20_000))),
        "too wide": png(4_000_000, 1, 8, 0, zlib.compress(bytes(4_000_001))),
        "declared": png(60_000, 50_000, 8, 2, zlib.compress(b"")),
        "longer than declared": png(64, 48, 8, 2, zlib.compress(bytes(193 * 48)) + zeros),
        "text": png(64, 48, 8, 2, zlib.compress(bytes(193 * 48)), chunk(b"zTXt", b"k\0\0" + zeros)),
        "international": png(64, 48, 8, 2, zlib.compress(bytes(193 * 48)), chunk(b"iTXt", b"k\0\1\0\0\0" + zeros)),
        "profile": png(64, 48, 8, 2, zlib.compress(bytes(193 * 48)), chunk(b"iCCP", b"k\0\0" + zeros)),
        "chunks": png(64, 48, 8, 2, zlib.compress(bytes(193 * 48)), chunk(b"teXt", b"") * 20_000),
        "large": png(2_500, 2_500, 8, 2, zlib.compress(bytes(7_501 * 2_500))),
    }
    page = saved(part_of(64), "TIFF")
    at = int.from_bytes(page[4:8], "little")
    end = at + 2 + 12 * int.from_bytes(page[at : at + 2], "little")
    for name, next_one in (("loop", at), ("beyond", len(page) + 9)):
        bombs[name] = page[:end] + struct.pack("<I", next_one) + page[end + 4 :]
    pages = b"".join(page[at:end] + struct.pack("<I", len(page) + (n + 1) * (end - at + 4)) for n in range(5_000))
    bombs["pages"] = page[:end] + struct.pack("<I", len(page)) + page[end + 4 :] + pages
    scans = saved(part_of(64), "JPEG", progressive=True)
    bombs["scans"] = scans[:-2] + scans[scans.rindex(b"\xff\xda") : -2] * 500 + scans[-2:]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found, judged = Found(), set()
    for name, data in bombs.items():
        verdicts = found["verdicts"]
        found.case((model, deep), data, name)
        judged |= {name} if found["verdicts"] > verdicts else set()
    assert judged == {"a pixel", "wide", "high", "longer than declared", "chunks", "large", "loop"}
    assert found["named"] == found["refused"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MB * 1024


def part_of(size: int) -> np.ndarray:
    return NOISE.integers(0, 256, (size, size, 3), dtype=np.uint8)


def test_whatever_is_given_for_a_picture_is_judged_or_refused(model: Model, tmp_path: Path):
    """Arrays and things of the wrong type, and paths at which no picture is."""
    fine = decode(part_of(64))
    locked = fine.copy()
    locked.flags.writeable = False
    good = [
        locked,
        fine[::-1, ::2],
        fine[..., :1],
        np.asfortranarray(fine),
        fine[:1, :1],
        np.dstack([fine, fine[..., 0]]),
    ]
    for array in good:
        proper(model.inspect(array))
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    wrong = [None, 5, 1.5, [1, 2], [[1]], {}, object(), fine.tolist(), fine[None], fine[:0], fine[:, :0], fine[0, 0, 0]]
    wrong += [fine / 255, fine.astype(int), np.full((9, 9), np.nan), fine.astype(object), fine > 9, fine[..., :2]]
    wrong += [np.array("text"), fine.astype(complex), fine.view("V3"), np.ma.masked_array(fine[..., :2])]
    wrong += ["", "no\0name", "x" * 5_000, b"", b"\0" * 100, tmp_path, "/dev/zero", "/dev/null"]
    wrong += [tmp_path / name for name in ("none.png", "loop.png", "pipe.png", "empty.png", "empty.png/a.png")]
    for given in wrong:
        for ask in (model.inspect, lambda view: model.inspect_part([fine, view])):
            begun = time.process_time()
            with pytest.raises(FlawmapError):
                ask(given)
            assert time.process_time() - begun < MOST_S, given
    for views in ([], None, 5, fine[:0]):
        with pytest.raises(FlawmapError):
            model.inspect_part(views)


@pytest.fixture
def lot(world: Path, tmp_path: Path) -> Path:
    """A folder of good pictures with everything that is none among them."""
    root = tmp_path / "lot"
    shutil.copytree(world / "test/good", root)
    whole = (root / "000.png").read_bytes()
    for name, data in {"cut.png": whole[:999], "empty.jpg": b"", "text.bmp": b"BMtext", "header.tif": b"II*\0"}.items():
        (root / name).write_bytes(data)
    os.mkfifo(root / "pipe.png")
    (root / "gone.png").symlink_to(root / "nothing.png")
    (root / "again").symlink_to(root)
    (root / "line\nOK  0.1  more.png").write_bytes(whole)
    (root / os.fsdecode(b"\xff.png")).write_bytes(whole)
    return root


BAD = {"cut.png", "empty.jpg", "text.bmp", "header.tif", "pipe.png", "gone.png"}


def test_the_command_line_judges_the_good_ones_and_names_the_others(model: Model, lot: Path, tmp_path: Path, capfd):
    bundle = str(model.save(tmp_path / "m.flaw"))
    pages = ["--overlay", str(tmp_path / "o"), "--maps", str(tmp_path / "m")]
    assert main(["inspect", bundle, str(lot), "--json", *pages]) == 3
    found = {row["part"]: row for row in map(json.loads, capfd.readouterr().out.splitlines())}
    assert {name for name, row in found.items() if row["verdict"] is None} == BAD
    assert len(found) == 6 + len(BAD) + 2
    assert len(list((tmp_path / "o").iterdir())) == len(list((tmp_path / "m").iterdir())) == 8
    assert main(["inspect", bundle, str(lot)]) == 3
    printed = capfd.readouterr()
    assert len(printed.out.splitlines()) == 8  # a name cannot make a line of its own
    assert not any(line.startswith("OK  0.1") for line in printed.out.splitlines())
    assert all(f"flawmap: {name}: no verdict: " in printed.err for name in BAD)
    for wrong in (["*.png"], [str(lot / "none")], [str(lot / "cut.png")], [str(lot / "pipe.png")], ["/dev/null"]):
        assert main(["inspect", bundle, *wrong]) == 3, wrong
        assert "OK" not in capfd.readouterr().out
    assert main(["inspect", bundle, ""]) == 2  # not the folder one is in


def test_a_bad_picture_among_good_ones_stops_calibration_and_evaluation(model: Model, lot: Path, tmp_path: Path, capfd):
    bundle = str(model.save(tmp_path / "m.flaw"))
    for name in (os.fsdecode(b"\xff.png"), "line\nOK  0.1  more.png"):
        (lot / name).unlink()
    for words in (["calibrate", bundle, str(lot), "--save", str(tmp_path / "n.flaw")], ["evaluate", bundle, str(lot)]):
        assert main(words) == 3
        said = capfd.readouterr().err
        assert all(name in said for name in BAD)
    assert not (tmp_path / "n.flaw").exists()
    assert not (tmp_path / "evaluation").exists()

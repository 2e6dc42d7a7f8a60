"""The editor's service: what is written, what is kept, what is refused, and that nothing is lost on the way."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from flawmap.editor import store as store_module
from flawmap.editor.app import author, create_app
from flawmap.editor.maps import Maps, sixteen
from flawmap.editor.pictures import Pictures
from flawmap.editor.store import NONE
from flawmap.errors import CalibrationError, DataError, UsageError
from flawmap.images.audit import audit
from flawmap.images.folder import find, strays
from flawmap.images.masks.levels import read_mask
from flawmap.station.access import Access, new_token, read_tokens

Png = Callable[..., bytes]
GOOD, FIRST, BARE = 0, 2, 6  # numbers of a good picture, of the first defective one, of the one without a mask


def client_of(data: Path, who: str = "anna", **how: Any) -> TestClient:
    return TestClient(create_app(Pictures(data), who=who, hosts=None, **how))


@pytest.fixture
def client(data: Path) -> TestClient:
    return client_of(data)


def square(value: int = 255, left: int = 5) -> np.ndarray:
    levels = np.zeros((64, 64), np.uint8)
    levels[10:20, left : left + 12] = value
    return levels


def put(client: TestClient, number: int, content: bytes, base: str, query: str = "", **headers: str) -> Any:
    given = {"if-match": base, "content-type": "image/png", **headers}
    return client.put(f"/api/pictures/{number}/mask{query}", content=content, headers=given)


def version(client: TestClient, number: int) -> str:
    return client.get(f"/api/pictures/{number}").json()["version"]


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_the_list_says_kind_mask_and_who(client: TestClient, png: Png) -> None:
    rows = client.get("/api/pictures").json()["pictures"]
    assert rows[GOOD] == ["good/000.png", "good", False, "", ""]
    assert rows[FIRST] == ["square/000.png", "square", True, "", ""]
    assert rows[BARE] == ["square/004.png", "square", False, "", ""]
    assert put(client, BARE, png(square()), NONE).status_code == 200
    row = client.get("/api/pictures").json()["pictures"][BARE]
    assert row[:4] == ["square/004.png", "square", True, "anna"]


def test_a_save_is_read_by_flawmap_to_the_pixel(
    client: TestClient, data: Path, png: Png, unpacked: Callable[..., np.ndarray]
) -> None:
    levels = square()
    levels[30:40, 30:50] = 128
    assert put(client, BARE, png(levels), NONE).json()["version"] == version(client, BARE)
    path = data / "ground_truth/square/004_mask.png"
    with Image.open(path) as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), levels)
    sample = find(data)[BARE]
    assert sample.mask == path
    marks = read_mask(path, (64, 64))
    assert np.array_equal(marks.defect, levels == 255)
    assert marks.ignored is not None
    assert np.array_equal(marks.ignored, levels == 128)
    found = client.get(f"/api/pictures/{BARE}/mask")
    assert np.array_equal(unpacked(found.content), levels)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads(found.headers["x-facts"]) == {"version": digest, "cut": False}


def test_what_was_there_is_kept_byte_for_byte_and_can_be_restored(
    client: TestClient, data: Path, png: Png, unpacked: Callable[..., np.ndarray]
) -> None:
    path = data / "ground_truth/square/000_mask.png"
    first = path.read_bytes()
    second = put(client, FIRST, png(square()), version(client, FIRST)).json()
    put(client_of(data, "ben"), FIRST, png(square(left=40)), second["version"])
    told = client_of(data).get(f"/api/pictures/{FIRST}").json()["versions"]
    assert [(v["who"], v["current"]) for v in told] == [("ben", True), ("anna", False), ("", False)]
    kept = sorted((data / "ground_truth/.history/square/000").iterdir())
    assert kept[0].read_bytes() == first
    assert [path.name.rsplit("-", 1)[1] for path in kept] == ["anna.png", "ben.png"]
    lines = [json.loads(line) for line in (data / "ground_truth/.history/log.jsonl").read_text().splitlines()]
    assert [(line["who"], line["picture"]) for line in lines] == [
        ("anna", "test/square/000.png"),
        ("ben", "test/square/000.png"),
    ]

    client = client_of(data, "cleo")
    assert np.array_equal(unpacked(client.get(f"/api/pictures/{FIRST}/versions/1").content), square())
    restored = client.post(f"/api/pictures/{FIRST}/restore/0", headers={"if-match": version(client, FIRST)})
    assert restored.status_code == 200
    assert path.read_bytes() == first
    assert len(restored.json()["versions"]) == 4
    assert restored.json()["row"][3] == "cleo"
    assert code(client.get(f"/api/pictures/{FIRST}/versions/9")) == (422, "DATA")


def test_two_windows_do_not_write_over_one_another(client: TestClient, data: Path, png: Png) -> None:
    base = version(client, FIRST)
    assert put(client, FIRST, png(square()), base).status_code == 200
    on_disk = (data / "ground_truth/square/000_mask.png").read_bytes()
    late = put(client, FIRST, png(square(left=40)), base)
    assert code(late) == (409, "CONFLICT")
    assert (late.json()["who"], late.json()["version"]) == ("anna", version(client, FIRST))
    assert (data / "ground_truth/square/000_mask.png").read_bytes() == on_disk
    assert put(client, FIRST, png(square(left=40)), late.json()["version"]).status_code == 200
    assert code(put(client, BARE, png(square()), base)) == (409, "CONFLICT")  # there is none, and one was changed


def test_a_file_changed_by_another_program_is_a_conflict(client: TestClient, data: Path, png: Png) -> None:
    base = version(client, FIRST)
    (data / "ground_truth/square/000_mask.png").write_bytes(png(square(left=30)))
    late = put(client, FIRST, png(square()), base)
    assert (code(late), late.json()["who"]) == ((409, "CONFLICT"), "")
    new = data / "ground_truth/square/004_mask.png"  # one that was not there when the editor started
    new.write_bytes(png(square(left=30)))
    assert code(put(client, BARE, png(square()), NONE)) == (409, "CONFLICT")
    assert version(client, BARE) == hashlib.sha256(new.read_bytes()).hexdigest()


def test_of_many_that_save_at_once_one_wins(client: TestClient, data: Path, png: Png) -> None:
    base, found = version(client, FIRST), []
    others = [client_of(data, f"n{n}") for n in range(4)]
    assert {version(other, FIRST) for other in others} == {base}
    threads = [
        threading.Thread(target=lambda n=n: found.append(put(others[n], FIRST, png(square(left=n)), base).status_code))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [200, 409, 409, 409]
    assert len(list((data / "ground_truth/.history/square/000").iterdir())) == 1


def test_a_save_says_which_version_it_changed(client: TestClient, png: Png) -> None:
    answer = client.put(f"/api/pictures/{FIRST}/mask", content=png(square()), headers={"content-type": "image/png"})
    assert code(answer) == (422, "REQUEST")
    assert code(put(client, FIRST, png(square()), "../../etc")) == (422, "REQUEST")


def _turned(content: bytes) -> bytes:
    """With an EXIF chunk that turns it by a quarter."""
    body = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    return content[:33] + chunk + content[33:]


def test_what_is_no_mask_of_this_picture_is_refused(client: TestClient, data: Path, png: Png) -> None:
    before = (data / "ground_truth/square/000_mask.png").read_bytes()
    base, grey = version(client, FIRST), np.zeros((64, 64), np.uint8)
    grey[3, 3:9] = 200
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0)
    wrong = {
        "no PNG": b"GIF89a and so on, as long as you like",
        "a JPEG": b"\xff\xd8\xff" + bytes(100),
        "empty": b"",
        "head only": bomb,
        "cut off": png(square())[:-30],
        "damaged": png(square())[:60] + b"\0\1\2\3" + png(square())[64:],
        "wrong size": png(np.zeros((64, 32), np.uint8)),
        "huge": png(np.zeros((4, 60_000), np.uint8)),
        "colour": png(np.zeros((64, 64, 3), np.uint8)),
        "16 bits": png(np.zeros((64, 64), np.uint16)),
        "other greys": png(grey),
        "turned": _turned(png(square())),
    }
    for name, content in wrong.items():
        assert code(put(client, FIRST, content, base)) == (422, "DATA"), name
    assert code(put(client, FIRST, png(square()), base, **{"content-type": "text/html"})) == (415, "REQUEST")
    assert (data / "ground_truth/square/000_mask.png").read_bytes() == before
    assert not (data / "ground_truth/.history").exists()


def test_a_body_that_is_too_large_is_not_read(data: Path, png: Png) -> None:
    client = client_of(data, most_bytes=100_000)
    noise = png(np.random.default_rng(0).integers(0, 256, (400, 400)).astype(np.uint8))
    assert len(noise) > 100_000
    assert code(put(client, FIRST, noise, NONE)) == (413, "SIZE")
    answer = client.post(f"/api/pictures/{FIRST}/restore/0", content=bytes(70_000), headers={"if-match": NONE})
    assert code(answer) == (413, "SIZE")


def test_a_good_picture_can_have_pixels_to_ignore_but_no_defect(client: TestClient, data: Path, png: Png) -> None:
    answer = put(client, GOOD, png(square()), NONE)
    assert code(answer) == (422, "DATA")
    assert "called good" in answer.json()["error"]["message"]
    assert not (data / "ground_truth/good").exists()
    saved = put(client, GOOD, png(square(128)), NONE)
    assert saved.status_code == 200
    assert "mask-on-good" not in {finding.code for finding in audit(find(data)).findings}
    assert put(client, GOOD, png(np.zeros((64, 64), np.uint8)), saved.json()["version"]).json()["version"] == NONE
    assert not (data / "ground_truth/good/000_mask.png").exists()
    assert code(put(client, GOOD, png(np.zeros((64, 64), np.uint8)), NONE)) == (422, "DATA")


def test_an_empty_mask_of_a_defect_is_asked_about(client: TestClient, data: Path, png: Png) -> None:
    base, nothing = version(client, FIRST), png(square(128))
    assert code(put(client, FIRST, nothing, base)) == (422, "EMPTY")
    assert put(client, FIRST, nothing, base, "?empty=true").status_code == 200
    assert (data / "ground_truth/square/000_mask.png").read_bytes() != b""


def test_history_is_no_data(client: TestClient, data: Path, png: Png) -> None:
    before = find(data)
    names = [(sample.name, sample.mask) for sample in before]
    for left in (3, 6, 9):
        assert put(client, FIRST, png(square(left=left)), version(client, FIRST)).status_code == 200
    after = find(data)
    assert [(sample.name, sample.mask) for sample in after] == names
    assert strays(data, after) == []
    codes = {finding.code for finding in audit(after, strays(data, after)).findings}
    assert "strays" not in codes


@pytest.mark.parametrize("name", ["Jörg Ä./..\\x", "<b>\"'&", "名前", "  spaced  ", "..", "a" * 60])
def test_who_may_be_called_anything(data: Path, png: Png, name: str) -> None:
    client = client_of(data, author(name))
    answer = put(client, FIRST, png(square()), version(client, FIRST))
    assert answer.json()["row"][3] == name.strip()
    kept = [path for path in (data / "ground_truth/.history").rglob("*.png")]
    assert [path.parent for path in kept] == [data / "ground_truth/.history/square/000"]
    page = client.get("/").text
    assert "<b>" not in page.split('data-author="')[1].split(">")[0]


@pytest.mark.parametrize("name", ["", "  ", "a" * 61, "line\nbreak", "\x1b[31m"])
def test_who_is_a_name(name: str) -> None:
    with pytest.raises(UsageError, match="--who"):
        author(name)


def test_no_path_comes_from_a_page(client: TestClient, data: Path) -> None:
    (data / "secret.png").write_bytes((data / "test/good/000.png").read_bytes())
    for path in (
        "..%2f..%2fsecret.png",
        "../secret.png",
        "-1",
        "7",
        "1e0",
        "0/../../secret.png",
        "99999999999999999999",
    ):
        for what in ("picture", "thumb", "mask", "versions/0", "map"):
            assert client.get(f"/api/pictures/{path}/{what}").status_code in (404, 422), (path, what)
    for name in ("..%2fapp.py", "../app.py", "editor.html", "%2e%2e/app.py", "base.html"):
        assert client.get(f"/static/{name}").status_code == 404
    assert client.get("/static/main.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/static/common.js").status_code == 200


def test_a_log_that_leads_elsewhere_is_not_followed(data: Path, png: Png, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(square()))
    log = data / "ground_truth/.history/log.jsonl"
    log.parent.mkdir()
    line = {
        "time": "2026-01-01T00:00:00.000Z",
        "who": "x",
        "picture": "test/square/000.png",
        "version": "0",
        "before": "1",
    }
    bad = [{**line, "kept": "../../../secret.png"}, {**line, "kept": str(tmp_path / "secret.png")}, {**line, "kept": 3}]
    log.write_text("\n".join([*map(json.dumps, bad), "[1]", '{"time": 1}', '{"half']))
    client = client_of(data)
    assert [v["current"] for v in client.get(f"/api/pictures/{FIRST}").json()["versions"]] == [True]
    assert put(client, FIRST, png(square()), version(client, FIRST)).status_code == 200
    again = client_of(data).get(f"/api/pictures/{FIRST}").json()["versions"]  # behind a half line
    assert [v["who"] for v in again] == ["anna", ""]


def test_a_page_of_another_site_may_not_save(data: Path, png: Png) -> None:
    client = TestClient(create_app(Pictures(data), who="anna"), base_url="http://127.0.0.1:8090")
    base = version(client, FIRST)
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}):
        assert code(put(client, FIRST, png(square()), base, **headers)) == (403, "ORIGIN")
    assert code(put(client, FIRST, png(square()), base, host="evil.example")) == (421, "HOST")
    assert client.get("/api/pictures", headers={"host": "evil.example"}).status_code == 421
    assert put(client, FIRST, png(square()), base, origin="http://127.0.0.1:8090").status_code == 200
    page = client.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'self';")
    assert "<style" not in page.text
    assert " style=" not in page.text
    assert "<script>" not in page.text


def test_with_tokens_one_looks_and_another_saves(data: Path, png: Png, tmp_path: Path) -> None:
    made = [new_token("vera", "view"), new_token("otto", "operate")]
    (tmp_path / "tokens").write_text("\n".join(line for _, line in made))
    client = client_of(data, access=Access(read_tokens(tmp_path / "tokens")))
    assert client.get("/api/pictures").status_code == 401
    asked = client.get("/", headers={"accept": "text/html"})
    assert (asked.url.path, asked.status_code) == ("/login", 200)
    assert 'href="/"' in asked.text
    assert "/history" not in asked.text
    looks, saves = ({"authorization": f"Bearer {token}"} for token, _ in made)
    base = client.get(f"/api/pictures/{FIRST}", headers=looks).json()["version"]
    assert 'data-writes=""' in client.get("/", headers=looks).text
    assert code(put(client, FIRST, png(square()), base, **looks)) == (403, "ROLE")
    assert put(client, FIRST, png(square()), base, **saves).json()["row"][3] == "otto"


def test_a_crash_leaves_the_old_mask_or_the_new_one(
    client: TestClient, data: Path, png: Png, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = data / "ground_truth/square/000_mask.png"
    before, base = path.read_bytes(), version(client, FIRST)
    real, calls = os.replace, []

    def fails(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 2:  # the first was the copy of the old one
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(store_module.os, "replace", fails)
    answer = put(client, FIRST, png(square()), base)
    assert code(answer) == (503, "FAULT")
    assert "No space left on device); nothing was changed" in answer.json()["error"]["message"]
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir() if p.name.endswith(".new")] == []
    monkeypatch.undo()
    assert put(client, FIRST, png(square()), base).status_code == 200


def test_masks_of_other_names_and_formats_keep_one_mask_a_picture(data: Path, png: Png) -> None:
    masks = data / "ground_truth/square"
    (masks / "000_mask.png").rename(masks / "000.png")
    Image.fromarray(square()).save(masks / "001_mask.bmp")
    (masks / "001_mask.png").unlink()
    client = client_of(data)
    for number in (FIRST, FIRST + 1):
        assert put(client, number, png(square(left=20)), version(client, number)).status_code == 200
    assert {path.name for path in masks.iterdir()} >= {"000.png", "001_mask.png"}
    assert not (masks / "001_mask.bmp").exists()
    assert [s.mask.name for s in find(data)[2:4] if isinstance(s.mask, Path)] == ["000.png", "001_mask.png"]
    assert client.get(f"/api/pictures/{FIRST + 1}/versions/0").status_code == 200


def test_grey_masks_are_said_to_be_cut(client: TestClient, data: Path) -> None:
    grey = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    Image.fromarray(grey).save(data / "ground_truth/square/000_mask.png")
    found = client.get(f"/api/pictures/{FIRST}/mask")
    assert json.loads(found.headers["x-facts"])["cut"] is True


def test_pictures_are_shown_as_flawmap_sees_them(data: Path) -> None:
    pixels = np.asarray(Image.open(data / "test/square/000.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[:, :32]).save(data / "test/square/005.png", exif=exif)
    Image.fromarray(np.dstack([pixels, np.full((64, 64), 128, np.uint8)])).save(data / "test/square/006.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(data / "test/square/007.tif")
    client = client_of(data)
    assert (client.get("/api/pictures/7").json()["height"], client.get("/api/pictures/7").json()["width"]) == (32, 64)
    for number, shape in ((2, (64, 64)), (7, (32, 64)), (8, (64, 64)), (9, (64, 64))):
        shown = client.get(f"/api/pictures/{number}/picture")
        (data / "shown").write_bytes(shown.content)
        image = Image.open(data / "shown")
        assert (image.format, image.mode) == ("PNG", "RGB"), number
        assert np.asarray(image).shape[:2] == shape
        assert image.getexif().get(0x0112, 1) == 1
        thumb = client.get(f"/api/pictures/{number}/thumb")
        assert thumb.content[:3] == b"\xff\xd8\xff"


def test_the_map_is_that_of_the_model_in_16_bits(data: Path, maps: Maps, unpacked: Callable[..., np.ndarray]) -> None:
    client = client_of(data, maps=maps)
    answer = client.get(f"/api/pictures/{FIRST}/map")
    facts = json.loads(answer.headers["x-facts"])
    levels = unpacked(answer.content, np.uint16)
    _, map = maps.model.predict(data / "test/square/000.png")
    assert maps.model.calibration
    assert facts["threshold"] == maps.model.calibration.map_threshold
    step = (facts["high"] - facts["low"]) / 65535
    assert np.abs(facts["low"] + levels * step - map).max() <= step * 1.01
    assert (levels.min(), levels.max()) == (0, 65535)
    assert code(client_of(data).get(f"/api/pictures/{FIRST}/map"))[0] == 404


def test_a_map_of_one_value_and_one_that_is_no_number() -> None:
    flat = sixteen(np.full((3, 4), 0.25, np.float32), "x")
    assert (flat.low, flat.high, flat.levels.max()) == (0.25, 1.25, 0)
    with pytest.raises(CalibrationError, match="x: the map is not a number"):
        sixteen(np.array([[1.0, np.nan]], np.float32), "x")


def test_other_layouts_are_refused(tmp_path: Path, world: Path, data: Path) -> None:
    with pytest.raises(DataError, match="must be the folder"):
        Pictures(tmp_path / "none")
    with pytest.raises(DataError, match="no pictures in test/"):
        Pictures(world / "train/good")

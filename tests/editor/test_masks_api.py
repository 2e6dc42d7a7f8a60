"""The editor's service: what is written, what is kept, what is refused, and that nothing is lost on the way."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from flawmap.editor import files
from flawmap.editor import store as store_module
from flawmap.editor.app import author, create_app
from flawmap.editor.maps import Maps, sixteen
from flawmap.editor.pictures import Pictures
from flawmap.editor.store import NONE
from flawmap.errors import CalibrationError, DataError, UsageError
from flawmap.images.audit import audit
from flawmap.images.folder import find, strays
from flawmap.images.masks.levels import read_mask
from flawmap.images.png import write_png
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
    given = {"if-match": base, "content-type": "image/png", "x-list": list_of(client, **headers), **headers}
    return client.put(f"/api/pictures/{number}/mask{query}", content=content, headers=given)


def restore(client: TestClient, number: int, version: int, base: str) -> Any:
    headers = {"if-match": base, "x-list": list_of(client)}
    return client.post(f"/api/pictures/{number}/restore/{version}", headers=headers)


def list_of(client: TestClient, **headers: str) -> str:
    """As a page of ours learns it."""
    given = {key: value for key, value in headers.items() if key == "authorization"}
    host = {"host": "127.0.0.1:8090"} if str(client.base_url) != "http://testserver" else {}
    return client.get("/api/pictures", headers={**given, **host}).json()["list"]


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
    assert json.loads(found.headers["x-facts"]) == {"version": digest, "cut": False, "unread": ""}


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
    restored = restore(client, FIRST, 0, version(client, FIRST))
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
    headers = {"content-type": "image/png", "x-list": list_of(client)}
    answer = client.put(f"/api/pictures/{FIRST}/mask", content=png(square()), headers=headers)
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

    monkeypatch.setattr(files.os, "replace", fails)
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


def test_a_page_of_another_list_neither_gets_nor_saves_a_wrong_picture(data: Path, png: Png) -> None:
    before = client_of(data)
    old, base = list_of(before), version(before, BARE)
    assert base == NONE
    tag = before.get(f"/api/pictures/{BARE}/thumb").headers["etag"]
    (data / "test/square/001a.png").write_bytes((data / "test/good/000.png").read_bytes())
    after = client_of(data)  # a restart at the same address: the number is another picture's now, without a mask, too
    (data / "ground_truth/square/003_mask.png").unlink()
    assert version(after, BARE) == NONE
    assert list_of(after) != old
    late = put(after, BARE, png(square()), base, **{"x-list": old})
    assert code(late) == (409, "LIST")
    assert late.json()["error"]["message"] == "the list has changed since this page was opened; reload"
    assert code(put(after, BARE, png(square()), base, **{"x-list": ""})) == (409, "LIST")
    assert code(after.post(f"/api/pictures/{FIRST}/restore/0", headers={"if-match": base})) == (409, "LIST")
    for what in ("", "/picture", "/thumb", "/mask", "/versions/0", "/map"):
        assert code(after.get(f"/api/pictures/{BARE}{what}", headers={"x-list": old})) == (409, "LIST"), what
    assert code(after.get(f"/api/pictures/{BARE}/thumb?list={old}")) == (409, "LIST")
    assert not (data / "ground_truth/.history").exists()
    shown = after.get(f"/api/pictures/{BARE}/thumb", headers={"if-none-match": tag})
    assert (shown.status_code, shown.headers["etag"] != tag) == (200, True)
    assert put(after, BARE, png(square()), base).status_code == 200


def test_a_picture_is_kept_by_a_browser_until_its_file_is_another(client: TestClient, data: Path) -> None:
    for what in ("picture", "thumb"):
        first = client.get(f"/api/pictures/{FIRST}/{what}")
        assert first.headers["cache-control"] == "private, no-cache"
        again = client.get(f"/api/pictures/{FIRST}/{what}", headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    Image.fromarray(np.full((32, 48, 3), 200, np.uint8)).save(data / "test/square/000.png")
    thumb = client.get(f"/api/pictures/{FIRST}/thumb", headers={"if-none-match": first.headers["etag"]})
    assert thumb.status_code == 200
    assert thumb.content != first.content
    about = client.get(f"/api/pictures/{FIRST}").json()
    assert (about["width"], about["height"]) == (48, 32)


KILLED = """
import os, signal, sys
from pathlib import Path
from flawmap.editor.pictures import Pictures
from flawmap.images.png import write_png
import numpy as np

pictures, real, calls = Pictures(Path(sys.argv[1])), os.replace, []
sample = pictures.fresh(int(sys.argv[2]))

def replace(source, target):
    calls.append(target)
    after = sys.argv[4] == "after"
    if after:
        real(source, target)
    if len(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    if not after:
        real(source, target)

os.replace = replace
content = write_png(np.full((64, 64), 255, np.uint8))
pictures.store.save(sample, content, pictures.store.version(sample.mask), "killed")
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize(("call", "when"), [(1, "before"), (1, "after"), (2, "before"), (2, "after")])
@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_a_save_that_is_killed_is_there_with_its_line_or_not_at_all(
    data: Path, png: Png, call: int, when: str, suffix: str
) -> None:
    path = data / "ground_truth/square/000_mask.png"
    if suffix == ".bmp":
        Image.open(path).save(path.with_suffix(suffix))
        path.unlink()
        path = path.with_suffix(suffix)
    before = path.read_bytes()
    command = [sys.executable, "-c", KILLED, str(data), str(FIRST), str(call), when]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    came = (call, when) == (2, "after")
    assert (path.read_bytes() != before) == came
    left = [each for each in (data / "ground_truth").rglob("*.new")]
    assert len(left) == (when == "before")
    client = client_of(data)
    assert list((data / "ground_truth").rglob("*.new")) == []
    assert client.get("/api/pictures").json()["pictures"][FIRST][3] == ("killed" if came else "")
    told = client.get(f"/api/pictures/{FIRST}").json()
    assert [v["who"] for v in told["versions"]] == (["killed", ""] if came else [""])
    assert put(client, FIRST, png(square()), told["version"]).status_code == 200
    for asked in (client, client_of(data)):
        told = asked.get(f"/api/pictures/{FIRST}").json()
        assert [v["who"] for v in told["versions"]] == ["anna", *(["killed"] if came else []), ""]
        assert asked.get("/api/pictures").json()["pictures"][FIRST][3] == "anna"
    assert {each.name for each in path.parent.glob("000*")} == {"000_mask.png"}
    assert restore(client, FIRST, 0, told["version"]).status_code == 200
    lines = [json.loads(line) for line in (data / "ground_truth/.history/log.jsonl").read_text().splitlines()]
    assert [line["action"] for line in lines].count("void") == ((call, when) == (2, "before"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_without_its_line_nothing_is_saved(client: TestClient, data: Path, png: Png) -> None:
    path = data / "ground_truth/square/000_mask.png"
    before = path.read_bytes()
    log = data / "ground_truth/.history/log.jsonl"
    log.parent.mkdir()
    log.symlink_to("/dev/full")
    answer = put(client, FIRST, png(square()), version(client, FIRST))
    assert code(answer) == (503, "FAULT")
    assert answer.json()["error"]["message"] == (
        f"{log}: cannot be written (No space left on device); nothing was changed"
    )
    assert path.read_bytes() == before
    assert list((data / "ground_truth/.history").rglob("*.png")) == []
    log.unlink()
    assert put(client, FIRST, png(square()), version(client, FIRST)).status_code == 200


def test_a_history_that_is_no_folder_and_a_disk_that_takes_nothing_are_named(
    client: TestClient, data: Path, png: Png, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = version(client, FIRST)
    history = data / "ground_truth/.history"
    history.write_text("mine")
    answer = put(client, FIRST, png(square()), base)
    assert code(answer) == (503, "FAULT")
    assert f"{history}: is no folder; move it away" in answer.json()["error"]["message"]
    history.unlink()

    def refuses(*_: Any, **__: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(store_module, "claimed", refuses)  # as its first touch of such a disk would
    answer = put(client, FIRST, png(square()), base)
    assert code(answer) == (503, "FAULT")
    assert "ground_truth: cannot be written (Read-only file system); nothing" in answer.json()["error"]["message"]
    monkeypatch.undo()
    made = put(client, GOOD, png(square(128)), NONE).json()["version"]
    monkeypatch.setattr(Path, "unlink", refuses)
    answer = put(client, GOOD, png(np.zeros((64, 64), np.uint8)), made)
    assert code(answer) == (503, "FAULT")
    assert "000_mask.png: cannot be written (Read-only" in answer.json()["error"]["message"]
    monkeypatch.undo()
    told = client.get(f"/api/pictures/{GOOD}").json()
    assert (told["version"], len(told["versions"])) == (made, 1)


BROKEN = {
    "text": (lambda whole: b"what", "not a PNG, JPEG, BMP, TIFF picture"),
    "nothing": (lambda whole: b"", "empty (0 bytes)"),
    "head of a BMP": (lambda whole: b"BM\0\0", "cut off or damaged"),
    "half": (lambda whole: whole[: len(whole) // 2], "damaged"),
    "small": (
        lambda whole: write_png(np.zeros((64, 32), np.uint8)),
        "the mask is 32 x 64 pixels, test/square/000.png is 64 x 64",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_mask_that_cannot_be_read_is_named_and_can_be_drawn_anew(
    data: Path, png: Png, unpacked: Callable[..., np.ndarray], name: str
) -> None:
    path = data / "ground_truth/square/000_mask.png"
    breaks, why = BROKEN[name]
    content = breaks(path.read_bytes())
    path.write_bytes(content)
    client = client_of(data)
    found = client.get(f"/api/pictures/{FIRST}/mask")
    facts = json.loads(found.headers["x-facts"])
    assert facts["unread"].startswith(f"{path}: ")
    assert why in facts["unread"]
    assert "picture of" not in facts["unread"]
    assert "unpack" not in facts["unread"]
    assert not unpacked(found.content).any()
    assert facts["version"] == version(client, FIRST) == hashlib.sha256(content).hexdigest()
    assert put(client, FIRST, png(square()), facts["version"]).status_code == 200
    kept = next((data / "ground_truth/.history/square/000").iterdir())
    assert kept.read_bytes() == content
    for answer in (
        client.get(f"/api/pictures/{FIRST}/versions/0"),
        restore(client, FIRST, 0, version(client, FIRST)),
    ):
        assert code(answer) == (422, "DATA")
        assert str(kept) in answer.json()["error"]["message"]


def test_an_old_mask_of_another_format_comes_back_as_a_png(
    data: Path, png: Png, unpacked: Callable[..., np.ndarray]
) -> None:
    masks = data / "ground_truth/square"
    (masks / "000_mask.png").unlink()
    Image.fromarray(square()).save(masks / "000_mask.bmp")
    client = client_of(data)
    second = put(client, FIRST, png(square(left=30)), version(client, FIRST)).json()["version"]
    assert restore(client, FIRST, 0, second).status_code == 200
    with Image.open(masks / "000_mask.png") as image:
        assert (image.format, image.mode) == ("PNG", "L")
        assert np.array_equal(np.asarray(image), square())
    assert np.array_equal(unpacked(client.get(f"/api/pictures/{FIRST}/mask").content), square())


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_what_a_sidecar_says_is_kept_with_the_version(
    data: Path, png: Png, unpacked: Callable[..., np.ndarray], suffix: str
) -> None:
    path = data / f"ground_truth/square/000_mask{suffix}"
    grey = square()
    grey[30:40, 30:50], grey[50, 3:9], grey[52, 3:9] = 128, 200, 40
    Image.fromarray(grey).save(path)
    if suffix == ".bmp":
        path.with_suffix(".png").unlink()
    sidecar = path.with_name(f"{path.name}.json")
    sidecar.write_text('{"ignore": 128}')
    client = client_of(data)
    meant = unpacked(client.get(f"/api/pictures/{FIRST}/mask").content)
    assert set(np.unique(meant)) == {0, 128, 255}
    second = put(client, FIRST, png(square()), version(client, FIRST)).json()["version"]
    assert np.array_equal(unpacked(client.get(f"/api/pictures/{FIRST}/versions/0").content), meant)
    sidecar.unlink()  # restored, it means the same all the same
    assert np.array_equal(unpacked(client.get(f"/api/pictures/{FIRST}/versions/0").content), meant)
    assert restore(client, FIRST, 0, second).status_code == 200
    assert np.array_equal(unpacked(client.get(f"/api/pictures/{FIRST}/mask").content), meant)
    marks = read_mask(data / "ground_truth/square/000_mask.png", (64, 64))
    assert marks.ignored is not None
    assert np.array_equal(marks.ignored, meant == 128)


def test_a_mask_that_comes_under_another_name_is_seen(client: TestClient, data: Path, png: Png) -> None:
    new = data / "ground_truth/square/004.bmp"
    Image.fromarray(square(left=30)).save(new)
    (data / "ground_truth/square/0040_mask.png").write_bytes(b"of another")
    assert code(put(client, BARE, png(square()), NONE)) == (409, "CONFLICT")
    assert put(client, BARE, png(square()), hashlib.sha256(new.read_bytes()).hexdigest()).status_code == 200
    assert [each.name for each in new.parent.glob("004[._]*")] == ["004_mask.png"]


def test_a_mask_that_is_a_link_becomes_a_file(client: TestClient, data: Path, png: Png, tmp_path: Path) -> None:
    path, real = data / "ground_truth/square/000_mask.png", tmp_path / "real.png"
    before = path.read_bytes()
    path.rename(real)
    try:
        path.symlink_to(real)
    except OSError:
        pytest.skip("this system makes no links")
    assert put(client, FIRST, png(square()), version(client, FIRST)).status_code == 200
    assert not path.is_symlink()
    assert real.read_bytes() == before
    assert next((data / "ground_truth/.history/square/000").iterdir()).read_bytes() == before


def test_two_pictures_that_would_share_a_mask_are_refused(data: Path) -> None:
    Image.open(data / "test/square/001.png").save(data / "test/square/001.bmp")
    with pytest.raises(
        DataError, match=r"001\.bmp and test/square/001\.png would share one mask, 001_mask\.png; rename"
    ):
        Pictures(data)


def test_what_another_editor_is_writing_is_left_alone(data: Path) -> None:
    new = data / "ground_truth/square/.000_mask.png.0123abcd.new"
    new.write_bytes(b"half")
    mine = data / "ground_truth/square/.notes.new"
    mine.write_bytes(b"mine")
    with store_module.claimed(data / "ground_truth/.history/.lock") as claim:
        assert claim
        Pictures(data)
        assert new.exists()
    Pictures(data)
    assert not new.exists()
    assert mine.exists()


def test_errors_speak_of_the_editor(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = Pictures(data)
    client = TestClient(create_app(pictures, who="anna", hosts=None), raise_server_exceptions=False)
    assert client.get("/api/nothing").json()["error"]["message"] == "there is no such path"
    assert client.get("/api/pictures/99").json()["error"]["message"] == "there is no picture 99; there are 7, from 0 on"
    assert client.get(f"/api/pictures/{FIRST}/map").json()["error"]["message"].startswith("There is no model")

    def fails() -> bytes:
        raise RuntimeError("not meant")

    monkeypatch.setattr(pictures, "rows", fails)
    assert client.get("/api/pictures").json()["error"]["message"] == "a fault of the editor's own; its log says more"

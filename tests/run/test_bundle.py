from __future__ import annotations

import json
import os
import random
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from flawmap.errors import BundleError
from flawmap.run.bundle import FORMAT, MAX_FILES, Bundle, manifest, read

FILES = {
    "model.onnx": bytes(range(100)),
    "config.json": b'{"method": "patchcore"}',
    "golden/good-0.png": b"\x89PNG not really",
    "card.md": "# Lot\n\nπ".encode(),
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return Bundle(FILES, "new").write(tmp_path / "part.flaw")


def _zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def _whole(files: dict[str, bytes]) -> dict[str, bytes]:
    """With a manifest that agrees with them."""
    return {**files, "manifest.json": manifest(files)}


def _unpack(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder


def test_what_is_written_is_read(written: Path):
    found = read(written)
    assert found.files == FILES
    assert found.config == {"method": "patchcore"}
    assert found.origin == str(written)


def test_writing_again_gives_the_same_bytes(written: Path, tmp_path: Path):
    backwards = Bundle(dict(reversed(FILES.items())), "other").write(tmp_path / "again.flaw")
    assert backwards.read_bytes() == written.read_bytes()
    assert read(written).write(tmp_path / "third.flaw").read_bytes() == written.read_bytes()


def test_a_folder_is_the_same_bundle_as_the_zip(written: Path, tmp_path: Path):
    zipped, unpacked = read(written), read(_unpack(written, tmp_path / "folder"))
    assert unpacked.files == zipped.files
    assert unpacked.sha256 == zipped.sha256


def test_the_sha256_names_every_file(written: Path):
    found = read(written)
    assert found.sha256 == Bundle(FILES, "").sha256
    others = {found.replace({name: content + b"!"}).sha256 for name, content in FILES.items() if name != "config.json"}
    assert len(others | {found.sha256}) == len(FILES)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_changed_byte_in_any_file_is_refused(written: Path, tmp_path: Path, name: str):
    file = _unpack(written, tmp_path / "folder") / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"was changed|damaged|differ"):
        read(tmp_path / "folder")


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_refused(written: Path, tmp_path: Path, name: str):
    (_unpack(written, tmp_path / "folder") / name).unlink()
    with pytest.raises(BundleError, match=r"missing|differ"):
        read(tmp_path / "folder")


def test_an_added_file_is_refused(written: Path, tmp_path: Path):
    (_unpack(written, tmp_path / "folder") / "golden/more.png").write_bytes(b"")
    with pytest.raises(BundleError, match=r"differ in golden/more\.png"):
        read(tmp_path / "folder")
    with zipfile.ZipFile(written, "a") as archive:
        archive.writestr("more.txt", "more")
    with pytest.raises(BundleError, match=r"differ in more\.txt"):
        read(written)


@pytest.mark.parametrize("name", ["model.onnx", "config.json"])
def test_a_bundle_without_what_judges_is_refused_though_its_manifest_agrees(tmp_path: Path, name: str):
    path = _zip(tmp_path / "less.flaw", _whole({key: value for key, value in FILES.items() if key != name}))
    with pytest.raises(BundleError, match=rf"{name} is missing"):
        read(path)


def test_a_byte_changed_anywhere_in_the_zip_is_refused_or_changes_nothing(written: Path, tmp_path: Path):
    """Some bytes of a zip mean nothing (dates, rights); no other may be changed, and none may crash the reader."""
    whole, draw = written.read_bytes(), random.Random(0)
    path, refused = tmp_path / "changed.flaw", 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ draw.randrange(1, 256)]) + whole[place + 1 :])
        try:
            assert read(path).files == FILES
        except BundleError:
            refused += 1
    assert refused > 0.5 * len(whole)


def test_a_truncated_zip_is_refused_at_every_length(written: Path, tmp_path: Path):
    whole, path = written.read_bytes(), tmp_path / "short.flaw"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(BundleError):
            read(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path):
    path = _zip(tmp_path / "bomb.flaw", _whole({**FILES, "zeros": bytes(2**26)}), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**17
    tracemalloc.start()
    with pytest.raises(BundleError, match="compressed"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21


def test_files_that_overlap_in_the_zip_are_refused(tmp_path: Path):
    """Fifty directory entries for the same stored bytes: more comes out than lies in the file."""
    path = tmp_path / "overlap.flaw"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", bytes(2**20))
        for number in range(50):
            entry = zipfile.ZipInfo(f"b{number}")
            first = archive.infolist()[0]
            for field in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(entry, field, getattr(first, field))
            archive.filelist.append(entry)
    with pytest.raises(BundleError, match="overlapping"):
        read(path)


def test_a_zip_of_too_many_files_is_refused(tmp_path: Path):
    files = {f"{number}": b"" for number in range(MAX_FILES)}
    with pytest.raises(BundleError, match=f"at most {MAX_FILES}"):
        read(_zip(tmp_path / "many.flaw", _whole({**FILES, **files})))


def test_a_name_that_stands_twice_is_refused(tmp_path: Path):
    path = _zip(tmp_path / "twice.flaw", _whole(FILES))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("card.md", FILES["card.md"])
    with pytest.raises(BundleError, match="stands twice"):
        read(path)


@pytest.mark.parametrize("name", ["../evil", "golden/../../evil", "/etc/evil", "golden\\..\\evil", ".."])
def test_a_name_that_points_out_of_the_bundle_is_refused_though_its_manifest_agrees(tmp_path: Path, name: str):
    with pytest.raises(BundleError, match="points out of the bundle"):
        read(_zip(tmp_path / "traversal.flaw", _whole({**FILES, name: b"x"})))


@pytest.mark.parametrize("version", [FORMAT + 1, 0, None, "1"])
def test_another_format_number_is_refused(tmp_path: Path, version: object):
    stated = {**json.loads(manifest(FILES)), "format": version}
    path = _zip(tmp_path / "format.flaw", {**FILES, "manifest.json": json.dumps(stated).encode()})
    with pytest.raises(BundleError, match="use the flawmap that wrote it"):
        read(path)


@pytest.mark.parametrize(
    "stated", [b"", b"[]", b"7", b'{"format": 1}', b'{"format": 1, "files": []}', b"[" * 100_000, b"\xff\xfe"]
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, stated: bytes):
    with pytest.raises(BundleError, match=r"manifest\.json is missing or damaged"):
        read(_zip(tmp_path / "manifest.flaw", {**FILES, "manifest.json": stated}))


def test_what_is_no_zip_is_refused_by_name(tmp_path: Path):
    picture = tmp_path / "picture.flaw"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    with pytest.raises(BundleError, match=r"picture\.flaw: not a sound bundle"):
        read(picture)
    with pytest.raises(BundleError, match=r"absent\.flaw: there is no such bundle"):
        read(tmp_path / "absent.flaw")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="not a bundle of flawmap"):
        read(tmp_path / "empty")


def test_a_failing_write_leaves_the_old_bundle_and_nothing_else(written: Path, monkeypatch: pytest.MonkeyPatch):
    before = written.read_bytes()
    real, calls = zipfile.ZipFile.writestr, []

    def full_disk(self: zipfile.ZipFile, *given: object) -> None:
        calls.append(given)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full_disk)
    with pytest.raises(OSError, match="No space"):
        Bundle({**FILES, "model.onnx": b"new"}, "").write(written)
    assert os.listdir(written.parent) == ["part.flaw"]
    assert written.read_bytes() == before


def test_an_interrupted_first_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Bundle(FILES, "").write(tmp_path / "out" / "part.flaw")
    assert os.listdir(tmp_path / "out") == []

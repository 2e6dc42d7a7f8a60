"""The bundle: all that judges a picture, in one zip file (NAME.flaw) or a folder, every file named by its SHA-256.

model.onnx          the graph, from the network's input to map and score
weights.safetensors the same detector for torch
config.json         method, options, intake (how a file becomes the network's input), what it was made of
calibration.json    threshold and promise; absent in a model that is not calibrated: it gives no verdict
data.jsonl          the pictures it was made of: name, SHA-256, part, role
golden.json         what the model says of the pictures under golden/, for the parity gate and `doctor`
card.md             the same for people
manifest.json       SHA-256 and size of each of these
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flawmap.errors import BundleError
from flawmap.verdict.calibration import Calibration

FORMAT = 1
MAX_FILES = 200
_NEEDED = {"model.onnx", "config.json"}


class Bundle:
    """The files of a bundle by name, checked against the manifest."""

    def __init__(self, files: Mapping[str, bytes], origin: str) -> None:
        self.files, self.origin = dict(files), origin
        self.config: dict[str, Any] = self.json("config.json")

    def json(self, name: str) -> Any:
        try:
            return json.loads(self.files[name])
        except (KeyError, ValueError, RecursionError) as error:
            raise BundleError(f"{self.origin}: {name} is missing or not JSON; get the bundle again") from error

    @property
    def sha256(self) -> str:
        """Of the manifest, hence of everything inside."""
        return hashlib.sha256(manifest(self.files)).hexdigest()

    def replace(self, files: Mapping[str, bytes]) -> Bundle:
        return Bundle({**self.files, **files}, self.origin)

    def write(self, path: Path) -> Path:
        """A zip at `path`, whole or not at all; the same files give the same bytes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {**self.files, "manifest.json": manifest(self.files)}
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
                for name in sorted(content):
                    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
                    entry.external_attr = 0o644 << 16
                    archive.writestr(entry, content[name])
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return path


def read(path: Path) -> Bundle:
    """A bundle from a zip file or a folder. BundleError when anything is missing, added or changed."""
    path = Path(path)
    try:
        files = _from_folder(path) if path.is_dir() else _from_zip(path)
    except FileNotFoundError as error:
        raise BundleError(f"{path}: there is no such bundle") from error
    except BundleError:
        raise
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise BundleError(f"{path}: not a sound bundle ({error}); get it again") from error
    return _checked(files, str(path))


def manifest(files: Mapping[str, bytes]) -> bytes:
    listed = {name: _entry(content) for name, content in sorted(files.items())}
    return json.dumps({"format": FORMAT, "files": listed}, indent=1).encode()


def _entry(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _checked(files: dict[str, bytes], origin: str) -> Bundle:
    try:
        stated = json.loads(files.pop("manifest.json"))
        version, listed = stated["format"], dict(stated["files"].items())
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{origin}: not a bundle of flawmap: its manifest.json is missing or damaged") from error
    if version != FORMAT:
        raise BundleError(
            f"{origin}: bundle format {version}, this flawmap reads {FORMAT}: use the flawmap that wrote it"
        )
    if strays := sorted(listed.keys() ^ files.keys()):
        raise BundleError(f"{origin}: manifest and content differ in {', '.join(strays)}; get the bundle again")
    for name, content in files.items():
        if listed[name] != _entry(content):
            raise BundleError(f"{origin}: {name} was changed after the bundle was written; get the bundle again")
    if outside := [name for name in files if name.startswith("/") or "\\" in name or ".." in name.split("/")]:
        raise BundleError(f"{origin}: {outside[0]!r} points out of the bundle; do not use it")
    if missing := _NEEDED - files.keys():
        raise BundleError(f"{origin}: {', '.join(sorted(missing))} is missing; get the bundle again")
    return Bundle(files, origin)


def _from_zip(path: Path) -> dict[str, bytes]:
    files = {}
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if len(entries) > MAX_FILES:
            raise BundleError(f"{path}: {len(entries)} files, a bundle has at most {MAX_FILES}")
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > len(content):
            # Nothing is written compressed, so what claims to hold more than its own size is no work of ours.
            raise BundleError(f"{path}: holds compressed or overlapping files; unpack it, or get the bundle again")
        for entry in entries:
            if entry.filename in files:
                raise BundleError(f"{path}: {entry.filename} stands twice; get the bundle again")
            files[entry.filename] = archive.read(entry)
    return files


def _from_folder(path: Path) -> dict[str, bytes]:
    found = [file for file in path.rglob("*") if file.is_file()]
    if len(found) > MAX_FILES:
        raise BundleError(f"{path}: {len(found)} files, a bundle has at most {MAX_FILES}")
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in found}


def given(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Weights that were learnt before the fit: what they are, where they came from, and their SHA-256."""
    found = [
        (what, config.get(f"{what}_origin", ""), config.get(f"{what}_sha256", "")) for what in ("backbone", "teacher")
    ]
    return [(f"{what} weights", f"{origin}, SHA-256 {sha256}") for what, origin, sha256 in found if origin]


def card(config: Mapping[str, Any], calibration: Calibration | None, pictures: int) -> str:
    """What the model is and promises, as Markdown."""
    promise = calibration.sentence if calibration else "Not calibrated: gives scores and maps, never a verdict."
    lines = [f"- {key}: {value}" for key, value in config["options"].items()]
    resize, (high, wide) = config["intake"].get("resize"), config["intake"]["size"]
    seen = "" if resize is None else f"Sees the middle {wide} x {high} px of {resize} (shorter side), nothing outside\n"
    return (
        f"# {config['title']} on {pictures} good pictures\n\n{promise}\n\n"
        f"Method: {config['title']}, {config['paper']}\n{seen}"
        + "".join(f"{what.capitalize()}: {weights}\n" for what, weights in given(config))
        + f"Pictures: SHA-256 {config['recipe']['data_sha256']} over names, parts and contents\n"
        f"Parity of torch and ONNX: scores within {config['parity']['worst_score']:.1e} of their scale\n\n"
        "## Options\n\n" + "\n".join(lines) + "\n"
    )

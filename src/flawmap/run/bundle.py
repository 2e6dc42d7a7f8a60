"""The bundle: all that judges a picture, in one zip file (NAME.flaw) or a folder, every file named by its SHA-256.

model.onnx          the graph, from the network's input to map and score
weights.safetensors the same detector for torch
config.json         method, options, intake (how a file becomes the network's input), what it was made of
calibration.json    threshold and promise; absent in a model that is not calibrated: it gives no verdict
data.jsonl          the pictures it was made of: name, SHA-256, part, role
golden.json         what the model says of the pictures under golden/, for the parity gate and `doctor`
card.md             the same for people
manifest.json       SHA-256 and size of each of these
signature.json      an Ed25519 signature of the manifest, where the bundle was signed; see sign.py
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
from flawmap.images.intake import Intake
from flawmap.run.graph import MAX_GRAPH_BYTES
from flawmap.run.graph import in_words as said_of
from flawmap.run.sign import KEY, checked
from flawmap.verdict.calibration import Calibration

FORMAT = 1
MAX_FILES = 200
MAX_BYTES = 2 * (MAX_GRAPH_BYTES + 1)  # of all files together: a graph and the same weights for torch
_NEEDED = {"model.onnx", "config.json"}


class Bundle:
    """The files of a bundle by name, checked against the manifest. What is made of other files is not signed."""

    def __init__(self, files: Mapping[str, bytes], origin: str, signature: bytes | None = None) -> None:
        self.files, self.origin, self.signature = dict(files), origin, signature
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
        if self.signature is not None:
            content["signature.json"] = self.signature
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


def read(path: Path, key: str | Path | None = None) -> Bundle:
    """A bundle from a zip file or a folder. BundleError when anything is missing, added or changed.

    key  a public key, .pem: what it has not signed is refused. None: what FLAWMAP_KEY names, if anything; "": no key
    """
    path = Path(path)
    try:
        files = _from_folder(path) if path.is_dir() else _from_zip(path)
    except FileNotFoundError as error:
        raise BundleError(f"{path}: there is no such bundle") from error
    except BundleError:
        raise
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise BundleError(f"{path}: not a sound bundle ({error}); get it again") from error
    signature = files.pop("signature.json", None)
    bundle = _checked(files, str(path))
    if key := os.environ.get(KEY) if key is None else key:
        checked(manifest(bundle.files), signature, Path(key), str(path))
    bundle.signature = signature
    return bundle


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
    _cap(path, path.stat().st_size)
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
            _cap_graph(path, entry.filename, entry.file_size)
            if entry.filename in files:
                raise BundleError(f"{path}: {entry.filename} stands twice; get the bundle again")
            files[entry.filename] = archive.read(entry)
    return files


def _from_folder(path: Path) -> dict[str, bytes]:
    found = [file for file in path.rglob("*") if file.is_file()]
    if len(found) > MAX_FILES:
        raise BundleError(f"{path}: {len(found)} files, a bundle has at most {MAX_FILES}")
    sizes = {file: file.stat().st_size for file in found}
    _cap(path, sum(sizes.values()))
    for file, size in sizes.items():
        _cap_graph(path, file.relative_to(path).as_posix(), size)
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in found}


def _cap(path: Path, size: int) -> None:
    """Before a byte is read: what is larger than any bundle would only fill the memory."""
    if size > MAX_BYTES:
        raise BundleError(f"{path}: {size} bytes, a bundle has at most {MAX_BYTES}; get the bundle again")


def _cap_graph(path: Path, name: str, size: int) -> None:
    if name == "model.onnx" and size > MAX_GRAPH_BYTES:
        raise BundleError(f"{path}: model.onnx has {size} bytes, more than one file may hold; get the bundle again")


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
    seen = "".join(f"{line}\n" for line in [*Intake.from_dict(config["intake"]).words, *seams(config)])
    return (
        f"# {config['title']} on {pictures} good pictures\n\n{promise}\n\n"
        f"Method: {config['title']}, {config['paper']}\n{seen}"
        + "".join(f"{what.capitalize()}: {weights}\n" for what, weights in given(config))
        + f"Pictures: SHA-256 {config['recipe']['data_sha256']} over names, parts and contents\n"
        f"Parity of torch and ONNX: scores within {config['parity']['worst_score']:.1e} of their scale\n"
        f"{graph_line(config)}\n"
        "## Options\n\n" + "\n".join(lines) + "\n"
    )


def seams(config: Mapping[str, Any]) -> list[str]:
    """Of a model that sees tiles: by how much their maps differ where they meet."""
    if "tiles" not in config:
        return []
    mean, most = (f"{100 * config['tiles'][key]:.1f} %" for key in ("seam_mean", "seam_99"))
    return [
        f"Where tiles overlap, their maps differ from the blended one by {mean} of its largest value ({most} at 99 %)"
    ]


def graph_line(config: Mapping[str, Any]) -> str:
    """Of the card; empty in bundles of before the graph was described."""
    return f"Graph: {said_of(config['graph'])}\n" if "graph" in config else ""


def carded(card: str, *lines: str) -> bytes:
    """The card with these lines behind that on parity, in place of those of before."""
    new = [line.rstrip("\n") for line in lines if line]
    heads = tuple(line.split(":")[0] + ":" for line in new)
    kept = [line for line in card.split("\n") if not heads or not line.startswith(heads)]
    at = next((i + 1 for i, line in enumerate(kept) if line.startswith("Parity of ")), len(kept))
    return "\n".join([*kept[:at], *new, *kept[at:]]).encode()

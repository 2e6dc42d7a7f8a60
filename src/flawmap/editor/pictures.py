"""The pictures whose masks are edited: a fixed list, each known to a page by its number in it and by nothing else."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flawmap import __version__
from flawmap.editor.store import NONE, Read, Store
from flawmap.errors import DataError
from flawmap.images.decode import NOTES, decode, probe, size_of
from flawmap.images.folder import find
from flawmap.images.png import write_png
from flawmap.report.heatmap import picture, thumbnail
from flawmap.types import Sample

THUMB = 96  # px, of the longer side
MOST_THUMBS = 64_000_000  # bytes of them in memory
DECODING = 2  # pictures at once: a page asks for many


class Pictures:
    """The test pictures of a data set in MVTec's layout, with their masks as this process knows them."""

    def __init__(self, data: Path) -> None:
        if not data.is_dir():
            raise DataError(f"{data}: must be the folder that holds test/")
        samples = [sample for sample in find(data) if sample.split == "test"]
        if not samples:
            raise DataError(f"{data}: there are no pictures in test/")
        if other := [s.name for s in samples if s.name.split("/")[0] != "test" or not _single(s)]:
            raise DataError(f"{data}: {other[0]} is not in MVTec's layout (test/<kind>/...), in which masks are edited")
        _refuse_shared(data, samples)
        self.store = Store(data)
        self.store.tidy(samples)
        self.samples: list[Sample] = samples
        root = str(data.resolve())
        self.key = _hash(root)  # of the data set
        self.list = _hash(root, *(sample.name for sample in samples))  # whoever asks by a number says of which list
        self.name = data.resolve().name
        self._lock = threading.Lock()
        self._rows: bytes | None = None
        self._thumbs: OrderedDict[int, tuple[str, bytes]] = OrderedDict()  # by number: of which file, and the JPEG
        self._sizes: dict[int, tuple[str, tuple[int, int]]] = {}
        self._held = 0
        self._decoding = threading.Semaphore(DECODING)

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self) -> bytes:
        """All of the list, as JSON: name, kind, whether there is a mask, and who saved it last, when."""
        with self._lock:
            if self._rows is None:
                saves = self.store.all_saves()
                rows = [self._row(sample, saves.get(sample.name, [])) for sample in self.samples]
                self._rows = json.dumps({"list": self.list, "pictures": rows}).encode()
            return self._rows

    def _row(self, sample: Sample, saves: list[dict[str, Any]]) -> list[Any]:
        last = saves[-1] if saves else {"who": "", "time": ""}
        name = sample.name.removeprefix("test/").encode("utf-8", "backslashreplace").decode()  # as a disk may name it
        return [name, sample.kind, sample.mask is not None, last["who"], last["time"]]

    def row(self, number: int) -> list[Any]:
        sample = self.samples[number]
        return self._row(sample, self.store.saves(sample.name))

    def fresh(self, number: int) -> Sample:
        """The picture, with its mask where there is one on disk by now."""
        sample = self.samples[number]
        if isinstance(sample.mask, Path) and sample.mask.is_file():
            return sample
        now = self.store.found(sample.name)
        if now is not None or sample.mask is not None:
            self.now_at(number, now)
        return self.samples[number]

    def now_at(self, number: int, mask: Path | None) -> None:
        """The mask lies there now, or there is none; in any case its row is another."""
        with self._lock:
            self.samples[number] = replace(self.samples[number], mask=mask)
            self._rows = None

    def size(self, number: int) -> tuple[int, int]:
        """Height, width."""
        stamp = self.stamp(number)
        found = self._sizes.get(number)
        if found is None or found[0] != stamp:
            found = self._sizes[number] = (stamp, size_of(_path(self.samples[number])))
        return found[1]

    def stamp(self, number: int) -> str:
        """Another one as soon as the picture's file is another. DataError: it is gone."""
        path = _path(self.samples[number])
        try:
            found = path.stat()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        facts = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        return _hash(__version__, str(path), *map(str, facts))

    def shown(self, number: int) -> tuple[bytes, str]:
        """The picture for a browser: as it is where browsers show it as flawmap sees it, else as a PNG."""
        path = _path(self.samples[number])
        header = probe(path)
        if header.bits == 8 and header.mode in ("L", "RGB") and header.format in ("PNG", "JPEG"):
            try:
                content = path.read_bytes()
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror})") from error
            # Browsers follow the EXIF of a JPEG, and not all of them that of a PNG.
            if header.format == "JPEG" or not any(note in content for note in (*NOTES, b"tRNS")):
                return content, f"image/{header.format.lower()}"
        with self._decoding:
            return write_png(picture(decode(path))), "image/png"

    def thumb(self, number: int) -> bytes:
        """A small JPEG, kept while there is room."""
        stamp = self.stamp(number)
        with self._lock:
            if self._thumbs.get(number, ("",))[0] == stamp:
                self._thumbs.move_to_end(number)
                return self._thumbs[number][1]
        with self._decoding:
            small = thumbnail(decode(_path(self.samples[number])), THUMB)
        file = io.BytesIO()
        Image.fromarray(small).save(file, "JPEG", quality=82)
        with self._lock:
            self._held += file.tell() - len(self._thumbs.pop(number, ("", b""))[1])
            self._thumbs[number] = (stamp, file.getvalue())
            while self._held > MOST_THUMBS and len(self._thumbs) > 1:
                self._held -= len(self._thumbs.popitem(last=False)[1][1])
        return file.getvalue()

    def about(self, number: int) -> dict[str, Any]:
        """What a page is told of a picture before it draws anything."""
        sample = self.fresh(number)
        high, wide = self.size(number)
        versions = self.store.versions(sample)
        return {
            "row": self.row(number),
            "width": wide,
            "height": high,
            "good": sample.good,
            "version": versions[-1].version if versions and versions[-1].kept is None else NONE,
            "versions": [
                {"id": place, "who": v.who, "when": v.when, "current": v.kept is None}
                for place, v in reversed(list(enumerate(versions)))
            ],
        }

    def levels(self, number: int) -> Read:
        return self.store.levels(self.fresh(number), self.size(number))


def _hash(*words: str) -> str:
    return hashlib.sha256(b"\0".join(os.fsencode(word) for word in words)).hexdigest()[:16]


def _refuse_shared(data: Path, samples: list[Sample]) -> None:
    """A mask is found by its picture's name without the ending."""
    seen: dict[str, str] = {}
    for name in (sample.name for sample in samples):
        stem = name.rsplit(".", 1)[0]
        if stem in seen:
            both = f"{seen[stem]} and {name}"
            raise DataError(f"{data}: {both} would share one mask, {Path(stem).name}_mask.png; rename one of them")
        seen[stem] = name


def _single(sample: Sample) -> bool:
    return isinstance(sample.source, Path) and not isinstance(sample.mask, tuple | np.ndarray)


def _path(sample: Sample) -> Path:
    assert isinstance(sample.source, Path)
    return sample.source

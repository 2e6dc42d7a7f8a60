"""Cameras: each takes a picture when asked, as a file's bytes, without loss.

replay:DIR     the pictures of a folder, one after the other, from the first again after the last
uvc:0          a USB camera, by its number (extra `capture`)
rtsp://...     a camera on the network (extra `capture`)
video:FILE     the frames of a film, to its end (extra `capture`)
genicam:WHICH  a camera of any maker by the GenICam standard (extra `capture`; genicam.py)
basler:WHICH   a Basler camera (extra `basler`; basler.py)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from flawmap.errors import DataError, MissingExtra, UsageError
from flawmap.images.decode import SUFFIXES
from flawmap.images.png import write_png

STALE_S = 0.05  # a frame that was waited for no longer lay in the driver's buffer, and may be of the part before
MANUAL = 1  # of CAP_PROP_AUTO_EXPOSURE, by Video4Linux


class Shot(NamedTuple):
    name: str
    content: bytes  # a file: PNG, or as it lies in the folder


class Camera(Protocol):
    name: str

    @property
    def exposure_unit(self) -> str | None:
        """us: microseconds; driver: its own; None: there is nothing to tell."""
        ...

    def grab(self, views: int = 1) -> Sequence[Shot]:
        """So many pictures, taken now, one after the other. DataError: the camera gives none."""
        ...

    def adjust(self, exposure: float | None, gain: float | None) -> dict[str, float | None]:
        """Sets what is not None, in the camera's own unit; gives what is set now, None where nobody knows.

        UsageError: this camera cannot be set, or not so. DataError: it did not take the value.
        """
        ...

    def after(self, name: str) -> None:
        """Goes on behind the picture of this name, where pictures come in an order."""
        ...

    def close(self) -> None: ...


class Replay:
    """Pictures of a folder in the order of their names. What is put into it later comes at the next round."""

    exposure_unit = None

    def __init__(self, folder: Path) -> None:
        self.name, self.folder = f"replay of {folder.name}", folder
        self._left: list[Path] = []
        self._lock = threading.Lock()
        if not folder.is_dir():
            raise UsageError(f"{folder}: there is no such folder to replay")

    def grab(self, views: int = 1) -> list[Shot]:
        with self._lock:
            return [self._next() for _ in range(views)]

    def _fill(self) -> None:
        self._left = sorted((p for p in self.folder.rglob("*") if p.suffix.lower() in SUFFIXES), reverse=True)

    def _next(self) -> Shot:
        if not self._left:
            self._fill()
        if not self._left:
            raise DataError(f"{self.folder}: there is no picture in it")
        path = self._left.pop()
        try:
            return Shot(path.relative_to(self.folder).as_posix(), path.read_bytes())
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from error

    def adjust(self, exposure: float | None, gain: float | None) -> dict[str, float | None]:
        """Its pictures are as they were taken, and nobody knows how."""
        return {"exposure": None, "gain": None}

    def after(self, name: str) -> None:
        with self._lock:
            self._fill()
            if self.folder / name in self._left:
                del self._left[self._left.index(self.folder / name) :]

    def close(self) -> None: ...


class Video:
    """A camera or a film that OpenCV opens; opened again when it was gone.

    live  drop what the driver holds already: it was taken before it was asked for
    """

    exposure_unit = "driver"

    def __init__(self, source: int | str, name: str, *, live: bool = True) -> None:
        try:
            import cv2
        except ImportError as error:
            raise MissingExtra("opencv-python-headless", "capture", f"the camera {name}") from error
        self._cv2, self._source, self.name, self.live = cv2, source, name, live
        self._lock = threading.Lock()
        self._count = 0
        self._capture: Any = None
        self._open()

    def grab(self, views: int = 1) -> list[Shot]:
        with self._lock:
            if self._capture is None:
                self._open()
            return [self._one() for _ in range(views)]

    def adjust(self, exposure: float | None, gain: float | None) -> dict[str, float | None]:
        with self._lock:
            if self._capture is None:
                self._open()
            ids = {"exposure": self._cv2.CAP_PROP_EXPOSURE, "gain": self._cv2.CAP_PROP_GAIN}
            wanted = {"exposure": exposure, "gain": gain}
            return {what: self._set(what, ids[what], value) for what, value in wanted.items()}

    def _set(self, what: str, which: int, value: float | None) -> float | None:
        if value is None:
            return None
        if what == "exposure" and self.live:
            self._capture.set(self._cv2.CAP_PROP_AUTO_EXPOSURE, MANUAL)
        if not self._capture.set(which, value):
            raise UsageError(f"{self.name}: its {what} cannot be set; leave {what} out, and set it at the camera")
        found = float(self._capture.get(which))
        if abs(found - value) > 0.01 * max(abs(value), 1):
            raise DataError(f"{self.name}: its {what} was set to {value:g} and is {found:g}; give one that it takes")
        return found

    def after(self, name: str) -> None:
        """A film is read up to there; what a camera sees has no order."""
        number = name.removeprefix("frame-").removesuffix(".png")
        with self._lock:
            while not self.live and number.isdecimal() and self._count < int(number) and self._capture.grab():
                self._count += 1

    def close(self) -> None:
        with self._lock:
            self._release()

    def _open(self) -> None:
        self._capture = self._cv2.VideoCapture(self._source)
        if not self._capture.isOpened():
            self._release()
            raise DataError(f"{self.name}: cannot be opened; is it plugged in, and used by nobody else?")

    def _one(self) -> Shot:
        if self.live:
            for _ in range(8):
                begun = time.monotonic()
                if not self._capture.grab() or time.monotonic() - begun > STALE_S:
                    break
        good, frame = self._capture.read()
        if not good or frame is None or not frame.size:
            self._release()
            raise DataError(f"{self.name}: gives no picture")
        self._count += 1
        return Shot(f"frame-{self._count:06}.png", write_png(frame[..., ::-1] if frame.ndim == 3 else frame))

    def _release(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None


def camera(text: str) -> Camera:
    """A camera by its name, as at the top of this file. UsageError: there is no such kind."""
    kind, _, rest = text.partition(":")
    if kind == "replay" and rest:
        return Replay(Path(rest))
    if kind == "uvc" and rest.isdecimal() and len(rest) < 5:
        return Video(int(rest), text)
    if kind in ("rtsp", "rtsps"):
        return Video(text, without_password(text))
    if kind == "video" and rest:
        if not Path(rest).is_file():
            raise UsageError(f"{rest}: there is no such film")
        return Video(rest, text, live=False)
    if kind == "genicam" and ":" in text:
        from flawmap.images.genicam import genicam_camera

        return genicam_camera(rest)
    if kind == "basler" and ":" in text:
        from flawmap.images.basler import basler_camera

        return basler_camera(rest)
    raise UsageError(
        f"no camera {text!r}; there are replay:DIR, uvc:NUMBER, rtsp://HOST/PATH, video:FILE, genicam:WHICH, "
        "basler:WHICH"
    )


def without_password(url: str) -> str:
    before, at, after = url.rpartition("@")
    return f"{before.partition('://')[0]}://...@{after}" if at else url

"""Cameras of any maker by the GenICam standard, through the maker's GenTL producer, a .cti file (extra `capture`).

genicam:         the only camera that is found
genicam:WHICH    by its serial number, its name or its id

The camera says by itself which features it has, in a description that it carries.
"""

from __future__ import annotations

import io
import os
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from flawmap.errors import DataError, UsageError
from flawmap.images.formats import Frame
from flawmap.images.gentl import GENTL, LOCK, Device, Producer, binding, drop, hold, producers
from flawmap.images.industrial import Incomplete, Industrial

POLL_S = 0.001
BUFFERS = 3
IMAGE, IMAGE_WITH_CHUNK, BIG_ENDIAN = (0, 1), 4, 2  # of GenTL's PAYLOADTYPE_INFO_IDS and PIXELENDIANNESS_IDS


def genicam_camera(which: str) -> Industrial:
    return Industrial("genicam", which, _Camera)


def _chosen(key: str, found: list[Device], wrong: list[str]) -> Device:
    fit = {(each.vendor, each.model, each.serial or each.id): each for each in reversed(found) if each.fits(key)}
    if len(fit) == 1:
        return next(iter(fit.values()))
    there = ", ".join(f"genicam:{each.key} ({each.says})" for each in found)
    if fit:
        raise UsageError(f"genicam:{key}: {len(fit)} cameras are meant; name one: {there}")
    if found:
        raise DataError(f"genicam:{key}: is not there; there are: {there}")
    looked = ", ".join(map(str, producers())) or f"no .cti in the folders of {GENTL}"
    raise DataError(f"genicam:{key}: no camera is found ({'; '.join(wrong) or looked}); see flawmap capture cameras")


class _Camera:
    """The driver of one camera."""

    def __init__(self, key: str) -> None:
        self._genapi, self._gentl = binding()
        self.errors: tuple[type[Exception], ...] = (self._gentl.GenericException, self._genapi.GenericException)
        self._producer: Producer | None = None
        self._device: Any = None
        self._stream: Any = None
        self._nodes: Any = None
        self._port: Any = None
        self._tokens, self._buffers = list[Any](), list[Any]()  # the library writes into what the tokens hold
        self._started = False
        with LOCK:
            found = self._find(key)
            self.key, self.says = found.key, found.says
            try:
                self._open(found)
            except (self._gentl.AccessDeniedException, self._gentl.ResourceInUseException) as error:
                self.close()
                raise DataError(f"genicam:{self.key}: is used by another program, or twice by this one") from error
            except (*self.errors, ValueError, LookupError, OSError, zipfile.BadZipFile) as error:
                self.close()
                raise DataError(f"genicam:{self.key}: cannot be opened: {error}") from error

    def _find(self, key: str) -> Device:
        """Holds its producer. The first that knows a camera serves it, where makers' producers know each other's."""
        held, found, wrong = list[Producer](), list[Device](), list[str]()
        try:
            for path in producers():
                try:
                    held.append(hold(path))
                    found += held[-1].devices()
                except DataError as error:
                    wrong.append(str(error))
                if key and any(each.fits(key) for each in found):
                    break
            device = _chosen(key, found, wrong)
            self._producer = hold(Path(device.producer))
            return device
        finally:
            for producer in held:
                drop(producer)

    def _open(self, found: Device) -> None:
        gentl = self._gentl
        self._device = found.info.create_device()
        self._device.open(gentl.DEVICE_ACCESS_FLAGS_LIST.DEVICE_ACCESS_EXCLUSIVE)
        self._nodes, self._port = _described(self._genapi, self._device.remote_port)
        self._stream = self._device.create_data_stream()
        self._stream.open(self._device.data_stream_ids[0])
        token = self._stream.register_event(gentl.EVENT_TYPE_LIST.EVENT_NEW_BUFFER)
        self._events = gentl.EventManagerNewBuffer(token)

    def feature(self, name: str) -> _Node | None:
        if self._nodes is None or not self._nodes.has_node(name):
            return None
        node = self._nodes.get_node(name)
        return _Node(node) if self._genapi.is_available(node.get_access_mode()) else None

    def start(self) -> None:
        gentl, stream = self._gentl, self._stream
        size = stream.payload_size if stream.defines_payload_size() else self._nodes.PayloadSize.value
        count = max(BUFFERS, _or_zero(gentl, stream, "buffer_announce_min"))
        self._started = True
        self._format = self._nodes.PixelFormat.value
        self._tokens = [gentl.BufferToken(bytes(size), number) for number in range(count)]
        self._buffers = [stream.announce_buffer(token) for token in self._tokens]
        for buffer in self._buffers:
            stream.queue_buffer(buffer)
        self._lock_format(1)
        stream.start_acquisition(gentl.ACQ_START_FLAGS_LIST.ACQ_START_FLAGS_DEFAULT, -1)
        self._nodes.AcquisitionStart.execute()

    def stop(self) -> None:
        if not self._started:
            return
        gentl, stream = self._gentl, self._stream
        self._started = False
        for step in (
            lambda: self._nodes.AcquisitionStop.execute(),
            lambda: self._lock_format(0),
            lambda: stream.stop_acquisition(gentl.ACQ_STOP_FLAGS_LIST.ACQ_STOP_FLAGS_KILL),
            lambda: stream.flush_buffer_queue(gentl.ACQ_QUEUE_TYPE_LIST.ACQ_QUEUE_ALL_DISCARD),
            lambda: self._events.flush_event_queue(),
            lambda: [stream.revoke_buffer(buffer) for buffer in self._buffers],
        ):
            with suppress(*self.errors):  # of a camera that is gone, the rest is still let go
                step()
        self._tokens, self._buffers = [], []

    def trigger(self) -> None:
        self._nodes.TriggerSoftware.execute()

    def frame(self, wait_s: float) -> Frame | None:
        """The library keeps Python still while it waits, so it is asked for what is there, again and again."""
        end = time.monotonic() + wait_s
        while True:
            try:
                self._events.update_event_data(0)
                break
            except self._gentl.TimeoutException:
                if time.monotonic() > end:
                    return None
                time.sleep(POLL_S)
        buffer = self._events.buffer
        try:
            return self._read(buffer)
        finally:
            self._stream.queue_buffer(buffer)

    def _read(self, buffer: Any) -> Frame:
        if not buffer.is_complete():
            raise Incomplete(f"of {buffer.size} bytes {_or_zero(self._gentl, buffer, 'size_filled')} came")
        if buffer.payload_type not in (*IMAGE, IMAGE_WITH_CHUNK):
            raise DataError(f"sends no plain picture (GenTL payload type {buffer.payload_type}); set it to send one")
        width = _or_zero(self._gentl, buffer, "width") or self._nodes.Width.value
        height = _or_zero(self._gentl, buffer, "height") or self._nodes.Height.value
        padding, start, order = (
            _or_zero(self._gentl, buffer, name) for name in ("padding_x", "image_offset", "pixel_endianness")
        )
        filled = _or_zero(self._gentl, buffer, "size_filled") or buffer.size
        data = bytes(memoryview(buffer.raw_buffer)[start : max(filled, start)])
        return Frame(data, self._format, width, height, padding, order == BIG_ENDIAN)

    def _lock_format(self, value: int) -> None:
        locked = self.feature("TLParamsLocked")
        if locked is not None:
            with suppress(*self.errors):  # where it is fixed, the producer sees to it
                locked.value = value

    def close(self) -> None:
        self.stop()
        steps = [
            self._stream and self._stream.close,
            self._nodes and self._nodes.disconnect,
            self._device and self._device.close,
        ]
        for step in filter(None, steps):
            with suppress(*self.errors):
                step()
        self._stream = self._nodes = self._port = self._device = None
        if self._producer is not None:
            drop(self._producer)
            self._producer = None


class _Node:
    def __init__(self, node: Any) -> None:
        self._node = node

    @property
    def value(self) -> Any:
        return self._node.value

    @value.setter
    def value(self, value: Any) -> None:
        self._node.value = round(value) if type(self._node).__name__ == "IInteger" else value

    def limits(self) -> tuple[float, float]:
        return float(self._node.min), float(self._node.max)

    def choices(self) -> tuple[str, ...]:
        return tuple(getattr(self._node, "symbolics", ()))

    def read(self, text: str) -> None:
        self._node.from_string(text)


def _described(genapi: Any, port: Any) -> tuple[Any, Any]:
    """The camera's features, read from the description that it carries; and the port, which Python has to keep."""

    class Port(genapi.AbstractPort):
        def is_open(self) -> bool:
            return True

        def get_access_mode(self) -> Any:
            return genapi.EAccessMode.RW

        def read(self, address: int, length: int) -> bytes:
            return port.read(address, length)[1]

        def write(self, address: int, value: bytes) -> None:
            port.write(address, value)

    nodes, here = genapi.NodeMap(), Port()
    nodes.load_xml_from_string(_description(port).decode(errors="replace"))
    nodes.connect(here, port.name)
    return nodes, here


def _description(port: Any) -> bytes:
    """GenTL 4.1.2: Local:NAME;ADDRESS;LENGTH?SchemaVersion=..., or File:PATH; plain or as a zip."""
    url = port.url_info_list[0].url
    scheme, _, rest = url.partition(":")
    if scheme.lower() == "local":
        _, address, length = rest.partition("?")[0].split(";")
        content = bytes(port.read(int(address, 16), int(length, 16))[1])
    elif scheme.lower() == "file":
        path = rest.partition("?")[0].lstrip("/")
        content = Path(path if os.name == "nt" else f"/{path}").read_bytes()
    else:
        raise DataError(f"its description lies at {url}, and flawmap opens no web page; use the maker's producer")
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            content = packed.read(packed.namelist()[0])
    return content.rstrip(b"\0")


def _or_zero(gentl: Any, of: Any, name: str) -> Any:
    """A producer need not know everything."""
    try:
        return getattr(of, name)
    except gentl.GenericException:
        return 0

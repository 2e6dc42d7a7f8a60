"""What the tests of the editor share: its service in this process, masks as a page sends them, a bundle."""

from __future__ import annotations

import io
import shutil
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from flawmap.editor.app import create_app
from flawmap.editor.maps import Maps
from flawmap.editor.pictures import Pictures
from flawmap.run.model import load


@pytest.fixture
def maps(flaw: Path) -> Iterator[Maps]:
    made = Maps(load(flaw))
    yield made
    made.close()


@pytest.fixture
def data(world: Path, tmp_path: Path) -> Path:
    """Pictures to test, two of them good, four defective with a mask and one without. May be changed."""
    root = tmp_path / "parts"
    for name in ("test/good/000.png", "test/good/001.png", *(f"test/square/00{n}.png" for n in range(5))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(world / name, root / name)
    shutil.copytree(world / "ground_truth", root / "ground_truth")
    for number in (4, 5):
        (root / f"ground_truth/square/00{number}_mask.png").unlink()
    return root


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """A mask as a page sends it."""

    def made(levels: np.ndarray, **how: Any) -> bytes:
        file = io.BytesIO()
        Image.fromarray(levels).save(file, "PNG", **how)
        return file.getvalue()

    return made


@pytest.fixture(scope="session")
def unpacked() -> Callable[..., np.ndarray]:
    """What the service packs."""

    def found(content: bytes, kind: type = np.uint8, shape: tuple[int, int] = (64, 64)) -> np.ndarray:
        return np.frombuffer(zlib.decompress(content), kind).reshape(shape)

    return found


class Served:
    """The editor behind a real server, which can go away and come back at the same port."""

    def __init__(self, data: Path, who: str = "anna", maps: Maps | None = None) -> None:
        self.data, self.who, self.maps = data, who, maps
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self.pictures = Pictures(self.data)
        app = create_app(self.pictures, who=self.who, maps=self.maps)
        config = uvicorn.Config(app, host="127.0.0.1", port=self.port, log_level="error", ws="none", access_log=False)
        config.timeout_graceful_shutdown = 1
        self._server = server = uvicorn.Server(config)
        self._thread = threading.Thread(target=server.run, daemon=True)
        self._thread.start()
        while not server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def start(data: Path, **how: Any) -> Served:
        made.append(Served(data, **how))
        return made[-1]

    yield start
    for each in made:
        each.stop()

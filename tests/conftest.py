"""One tiny world for all tests: 64 px parts whose defect is a dark square, offline, on the CPU, seeded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

SIZE = 64
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Graphs of backbones are shared by all tests and leave nothing in the user's cache."""
    os.environ.setdefault("FLAWMAP_CACHE", str(tmp_path_factory.mktemp("cache")))
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """The nets are tiny: on a busy machine, threads that wait for each other cost ten times the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def real() -> Callable[[str], Path]:
    """The folder of a category of real pictures, such as "mvtec/bottle".

    Absent data is a visible skip; where FLAWMAP_DATA names the data, a missing category is a failure.
    """
    named = os.environ.get("FLAWMAP_DATA")
    root = Path(named) if named else REPOSITORY.parent / "shared" / "data"

    def find(category: str) -> Path:
        folder = root / category
        if not folder.is_dir():
            if named:
                pytest.fail(f"FLAWMAP_DATA is {named}, but there is no {folder}")
            pytest.skip(f"no real pictures: {category} (set FLAWMAP_DATA)")
        return folder

    return find


def part(seed: int, defect: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A picture (64, 64, 3) uint8 of smooth stripes with noise, and its mask (64, 64) bool."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    wave = 128 + 40 * np.sin((x + random.uniform(0, 8)) / 5) + 20 * np.cos(y / 7)
    image = np.clip(wave[..., None] + random.normal(0, 4, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    mask = np.zeros((SIZE, SIZE), bool)
    if defect:
        top, left = random.integers(8, SIZE - 24, 2)
        mask[top : top + 14, left : left + 14] = True
        image[mask] = random.integers(0, 60, 3)
    return image, mask


def write_world(root: Path, good: int = 24, test_good: int = 6, defects: int = 6) -> Path:
    """The tiny world on disk, in MVTec's layout."""
    folders = {
        "train/good": (good, 0, False),
        "test/good": (test_good, 1000, False),
        "test/square": (defects, 2000, True),
    }
    for name, (count, seed, defect) in folders.items():
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(count):
            image, mask = part(seed + number, defect)
            Image.fromarray(image).save(folder / f"{number:03}.png")
            if defect:
                masks = root / "ground_truth" / "square"
                masks.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"{number:03}_mask.png")
    return root


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: tests that change files make their own with `write_world`."""
    return write_world(tmp_path_factory.mktemp("world") / "parts" / "square")


@pytest.fixture(scope="session")
def flaw(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated bundle of the tiny world."""
    from flawmap.run.fit import fit

    folder = tmp_path_factory.mktemp("flaw")
    model = fit(world, "patchcore", options={"size": 64}, false_alarm=0.2, out=folder / "run")
    model.save(folder / "square.flaw")
    return folder / "square.flaw"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser for one file of tests: while its client lives, nothing else of asyncio runs in this process."""
    client = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install flawmap[dev]")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium on the path")
    with client.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()

"""What the tests of the pages share: the browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    client = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install flawmap[dev]")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium on the path")
    with client.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()

"""Runs docs/first-line.md as it stands, command by command, and makes its pictures.

python benchmarks/first_line.py [--keep DIR]

Needs Chromium on the path and playwright (extra `dev`). A command that waits for a person (`masks edit`) or for parts
(`serve`) is used in a browser, and stopped. The pictures show drawn fabric alone.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "first-line.md"
SIZE = {"width": 1200, "height": 760}
BLOCK = re.compile(r"^```(sh|toml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LEAVE_OUT = ("pip ",)
LEVEL = "36000"  # of 65,535: at the model's threshold more than the hole is filled
RUNNING = re.compile(r"http://127\.0\.0\.1:\d+")


def steps(page: str) -> Iterator[tuple[str, str]]:
    """The plan as ("toml", text), each command as ("sh", line), in the order of the page."""
    for kind, text in BLOCK.findall(page):
        if kind == "toml":
            yield kind, text
        else:
            yield from ((kind, line) for line in text.splitlines() if not line.startswith(LEAVE_OUT))


def walk(folder: Path, browser: Any) -> None:
    """Every step, in `folder`."""
    for kind, step in steps(PAGE.read_text(encoding="utf-8")):
        if kind == "toml":
            (folder / "plan.toml").write_text(step)
            continue
        print(f"$ {step}", flush=True)
        if step.startswith(("flawmap masks edit", "flawmap serve")):
            with running(step, folder) as url:
                if "masks edit" in step:
                    edited(browser, url)
        else:
            subprocess.run(shell(step), cwd=folder, check=True)


def shell(step: str) -> list[str]:
    flawmap = f"{sys.executable} -m flawmap.cli"
    return ["sh", "-c", re.sub("^flawmap", flawmap, step)]


@contextmanager
def running(step: str, folder: Path) -> Iterator[str]:
    """Where a command says that it listens, for as long as it is looked at."""
    (folder / "incoming").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "flawmap.cli", *step.split()[1:], "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr
        try:
            url = next(found[0] for line in process.stderr if (found := RUNNING.search(line)))
            answers(url)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


def answers(url: str) -> None:
    """Waits until somebody listens."""
    end = time.monotonic() + 20
    while True:
        try:
            urllib.request.urlopen(url).close()
            return
        except urllib.error.URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def edited(browser: Any, url: str) -> None:
    """Fills every hole from the map, and saves; the last one is the picture."""
    page = browser.new_page(viewport=SIZE)
    page.goto(url)
    page.locator("#kind").select_option("hole")
    page.locator(".rows button").first.click()
    holes = int(page.locator("#count").inner_text().split()[0])
    page.keyboard.press("a")
    for number in range(holes):
        page.wait_for_function("() => !document.querySelector('#fill-all').disabled")
        page.locator("#level").fill(LEVEL)
        page.keyboard.press("g")
        if number == holes - 1:
            page.wait_for_timeout(500)
            kept(page, "first-line-masks.png")
        page.keyboard.press("Control+Enter")
        page.wait_for_timeout(500)
    page.close()


def reported(browser: Any, folder: Path) -> None:
    """What the audit and the test say."""
    for name, file, below in (
        ("first-line-audit.png", "audit/masks.html", "How far the figures hang on the masks"),
        ("first-line-report.png", "evaluation/report.html", ""),
    ):
        page = browser.new_page(viewport=SIZE)
        page.goto((folder / file).resolve().as_uri())
        if below:
            page.get_by_role("heading", name=below).evaluate("heading => heading.scrollIntoView()")
        page.wait_for_timeout(500)
        kept(page, name)
        page.close()


def kept(page: Any, name: str) -> None:
    image = Image.open(io.BytesIO(page.screenshot()))
    path = DOCS / name
    image.convert("RGB").quantize(128).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", type=Path, help="work there and leave it")
    keep = parser.parse_args().keep
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("no chromium on the path")
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        walk(folder, browser)
        reported(browser, folder)
        browser.close()


if __name__ == "__main__":
    main()

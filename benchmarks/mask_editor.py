"""How fast the editor of masks is: frames while a person draws, opening and saving, a list of 5,000 pictures.

python benchmarks/mask_editor.py

A picture of 4,000 x 3,000 pixels of drawn fabric, in headless Chromium without a GPU, 1,440 x 900 on the screen. A
stroke is 200 moves of the mouse, one after another; a frame is the time from one requestAnimationFrame to the next
while it lasts, and "work" what the page's own script took in it. The server runs on the same machine.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from paired import made_by, section
from PIL import Image

from flawmap.editor.serve import edit
from flawmap.images.woven import draw

PAGE = Path(__file__).resolve().parent.parent / "docs" / "mask-editor.md"
WIDE, HIGH, MANY, MOVES, ASKED = 4000, 3000, 5000, 200, 40
WATCH = """() => import("/static/main.js").then(({ view, tools }) => {
  const seen = (window.seen = { frames: [], work: [], on: true });
  let last = performance.now();
  let spent = 0;
  const timed = (of, name) => {
    const inner = of[name].bind(of);
    of[name] = (...given) => { const t = performance.now(); inner(...given); spent += performance.now() - t; };
  };
  timed(view, "draw");
  timed(tools, "paintTo");
  const tick = (now) => {
    seen.frames.push(now - last);
    seen.work.push(spent);
    [last, spent] = [now, 0];
    if (seen.on) requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
})"""
STOP = """() => { window.seen.on = false; return window.seen; }"""
ONCE = """(what) => import("/static/main.js").then(async ({ view, tools, editor }) => {
  const { polygon } = await import("/static/shapes.js");
  const { png } = await import("/static/api.js");
  const corner = (_, i) => [2000 + 1400 * Math.cos(i / 6.3), 1500 + 1100 * Math.sin(i / 6.3)];
  const large = Array.from({ length: 40 }, corner);
  const does = {
    all: () => { view.all = true; view.draw(); },
    polygon: () => { tools.step((each) => polygon(large, 4000, 3000, each)); view.draw(); },
    undo: () => { editor.mask.undo(); view.draw(); },
    redo: () => { editor.mask.redo(); view.draw(); },
    png: () => png(editor.mask),
  }[what];
  const times = [];
  for (let i = 0; i < (what === "all" ? 20 : 1); i++) {
    const begun = performance.now();
    await does();
    times.push(performance.now() - begun);
  }
  return times.sort((a, b) => a - b)[times.length >> 1];
})"""


def data_set(root: Path) -> None:
    """5,000 names of one small picture, and a large one."""
    folder = root / "test" / "cut"
    folder.mkdir(parents=True)
    cloth, _ = draw(1, 512)
    large = np.tile(cloth, (HIGH // 512 + 1, WIDE // 512 + 1, 1))[:HIGH, :WIDE]
    Image.fromarray(large).save(folder / "0-large.png", compress_level=1)
    Image.fromarray(cloth[:256, :256]).save(folder / "1.png")
    for number in range(MANY - 2):
        (folder / f"small-{number:04}.png").symlink_to(folder / "1.png")


def started(root: Path) -> str:
    urls: list[str] = []
    how: dict[str, Any] = {"who": "bench", "port": 0, "started": lambda url, _: urls.append(url)}
    threading.Thread(target=edit, args=(root,), kwargs=how, daemon=True).start()
    while not urls:
        time.sleep(0.01)
    return urls[0]


def timed(ask: Callable[[], Any], times: int = 1) -> list[float]:
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        ask()
        found.append(1e3 * (time.perf_counter() - begun))
    return found


def opened(page: Any, url: str) -> float:
    begun = time.perf_counter()
    page.goto(url)
    page.wait_for_function("() => import('/static/main.js').then((m) => m.view.pictures.length > 2)")
    return 1e3 * (time.perf_counter() - begun)


def stroke(page: Any, size: int, keys: str) -> tuple[list[float], list[float]]:
    """Frames and work, while the mouse goes round."""
    page.locator("#size").fill(str(size))
    for key in keys:
        page.keyboard.press(key)
    box = page.locator("#stage").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    angles = np.linspace(0, 4 * np.pi, MOVES)
    page.wait_for_timeout(300)
    page.mouse.move(middle[0] + 30, middle[1])
    page.mouse.down()
    page.evaluate(WATCH)
    for angle in angles:
        reach = 30 + 16 * angle
        page.mouse.move(middle[0] + reach * np.cos(angle), middle[1] + reach * np.sin(angle))
    seen = page.evaluate(STOP)
    page.mouse.up()
    return seen["frames"][1:], seen["work"][1:]


def shares(times: list[float]) -> str:
    return " | ".join(f"{value:.1f}" for value in (*np.percentile(times, (50, 95)), max(times)))


def strokes(browser: Any, url: str) -> list[str]:
    lines = ["| stroke of 200 moves | frames | frame: p50 | p95 | max, ms | work: p50 | p95 | max, ms |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for name, size, keys in (
        ("brush of 20 px, all of the picture on the screen", 20, "0"),
        ("brush of 100 px, all of the picture", 100, "0"),
        ("brush of 400 px, all of the picture", 400, "0"),
        ("brush of 20 px, 1:1", 20, "1"),
        ("brush of 400 px, 1:1", 400, "1"),
    ):
        page = browser.new_page(viewport={"width": 1440, "height": 900})  # WATCH wraps what it times
        opened(page, url)
        frames, work = stroke(page, size, keys)
        lines.append(f"| {name} | {len(frames)} | {shares(frames)} | {shares([one for one in work if one])} |")
        page.close(run_before_unload=False)
    return lines


def others(browser: Any, url: str) -> list[str]:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    lines = ["", "| once | ms |", "|---|---|"]
    words = f"the page with its list of {MANY:,}, and the picture of {WIDE:,} x {HIGH:,} opened"
    lines.append(f"| {words} | {opened(page, url):.0f} |")
    for words, what in (
        ("all of the screen drawn anew (a step of zooming or moving), median of 20", "all"),
        ("a polygon over a third of the picture, drawn", "polygon"),
        ("that undone", "undo"),
        ("and done again", "redo"),
        ("the mask's PNG made in the page", "png"),
    ):
        lines.append(f"| {words} | {page.evaluate(ONCE, what):.0f} |")
    begun = time.perf_counter()
    page.keyboard.press("Control+s")
    page.wait_for_function("() => document.querySelector('#state').textContent.startsWith('saved by')")
    lines.append(f"| saved: sent, checked, written with fsync, answered | {1e3 * (time.perf_counter() - begun):.0f} |")
    page.close()
    return lines


def lists(url: str) -> list[str]:
    def ask(path: str) -> Callable[[], Any]:
        return lambda: urllib.request.urlopen(url + path).read()

    first = timed(ask("/api/pictures"))[0]
    rows = timed(ask("/api/pictures"), ASKED)
    new = timed(lambda: [ask(f"/api/pictures/{number}/thumb")() for number in range(2, 2 + ASKED)])[0] / ASKED
    kept = timed(ask("/api/pictures/2/thumb"), ASKED)
    again = f"{np.median(rows):.1f}, {np.percentile(rows, 95):.1f}"
    return [
        "",
        "| asked of the server | ms |",
        "|---|---|",
        f"| the list of {MANY:,} pictures, first time; again: p50, p95 | {first:.1f}; {again} |",
        f"| a small picture (of 256 px) that is new; again: p50 | {new:.1f}; {np.median(kept):.1f} |",
    ]


def main() -> None:
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        data_set(Path(folder))
        url = started(Path(folder))
        found = lists(url)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        lines = strokes(browser, url) + others(browser, url) + found
        version = browser.version
        browser.close()
    text = [*lines, "", f"Chromium {version}, headless, no GPU. {made_by('mask_editor.py')}"]
    section("How fast it is", text, PAGE)


if __name__ == "__main__":
    main()

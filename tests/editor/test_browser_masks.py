"""The editor in headless Chromium: what is drawn is what is saved, to the pixel, and none of it is lost."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from flawmap.editor.maps import Maps, sixteen
from flawmap.images.masks.outline import filled

pytestmark = pytest.mark.browser
SIDE = 64
# A string: a list of numbers is slow to come across.
MASK = """() => import("/static/main.js").then((m) => String.fromCharCode(...m.editor.mask.levels))"""
READY = """() => import("/static/main.js").then((m) => m.editor.mask !== null && m.view.mask === m.editor.mask
  && !m.editor.loading && !m.editor.busy && m.view.pictures.length > 0
  && m.editor.about.row[0] === m.list.rows[m.list.current]?.[0])"""
SCREEN = """([x, y]) => import("/static/main.js").then(({ view }) => {
  const box = view.stage.getBoundingClientRect();
  const [left, top] = view.onStage(x, y);
  return [box.left + left, box.top + top];
})"""
LEVEL = """(level) => { const slider = document.querySelector("#level"); slider.value = level;
  slider.dispatchEvent(new Event("input", { bubbles: true })); }"""


def pixels(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("latin-1"), np.uint8).reshape(SIDE, SIDE)


def until(found: Callable[[], object], seconds: float = 10) -> None:
    """For what the page says by way of a promise: `wait_for_function` takes any promise for a yes."""
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


class Editor:
    """A page with the editor, driven as a person would: by the mouse, the keys and the buttons."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        page.goto(url)
        self.ready()

    def ready(self) -> None:
        until(lambda: self.page.evaluate(READY))

    def choose(self, name: str) -> None:
        self.page.locator("#kind").select_option(name.split("/")[0])
        self.page.locator(f".rows button[title='{name}']").click()

    def open(self, name: str) -> None:
        self.choose(name)
        self.page.wait_for_function("name => document.querySelector('#name').title === name", arg=name)
        self.ready()

    @property
    def told(self) -> str:
        return self.page.locator("#notice").inner_text()

    @property
    def mask(self) -> np.ndarray:
        return pixels(self.page.evaluate(MASK))

    def at(self, x: float, y: float) -> tuple[float, float]:
        left, top = self.page.evaluate(SCREEN, [x, y])
        return left, top

    def click(self, x: float, y: float) -> None:
        self.page.mouse.click(*self.at(x, y))

    def stroke(self, *points: tuple[float, float]) -> None:
        self.page.mouse.move(*self.at(*points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.at(*point), steps=3)
        self.page.mouse.up()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def size(self, size: int) -> None:
        self.page.locator("#size").fill(str(size))

    def save(self) -> None:
        self.press("Control+s")
        self.page.wait_for_function("() => document.querySelector('#state').textContent.startsWith('saved by')")


@pytest.fixture
def opened(chromium: Any) -> Iterator[Callable[..., Editor]]:
    """Opens the editor in a browser of its own; in the end no page may have complained or asked another host."""
    contexts, complaints, asked = [], [], set()

    def open_page(served: Any, quiet: bool = True, context: Any = None, **how: Any) -> Editor:
        if context is None:
            context = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, **how})
            contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.on("request", lambda r: asked.add(r.url.split("/")[2].split(":")[0]) if r.url[:4] == "http" else None)
        if quiet:
            page.on(
                "console", lambda m: complaints.append(m.text) if "409" not in m.text and "422" not in m.text else None
            )
        return Editor(page, served.url)

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert asked == {"127.0.0.1"}


def on_disk(data: Path, name: str) -> np.ndarray:
    kind, stem = name.removesuffix(".png").split("/")
    return np.asarray(Image.open(data / f"ground_truth/{kind}/{stem}_mask.png"))


def capsule(points: list[tuple[float, float]], size: int) -> np.ndarray:
    """All pixels whose centre is at most half the size away from a line between two points, by trying every one."""
    places = [[np.floor(p) + 0.5 if size % 2 else np.floor(p + 0.5) for p in point] for point in points]
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    found = np.zeros((SIDE, SIDE), bool)
    for (ax, ay), (bx, by) in zip(places, places[1:] or places, strict=False):
        long = (bx - ax) ** 2 + (by - ay) ** 2
        along = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / (long or 1), 0, 1)
        found |= np.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay)) <= size / 2
    return found


def even_odd(corners: list[tuple[int, int]]) -> np.ndarray:
    """The pixels whose centre a ray to the left leaves through an odd number of edges."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    inside = np.zeros((SIDE, SIDE), bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x >= ax + (y - ay) * (bx - ax) / (by - ay))
    return inside


def test_what_is_drawn_is_what_is_saved_and_loaded_again(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    editor = opened(serve(data))
    editor.open("square/004.png")
    assert editor.page.locator("#state").inner_text() == "no mask yet"
    expected = np.zeros((SIDE, SIDE), np.uint8)
    editor.size(5)
    editor.stroke((10.4, 10.4), (10.4, 10.4))
    expected[capsule([(10.4, 10.4)], 5)] = 255
    assert np.array_equal(editor.mask, expected)
    corners = [(20, 20), (40, 25), (44, 44), (30, 38), (18, 45)]
    editor.press("p", "i")
    for corner in corners:
        editor.click(*corner)
    editor.press("Enter")
    shape = even_odd(corners)
    expected[shape] = 128
    assert np.array_equal(editor.mask, expected)
    editor.press("e")
    editor.size(4)
    editor.stroke((30.2, 30.2), (30.2, 30.2))
    expected[capsule([(30.2, 30.2)], 4)] = 0
    assert np.array_equal(editor.mask, expected)
    editor.save()
    assert np.array_equal(on_disk(data, "square/004.png"), expected)
    editor.page.reload()
    editor.ready()
    assert editor.page.locator("#name").inner_text() == "004.png"  # where it was left
    assert np.array_equal(editor.mask, expected)
    told = editor.page.locator("#counts").inner_text()
    assert told == f"defect {(expected == 255).sum()} px · ignore {(expected == 128).sum()} px"


def test_strokes_and_polygons_cover_the_pixels_by_their_rules(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    editor = opened(serve(data))
    random = np.random.default_rng(0)
    lines = [*random.uniform(-8, 72, (60, 4)).round(2).tolist(), [5, 5, 5, 5], [9.5, 3, 9.5, 50], [3, 8, 60, 8]]
    draw = """([lines, size]) => import("/static/shapes.js").then(({ capsule, snapped }) => lines.map((line) => {
        const levels = new Uint8Array(64 * 64);
        const [ax, ay, bx, by] = line.map((one) => snapped(one, size));
        capsule(ax, ay, bx, by, size, 64, 64, (y, from, to) => levels.fill(1, y * 64 + from, y * 64 + to));
        return String.fromCharCode(...levels);
    }))"""
    for size in (1, 2, 7, 20):
        for line, found in zip(lines, editor.page.evaluate(draw, [lines, size]), strict=True):
            expected = capsule([(line[0], line[1]), (line[2], line[3])], size)
            assert np.array_equal(np.frombuffer(found.encode(), bool).reshape(SIDE, SIDE), expected), (line, size)

    shapes = [random.integers(0, 65, (int(random.integers(3, 9)), 2)).tolist() for _ in range(60)]
    draw = """(shapes) => import("/static/shapes.js").then(({ polygon }) => shapes.map((corners) => {
        const levels = new Uint8Array(64 * 64);
        polygon(corners, 64, 64, (y, from, to) => levels.fill(1, y * 64 + from, y * 64 + to));
        return String.fromCharCode(...levels);
    }))"""
    for corners, found in zip(shapes, editor.page.evaluate(draw, shapes), strict=True):
        got = np.frombuffer(found.encode(), bool).reshape(SIDE, SIDE)
        assert np.array_equal(got, even_odd([tuple(corner) for corner in corners])), corners
        shape, whole = filled("", np.array(corners, float), (SIDE, SIDE)), np.zeros((SIDE, SIDE), bool)
        whole[shape.top : shape.top + shape.mask.shape[0], shape.left : shape.left + shape.mask.shape[1]] = shape.mask
        assert np.array_equal(got, whole), corners


def test_polygons_close_by_a_double_click_and_go_by_escape(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    editor = opened(serve(data))
    editor.open("square/004.png")
    editor.press("p")
    for corner in ((10, 10), (30, 10)):
        editor.click(*corner)
    editor.press("Escape")
    for corner in ((40, 40), (50, 40), (50, 50), (2, 2)):
        editor.click(*corner)
    editor.press("Backspace")
    editor.page.mouse.dblclick(*editor.at(40, 50))
    expected = np.zeros((SIDE, SIDE), np.uint8)
    expected[40:50, 40:50] = 255
    assert np.array_equal(editor.mask, expected)


def test_filling_from_the_map_is_the_map_above_its_level(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor], maps: Maps
) -> None:
    editor = opened(serve(data, maps=maps))
    editor.open("square/004.png")
    _, map = maps.model.predict(data / "test/square/004.png")
    found = sixteen(map, "x")
    levels = found.levels.astype(int)
    editor.press("a")
    editor.page.wait_for_selector("#level:enabled")
    assert maps.threshold is not None
    at = int((maps.threshold - found.low) / (found.high - found.low) * 65535)
    assert editor.page.locator("#level").input_value() == str(at)
    level = 30_000
    editor.page.evaluate(LEVEL, level)
    told = float(editor.page.locator("#level-told").inner_text())
    assert told == pytest.approx(found.low + level / 65535 * (found.high - found.low), rel=1e-4)
    editor.press("g")
    assert np.array_equal(editor.mask, np.where(levels > level, 255, 0))

    labels, count = ndimage.label(levels > level, np.ones((3, 3)))
    assert count >= 1
    y, x = np.unravel_index(levels.argmax(), levels.shape)
    editor.press("f", "i")
    editor.click(x + 0.5, y + 0.5)
    joined = labels == labels[y, x]
    assert np.array_equal(editor.mask, np.where(joined, 128, np.where(levels > level, 255, 0)))

    level = 58_000
    editor.page.evaluate(LEVEL, level)
    editor.press("Control+z", "Control+z", "b", "d", "s")
    editor.size(30)
    editor.stroke((x + 0.4, y + 0.4), (x + 0.4, y + 0.4))
    painted = capsule([(x + 0.4, y + 0.4)], 30)
    assert (painted & (levels <= level)).any()
    assert np.array_equal(editor.mask, np.where(painted & (levels > level), 255, 0))
    editor.save()
    assert np.array_equal(on_disk(data, "square/004.png"), np.where(painted & (levels > level), 255, 0))


def test_without_a_model_the_page_says_why_there_is_no_map(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    editor = opened(serve(data))
    assert "--model" in editor.page.locator("#map-box").inner_text()
    assert editor.page.locator("#level").count() == 0
    editor.press("a", "s", "g", "f", ",")
    assert editor.page.locator("[data-tool=map]").is_disabled()


def test_holes_are_filled_and_what_is_open_is_not(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    editor = opened(serve(data))
    editor.open("square/004.png")
    editor.press("p")
    for corner in ((10, 10), (40, 10), (40, 40), (10, 40)):
        editor.click(*corner)
    editor.press("Enter", "x")
    for corner in ((20, 20), (30, 20), (30, 30), (20, 30)):
        editor.click(*corner)
    editor.press("Enter")
    expected = np.zeros((SIDE, SIDE), np.uint8)
    expected[10:40, 10:40] = 255
    expected[20:30, 20:30] = 0
    assert np.array_equal(editor.mask, expected)
    editor.press("h", "i")
    editor.click(5, 5)
    assert "no hole" in editor.page.locator("#notice").inner_text()
    editor.click(25, 25)
    expected[20:30, 20:30] = 128
    assert np.array_equal(editor.mask, expected)
    editor.press("x")
    editor.click(12, 12)
    expected[expected == 255] = 0
    assert np.array_equal(editor.mask, expected)


def test_undo_and_redo_lead_through_sixty_steps(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    editor = opened(serve(data))
    editor.open("square/004.png")
    editor.size(3)
    seen = [editor.mask]
    (left, top), (right, _) = editor.at(0, 0), editor.at(SIDE, 0)
    zoom = (right - left) / SIDE
    for number in range(60):
        editor.press("d" if number % 3 else "i")
        editor.page.mouse.click(left + zoom * (2.5 + number), top + zoom * (2.5 + (number * 7) % 60))
        seen.append(editor.mask if number % 10 == 9 else seen[-1])
    for number in range(59, -1, -1):
        editor.press("Control+z")
        if number % 10 == 0:
            assert np.array_equal(editor.mask, seen[number]), number
    assert editor.page.locator("#undo").is_disabled()
    assert editor.page.locator("#state").inner_text() == "no mask yet"
    for _ in range(30):
        editor.press("Control+Shift+z")
    assert np.array_equal(editor.mask, seen[30])
    editor.click(50.5, 60.5)
    assert editor.page.locator("#redo").is_disabled()


FORGOTTEN = """() => import("/static/main.js").then(({ editor, stepped }) => {
  const { mask } = editor;
  const stripes = [0, 1].map((odd) => new Uint8Array(1e6).map((_, i) => (i % 2 === odd ? 255 : 0)));
  for (let step = 0; step < 75; step++) mask.replace(stripes[step % 2]);
  const kept = mask.done.length;
  while (mask.done.length) stepped(true);
  return [kept, mask.counts[255]];
})"""


def test_undoing_ends_at_what_is_marked_where_steps_were_forgotten(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    Image.fromarray(np.zeros((1000, 1000), np.uint8)).save(data / "test/square/big.png")
    editor = opened(serve(data))
    editor.open("square/big.png")
    kept, marked = editor.page.evaluate(FORGOTTEN)
    assert kept < 75
    assert marked == 500_000
    assert editor.page.locator("#undo").is_disabled()
    assert editor.page.locator("#state").inner_text() == "unsaved"
    editor.open("square/000.png")
    editor.open("square/big.png")
    assert editor.page.locator("#counts").inner_text().startswith("defect 500,000 px")
    editor.save()
    assert (on_disk(data, "square/big.png") == 255).sum() == 500_000


STEPS = """() => import("/static/mask.js").then(({ Mask }) => {
  const mask = new Mask(1000, 1000);
  const stripes = [0, 1].map((odd) => new Uint8Array(1e6).map((_, i) => (i % 2 === odd ? 255 : 0)));
  const held = () => [...mask.done, ...mask.undone].reduce((sum, step) => sum + step.bytes, 0);
  for (let step = 0; step < 75; step++) mask.replace(stripes[step % 2]);
  const found = [mask.done.length, held()];
  while (mask.undo());
  return [...found, mask.undone.length, held()];
})"""


def test_steps_that_lead_back_take_bounded_memory(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    """Fine patterns all over are the worst: a megabyte a step, here."""
    done, held, undone, held_then = opened(serve(data)).page.evaluate(STEPS)
    assert 60 <= done < 75
    assert 60 <= undone <= done
    assert max(held, held_then) <= 64_000_000


def test_unsaved_work_survives_a_reload_and_a_server_that_goes(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    served = serve(data)
    editor = opened(served, quiet=False)
    asked: list[str] = []
    editor.page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    editor.open("square/000.png")
    editor.size(9)
    editor.click(50.5, 50.5)
    drawn = editor.mask
    editor.page.wait_for_timeout(600)
    editor.page.reload()
    editor.ready()
    assert asked == ["beforeunload"]
    assert np.array_equal(editor.mask, drawn)
    assert "unsaved work" in editor.page.locator("#notice").inner_text()
    assert editor.page.locator("#state").inner_text() == "unsaved"
    served.stop()
    editor.press("Control+s")
    editor.page.wait_for_function("() => document.querySelector('#notice').textContent.includes('cannot be reached')")
    served.start()
    editor.save()
    assert np.array_equal(on_disk(data, "square/000.png"), drawn)
    editor.page.reload()
    editor.ready()
    assert asked == ["beforeunload"]
    assert editor.page.locator("#notice").is_hidden()


def test_work_on_several_pictures_is_kept_and_listed(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    editor = opened(serve(data))
    drawn = {}
    for name in ("square/000.png", "square/001.png"):
        editor.open(name)
        editor.click(50.5, 50.5)
        drawn[name] = editor.mask
    editor.page.locator("#show").select_option("unsaved")
    assert editor.page.locator(".rows li").count() == 2
    editor.press("Escape", "ArrowLeft")
    editor.page.wait_for_function("() => document.querySelector('#name').textContent === '000.png'")
    editor.ready()
    assert np.array_equal(editor.mask, drawn["square/000.png"])
    editor.page.get_by_role("button", name="Drop it").click()
    editor.page.locator("#ask button", has_text="Drop it").click()
    editor.page.wait_for_function("() => document.querySelector('#state').textContent === 'as it came'")
    assert np.array_equal(editor.mask, on_disk(data, "square/000.png"))


def test_a_window_keeps_its_work_when_another_of_the_browser_saves(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    """They share what the browser keeps: the other one's save drops the draft of both."""
    served = serve(data)
    one = opened(served)
    one.open("square/000.png")
    one.size(7)
    one.click(8.5, 8.5)
    drawn = one.mask
    one.page.wait_for_timeout(600)
    other = opened(served, context=one.page.context)
    assert other.page.locator("#name").inner_text() == "000.png"
    other.click(55.5, 55.5)
    other.save()
    one.open("square/001.png")
    one.open("square/000.png")
    assert np.array_equal(one.mask, drawn)
    assert "changed since" in one.told


SLOW = """() => import("/static/main.js").then(({ drafts }) => {
  const get = drafts.get.bind(drafts);
  drafts.get = async (...given) => {
    const found = await get(...given);
    await new Promise((resolve) => (window.arrive = resolve));
    window.arrive = null;
    return found;
  };
})"""


def test_what_is_drawn_while_the_next_picture_comes_goes_to_neither(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    editor = opened(serve(data))
    editor.open("square/000.png")
    editor.size(7)
    editor.click(50.5, 50.5)
    drawn = editor.mask
    editor.page.evaluate(SLOW)
    editor.page.mouse.move(*editor.at(10.5, 10.5))
    editor.page.mouse.down()  # held while the pictures change
    editor.page.mouse.move(*editor.at(20.5, 10.5))
    editor.press("ArrowRight")
    editor.page.wait_for_function("() => window.arrive")
    editor.page.mouse.move(*editor.at(20.5, 20.5))
    editor.page.mouse.up()
    editor.stroke((30.5, 10.5), (40.5, 10.5))
    editor.press("Control+z", "Control+s")
    editor.page.mouse.down()  # and one that begins before and ends after
    editor.page.evaluate("() => window.arrive()")
    editor.ready()
    editor.page.mouse.move(*editor.at(20.5, 50.5))
    editor.page.mouse.up()
    assert editor.page.locator("#name").inner_text() == "001.png"
    assert np.array_equal(editor.mask, on_disk(data, "square/001.png"))
    assert editor.page.locator("#undo").is_disabled()
    editor.page.wait_for_timeout(600)
    editor.press("ArrowLeft")
    editor.page.wait_for_function("() => window.arrive")
    editor.page.evaluate("() => window.arrive()")
    editor.ready()
    assert np.array_equal(editor.mask, drawn)
    editor.page.locator("#show").select_option("unsaved")
    assert editor.page.locator(".rows li").count() == 1


def test_a_picture_that_cannot_be_opened_leaves_no_other_one_to_draw_on(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    picture = data / "test/square/001.png"
    whole = picture.read_bytes()
    editor = opened(serve(data), quiet=False)
    editor.open("square/000.png")
    editor.click(50.5, 50.5)
    drawn = editor.mask
    place = editor.at(30.5, 30.5)
    picture.write_bytes(whole[:60])
    editor.choose("square/001.png")
    editor.page.wait_for_function("() => document.querySelector('#state').textContent === 'cannot be opened'")
    assert editor.page.locator("#name").inner_text() == "001.png"
    assert editor.page.locator("#notice").is_visible()
    editor.page.mouse.click(*place)
    editor.press("Control+z", "Control+s", "g", "p", "0", "+", "Escape", "b")
    editor.page.mouse.dblclick(*place)
    assert editor.page.locator("#save").is_disabled()
    assert editor.page.locator("#counts").inner_text() == ""
    picture.write_bytes(whole)
    editor.page.get_by_role("button", name="Try again").click()
    editor.ready()
    assert np.array_equal(editor.mask, on_disk(data, "square/001.png"))
    editor.open("square/000.png")
    assert np.array_equal(editor.mask, drawn)


def test_a_save_in_the_middle_of_a_stroke_saves_no_half_of_it(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    before = on_disk(data, "square/000.png").copy()
    editor = opened(serve(data))
    editor.open("square/000.png")
    editor.click(50.5, 50.5)
    editor.page.mouse.move(*editor.at(10.5, 10.5))
    editor.page.mouse.down()
    editor.page.mouse.move(*editor.at(20.5, 10.5))
    editor.press("Control+s")
    assert "stroke" in editor.told
    editor.page.mouse.move(*editor.at(30.5, 10.5))
    editor.page.mouse.up()
    assert np.array_equal(on_disk(data, "square/000.png"), before)
    editor.save()
    assert np.array_equal(on_disk(data, "square/000.png"), editor.mask)


def test_two_windows_see_each_others_masks_before_one_wins(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    served = serve(data)
    one, other = opened(served), opened(served)
    for editor, place in ((one, 8.5), (other, 55.5)):
        editor.open("square/000.png")
        editor.size(7)
        editor.click(place, place)
    mine, theirs = other.mask, one.mask
    one.save()
    other.press("Control+s")
    other.page.locator("#ask button", has_text="Look at theirs").click()
    shown = """() => import("/static/main.js").then((m) => String.fromCharCode(...m.view.mask.levels))"""
    assert np.array_equal(pixels(other.page.evaluate(shown)), theirs)
    other.click(30.5, 30.5)  # nothing is drawn on it
    assert np.array_equal(pixels(other.page.evaluate(shown)), theirs)
    assert np.array_equal(on_disk(data, "square/000.png"), theirs)
    other.press("p")
    other.page.mouse.dblclick(*other.at(30.5, 30.5))
    other.press("Escape")  # as good as the button
    other.page.locator("#ask button", has_text="Look at theirs").click()
    other.page.mouse.dblclick(*other.at(30.5, 30.5))
    other.page.get_by_role("button", name="Decide").click()
    other.page.locator("#ask button", has_text="Save mine over it").click()
    other.page.wait_for_function("() => document.querySelector('#state').textContent.startsWith('saved by')")
    assert np.array_equal(other.mask, mine)
    assert np.array_equal(on_disk(data, "square/000.png"), mine)
    assert other.page.locator("#history li").count() == 3

    one.click(30.5, 30.5)
    one.press("Control+s")
    one.page.locator("#ask button", has_text="Take theirs").click()
    one.page.wait_for_function("() => document.querySelector('#state').textContent.startsWith('saved by')")
    one.ready()
    assert np.array_equal(one.mask, mine)


def test_after_a_change_of_the_list_the_page_asks_to_be_loaded_anew(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    served = serve(data)
    editor = opened(served)
    editor.page.on("dialog", lambda dialog: dialog.accept())
    editor.open("square/001.png")
    editor.click(50.5, 50.5)
    drawn = editor.mask
    before = {name: on_disk(data, name).copy() for name in ("square/000.png", "square/001.png", "square/002.png")}
    served.stop()
    shutil.copy(data / "test/square/000.png", data / "test/square/000a.png")  # 001 has another number now
    served.start()
    editor.press("Control+s")
    editor.page.wait_for_function(
        "() => document.querySelector('#notice').textContent.includes('list of pictures has changed')"
    )
    assert editor.page.locator("#ask").is_hidden()  # it is nobody else's save
    assert editor.page.locator("#state").inner_text() == "unsaved"
    assert all(np.array_equal(on_disk(data, name), levels) for name, levels in before.items())
    editor.page.locator("#notice").get_by_role("button", name="Reload").click()
    editor.page.wait_for_function("() => document.querySelector('#notice')?.textContent.includes('is back')")
    editor.ready()
    assert editor.page.locator("#name").inner_text() == "001.png"
    assert np.array_equal(editor.mask, drawn)
    editor.save()
    assert np.array_equal(on_disk(data, "square/001.png"), drawn)


def test_a_mask_that_cannot_be_read_is_shown_empty_and_said(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    file = data / "ground_truth/square/000_mask.png"
    file.write_bytes(file.read_bytes()[:40])
    editor = opened(serve(data))
    editor.open("square/000.png")
    assert "000_mask.png" in editor.told
    assert "shown empty" in editor.told
    assert not editor.mask.any()
    editor.click(30.5, 30.5)
    editor.save()
    assert np.array_equal(on_disk(data, "square/000.png"), editor.mask)


def test_an_earlier_version_is_looked_at_and_restored(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    before = on_disk(data, "square/000.png").copy()
    editor = opened(serve(data, who="anna"))
    editor.open("square/000.png")
    editor.click(50.5, 50.5)
    drawn = editor.mask
    editor.save()
    rows = editor.page.locator("#history li")
    assert rows.first.inner_text().startswith("anna")
    rows.nth(1).get_by_role("button", name="Look").click()
    editor.page.wait_for_function("() => document.querySelector('#notice').textContent.includes('earlier version')")
    editor.page.get_by_role("button", name="Back to mine").click()
    assert editor.page.locator("#notice").is_hidden()
    rows.nth(1).get_by_role("button", name="Look").click()
    editor.page.wait_for_function("() => document.querySelector('#notice').textContent.includes('earlier version')")
    editor.press("Escape")
    assert editor.page.locator("#notice").is_hidden()
    editor.ready()  # what is shown is what is drawn
    assert np.array_equal(editor.mask, drawn)
    rows.nth(1).get_by_role("button", name="Restore").click()
    editor.page.locator("#ask button", has_text="Restore it").click()
    editor.page.wait_for_function("() => document.querySelectorAll('#history li').length === 3")
    editor.ready()
    assert np.array_equal(editor.mask, before)
    assert np.array_equal(on_disk(data, "square/000.png"), before)


def test_an_empty_mask_is_asked_about_and_a_good_picture_takes_no_defect(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    editor = opened(serve(data))
    editor.open("square/000.png")
    editor.press("h", "x")
    y, x = np.argwhere(editor.mask)[0]
    editor.click(x + 0.5, y + 0.5)
    assert not editor.mask.any()
    editor.press("Control+s")
    editor.page.locator("#ask button", has_text="Go on drawing").click()
    editor.page.wait_for_selector("#save:enabled")
    assert on_disk(data, "square/000.png").any()
    editor.press("Control+s")
    editor.page.locator("#ask button", has_text="Save it empty").click()
    editor.page.wait_for_function("() => document.querySelector('#state').textContent.startsWith('saved by')")
    assert not on_disk(data, "square/000.png").any()

    editor.open("good/000.png")
    editor.press("b", "i", "d")
    assert "called good" in editor.page.locator("#notice").inner_text()
    editor.click(30.5, 30.5)
    assert set(np.unique(editor.mask)) <= {0, 128}
    editor.save()
    assert set(np.unique(on_disk(data, "good/000.png"))) == {0, 128}


def test_zoom_keeps_what_is_under_the_pointer(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    editor = opened(serve(data))
    editor.open("square/004.png")
    place = editor.at(20.5, 30.5)
    editor.page.mouse.move(*place)
    editor.page.mouse.wheel(0, -400)
    editor.page.wait_for_timeout(100)
    assert editor.at(20.5, 30.5) == pytest.approx(place, abs=1)
    assert int(editor.page.locator("#where").inner_text().split(" %")[0]) > 1500
    editor.page.keyboard.down(" ")
    editor.stroke((20.5, 30.5), (23.5, 33.5))
    editor.page.keyboard.up(" ")
    assert not editor.mask.any()
    assert editor.at(20.5, 30.5) != pytest.approx(place, abs=20)
    editor.press("1")
    left, right = editor.at(0, 0)[0], editor.at(64, 0)[0]
    assert right - left == pytest.approx(64)
    editor.press("0", "]", "]", "[")
    assert editor.page.locator("#size").input_value() == "22"


def test_fingers_draw_and_two_of_them_move(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    editor = opened(serve(data), has_touch=True, viewport={"width": 820, "height": 1180})
    editor.page.locator("#show-list").click()
    editor.open("square/004.png")
    editor.size(6)
    session = editor.page.context.new_cdp_session(editor.page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        given = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": given})

    start, end = editor.at(20.2, 20.2), editor.at(40.2, 20.2)
    touch("touchStart", start)
    touch("touchMove", end)
    touch("touchEnd")
    expected = np.where(capsule([(20.2, 20.2), (40.2, 20.2)], 6), 255, 0)
    editor.page.wait_for_function("() => document.querySelector('#state').textContent === 'unsaved'")
    assert np.array_equal(editor.mask, expected)

    one, other = editor.at(10.2, 50.2), editor.at(50.2, 50.2)
    before = editor.at(0, 0)[0] - editor.at(64, 0)[0]
    touch("touchStart", one)
    touch("touchMove", (one[0] + 30, one[1]))
    touch("touchStart", (one[0] + 30, one[1]), other)  # what the first has begun is taken back
    touch("touchMove", (one[0] - 60, one[1]), other)
    touch("touchEnd")
    assert np.array_equal(editor.mask, expected)
    assert editor.at(0, 0)[0] - editor.at(64, 0)[0] < before * 1.1
    editor.press("p")
    for corner in ((24, 24), (30, 24), (30, 30), (24, 30)):
        editor.page.touchscreen.tap(*editor.at(*corner))
    editor.press("Enter")
    expected[24:30, 24:30] = 255
    assert np.array_equal(editor.mask, expected)


FITS = """() => ["#name", "#state", "#kind-tag", "#save"].filter((query) => {
  const [one, inside] = [document.querySelector(query), document.querySelector("#work").getBoundingClientRect()];
  const box = one.getBoundingClientRect();
  if (box.width < 40 || box.left < inside.left || box.right > inside.right) return true;
  return query !== "#name" && (one.scrollWidth > one.clientWidth || one.scrollHeight > one.clientHeight + 2);
})"""


@pytest.mark.parametrize(
    ("wide", "high", "least"), [(1280, 800, 600), (1024, 768, 550), (844, 390, 220), (390, 844, 300)]
)
def test_the_title_says_what_was_saved_and_the_picture_has_room(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor], wide: int, high: int, least: int
) -> None:
    name = "a_long_name_of_a_picture_from_a_camera_2026-11-28T20-54-47.png"
    shutil.copy(data / "test/square/000.png", data / "test/square" / name)
    (data / "test/square/x.png").write_bytes(b"no picture")
    editor = opened(serve(data), quiet=False, viewport={"width": wide, "height": high})
    if wide < 1000:
        editor.page.locator("#show-list").click()
    editor.page.locator("#search").fill(".png")
    editor.open(f"square/{name}")
    editor.click(30.5, 30.5)
    editor.save()
    assert editor.page.locator("#state").inner_text().startswith("saved by anna, ")
    assert editor.page.evaluate(FITS) == []
    assert editor.page.locator("#stage").bounding_box()["height"] >= least
    editor.page.wait_for_selector(".rows [title='square/x.png'] .none", state="attached")
    editor.press("?")
    keys = editor.page.locator("#keys").inner_text()
    assert "v Space" in keys
    assert "Ctrl Y" in keys


def test_names_are_text_on_the_page(data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]) -> None:
    name = "<img src=x onerror=alert(1)>\"'&{{7*7}}.png"
    kind = "<b onclick=alert(2)>"
    (data / "test" / kind).mkdir()
    shutil.copy(data / "test/square/000.png", data / "test" / kind / name)
    editor = opened(serve(data, who="<script>alert(3)</script>"))
    dialogs: list[str] = []
    editor.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    editor.page.locator("#kind").select_option(kind)
    editor.page.locator(".rows button").first.click()
    editor.page.wait_for_function("n => document.querySelector('#name').textContent === n", arg=name)
    editor.ready()
    assert editor.page.locator("#kind-tag").inner_text() == kind
    editor.click(20.5, 20.5)
    editor.save()
    assert editor.page.locator("#state").inner_text().startswith("saved by <script>alert(3)</script>")
    assert dialogs == []
    assert editor.page.locator("main img").evaluate_all("all => all.every((one) => /[/]thumb([?]|$)/.test(one.src))")


def test_five_thousand_pictures_are_listed_a_screen_at_a_time(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor]
) -> None:
    for number in range(5000):
        link = data / f"test/square/x{number:04}.png"
        link.symlink_to(data / "test/square/000.png")
    served = serve(data)
    editor = opened(served)
    assert len(served.pictures) == 5007
    assert editor.page.locator("#count").inner_text() == "5,007 of 5,007"
    assert editor.page.locator(".rows li").count() < 40
    editor.page.keyboard.press("/")
    editor.page.keyboard.type("X49")
    assert editor.page.locator("#count").inner_text() == "100 of 5,007"
    editor.press("Enter")
    editor.page.wait_for_function("() => document.querySelector('#name').textContent === 'x4900.png'")
    editor.ready()
    editor.press("ArrowRight")
    editor.page.wait_for_function("() => document.querySelector('#name').textContent === 'x4901.png'")
    editor.page.reload()
    editor.ready()
    assert editor.page.locator("#name").inner_text() == "x4901.png"
    assert editor.page.locator("#count").inner_text() == "100 of 5,007"
    editor.page.locator("#search").fill("")
    row = editor.page.locator(".rows li[aria-current]")
    assert row.inner_text().startswith("x4901.png")
    assert editor.page.locator(".rows li").count() < 40


SCREENS = """async ([rounds, side]) => {
  const { view, tools, editor } = await import("/static/main.js");
  const { polygon } = await import("/static/shapes.js");
  const { mask } = editor;
  let seed = 7;
  const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
  const screen = () => new Uint32Array(
    view.over.getContext("2d").getImageData(0, 0, view.over.width, view.over.height).data.buffer);
  const wrong = [];
  for (let round = 0; round < rounds; round++) {
    view.fit();
    const { clientWidth, clientHeight } = view.stage;
    view.zoomTo(view.zoom * 2 ** (random() * 8 - 1), random() * clientWidth, random() * clientHeight);
    view.draw();
    for (let step = 0; step < 6; step++) {
      tools.value = [255, 128, 0][Math.floor(random() * 3)];
      tools.size = 1 + Math.floor(random() ** 2 * side / 4);
      const place = () => [mask.width, mask.height].map((whole) => random() * whole * 1.2 - whole / 10);
      const what = Math.floor(random() * 5);
      if (what === 3) mask.undo();
      else if (what === 4) mask.redo();
      else if (what === 2) tools.step((each) => polygon([place(), place(), place()], mask.width, mask.height, each));
      else {
        mask.begin();
        tools.stroke = place().map(Math.floor);
        tools.paintTo(...place());
        view.draw();  // in the middle of a stroke
        tools.paintTo(...place());
        if (random() < 0.2) mask.abort();
        else mask.end();
        tools.stroke = null;
      }
      view.draw();
    }
    const drawn = screen();
    view.all = true;
    view.draw();
    const anew = screen();
    const differ = drawn.filter((pixel, i) => pixel !== anew[i]).length;
    if (differ) wrong.push([round, view.zoom, differ]);
  }
  for (const value of [255, 128]) {
    const count = mask.levels.filter((one) => one === value).length;
    if (count !== mask.counts[value]) wrong.push(["count", value, count, mask.counts[value]]);
  }
  while (mask.undo());
  if (mask.levels.some((value) => value)) wrong.push("undone, and something is left");
  return wrong;
}"""


@pytest.mark.parametrize(
    ("wide", "high", "rounds"), [(701, 503, 25), pytest.param(4000, 3000, 25, marks=pytest.mark.slow)]
)
def test_what_is_drawn_box_by_box_is_what_is_drawn_anew(
    data: Path, serve: Callable[..., Any], opened: Callable[..., Editor], wide: int, high: int, rounds: int
) -> None:
    y, x = np.mgrid[:high, :wide]
    Image.fromarray(((x ^ y) % 256).astype(np.uint8)).save(data / "test/square/big.png")
    editor = opened(serve(data), quiet=False)  # the browser has advice on reading a canvas back
    editor.open("square/big.png")
    assert editor.page.evaluate(SCREENS, [rounds, high]) == []

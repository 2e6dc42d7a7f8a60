"""The station's pages in headless Chromium: every page at three sizes, live in time, the override, a lost cable."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from flawmap.errors import LedgerError
from flawmap.station.app import create_app
from flawmap.station.ledger import Ledger
from flawmap.station.line import Line, Picture
from flawmap.station.recipes import Recipes

Until = Callable[..., Any]
pytestmark = pytest.mark.browser
SIZES = ((1920, 1080), (1280, 800), (768, 1024))
WITHIN_MS = 300
CONTRAST = """() => {
  const of = (text) => { const c = text.match(/[\\d.]+/g).map(Number); return c.length > 3 && c[3] === 0 ? null : c; };
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, k, i) => {
    const v = c[i] / 255; return sum + k * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); }, 0);
  const ground = (e) => of(getComputedStyle(e).backgroundColor) ?? ground(e.parentElement);
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest("svg, .stack, [disabled], dialog:not([open])") || !e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(of(style.color)), light(ground(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.7 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) found.push(`${e.tagName}.${e.className} ${ratio.toFixed(2)}`);
  }
  return found;
}"""
SMALL = """() => [...document.querySelectorAll(
    "button, .button, select, input, nav a, .strip a, a.cell, a.who, label:has(input)")]
  .filter((e) => e.getClientRects().length && !(e.closest("label") && e.tagName === "INPUT"))
  .filter((e) => e.getBoundingClientRect().height < 43.5).map((e) => e.outerHTML.slice(0, 90))"""


class Served:
    """A line behind a real server, which can go away and come back at the same port."""

    def __init__(self, line: Line) -> None:
        self.line = line
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        config = uvicorn.Config("", host="127.0.0.1", port=self.port, log_level="error", ws="none", access_log=False)
        config.timeout_graceful_shutdown = 1
        self._server = server = uvicorn.Server(config)
        config.app = create_app(self.line, ending=lambda: server.should_exit)
        self._thread = threading.Thread(target=server.run, daemon=True)
        self._thread.start()
        while not server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


class Cable:
    """Between the browser and the station: once it is cut nothing passes, and no end hears of it."""

    def __init__(self, port: int) -> None:
        self.cut, self._to = threading.Event(), port
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        self._ends: list[socket.socket] = [self._door]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = self._door.accept()[0], socket.create_connection(("127.0.0.1", self._to))
                self._ends += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := here.recv(65536):
                if not self.cut.is_set():
                    there.sendall(data)
            if not self.cut.is_set():
                there.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for end in self._ends:
            end.close()


@pytest.fixture
def cable(served: Served) -> Iterator[Cable]:
    found = Cable(served.port)
    yield found
    found.close()


@pytest.fixture
def served(flaw: Path, tmp_path: Path, pictures: dict[str, Picture]) -> Iterator[Served]:
    """Two recipes, and a part of each kind that was judged."""
    line = Line(Recipes({"square": flaw, "other": flaw}), Ledger(tmp_path / "line.db", station="Press 3"))
    line.lamps |= {"camera": ("ok", "two pictures a second"), "plc": ("bad", "not connected")}
    for number, name in enumerate(["good", "bad", "broken", "good"] * 4):
        line.inspect(f"{name} {number}", [pictures[name]])
    found = Served(line)
    yield found
    found.stop()
    line.close()


@pytest.fixture
def opened(chromium: Any, served: Served) -> Iterator[Callable[..., Any]]:
    """Opens a page; in the end none of them may have complained or asked another host."""
    contexts, complaints, asked = [], [], set()

    def open_page(path: str = "/", quiet: bool = True, port: int = served.port, **how: Any) -> Any:
        contexts.append(chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, **how}))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.on("request", lambda r: asked.add(r.url.split("/")[2].split(":")[0]))
        if quiet:
            page.on("console", lambda m: complaints.append(m.text) if "/views/" not in str(m.location) else None)
        page.goto(f"http://127.0.0.1:{port}{path}")
        if path == "/":
            page.wait_for_selector("#verdict:is(.OK, .NOK)")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert asked == {"127.0.0.1"}


def _paths(line: Line) -> list[str]:
    seqs = {row["verdict"]: row["seq"] for row in line.ledger.rows(verdicts=("OK", "NOK"))}
    return ["/", "/history", "/threshold", "/recipes", "/docs", "/login", *(f"/parts/{seq}" for seq in seqs.values())]


def test_every_page_fits_is_read_and_is_touched_at_three_sizes(served: Served, opened: Callable[..., Any]) -> None:
    seq = served.line.ledger.rows(verdicts=("NOK",), limit=1)[0]["seq"]
    served.line.decide(seq, "really bad", "bent", "anna")
    page = opened()
    for path in _paths(served.line):
        page.goto(served.url + path)
        page.wait_for_load_state("load")
        if path == "/":
            page.wait_for_selector("#verdict.OK")
            page.wait_for_selector(".stack .picture")
        for width, height in SIZES:
            page.set_viewport_size({"width": width, "height": height})
            where = f"{path} at {width}"
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, where
            assert page.evaluate(SMALL) == [], where
            if path == "/" and width > 1000:  # the live page is one screen, with nothing to scroll to
                assert page.evaluate("document.documentElement.scrollHeight - innerHeight") <= 0, where
                assert page.locator("#verdict").bounding_box()["width"] > 0.2 * width
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate(CONTRAST) == [], f"{path}, {scheme}"


def test_a_verdict_is_on_the_screen_in_time(
    served: Served, opened: Callable[..., Any], pictures: dict[str, Picture], until: Until
) -> None:
    page = opened()
    page.evaluate(
        """() => { window.seen = {}; const verdict = document.getElementById("verdict");
        new MutationObserver(() => { window.seen[verdict.dataset.seq] ??= [Date.now(), verdict.innerText]; })
          .observe(verdict, { attributes: true, childList: true, subtree: true }); }"""
    )
    rows = []
    for number in range(9):
        rows.append(served.line.inspect(f"next {number}", [pictures[("good", "bad", "broken")[number % 3]]]))
        until(lambda: page.evaluate("seq => window.seen[seq]", str(rows[-1]["seq"])))
        page.wait_for_timeout(100)
    seen = page.evaluate("window.seen")
    for row in rows:
        assert seen[str(row["seq"])][1].startswith(row["verdict"] or "ERROR")
    took = [seen[str(row["seq"])][0] - page.evaluate("t => Date.parse(t)", row["time"]) for row in rows]
    assert statistics.median(took) < WITHIN_MS, took
    assert page.locator("#strip a").first.get_attribute("title") == "broken 8: ERROR".replace("broken", "next")


def test_without_a_connection_no_verdict_is_shown(
    served: Served, opened: Callable[..., Any], pictures: dict[str, Picture]
) -> None:
    page = opened(quiet=False)  # the browser complains of a server that is not there
    assert page.locator("#word").inner_text() == "OK"
    served.stop()
    page.wait_for_selector("#verdict.LOST", timeout=8000)
    assert page.locator("#word").inner_text() == "NO CONNECTION"
    assert "The last verdict known was OK, of part good 15." in page.locator("#said").inner_text()
    assert page.locator("#link").inner_text() == "connection lost, trying again"
    assert page.evaluate("getComputedStyle(document.getElementById('facts')).opacity") == "0.45"
    served.line.inspect("missed", [pictures["bad"]])
    served.start()
    page.wait_for_selector("#verdict.NOK", timeout=12000)
    assert page.locator("#said").inner_text() == "missed"
    assert page.locator("#link").inner_text() == "connected"


def test_a_silent_station_is_a_lost_one(served: Served, opened: Callable[..., Any], cable: Cable) -> None:
    """The connection stands, and nothing comes: as when a cable is pulled."""
    page = opened(quiet=False, port=cable.port)
    assert page.locator("#word").inner_text() == "OK"
    cable.cut.set()
    page.wait_for_selector("#verdict.LOST", timeout=9000)
    assert page.locator("#word").inner_text() == "NO CONNECTION"


def test_a_part_without_a_row_is_an_error_on_the_screen(
    served: Served, opened: Callable[..., Any], pictures: dict[str, Picture], tmp_path: Path
) -> None:
    page = opened()
    with contextlib.closing(sqlite3.connect(tmp_path / "line.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # another program writes, and does not end
        with pytest.raises(LedgerError, match="locked"):
            served.line.inspect("lost", [pictures["good"]])
        page.wait_for_selector("#verdict.ERROR", timeout=4000)
        assert "LEDGER" in page.locator("#said").inner_text()
        assert page.locator("#f-part").inner_text() == "lost"
        late = opened("/history")
        late.goto(served.url)
        late.wait_for_selector("#verdict.ERROR")
        assert "locked" in late.locator("#banner").inner_text()
    served.line.inspect("after it", [pictures["good"]])
    for one in (page, late):
        one.wait_for_selector("#verdict.OK")
        assert one.locator("#said").inner_text() == "after it"


def test_an_operator_overrides_a_verdict(served: Served, opened: Callable[..., Any]) -> None:
    row = served.line.ledger.rows(verdicts=("NOK",), limit=1)[0]
    before = served.line.recipes.active
    page = opened(f"/parts/{row['seq']}", quiet=False)
    page.get_by_label("false alarm").check()
    page.get_by_label("Reason").fill("  ")
    page.get_by_role("button", name="Write it down").click()
    page.wait_for_selector(".told.bad:not(:empty)")
    assert "reason" in page.locator(".told").inner_text()
    assert served.line.ledger.about([row["seq"]]) == {}
    page.get_by_label("Reason").fill("only <b>dust</b>")
    page.get_by_role("button", name="Write it down").click()
    page.wait_for_selector(".decisions li")
    assert page.locator(".decisions li").inner_text().startswith("false alarm only <b>dust</b>")
    written = served.line.ledger.about([row["seq"]])[row["seq"]]
    assert [(d["code"], d["reason"], d["who"]) for d in written] == [("false alarm", "only <b>dust</b>", "local")]
    assert served.line.ledger.get(row["seq"]) == row
    assert served.line.recipes.active is before
    page.goto(served.url + "/threshold")
    cells = [cell.strip() for cell in page.locator("#proposal tbody tr").inner_text().split("\t")]
    assert cells[:3] == [row["part"], "good", "false alarm"]


def test_keys_of_the_live_page(
    served: Served, opened: Callable[..., Any], pictures: dict[str, Picture], until: Until
) -> None:
    page = opened()
    page.wait_for_selector(".stack .over")
    page.keyboard.press("o")
    assert page.evaluate("document.querySelector('.over').style.opacity") == "0"
    page.keyboard.press("o")
    page.keyboard.press("+")
    assert page.evaluate("document.querySelector('.over').style.opacity") == "0.8"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    until(lambda: page.evaluate("document.querySelector('#seen-name').innerText === 'bad 13'"))
    assert page.locator("#word").inner_text() == "OK"  # the verdict is that of the newest part, whatever is looked at
    served.line.inspect("newer", [pictures["good"]])
    until(lambda: page.evaluate("document.querySelector('#said').innerText === 'newer'"))
    assert page.locator("#seen-name").inner_text() == "bad 13"
    page.keyboard.press("Escape")
    until(lambda: page.evaluate("document.querySelector('#seen-name').innerText === 'newer'"))
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    page.wait_for_selector("#keys", state="hidden")
    page.keyboard.press("/")
    page.wait_for_selector("#search:focus", timeout=5000)
    assert page.url == f"{served.url}/history#search"


def test_keys_of_a_part(served: Served, opened: Callable[..., Any]) -> None:
    rows = served.line.ledger.rows(limit=3)
    page = opened(f"/parts/{rows[1]['seq']}")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(f"**/parts/{rows[2]['seq']}")
    page.keyboard.press("b")
    assert page.evaluate("getComputedStyle(document.querySelector('.boxes')).display") == "none"
    page.keyboard.press("b")
    assert page.evaluate("getComputedStyle(document.querySelector('.boxes')).display") == "block"


def test_the_slider_counts_as_the_threshold_would(served: Served, opened: Callable[..., Any], until: Until) -> None:
    calibration = served.line.recipes.active.model.calibration
    assert calibration is not None
    page = opened("/threshold")
    until(lambda: page.evaluate("document.querySelector('#w-line').innerText !== '—'"))
    scores = [row["score"] for row in served.line.ledger.rows(kinds=("verdict",))]

    def shown(name: str) -> str:
        return page.locator(f"#w-{name}").inner_text()

    refused = sum(score > calibration.threshold for score in scores)
    assert (shown("line"), shown("good")) == (f"{refused} of 12", f"{calibration.refused} of {calibration.parts}")
    assert 0 < refused < 12
    page.locator("#at").fill("0")
    assert (shown("line"), shown("good"), shown("bound")) == (
        "12 of 12",
        f"{calibration.parts} of {calibration.parts}",
        "100.0 %",
    )
    page.get_by_role("button", name="As calibrated").click()
    assert shown("line") == f"{refused} of 12"


def test_a_recipe_is_switched_and_the_switch_undone(served: Served, opened: Callable[..., Any]) -> None:
    page = opened("/recipes")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Use it").click()
    page.wait_for_selector(".recipe.active h2:has-text('other')")
    assert served.line.recipes.active.name == "other"
    page.get_by_role("button", name="Roll back").click()
    page.wait_for_selector(".recipe.active h2:has-text('square')")
    assert served.line.recipes.active.name == "square"


def test_a_block_is_shown_as_it_comes(served: Served, opened: Callable[..., Any]) -> None:
    page = opened()
    assert page.locator("#banner").is_hidden()
    served.line.block("challenge parts have not passed")
    page.wait_for_selector("#banner:visible")
    assert page.locator("#banner").inner_text() == "Blocked: challenge parts have not passed"
    served.line.block("")
    page.wait_for_selector("#banner", state="hidden")
    lamps = page.locator("#lamps li").all_inner_texts()
    assert lamps[2:] == ["camera: two pictures a second", "plc: not connected"]


@pytest.mark.parametrize("script", [True, False])
def test_a_person_comes_in_by_the_form_and_leaves(script: bool, service: Any, chromium: Any) -> None:
    """Chromium says where a form comes from only where the policy on referrers lets it."""
    context = chromium.new_context(java_script_enabled=script)
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{service.port}/history")
    assert page.url.endswith("/login")
    page.locator("#token").fill("not a token")
    page.keyboard.press("Enter")
    assert "no such token" in page.locator("[role=alert]").inner_text()
    page.locator("#token").fill(service.tokens["operate"])
    page.locator("form button").first.click()
    page.wait_for_url(f"http://127.0.0.1:{service.port}/")
    page.goto(f"http://127.0.0.1:{service.port}/history")
    assert "the-operate" in page.locator("header").inner_text()
    page.goto(f"http://127.0.0.1:{service.port}/login")
    page.get_by_role("button", name="Leave").click()
    page.goto(f"http://127.0.0.1:{service.port}/history")
    assert page.url.endswith("/login")
    context.close()


def test_without_a_script_the_live_page_says_so(served: Served, opened: Callable[..., Any]) -> None:
    page = opened("/login", java_script_enabled=False)
    page.goto(served.url + "/")
    assert page.locator("#word").inner_text() == "—"
    assert "nothing without JavaScript" in page.locator("noscript").inner_text()

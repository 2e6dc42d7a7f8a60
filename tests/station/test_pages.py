"""The station's pages as they are served: what each shows, to whom, and that nothing in a name becomes markup."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from flawmap.run.nearest import crop, nearest
from flawmap.station.access import Access, Who
from flawmap.station.app import create_app
from flawmap.station.keep import Keep, Rules
from flawmap.station.ledger import Ledger
from flawmap.station.line import Line, Picture
from flawmap.station.pages import PAGE, WEB, live_state, router, what_if_of
from flawmap.station.recipes import Recipes
from flawmap.verdict.rates import anywhere

EVIL = "<script>alert(1)</script>\"'&"
PAGES = ("/", "/history", "/threshold", "/recipes", "/docs")
TOKENS = {role: Who(f"{role}er", role) for role in ("view", "operate", "admin")}


@pytest.fixture
def client(line: Line) -> Iterator[TestClient]:
    with TestClient(create_app(line, hosts=None)) as found:
        yield found


@pytest.fixture
def bad(line: Line, pictures: dict[str, Picture]) -> dict[str, Any]:
    return line.inspect("bent 1", [pictures["bad"]])


def _as(client: TestClient, line: Line, role: str) -> TestClient:
    """The same station, to somebody who has to show a token."""
    access = Access({hashlib.sha256(name.encode()).hexdigest(): who for name, who in TOKENS.items()})
    found = TestClient(create_app(line, access, hosts=None))
    found.headers["authorization"] = f"Bearer {role}"
    return found


def test_a_page_carries_no_script_and_no_style_of_its_own(client: TestClient, bad: dict[str, Any]) -> None:
    for path in (*PAGES, f"/parts/{bad['seq']}"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert re.findall(r"<script(?![^>]*\bsrc=)[^>]*>|<style|\sstyle=|\son\w+=", answer.text) == []
        asked = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
        assert [url for url in asked if not re.match(r"[/#?](?!/)", url)] == []


def test_every_file_that_a_page_names_is_served_and_no_other(client: TestClient, bad: dict[str, Any]) -> None:
    names = set()
    for path in (*PAGES, f"/parts/{bad['seq']}"):
        names |= set(re.findall(r'"(/static/[^"#]+)', client.get(path).text))
    assert {"/static/station.css", "/static/live.js", "/static/threshold.js"} <= names
    for script in [name for name in names if name.endswith(".js")]:
        names |= {f"/static/{name}" for name in re.findall(r'(?:from|import) "\./([\w.]+)"', client.get(script).text)}
    assert "/static/charts.js" in names
    assert {name: client.get(name).status_code for name in names} == dict.fromkeys(names, 200)
    for name in ("../pages.py", "%2e%2e%2fpages.py", "base.html", "nothing.js"):
        assert client.get(f"/static/{name}").status_code == 404


def test_a_name_never_becomes_markup(line: Line, client: TestClient, pictures: dict[str, Picture]) -> None:
    view = Picture(EVIL, pictures["bad"].content)
    seq = line.inspect(EVIL, [view])["seq"]
    line.decide(seq, "really bad", EVIL, EVIL[:30])
    line.event(EVIL[:16], EVIL, EVIL[:30])
    line.block(EVIL)
    seen = 0
    for path in (
        f"/parts/{seq}",
        "/history?part=%3Cscript%3E&recipe=%3Cscript%3E&since=%3Cscript%3E",
        "/history?show=decisions",
        "/history?show=events",
        "/threshold",
        "/recipes",
        "/parts/999999",
    ):
        text = client.get(path).text
        assert "<script>" not in text, path
        seen += "&lt;script&gt;" in text
    assert seen == 6  # all but the last, which names nothing


def test_a_role_sees_what_it_may_do(line: Line, client: TestClient, bad: dict[str, Any]) -> None:
    shown = {}
    for role in TOKENS:
        one = _as(client, line, role)
        part, recipes = one.get(f"/parts/{bad['seq']}").text, one.get("/recipes").text
        shown[role] = ("/decision" in part, "/v1/challenge" in recipes, "/use" in recipes)
        assert f"{role}er" in part
    assert shown == {"view": (False, False, False), "operate": (True, True, False), "admin": (True, True, True)}


def test_the_page_is_not_the_lock(line: Line, client: TestClient, bad: dict[str, Any]) -> None:
    said = {"decision": "really bad", "reason": "bent"}
    answers = [_as(client, line, role).post(f"/v1/parts/{bad['seq']}/decision", json=said) for role in TOKENS]
    assert [answer.status_code for answer in answers] == [403, 200, 200]


def test_a_page_of_somebody_unknown_leads_to_the_token(line: Line, client: TestClient) -> None:
    unknown = _as(client, line, "nobody")
    answer = unknown.get("/", headers={"accept": "text/html"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert unknown.get("/live.json").status_code == 401


# ---- live


def test_the_live_page_says_nothing_until_the_station_is_heard(client: TestClient, bad: dict[str, Any]) -> None:
    text = client.get("/").text
    assert 'class="verdict NONE"' in text
    assert "bent 1" not in text


def test_the_state_of_the_live_page(line: Line, client: TestClient, pictures: dict[str, Picture]) -> None:
    for number, name in enumerate(["good", "bad", "broken", "good", "good"]):
        line.inspect(f"{name} {number}", [pictures[name]])
    line.lamps["camera"] = ("warn", "no picture for 9 s")
    told = client.get("/live.json").json()
    assert [row["part"] for row in told["parts"]] == ["good 4", "good 3", "broken 2", "bad 1", "good 0"]
    assert told["counts"] == {"OK": 3, "NOK": 1, "ERROR": 1}
    assert told["lamps"] == [{"name": "camera", "state": "warn", "text": "no picture for 9 s"}]
    assert told["drift"] == {"parts": 3, "alarm_at": None, "signal_at": None}
    times = line.times_ms
    assert told["latency"] == {"n": 5, "p50": np.percentile(times, 50), "p99": np.percentile(times, 99)}
    assert [row["part"] for row in client.get("/live.json?n=2").json()["parts"]] == ["good 4", "good 3"]
    assert (told["ready"], told["blocked"], told["fault"]) == (True, "", "")
    line.block("the challenge has not passed")
    assert live_state(line, 1)["blocked"] == "the challenge has not passed"


# ---- history


@pytest.fixture
def many(line: Line) -> list[int]:
    """120 parts, one a minute from 08:00 UTC; every third NOK, every tenth an error."""
    rows = []
    for number in range(120):
        time = f"2026-03-02T{8 + number // 60:02}:{number % 60:02}:00.000Z"
        row = {"kind": "verdict", "verdict": "OK" if number % 3 else "NOK", "score": float(number), "threshold": 50.0}
        if number % 10 == 9:
            row = {"kind": "error", "code": "DATA", "reason": "torn"}
        rows.append({**row, "part": f"P-{number:03}", "time": time, "recipe": "square"})
    return [row["seq"] for row in line.ledger.add_all(rows)]


def _seqs(text: str) -> list[int]:
    return [int(seq) for seq in re.findall(r'<a class="cell" href="/parts/(\d+)">\1</a>', text)]


def test_pages_of_the_history_hold_every_part_once(client: TestClient, many: list[int]) -> None:
    found, path, pages = [], "/history", 0
    while path:
        text = client.get(path).text
        found += _seqs(text)
        pages += 1
        older = re.search(r'rel="next" href="([^"]+)"', text)
        path = older[1].replace("&amp;", "&") if older else ""
    assert found == many[::-1]
    assert pages == -(-120 // PAGE)


def test_filters_of_the_history(client: TestClient, many: list[int]) -> None:
    asked: dict[str, Callable[[int], bool]] = {
        "part=p-01": lambda n: 10 <= n < 20,
        "part=%25": lambda n: False,
        "show=NOK": lambda n: n % 3 == 0 and n % 10 != 9,
        "show=ERROR": lambda n: n % 10 == 9,
        "recipe=none": lambda n: False,
        "show=NOK&part=P-11": lambda n: n >= 110 and n % 3 == 0 and n % 10 != 9,
    }
    for query, wanted in asked.items():
        found = _seqs(client.get(f"/history?{query}").text)
        assert found == [seq for n, seq in reversed(list(enumerate(many))) if wanted(n)][:PAGE], query


def test_times_are_the_stations_own(client: TestClient, many: list[int]) -> None:
    bounds = [datetime(2026, 3, 2, 8, m, tzinfo=UTC).astimezone().strftime("%Y-%m-%dT%H:%M") for m in (10, 15)]
    text = client.get("/history", params={"since": bounds[0], "until": bounds[1]}).text
    assert _seqs(text) == many[10:15][::-1]
    assert bounds[0].replace("T", " ") in text


def test_what_is_no_time_and_no_number_is_no_fault(client: TestClient, many: list[int]) -> None:
    for since in ("yesterday", "0001-01-01T00:00+23:00", "2026-13-01"):
        answer = client.get("/history", params={"since": since})
        assert answer.status_code == 200
        assert "not understood" in answer.text
    for path in ("/history?before=99999999999999999999", "/parts/99999999999999999999", "/parts/-1"):
        assert client.get(path).status_code in (404, 422)


# ---- a part


def test_the_page_of_a_part_shows_the_row(line: Line, client: TestClient, bad: dict[str, Any]) -> None:
    line.decide(bad["seq"], "false alarm", "only dust", "anna")
    text = client.get(f"/parts/{bad['seq']}").text
    assert all(bad[name] in text for name in ("hash", "previous", "bundle", "calibration", "part"))
    assert bad["views"][0]["sha256"] in text
    assert "only dust" in text
    boxes = [
        tuple(map(int, box)) for box in re.findall(r'<rect x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', text)
    ]
    regions = [region["box"] for region in bad["views"][0]["regions"]]
    assert boxes
    assert boxes == [(left, top, right - left, bottom - top) for left, top, right, bottom in regions]
    assert 'viewBox="0 0 64 64"' in text
    for source in re.findall(r'<img [^>]*src="([^"]+)"', text):
        assert client.get(source).headers["content-type"] == "image/png"


def test_the_part_before_and_the_part_after(line: Line, client: TestClient, pictures: dict[str, Picture]) -> None:
    seqs = []
    for number in range(3):
        seqs.append(line.inspect(f"p{number}", [pictures["good"]])["seq"])
        line.event("NOTE", "between")
    text = client.get(f"/parts/{seqs[1]}").text
    assert re.search(rf'id="older"[^>]*href="/parts/{seqs[0]}"', text)
    assert re.search(rf'id="newer"[^>]*href="/parts/{seqs[2]}"', text)
    assert 'id="newer"' not in client.get(f"/parts/{seqs[2]}").text


def test_a_row_that_is_no_part_has_no_page(line: Line, client: TestClient) -> None:
    seq = line.event("NOTE", "no part")["seq"]
    answer = client.get(f"/parts/{seq}")
    assert answer.status_code == 404
    assert f"Row {seq} of the ledger is no part." in answer.text


def test_a_picture_that_was_kept_is_shown_after_a_restart(
    recipes: Recipes, pictures: dict[str, Picture], tmp_path: Path
) -> None:
    line = Line(recipes, Ledger(tmp_path / "l.db"), Keep(tmp_path / "kept", Rules(near=0)))
    seqs = [line.inspect(name, [pictures[name]])["seq"] for name in ("bad", "good", "broken")]
    line.close()
    line = Line(recipes, Ledger(tmp_path / "l.db"), Keep(tmp_path / "kept"))
    client = TestClient(create_app(line, hosts=None))
    texts = [client.get(f"/parts/{seq}").text for seq in seqs]
    line.close()
    assert [f"/v1/parts/{seq}/views/0/picture" in text for seq, text in zip(seqs, texts, strict=True)] == [
        True,
        False,  # an OK part, of which one in 100 is kept
        False,  # kept, and no picture
    ]
    assert "the last parts only" in texts[0]  # the map is gone, the boxes stay
    assert "<rect" in texts[0]
    assert "The picture was not kept" in texts[1]


def test_the_nearest_good_patch_is_shown_when_it_is_asked_for(line: Line, world: Path, bad: dict[str, Any]) -> None:
    app = FastAPI()
    app.include_router(router(line, good=world))
    client = TestClient(app)
    plain = client.get(f"/parts/{bad['seq']}").text
    assert f"/parts/{bad['seq']}?near=0#near" in plain
    assert "/nearest/" not in plain
    text = client.get(f"/parts/{bad['seq']}?near=0").text
    assert "Nearest good patch" in text
    for which in ("strange", "good"):
        assert client.get(f"/parts/{bad['seq']}/nearest/0/{which}.png").headers["content-type"] == "image/png"
    near = nearest(line.recipes.active.model, line.recent.get(bad["seq"], 0).content)  # type: ignore[union-attr]
    assert near is not None
    shown = np.asarray(Image.open(io.BytesIO(client.get(f"/parts/{bad['seq']}/nearest/0/good.png").content)))
    assert (shown == crop(world, near)).all()
    assert near.name in text
    assert client.get(f"/parts/{bad['seq']}/nearest/0/other.png").status_code == 404
    assert client.get(f"/parts/{bad['seq']}/nearest/-1/good.png").status_code == 404


# ---- threshold, recipes, docs


def test_what_if_counts_what_a_loop_counts(line: Line, client: TestClient, pictures: dict[str, Picture]) -> None:
    for name in ("good", "bad", "broken"):
        line.inspect(name, [pictures[name]])
    line.inspect("challenge bad: 1", [pictures["bad"]], source="challenge", challenge=True)
    told = client.get("/threshold.json").json()
    calibration = line.recipes.active.model.calibration
    assert calibration is not None
    n = len(calibration.scores)
    assert told["good"] == list(calibration.scores)
    assert told["bounds"] == [anywhere(k, n) for k in range(n + 1)]
    assert len(told["line"]) == 2
    assert told == what_if_of(line)
    assert calibration.sentence in client.get("/threshold").text


def test_the_proposal_can_be_downloaded(line: Line, client: TestClient, bad: dict[str, Any]) -> None:
    line.decide(bad["seq"], "really bad", "bent", "anna")
    answer = client.get("/proposal.json")
    assert re.search(
        r'attachment; filename="proposal-square-\d{4}-\d\d-\d\d\.json"', answer.headers["content-disposition"]
    )
    assert answer.json()["bad"][0]["part"] == "bent 1"
    assert answer.json()["about"] == "a proposal: nothing was changed"


def test_a_switch_and_the_way_back_are_offered(flaw: Path, tmp_path: Path) -> None:
    line = Line(Recipes({"one": flaw, "two": flaw}), Ledger(tmp_path / "l.db"))
    client = TestClient(create_app(line, hosts=None))
    assert "/v1/recipes/rollback" not in client.get("/recipes").text
    assert client.post("/v1/recipes/two/use", json={}).status_code == 200
    text = client.get("/recipes").text
    assert "/v1/recipes/rollback" in text
    assert 'data-post="/v1/recipes/one/use"' in text
    assert 'data-post="/v1/recipes/two/use"' not in text
    assert client.post("/v1/recipes/rollback", json={}).json()["name"] == "one"
    line.close()


def test_the_page_of_the_api_names_every_path(client: TestClient) -> None:
    text, api = client.get("/docs").text, client.get("/openapi.json").json()
    assert "/v1/inspect" in api["paths"]
    assert [path for path in api["paths"] if f"<code>{path}</code>" not in text] == []
    assert [name for name in api["components"]["schemas"] if f"<h3>{name}</h3>" not in text] == []


def test_a_ledger_that_cannot_be_read_is_said_on_a_page(
    recipes: Recipes, pictures: dict[str, Picture], tmp_path: Path
) -> None:
    line = Line(recipes, Ledger(tmp_path / "l.db"))
    client = TestClient(create_app(line, hosts=None))
    line.ledger.engine.dispose()
    for path in tmp_path.glob("l.db*"):
        path.write_bytes(b"no database at all " * 300)
    answer = client.get("/history")
    assert answer.status_code == 503
    assert "The page cannot be shown" in answer.text
    assert client.get("/live.json").status_code == 503
    line.close()


def test_templates_and_files_lie_in_the_package() -> None:
    names = {path.name for path in WEB.iterdir()}
    assert {"base.html", "live.html", "live.js", "common.js", "charts.js", "station.css", "mark.svg"} <= names

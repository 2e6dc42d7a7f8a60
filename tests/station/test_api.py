"""The API below /v1, over real sockets: what is answered, with which status, and that its description is right."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import sqlite3
import threading
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from flawmap.station.ledger import Ledger
from flawmap.station.line import Line, Picture
from flawmap.station.recipes import Recipes

Pictures = dict[str, Picture]

# ---- inspecting


def test_a_picture_is_judged_and_the_answer_is_its_row(service: Any, pictures: Pictures, recipes: Recipes) -> None:
    for name, verdict in (("good", "OK"), ("bad", "NOK")):
        answer = service.ask("POST", "/v1/inspect?part=A-1", "operate", content=pictures[name].content)
        said = answer.json()
        assert (answer.status_code, said["verdict"], said["part"]) == (200, verdict, "A-1")
        assert said["score"] == recipes.active.model.inspect(pictures[name].content).score
        row = service.line.ledger.get(said["seq"])
        assert {key: said[key] for key in said if key != "views"} == {key: row[key] for key in said if key != "views"}
        assert row["who"] == "the-operate"
        assert said["views"][0]["sha256"] == hashlib.sha256(pictures[name].content).hexdigest()
    assert service.line.ledger.verify()[1] == []


def test_a_part_without_a_name_is_called_after_its_pictures(service: Any, pictures: Pictures) -> None:
    said = service.ask("POST", "/v1/inspect", content=pictures["good"].content).json()
    assert said["part"] == hashlib.sha256(pictures["good"].content).hexdigest()[:16]


def test_files_of_a_form_are_views(service: Any, pictures: Pictures) -> None:
    files = [("view", ("a.png", pictures["good"].content, "text/html"))]
    said = service.ask("POST", "/v1/inspect", files=files).json()
    assert (said["verdict"], said["views"][0]["name"]) == ("OK", "a.png")
    twice = service.ask("POST", "/v1/inspect", files=files * 2)
    assert (twice.status_code, twice.json()["error"]["code"]) == (400, "USAGE")
    assert "judges parts of 1 view, this one has 2" in twice.json()["error"]["message"]


@pytest.mark.parametrize(
    "form",
    [
        {"files": {"picture": ("a.png", b"x")}},
        {"files": [("view", ("a.png", b"x")), ("views", ("b.png", b"x"))]},
        {"files": {"view": ("a.png", b"x")}, "data": {"part": "A-1"}},
        {"files": {"other": ("a.png", b"")}},
    ],
)
def test_what_a_form_holds_besides_views_is_refused_since_it_would_be_lost(service: Any, form: Any) -> None:
    before = service.line.ledger.head()
    assert service.ask("POST", "/v1/inspect", **form).status_code == 400
    assert service.line.ledger.head() == before


def test_the_same_request_is_judged_once(service: Any, pictures: Pictures) -> None:
    ask = "/v1/inspect?part=B-1&id=b-1"
    first = service.ask("POST", ask, content=pictures["good"].content).json()
    assert service.ask("POST", ask, content=pictures["good"].content).json() == first
    other = service.ask("POST", ask, content=pictures["bad"].content)
    assert (other.status_code, other.json()["error"]["code"]) == (400, "USAGE")


def test_overlay_and_map_come_with_the_answer_when_asked_for(service: Any, pictures: Pictures) -> None:
    said = service.ask("POST", "/v1/inspect?include=overlay,map", content=pictures["bad"].content).json()
    view = said["views"][0]
    overlay = Image.open(io.BytesIO(base64.b64decode(view["overlay"])))
    map = np.load(io.BytesIO(base64.b64decode(view["map"])), allow_pickle=False)
    assert (overlay.format, overlay.size, map.shape, map.dtype) == ("PNG", (64, 64), (64, 64), np.float16)
    at = f"/v1/parts/{said['seq']}/views/0"
    for what, kind in (("overlay", "image/png"), ("map", "application/octet-stream"), ("picture", "image/png")):
        found = service.ask("GET", f"{at}/{what}", "view")
        assert (found.status_code, found.headers["content-type"]) == (200, kind)
        expected = {"overlay": base64.b64decode(view["overlay"]), "picture": pictures["bad"].content}
        assert found.content == expected.get(what, base64.b64decode(view["map"]))
    assert service.ask("GET", f"{at.replace('views/0', 'views/1')}/map").status_code == 404


def test_a_verdict_is_answered_though_its_overlay_is_gone(service: Any, pictures: Pictures) -> None:
    ask = "/v1/inspect?part=C&id=c&include=overlay"
    first = service.ask("POST", ask, content=pictures["good"].content).json()
    service.line.recent._parts.pop(first["seq"])  # as later parts do
    again = service.ask("POST", ask, content=pictures["good"].content)
    assert (again.status_code, again.json()["verdict"], again.json()["views"][0]["overlay"]) == (200, "OK", None)


def test_what_is_no_picture_is_an_error_with_its_row(service: Any, pictures: Pictures) -> None:
    answer = service.ask("POST", "/v1/inspect?part=D", content=pictures["broken"].content)
    said = answer.json()
    assert (answer.status_code, said["error"]["code"], said["row"]["verdict"]) == (422, "DATA", None)
    assert service.line.ledger.get(said["row"]["seq"])["code"] == "DATA"


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("recipe=none", 400, "USAGE"),
        ("part=%20", 400, "USAGE"),
        ("part=" + "x" * 501, 422, "REQUEST"),
        ("id=" + "x" * 201, 422, "REQUEST"),
        ("part=%00", 422, "REQUEST"),
        ("include=all", 422, "REQUEST"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_leaves_no_row(
    service: Any, pictures: Pictures, query: str, status: int, code: str
) -> None:
    before = service.line.ledger.head()
    answer = service.ask("POST", f"/v1/inspect?{query}", content=pictures["good"].content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert service.ask("POST", "/v1/inspect").json()["error"]["code"] == "USAGE"  # no body
    assert service.line.ledger.head() == before


def test_eight_clients_at_once_get_the_scores_of_one(
    service: Any, world: Path, recipes: Recipes, pictures: Pictures
) -> None:
    paths = sorted((world / "test").rglob("*.png"))
    alone = {path: recipes.active.model.inspect(path).score for path in paths}

    def client(number: int) -> list[tuple[Path, float]]:
        with httpx.Client(base_url=service.url, trust_env=False, timeout=30) as http:
            order = paths[number:] + paths[:number]
            headers = {"authorization": f"Bearer {service.tokens['operate']}"}
            posts = [(path, http.post("/v1/inspect", content=path.read_bytes(), headers=headers)) for path in order]
            return [(path, answer.json()["score"]) for path, answer in posts]

    with ThreadPoolExecutor(8) as pool:
        found = [pair for pairs in pool.map(client, range(8)) for pair in pairs]
    assert len(found) == 8 * len(paths)
    assert {(path, score) for path, score in found} == set(alone.items())  # to the last bit


# ---- when nothing can be judged


@pytest.fixture
def held(tmp_path: Path, recipes: Recipes) -> Iterator[tuple[Line, sqlite3.Connection]]:
    """A line whose ledger another process holds: what is accepted stays inside until it lets go."""
    path = tmp_path / "held.db"
    line = Line(recipes, Ledger(path), waiting=1, judges=1)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield line, other
        if other.in_transaction:
            other.rollback()
        line.close()


def test_a_full_queue_is_a_503_that_says_when_to_come_again(
    held: Any, serving: Any, pictures: Pictures, until: Callable[..., Any]
) -> None:
    line, other = held
    with serving(line, tokens=False) as service, ThreadPoolExecutor(2) as pool:
        post = lambda: service.ask("POST", "/v1/inspect", content=pictures["good"].content)  # noqa: E731
        inside = [pool.submit(post) for _ in range(2)]
        until(lambda: line.inside == 2)
        full = post()
        assert (full.status_code, full.json()["error"]["code"], full.headers["retry-after"]) == (503, "FULL", "1")
        assert service.ask("GET", "/health/live").status_code == 200
        assert service.ask("GET", "/v1/status").json()["inside"] == 2
        other.rollback()
        assert [one.result().json()["verdict"] for one in inside] == ["OK", "OK"]
        assert "flawmap_refused_total 1.0" in service.ask("GET", "/metrics").text


def test_a_ledger_that_takes_no_row_is_a_503_and_the_station_is_not_ready(
    held: Any, serving: Any, pictures: Pictures
) -> None:
    line, other = held
    with serving(line, tokens=False) as service:
        answer = service.ask("POST", "/v1/inspect", content=pictures["good"].content)  # after BUSY_S
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "LEDGER")
        assert "verdict" not in answer.json()
        assert answer.headers["retry-after"] == "1"
        assert service.ask("GET", "/health/ready").status_code == 503
        other.rollback()
        assert service.ask("POST", "/v1/inspect", content=pictures["good"].content).json()["verdict"] == "OK"
        assert service.ask("GET", "/health/ready").json() == {"ready": True, "why": ""}


def test_a_part_that_waited_too_long_is_a_503_with_a_row(
    tmp_path: Path, recipes: Recipes, serving: Any, pictures: Pictures
) -> None:
    line = Line(recipes, Ledger(tmp_path / "line.db"), deadline_s=1e-9)
    with serving(line, tokens=False) as service:
        answer = service.ask("POST", "/v1/inspect", content=pictures["good"].content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "TIMEOUT")
        assert answer.headers["retry-after"] == "1"
        assert line.ledger.get(answer.json()["row"]["seq"])["code"] == "TIMEOUT"
    line.close()


def test_a_blocked_station_refuses_parts_and_says_why(line: Line, serving: Any, pictures: Pictures) -> None:
    with serving(line, tokens=False) as service:
        line.block("challenge parts have to pass")
        answer = service.ask("POST", "/v1/inspect", content=pictures["good"].content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "BLOCKED")
        assert int(answer.headers["retry-after"]) >= 1
        ready = service.ask("GET", "/health/ready")
        assert (ready.status_code, ready.json()["why"]) == (503, "challenge parts have to pass")
        assert service.ask("GET", "/v2/health/ready").status_code == 503
        assert service.ask("GET", "/health/live").text == "alive\n"
        line.block("")
        assert service.ask("POST", "/v1/inspect", content=pictures["good"].content).status_code == 200


def test_a_closing_station_takes_no_part(tmp_path: Path, recipes: Recipes, serving: Any, pictures: Pictures) -> None:
    line = Line(recipes, Ledger(tmp_path / "line.db"))
    with serving(line, tokens=False) as service:
        line.close()
        answer = service.ask("POST", "/v1/inspect", content=pictures["good"].content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "CLOSING")


# ---- the ledger, recipes, measures, events


def test_parts_are_found_by_part_verdict_and_time(line: Line, serving: Any, pictures: Pictures) -> None:
    line.inspect("X-1", [pictures["good"]])
    line.inspect("X-2", [pictures["bad"]])
    line.inspect("Y", [pictures["broken"]])
    with serving(line, tokens=False) as service:
        find = lambda **query: [row["part"] for row in service.ask("GET", "/v1/parts", params=query).json()]  # noqa: E731
        assert find() == ["Y", "X-2", "X-1"]
        assert find(part="X") == ["X-2", "X-1"]
        assert [find(verdict=v) for v in ("OK", "NOK", "REVIEW", "ERROR")] == [["X-1"], ["X-2"], [], ["Y"]]
        assert find(limit=1) == ["Y"]
        seq = service.ask("GET", "/v1/parts", params={"part": "X-2"}).json()[0]["seq"]
        assert find(before=seq) == ["X-1"]
        time = service.ask("GET", "/v1/parts", params={"part": "X-2"}).json()[0]["time"]
        assert find(since=time) == ["Y", "X-2"]
        assert find(until=time) == ["X-1"]
        assert find(since="2020-01-01", until="2020-01-02T00:00:00+02:00") == []
        # The same moment by a clock two hours ahead, which as text would lie after all of them.
        hour = int(time[11:13]) + 2
        if hour < 24:
            assert find(since=f"{time[:11]}{hour:02}{time[13:-1]}+02:00") == ["Y", "X-2"]
        for wrong in ({"since": "yesterday"}, {"limit": 0}, {"limit": 501}, {"before": -1}, {"part": "\0"}):
            assert service.ask("GET", "/v1/parts", params=wrong).status_code == 422
        assert service.ask("GET", "/v1/parts?since=0001-01-01T00:00:00%2B23:59").status_code == 400


def test_a_decision_is_a_row_of_its_own_by_the_name_of_the_token(service: Any, pictures: Pictures) -> None:
    row = service.ask("POST", "/v1/inspect?part=E", content=pictures["bad"].content).json()
    said = {"decision": "false alarm", "reason": "dust"}
    made = service.ask("POST", f"/v1/parts/{row['seq']}/decision", "operate", json=said).json()
    assert (made["refers"], made["who"], made["code"], made["verdict"]) == (
        row["seq"],
        "the-operate",
        "false alarm",
        "NOK",
    )
    one = service.ask("GET", f"/v1/parts/{row['seq']}", "view").json()
    assert one["verdict"] == "NOK"
    assert [decision["reason"] for decision in one["decisions"]] == ["dust"]
    at = f"/v1/parts/{row['seq']}/decision"
    for wrong in ({"decision": "x", "reason": "y"}, {"decision": "agreed", "reason": ""}, {"decision": "agreed"}, []):
        assert service.ask("POST", at, json=wrong).status_code == 422
    assert service.ask("POST", at, json={"decision": "agreed", "reason": " "}).status_code == 400
    assert service.ask("POST", at, content=b"{}", headers={"content-type": "text/plain"}).status_code == 422
    assert service.ask("POST", f"/v1/parts/{made['seq']}/decision", json=said).status_code == 404  # no part's row


def test_recipes_are_listed_switched_and_rolled_back(
    tmp_path: Path, flaw: Path, serving: Any, pictures: Pictures
) -> None:
    line = Line(Recipes({"a": flaw, "b": flaw}), Ledger(tmp_path / "line.db"))
    with serving(line) as service:
        assert service.ask("POST", "/v1/recipes/b/use").json()["name"] == "b"
        listed = service.ask("GET", "/v1/recipes", "view").json()
        assert (listed["active"], listed["previous"], [r["name"] for r in listed["recipes"]]) == ("b", "a", ["a", "b"])
        assert service.ask("POST", "/v1/inspect", content=pictures["good"].content).json()["recipe"] == "b"
        asked = service.ask("POST", "/v1/inspect?recipe=a", content=pictures["good"].content).json()
        assert asked["recipe"] == "a"
        assert service.ask("POST", "/v1/recipes/rollback").json()["name"] == "a"
        assert service.ask("POST", "/v1/recipes/rollback").json()["error"]["code"] == "USAGE"
        assert service.ask("POST", "/v1/recipes/none/use").status_code == 400
        assert service.ask("POST", "/v1/challenge").json()["error"]["code"] == "USAGE"
        changes = [row for row in line.ledger.rows(kinds=("event",)) if row["code"] in ("RECIPE", "ROLLBACK")]
        assert [row["who"] for row in changes] == ["the-admin", "the-admin"]
    line.close()


def test_measures_are_what_prometheus_reads(line: Line, serving: Any, pictures: Pictures) -> None:
    with serving(line, tokens=False) as service:
        for name in ("good", "good", "bad", "broken"):
            service.ask("POST", "/v1/inspect", content=pictures[name].content)
        answer = service.ask("GET", "/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        found = {family.name: family for family in text_string_to_metric_families(answer.text)}
        counted = {sample.labels["verdict"]: sample.value for sample in found["flawmap_parts"].samples}
        assert counted == {"OK": 2, "NOK": 1, "REVIEW": 0, "ERROR": 1}
        times = found["flawmap_latency_seconds"]
        buckets = [sample.value for sample in times.samples if sample.name.endswith("_bucket")]
        assert buckets == sorted(buckets)
        total = next(sample.value for sample in times.samples if sample.name.endswith("_sum"))
        rows = line.ledger.rows()
        assert (times.type, buckets[-1]) == ("histogram", 4)
        assert total == pytest.approx(sum(row["latency_ms"] for row in rows) / 1000)
        assert found["flawmap_ready"].samples[0].value == 1
        assert found["flawmap_recipe"].samples[0].labels["recipe"] == "square"
        assert found["flawmap_ledger_rows"].samples[0].value == line.ledger.head()[0]


def test_events_come_as_they_happen(line: Line, serving: Any, pictures: Pictures) -> None:
    with serving(line, tokens=False) as service, httpx.Client(base_url=service.url, timeout=5) as client:  # noqa: SIM117
        with client.stream("GET", "/v1/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = stream.iter_lines()
            assert next(lines) == "event: status"
            assert json.loads(next(lines).removeprefix("data: "))["ready"] is True
            next(lines)
            threading.Timer(0.05, lambda: line.inspect("<b>\nF", [pictures["good"]])).start()
            told = next(line for line in lines if line.startswith("event: ")), next(lines)
            assert told[0] == "event: part"
            row = json.loads(told[1].removeprefix("data: "))
            assert (row["part"], row["verdict"]) == ("<b>\nF", "OK")  # a line end makes no line of its own
            assert row["hash"] == line.ledger.get(row["seq"])["hash"]  # type: ignore[index]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("DELETE", "/v1/parts", 405)])
def test_what_is_not_there_is_said_in_json(service: Any, method: str, path: str, status: int) -> None:
    answer = service.ask(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"code", "message"}
    assert service.ask("GET", "/v1/parts/").status_code == 404  # sent nowhere, whatever the host header says


def test_a_fault_of_our_own_is_a_500_that_tells_nothing_of_the_inside(line: Line, serving: Any) -> None:
    with serving(line, tokens=False) as service, pytest.MonkeyPatch.context() as patch:
        patch.setattr(line, "lamps", None)
        answer = service.ask("GET", "/v1/status")
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "INTERNAL")
        assert "Traceback" not in answer.text
        assert "NoneType" not in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"


# ---- its description


def _operations(api: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, said) for path, methods in api["paths"].items() for method, said in methods.items()]


def test_the_description_says_tokens_bodies_and_answers(service: Any) -> None:
    api = service.ask("GET", "/openapi.json", "view").json()
    assert api["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for path, method, said in _operations(api):
        open_ = path.startswith("/health")
        assert open_ == ("security" not in said), path
        assert open_ or {"401", "403", "413", "503"} <= set(said["responses"]), (path, method)
    inspect = api["paths"]["/v1/inspect"]["post"]
    assert inspect["requestBody"]["content"]["image/png"]["schema"] == {"type": "string", "format": "binary"}
    assert inspect["requestBody"]["content"]["multipart/form-data"]["schema"]["required"] == ["view"]
    assert inspect["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Answer")
    shown = api["paths"]["/v1/parts/{seq}/views/{view}/{what}"]["get"]["responses"]["200"]["content"]
    assert "image/png" in shown
    assert "application/json" not in shown
    assert "text/event-stream" in api["paths"]["/v1/events"]["get"]["responses"]["200"]["content"]
    names = [said["operationId"] for _, _, said in _operations(api)]
    assert len(names) == len(set(names))
    assert not [path for path, _, _ in _operations(api) if "html" in path or path in ("/", "/login")]


def _fuzz(service: Any, examples: int, seed: int) -> None:
    """Made-up requests for every operation: never a 5xx of ours, and answers as they are described."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    api = service.ask("GET", "/openapi.json").json()
    api["paths"].pop("/v1/events")  # never ends
    schema = schemathesis.openapi.from_dict(api)
    checks = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
    session_headers = {"authorization": f"Bearer {service.tokens['admin']}"}
    for result in schema.get_all_operations():
        operation = result.ok()

        @seeded(seed)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            answer = case.call(base_url=service.url, headers=session_headers, timeout=10)
            case.validate_response(answer, checks=list(checks), headers=session_headers)

        ask()


@pytest.mark.filterwarnings("ignore")  # of schemathesis's own
def test_made_up_requests_are_answered_as_described(service: Any) -> None:
    _fuzz(service, 6, 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_many_made_up_requests_are_answered_as_described(service: Any, seed: int) -> None:
    _fuzz(service, 300, seed)


# ---- its page in the docs

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "service.md"


def test_the_client_of_the_docs_works_and_comes_again_after_a_503(line: Line, serving: Any, pictures: Pictures) -> None:
    code = re.search(r"^```python\n(import json.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert code
    with serving(line) as service:
        names: dict[str, Any] = {}
        exec(code[1], names)
        names |= {"STATION": service.url, "TOKEN": service.tokens["operate"]}
        assert names["inspect"](pictures["bad"].content, "A-1")["verdict"] == "NOK"
        line.block("for a moment")
        threading.Timer(0.2, lambda: line.block("")).start()
        assert names["inspect"](pictures["good"].content, "A-2")["verdict"] == "OK"
        with pytest.raises(urllib.error.HTTPError, match="422"):
            names["inspect"](pictures["broken"].content, "A-3")


def test_every_code_that_an_answer_carries_stands_in_the_docs() -> None:
    source = "".join(path.read_text("utf-8") for path in (ROOT / "src/flawmap/station").glob("*.py"))
    codes = set(re.findall(r'\b(?:4\d\d|5\d\d), "([A-Z]+)"', source))
    codes |= set(re.findall(r'Unavailable\([^()]*(?:\([^()]*\))?[^()]*"([A-Z]+)"', source))
    assert {"FULL", "BLOCKED", "TOKEN", "ROLE", "SIZE", "DATA", "STREAMS"} <= codes
    assert sorted(code for code in codes if code not in PAGE.read_text("utf-8")) == []


def test_every_measure_stands_in_the_docs(service: Any) -> None:
    text = PAGE.read_text("utf-8")
    found = text_string_to_metric_families(service.ask("GET", "/metrics").text)
    assert [family.name for family in found if f"`{family.name}" not in text] == []

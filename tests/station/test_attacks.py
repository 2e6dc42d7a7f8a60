"""What somebody tries who means harm, over real sockets. Each attack is a test; SECURITY.md names them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flawmap.station import events, server
from flawmap.station.access import Access, new_token
from flawmap.station.exports import export
from flawmap.station.keep import Keep
from flawmap.station.line import Line, Picture

Pictures = dict[str, Picture]


def _status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


@pytest.fixture
def alive(service: Any, pictures: Pictures, whole: None) -> Iterator[None]:
    """Whatever was tried: afterwards a part is judged, and none is left inside."""
    yield
    answer = service.ask("POST", "/v1/inspect", content=pictures["good"].content)
    assert (answer.status_code, answer.json()["verdict"]) == (200, "OK")
    assert service.line.inside == 0


@pytest.fixture(scope="module")
def whole(service: Any) -> Iterator[None]:
    """In the end the chain is whole, every row can be read, and nobody holds memory."""
    yield
    assert service.line.ledger.verify()[1] == []
    assert service.ask("GET", "/v1/parts?limit=500").status_code == 200
    assert service.guard.held == 0
    assert service.line.fault == ""


pytestmark = pytest.mark.usefixtures("alive")

# ---- where one may not go

WAYS = ("..", "../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e%2fpages.py", "..%5c..%5cpages.py")
WAYS += (
    "%00",
    "....//etc/passwd",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "C:%5cWindows",
    "~",
    "%c0%ae%c0%ae/x",
    "-1",
    "1e9",
)
PLACES = (
    *("/static/{}", "/parts/{}", "/parts/1/nearest/{}/good.png", "/parts/1/nearest/0/{}.png", "/v1/parts/{}"),
    *("/v1/parts/{}/views/0/picture", "/v1/parts/1/views/{}/picture", "/v1/parts/1/views/0/{}", "/v2/models/{}"),
    *("/v2/models/{}/ready", "/v2/models/square/versions/{}", "/{}", "/v1/{}"),
)


@pytest.mark.parametrize("place", PLACES)
def test_no_path_leads_out(service: Any, place: str) -> None:
    for way in WAYS:
        target = place.format(way)
        sent = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {service.tokens['admin']}\r\n"
        answer = service.raw((sent + "Connection: close\r\n\r\n").encode())
        # Where the way has an end of its own it may be a page that is there: /static/.. is not looked up.
        assert _status(answer) in (400, 404, 422), (target, answer[:200])
        assert b"root:" not in answer
        assert b"import" not in answer


@pytest.mark.parametrize("way", WAYS)
def test_no_recipe_is_loaded_from_elsewhere(service: Any, way: str) -> None:
    for path in (f"/v1/recipes/{way}/use", f"/v1/recipes/{way}/use?reload=true", f"/v2/models/{way}/infer"):
        sent = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {service.tokens['admin']}\r\n"
        assert _status(service.raw((sent + "Content-Length: 0\r\n\r\n").encode())) in (400, 404, 405)
    assert service.line.recipes.active.name == "square"


def test_a_kept_picture_is_read_from_its_folder_only(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "link").symlink_to(tmp_path / "secret")
    keep = Keep(tmp_path / "keep")
    for name in ("../secret", str(tmp_path / "secret"), "a/../../secret", "link"):
        assert keep.read(name) is None


# ---- pictures that are more than they seem


def _png(width: int, height: int, rows: bytes | None = None) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = rows if rows is not None else zlib.compress(b"\0" * min((width * 3 + 1) * height, 50_000_000), 9)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (8_001, 8_000), (65_536, 1), (2**31 - 1, 2**31 - 1)])
def test_a_picture_of_too_many_pixels_is_refused_from_its_head(service: Any, width: int, height: int) -> None:
    begun = time.monotonic()
    answer = service.ask("POST", "/v1/inspect", content=_png(width, height))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "DATA")
    assert time.monotonic() - begun < 5


def test_a_stream_that_unpacks_to_more_than_its_picture_is_no_bomb(service: Any) -> None:
    rows = zlib.compress(b"\0" * 100_000_000, 9)  # for a picture of 64 x 64
    answer = service.ask("POST", "/v1/inspect", content=_png(64, 64, rows))
    assert answer.status_code in (200, 422)


@pytest.mark.parametrize(
    "kind", ["image/jpeg", "text/html", "application/json", "application/x-sh", "image/svg+xml", ""]
)
def test_what_the_sender_calls_a_picture_decides_nothing(service: Any, pictures: Pictures, kind: str) -> None:
    answer = service.ask("POST", "/v1/inspect", content=pictures["bad"].content, headers={"content-type": kind})
    seq = answer.json()["seq"]
    assert answer.json()["verdict"] == "NOK"
    shown = service.ask("GET", f"/v1/parts/{seq}/views/0/picture")
    assert (shown.headers["content-type"], shown.headers["x-content-type-options"]) == ("image/png", "nosniff")


@pytest.mark.parametrize(
    "content", [b"<html><script>alert(1)</script>", b"<svg onload='x'/>", b"GIF89a;", b"\0" * 64, b"BM"]
)
def test_what_is_no_picture_is_never_shown_as_it_came(service: Any, content: bytes) -> None:
    answer = service.ask("POST", "/v1/inspect", content=content, headers={"content-type": "image/png"})
    assert answer.status_code == 422
    seq = answer.json()["row"]["seq"]
    assert service.ask("GET", f"/v1/parts/{seq}/views/0/picture").status_code == 404


# ---- slow ones, and many


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes ten seconds takes half of one."""
    monkeypatch.setattr(server, "HEAD_S", 0.5)


def _connected(service: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=5)


def _closed(client: socket.socket, seconds: float = 5.0) -> float:
    """Seconds until the other side closes."""
    begun = time.monotonic()
    client.settimeout(seconds)
    with contextlib.suppress(ConnectionError):
        while client.recv(65_536):
            pass
    return time.monotonic() - begun


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("begun", [b"", b"GET", b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n"])
def test_a_head_that_does_not_end_is_not_waited_for(service: Any, begun: bytes) -> None:
    with _connected(service) as client:
        client.sendall(begun)
        assert _closed(client) < 3


@pytest.mark.usefixtures("hasty")
def test_a_drip_of_headers_does_not_help_nor_does_a_whole_request_before_it(service: Any) -> None:
    with _connected(service) as client:
        client.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert _status(client.recv(4096)) == 200
        client.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n")
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError, TimeoutError):
            while time.monotonic() - begun < 5:
                client.sendall(b"X-A: b\r\n")
                client.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    if not client.recv(4096):
                        break
        assert time.monotonic() - begun < 3


def test_a_body_that_does_not_come_is_a_408(line: Line, serving: Any) -> None:
    with serving(line, tokens=False, body_s=0.3) as slow:
        for head in (b"Content-Length: 1000\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"):
            begun = time.monotonic()
            answer = slow.raw(b"POST /v1/inspect HTTP/1.1\r\nHost: localhost\r\n" + head)
            assert (_status(answer), b'"SLOW"' in answer) == (408, True)
            assert time.monotonic() - begun < 3
        assert line.ledger.rows() == []


@pytest.mark.usefixtures("hasty")
def test_a_body_that_nobody_wants_is_not_read_for_ever(service: Any) -> None:
    with _connected(service) as client:
        client.sendall(b"POST /v1/inspect HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert _status(client.recv(4096)) == 401
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begun < 5:
                client.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
                time.sleep(0.02)
        assert time.monotonic() - begun < 3


def test_who_does_not_read_an_answer_is_let_go(
    service: Any, monkeypatch: pytest.MonkeyPatch, until: Callable[..., Any]
) -> None:
    monkeypatch.setattr(server, "WRITE_S", 0.3)
    cut = []
    monkeypatch.setattr(server.Protocol, "connection_lost", _noted(server.Protocol.connection_lost, cut))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", service.port))
        ask = f"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {service.tokens['view']}\r\n\r\n"
        client.sendall(ask.encode() * 300)
        until(lambda: cut)


def _noted(inner: Any, into: list[Any]) -> Any:
    def lost(self: Any, error: Any) -> None:
        into.append(error)
        inner(self, error)

    return lost


def test_more_connections_than_are_allowed_push_out_the_idle_ones(
    line: Line, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 20)
    with serving(line, tokens=False) as crowded, contextlib.ExitStack() as open_ones:
        clients = [open_ones.enter_context(_connected(crowded)) for _ in range(60)]
        assert crowded.ask("GET", "/health/ready").status_code == 200
        first = clients[0]
        assert _closed(first) < 1
        clients[-1].sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert _status(clients[-1].recv(4096)) == 200


def test_streams_of_events_are_bounded_and_all_others_are_still_answered(
    line: Line, serving: Any, pictures: Pictures, monkeypatch: pytest.MonkeyPatch, until: Callable[..., Any]
) -> None:
    assert events.MOST == 50 < server.CONNECTIONS
    monkeypatch.setattr(events, "MOST", 5)
    ask = b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with serving(line, tokens=False) as service:
        with contextlib.ExitStack() as open_ones:
            for _ in range(5):
                client = open_ones.enter_context(_connected(service))
                client.sendall(ask)
                assert _status(client.recv(4096)) == 200
            refused = service.ask("GET", "/v1/events")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "STREAMS")
            assert int(refused.headers["retry-after"]) >= 1
            answer = service.ask("POST", "/v1/inspect", content=pictures["good"].content)
            assert answer.json()["verdict"] == "OK"
        until(lambda: len(line._listeners) == 1)  # those who left are forgotten; the measures listen on
        with _connected(service) as client:
            client.sendall(ask)
            assert _status(client.recv(4096)) == 200


# ---- sizes


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 99999999999\r\n\r\n",
        b"Content-Length: 64000001\r\n\r\n",
        b"Content-Length: " + b"9" * 18 + b"\r\n\r\n",
    ],
)
def test_a_body_that_says_it_is_too_large_is_refused_unread(service: Any, head: bytes) -> None:
    auth = f"Authorization: Bearer {service.tokens['operate']}\r\n".encode()
    answer = service.raw(b"POST /v1/inspect HTTP/1.1\r\nHost: localhost\r\n" + auth + head)
    assert (_status(answer), b'"SIZE"' in answer) == (413, True)


@pytest.mark.parametrize("path", ["/v1/inspect", "/v2/models/square/infer", "/v1/parts/1/decision", "/login"])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_that_is_too_large_is_refused_however_it_comes(
    line: Line, serving: Any, path: str, chunked: bool
) -> None:
    line.inspect("A", [Picture("a", b"x")])
    with serving(line, tokens=False, most_bytes=100_000) as small:
        body = b"x" * 200_000
        content: Any = (body[at : at + 10_000] for at in range(0, len(body), 10_000)) if chunked else body
        answer = small.ask("POST", path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert "at most" in answer.text


def test_without_a_token_no_body_is_read_but_a_small_one_at_the_login(service: Any) -> None:
    answer = service.ask("POST", "/v1/inspect", "", content=iter([b"x" * 1000] * 10))
    assert answer.status_code == 401
    assert service.ask("POST", "/login", "", content=iter([b"x" * 30_000] * 10)).status_code == 413


# ---- who may do what

CHANGES = {
    "/v1/inspect": "operate",
    "/v2/models/square/infer": "operate",
    "/v2/models/square/versions/1/infer": "operate",
    "/v1/parts/1/decision": "operate",
    "/v1/challenge": "operate",
    "/v1/recipes/square/use": "admin",
    "/v1/recipes/rollback": "admin",
}
LOW = {"operate": ("view",), "admin": ("view", "operate")}
SAID = {"decision": "agreed", "reason": "x"}


def test_the_list_of_what_changes_something_is_whole(service: Any) -> None:
    api = service.ask("GET", "/openapi.json").json()
    found = {path for path, methods in api["paths"].items() if set(methods) - {"get"}}
    names = {"{seq}": "1", "{name}": "square", "{version}": "1"}
    for old, new in names.items():
        found = {path.replace(old, new) for path in found}
    assert found == set(CHANGES)


@pytest.mark.parametrize(("path", "role"), CHANGES.items())
def test_a_role_too_low_changes_nothing(service: Any, path: str, role: str) -> None:
    before = service.line.ledger.head()
    for low in LOW[role]:
        answer = service.ask("POST", path, low, json=SAID)
        assert (answer.status_code, "ROLE" in answer.text) == (403, True)
    assert service.line.ledger.head() == before
    assert service.ask("POST", path, role, json=SAID).status_code != 403


@pytest.mark.parametrize(
    "path", [*CHANGES, "/v1/parts", "/v1/events", "/metrics", "/openapi.json", "/docs", "/", "/live.json"]
)
def test_absent_wrong_and_expired_tokens_open_nothing(service: Any, path: str) -> None:
    method = "POST" if path in CHANGES else "GET"
    before = service.line.ledger.head()
    view = service.tokens["view"]
    for wrong in ("", "Bearer", "Bearer x", f"Basic {view}", view, f"Bearer {view}x", f"Bearer {view[:-1]}"):
        assert service.ask(method, path, "", headers={"authorization": wrong}).status_code == 401
    assert service.ask(method, f"{path}?token={view}&access_token={view}", "").status_code == 401
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        assert client.post("/login", data={"token": view}).status_code == 303
        if path not in ("/v1/events",):
            assert client.request(method, path, json=SAID if method == "POST" else None).status_code in (200, 403)
        service.access._sessions = {key: (who, time.monotonic()) for key, (who, _) in service.access._sessions.items()}
        assert client.request(method, path).status_code == 401  # its time is over
    assert service.line.ledger.head() == before


@pytest.mark.parametrize("path", [*CHANGES, "/login", "/logout"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://127.0.0.1:1"},
    ],
)
def test_a_page_of_another_site_changes_nothing(line: Line, serving: Any, path: str, headers: dict[str, str]) -> None:
    with serving(line, tokens=False) as open_one:  # where the browser needs no token
        before = line.ledger.head()
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            answer = open_one.ask("POST", path, content=b"x", headers={**headers, "content-type": kind})
            assert (answer.status_code, "ORIGIN" in answer.text) == (403, True)
        options = open_one.ask("OPTIONS", path, headers={**headers, "access-control-request-method": "POST"})
        assert not [name for name in options.headers if name.startswith("access-control")]
        assert line.ledger.head() == before


def test_a_name_that_was_bound_anew_is_not_answered(line: Line, serving: Any) -> None:
    with serving(line, tokens=False) as open_one:
        for host in ("evil.example", f"evil.example:{open_one.port}", "127.0.0.1.evil.example", "0.0.0.0", "[::]"):
            answer = open_one.raw(f"GET /v1/parts HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert (_status(answer), b'"HOST"' in answer) == (421, True)


def test_a_session_is_made_at_the_login_and_none_is_taken_over(service: Any) -> None:
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        client.cookies.set("flawmap", "chosen-by-the-attacker", domain="127.0.0.1")
        assert client.get("/v1/status").status_code == 401
        first = client.post("/login", data={"token": service.tokens["view"]})
        one = first.cookies["flawmap"]
        assert one != "chosen-by-the-attacker"
        assert "httponly" in first.headers["set-cookie"].lower()
        assert "samesite=strict" in first.headers["set-cookie"].lower()
        client.cookies.clear()
        second = client.post("/login", data={"token": service.tokens["view"]}, headers={"cookie": f"flawmap={one}"})
        two = second.cookies["flawmap"]
        client.cookies.clear()
        told = [client.get("/v1/status", headers={"cookie": f"flawmap={s}"}).status_code for s in (one, two)]
        assert told == [401, 200]  # the one before was ended
        client.post("/logout", headers={"cookie": f"flawmap={two}"})
        assert client.get("/v1/status", headers={"cookie": f"flawmap={two}"}).status_code == 401


@pytest.mark.parametrize(
    "cookie",
    ["flawmap=é", "flawmap=\u202e", "flawmap=" + "x" * 8000, "=;=;=", "flawmap==", "\xff\xfe", "flawmap=\t; flawmap=x"],
)
def test_odd_cookies_open_nothing(service: Any, cookie: str) -> None:
    sent = b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nCookie: " + cookie.encode() + b"\r\n\r\n"
    assert _status(service.raw(sent)) == 401


# ---- heads that mean two things


@pytest.mark.parametrize(
    "head",
    [
        b"Host: localhost\r\nHost: evil.example\r\n\r\n",
        b"Host: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Host: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"Host: localhost\r\nContent-Length: 5, 6\r\n\r\nabcdef",
        b"Host: localhost\r\nContent-Length: +5\r\n\r\nabcde",
        b"Host: localhost\r\nContent-Length: -5\r\n\r\n",
        b"Host: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"Host: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        b"Host: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"Host: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZ\r\nabc\r\n",
        b"Host: localhost\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"Host: localhost\r\nA\rB: c\r\n\r\n",
        b"Host: localhost\r\nA: b\0c\r\n\r\n",
        b"Host: localhost\r\n folded: x\r\n\r\n",
        b"Host: localhost\r\nOrigin: http://localhost\r\nOrigin: http://evil.example\r\n\r\n",
        b"Host: localhost\r\nAuthorization: Bearer x\r\nAuthorization: Bearer y\r\n\r\n",
        b"Host: localhost\r\nA: " + b"x" * 300_000 + b"\r\n\r\n",
        b"Host: localhost\r\n" + b"A: b\r\n" * 60_000 + b"\r\n",
        b"Host: localhost@evil.example\r\n\r\n",
        b"Host:\r\n\r\n",
        b"\r\n",
        b"Host: \xff\xfe\r\n\r\n",
    ],
)
def test_a_head_that_is_odd_reaches_no_application(service: Any, head: bytes) -> None:
    before = service.line.ledger.head()
    answer = service.raw(b"POST /v1/inspect HTTP/1.1\r\n" + head)
    assert _status(answer) in (0, 400, 401, 403, 413, 421, 431, 501), answer[:300]
    assert answer.count(b"HTTP/1.1 ") <= 1  # nothing was taken for a second request
    assert service.line.ledger.head() == before


def test_no_header_is_made_by_a_parameter(service: Any, pictures: Pictures) -> None:
    part = "x%0d%0aSet-Cookie:%20flawmap=1%0d%0a%0d%0a<html>"
    answer = service.ask("POST", f"/v1/inspect?part={part}", content=pictures["good"].content)
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    assert answer.json()["part"] == "x\r\nSet-Cookie: flawmap=1\r\n\r\n<html>"


@pytest.mark.parametrize(
    "line", [b"GET", b"GET /", b"G\0T / HTTP/1.1", b"GET / HTTP/9.9", b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0"]
)
def test_what_is_no_http_is_closed(service: Any, line: bytes) -> None:
    answer = service.raw(line + b"\r\n\r\n")
    assert _status(answer) in (0, 400, 401, 421)


# ---- names

NAMES = {
    "path": "../../etc/passwd",
    "absolute": "/etc/passwd",
    "windows": "C:\\..\\CON",
    "html": "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>",
    "template": "{{7*7}}{% raw %}${7*7}",
    "newline": "a\nb\r\nc",
    "escape": "\x1b[31mred\x1b[0m\x07",
    "rtl": "\u202egpj.KO\u202c",
    "zero width": "A\u200b1\ufeff",
    "emoji": "👩‍👩‍👧 é ẞ",
    "sql": "'; DROP TABLE ledger; --",
    "formula": '=HYPERLINK("http://evil.example")',
    "gs1": "01095\x1d21ABC",
    "long": "x" * 500,
}


@pytest.mark.parametrize("name", NAMES)
def test_an_odd_name_is_kept_as_it_is_and_does_nothing(service: Any, pictures: Pictures, name: str) -> None:
    part = NAMES[name]
    answer = service.ask(
        "POST", "/v1/inspect", params={"part": part, "id": part[:200]}, content=pictures["good"].content
    )
    seq = answer.json()["seq"]
    assert answer.json()["part"] == part
    assert service.ask("GET", f"/v1/parts/{seq}").json()["part"] == part
    assert seq in [row["seq"] for row in service.ask("GET", "/v1/parts", params={"part": part}).json()]
    page = service.ask("GET", f"/parts/{seq}")
    assert page.status_code == 200
    assert "<script>alert" not in page.text
    assert "<img src=x" not in page.text
    again = service.ask(
        "POST", "/v1/inspect", params={"part": part, "id": part[:200]}, content=pictures["good"].content
    )
    assert again.json()["seq"] == seq


@pytest.mark.parametrize("name", ["a\0b", "x" * 501, "x" * 10_000])
def test_a_name_that_a_database_does_not_take_is_refused(service: Any, pictures: Pictures, name: str) -> None:
    before = service.line.ledger.head()
    for given in ({"part": name}, {"part": "a", "id": name}):
        assert service.ask("POST", "/v1/inspect", params=given, content=pictures["good"].content).status_code == 422
    assert service.line.ledger.head() == before
    assert service.line.fault == ""


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "../x", "x" * 3000, "<b>", "\n", ""])
@pytest.mark.parametrize(
    "charset", ["", "; charset=unicode_escape", "; charset=utf-7", "; charset=undefined", "; charset=zip"]
)
@pytest.mark.filterwarnings("ignore:.*invalid escape sequence:DeprecationWarning")
def test_an_odd_name_of_a_file_spoils_no_row(service: Any, pictures: Pictures, name: str, charset: str) -> None:
    said = name.encode("unicode_escape" if charset else "utf-8", "surrogatepass" if not charset else "strict")
    head = b'--x\r\nContent-Disposition: form-data; name="view"; filename="' + said + b'"\r\n\r\n'
    body = head + pictures["good"].content + b"\r\n--x--\r\n"
    kind = {"content-type": f"multipart/form-data; boundary=x{charset}"}
    answer = service.ask("POST", "/v1/inspect", content=body, headers=kind)
    assert answer.status_code in (200, 400)
    if answer.status_code == 200:
        seq = answer.json()["seq"]
        assert service.ask("GET", f"/v1/parts/{seq}").status_code == 200
        assert service.ask("GET", f"/parts/{seq}").status_code == 200
        assert service.ask("GET", "/v1/parts?limit=5").status_code == 200


@pytest.mark.parametrize("part", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", '=cmd|"/c calc"!A1', " =1"])
def test_no_cell_of_an_export_is_a_formula(
    line: Line, serving: Any, pictures: Pictures, tmp_path: Path, part: str
) -> None:
    with serving(line, tokens=False) as service:
        asked = {"part": part, "id": part}
        seq = service.ask("POST", "/v1/inspect", params=asked, content=pictures["bad"].content).json()["seq"]
        said = {"decision": "agreed", "reason": part}
        service.ask("POST", f"/v1/parts/{seq}/decision", json=said)
    export(line.ledger, tmp_path / "out.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text("utf-8"), newline="")))
    cells = [row[name] for row in rows for name in ("part", "reason", "request", "who") if row[name]]
    assert cells
    assert not [cell for cell in cells if cell[0] in "=+-@\t\r\n"]


# ---- bombs of words


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 60_000,
        b'{"a":' * 12_000,
        b'{"decision":"agreed","reason":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"decision":"agreed","reason":' + b"9" * 60_000 + b"}",
        b'{"decision":"agreed","reason":"\\ud800"}',
        b'{"decision":"agreed","reason":1e999}',
        b"\xff\xfe{\x00}\x00",
        b'{"decision":"agreed","decision":"x","reason":"y"}',
    ],
)
def test_deep_and_wrong_json_is_refused(service: Any, pictures: Pictures, body: bytes) -> None:
    row = service.ask("POST", "/v1/inspect", content=pictures["bad"].content).json()
    before = service.line.ledger.head()
    headers = {"content-type": "application/json"}
    for path in (f"/v1/parts/{row['seq']}/decision", "/v2/models/square/infer"):
        assert service.ask("POST", path, content=body, headers=headers).status_code in (400, 413, 422)
    assert service.line.ledger.head() == before


@pytest.mark.parametrize(
    "body", [b"[" * 3_000_000, b'{"inputs":[' + b"{}," * 2_000_000 + b"{}]}", b"[" + b"0," * 3_000_000]
)
def test_json_that_would_grow_is_not_unpacked(service: Any, body: bytes) -> None:
    begun = time.monotonic()
    answer = service.ask("POST", "/v2/models/square/infer", content=body)
    assert (answer.status_code, "brackets and commas" in answer.text) == (400, True)
    assert time.monotonic() - begun < 5


def _form(*parts: bytes, boundary: bytes = b"x") -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"


VIEW = b'Content-Disposition: form-data; name="view"; filename="a"\r\n\r\nx'
FORMS = {
    "10,000 files": _form(*[VIEW] * 10_000),
    "10,000 fields": _form(*[b'Content-Disposition: form-data; name="a"\r\n\r\nx'] * 10_000),
    "a huge name": _form(b'Content-Disposition: form-data; name="' + b"v" * 2_000_000 + b'"; filename="a"\r\n\r\nx'),
    "a huge field": _form(b'Content-Disposition: form-data; name="a"\r\n\r\n' + b"x" * 3_000_000),
    "many headers": _form(b"A: b\r\n" * 10_000 + VIEW),
    "a huge header": _form(b"A: " + b"x" * 1_000_000 + b"\r\n" + VIEW),
    "no name": _form(b"Content-Disposition: form-data\r\n\r\nx"),
    "no head": _form(b"x"),
    "no end": b"--x\r\n" + VIEW,
    "no boundary in it": b"x" * 100_000,
    "dashes": b"-" * 1_000_000,
    "ends of lines": b"\r\n" * 500_000,
    "nothing": b"",
    "other boundary": _form(VIEW, boundary=b"y"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_that_are_bombs_are_refused(service: Any, form: str) -> None:
    begun, before = time.monotonic(), service.line.ledger.head()
    answer = service.ask(
        "POST", "/v1/inspect", content=FORMS[form], headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert (answer.status_code, set(answer.json())) == (400, {"error"})
    assert time.monotonic() - begun < 5
    assert service.line.ledger.head() == before


@pytest.mark.parametrize(
    "kind", ["", "; boundary=", "; boundary=" + "x" * 5000, ";" * 5000, '; boundary="', "; boundary=é"]
)
def test_a_form_without_a_boundary_is_refused(service: Any, kind: str) -> None:
    headers = {"content-type": f"multipart/form-data{kind}".encode("latin-1")}
    answer = service.ask("POST", "/v1/inspect", content=_form(VIEW), headers=headers)
    assert answer.status_code == 400


def test_a_token_of_another_station_opens_nothing() -> None:
    token, _ = new_token("anna", "admin")
    _, line = new_token("anna", "admin")
    assert Access({line.split()[2]: None}).of_token(token) is None  # type: ignore[dict-item]


def test_what_is_thrown_back_in_an_error_is_json_and_short(service: Any) -> None:
    answer = service.ask("POST", "/v1/recipes/%3Cscript%3Ealert(1)%3C/use")
    assert answer.headers["content-type"] == "application/json"
    answer = service.ask("GET", "/v1/parts", params={"verdict": "<script>" * 500})
    assert (answer.status_code, len(answer.content) < 1000) == (422, True)
    assert "<script>" not in json.loads(answer.text)["error"]["message"]

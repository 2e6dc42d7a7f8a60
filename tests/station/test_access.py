"""Tokens, roles, sessions, and the guard around the service, without a network."""

from __future__ import annotations

import asyncio
import hashlib
import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flawmap import cli
from flawmap.errors import UsageError
from flawmap.station import access as access_module
from flawmap.station.access import LOCAL, ROLES, Access, Guard, Who, loopback, new_token, read_tokens, session_of

# ---- tokens


def test_a_token_that_was_made_is_let_in_by_its_line_and_its_text_is_not_in_the_line(tmp_path: Path) -> None:
    token, line = new_token("anna", "operate")
    (tmp_path / "tokens").write_text(f"# who may do what\n\n{line}  # since May\n")
    access = Access(read_tokens(tmp_path / "tokens"))
    assert access.needed
    assert access.of_token(token) == Who("anna", "operate")
    assert token not in line
    assert len(token) >= 43  # 256 bits


@pytest.mark.parametrize("wrong", ["", " ", "x", "\0", "ä" * 100, "\udcff", "a" * 100_000])
def test_what_is_no_token_is_let_in_by_none(wrong: str) -> None:
    _, line = new_token("anna", "admin")
    assert Access({line.split()[2]: Who("anna", "admin")}).of_token(wrong) is None
    assert Access({line.split()[2]: Who("anna", "admin")}).of_token(line.split()[2]) is None  # the hash is no token


def test_tokens_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    (one, first), (two, second) = new_token("a", "view"), new_token("b", "admin")
    monkeypatch.setenv("FLAWMAP_TOKENS", f"{first},{second}")
    access = Access(read_tokens(None))
    assert [access.of_token(one), access.of_token(two)] == [Who("a", "view"), Who("b", "admin")]
    monkeypatch.delenv("FLAWMAP_TOKENS")
    assert not Access(read_tokens(None)).needed


@pytest.mark.parametrize(
    "line",
    ["anna operate", "anna boss " + "0" * 64, "anna view " + "0" * 63, "anna view " + "G" * 64, "<b> view " + "0" * 64],
)
def test_a_line_that_is_no_token_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    (tmp_path / "tokens").write_text(f"{new_token('a', 'view')[1]}\n{line}\n")
    with pytest.raises(UsageError, match=r"tokens, line 2: a token is NAME ROLE SHA256"):
        read_tokens(tmp_path / "tokens")


@pytest.mark.parametrize(("content", "why"), [(b"# none\n", "no token in it"), (b"\xff\xfe", "cannot be read")])
def test_a_file_without_a_token_is_refused_because_it_would_open_the_station(
    tmp_path: Path, content: bytes, why: str
) -> None:
    (tmp_path / "tokens").write_bytes(content)
    with pytest.raises(UsageError, match=why):
        read_tokens(tmp_path / "tokens")
    with pytest.raises(UsageError, match="cannot be read"):
        read_tokens(tmp_path / "absent")


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "<b>", "a" * 61, "=cmd"])
def test_a_token_has_a_plain_name(name: str) -> None:
    with pytest.raises(UsageError, match="a token has a name"):
        new_token(name, "view")


def test_a_role_may_do_what_those_before_it_may() -> None:
    may = [[Who("a", mine).may(asked) for asked in ROLES] for mine in ROLES]
    assert may == [[True, False, False], [True, True, False], [True, True, True]]


def test_the_command_adds_tokens_to_a_file_that_its_owner_alone_may_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tokens"
    path.write_text(new_token("first", "view")[1])  # without an end of its line, as editors leave it
    path.chmod(0o644)
    assert cli.main(["token", "line3", "operate", "--tokens", str(path), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    tokens = read_tokens(path)
    assert [who.name for who in tokens.values()] == ["first", "line3"]
    assert Access(tokens).of_token(made["token"]) == Who("line3", "operate")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert cli.main(["token", "a b", "operate", "--tokens", str(path)]) == 2


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "", "10.0.0.1", "localhost.example", "127.0.0.1.example", "127.1")],
)
def test_what_is_this_machine_alone(host: str, own: bool) -> None:
    assert loopback(host) == own


# ---- sessions


def test_a_session_ends_after_its_time_and_when_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(access_module.time, "monotonic", lambda: now)
    access = Access()
    one, two = access.open_session(LOCAL), access.open_session(LOCAL)
    assert access.of_session(one) == access.of_session(two) == LOCAL
    access.close_session(one)
    assert access.of_session(one) is None
    now += access_module.SESSION_S - 1
    assert access.of_session(two) == LOCAL
    now += 1
    assert access.of_session(two) is None


def test_sessions_are_bounded_and_kept_by_their_hash() -> None:
    access = Access()
    sessions = [access.open_session(LOCAL) for _ in range(access_module.MOST_SESSIONS + 5)]
    assert len(set(sessions)) == len(sessions)
    assert len(access._sessions) == access_module.MOST_SESSIONS
    assert [access.of_session(sessions[0]), access.of_session(sessions[-1])] == [None, LOCAL]
    assert hashlib.sha256(sessions[-1].encode()).hexdigest() in access._sessions


@pytest.mark.parametrize(
    ("cookies", "session"),
    [
        *(("flawmap=abc", "abc"), ("a=1; flawmap=abc; b=2", "abc"), ("flawmap=a=b", "a=b"), ("flawmap=é", "é")),
        *((wrong, "") for wrong in ("", ";;==;", "flawmap", "xflawmap=1", "Flawmap=abc")),
    ],
)
def test_the_session_is_read_from_cookies(cookies: str, session: str) -> None:
    assert session_of(cookies) == session


# ---- the guard

Sent = Sequence[tuple[bytes, bool]]  # pieces of a body, and whether more come


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body and says its length and who asked."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    body = json.dumps({"length": length, "who": scope["state"]["who"], "role": scope["state"]["role"]}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def _ask(
    method: str = "GET", path: str = "/v1/status", sent: Sent = (), app: Any = _echo, limits: Any = None, **headers: str
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, JSON and headers of what the guard answers. Headers are named with _ for -."""
    how: dict[str, Any] = {"hosts": ["localhost", "Station.Example", "::1"], "most_bytes": 100, **(limits or {})}
    access = how.pop("access", Access())
    guard = how.pop("guard", None) or Guard(app, access, **how)
    pairs = [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in {"host": "localhost", **headers}.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": [pair for pair in pairs if pair[1] != b"-"]}
    pieces, got = list(sent), []

    async def receive() -> Any:
        if not pieces:
            await asyncio.sleep(60)
        body, more = pieces.pop(0)
        return {"type": "http.request", "body": body, "more_body": more}

    async def send(message: Any) -> None:
        got.append(message)

    if not pieces:
        pieces.append((b"", False))
    asyncio.run(guard(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in got[1:])
    return got[0]["status"], json.loads(body or b"{}"), {k.decode(): v.decode() for k, v in got[0]["headers"]}


@pytest.mark.parametrize(
    ("host", "status"),
    [(host, 200) for host in ("localhost", "LOCALHOST:80", "station.example", "STATION.example:8080", "[::1]:8080")]
    + [
        (host, 421)
        for host in ("-", "", "evil.example", "localhost.evil.example", "localhost/x", "x@localhost", "localhost#", "[")
    ]
    + [(host, 421) for host in ("[::1", "localhost:", "localhost:x", "localhost localhost", "\xbd", "a" * 9000, "?")],
)
def test_the_station_answers_to_its_own_names_only(host: str, status: int) -> None:
    found, said, _ = _ask(host=host)
    assert found == status
    assert status == 200 or said["error"]["code"] == "HOST"


def test_with_tokens_any_well_formed_name_will_do_because_a_rebound_page_has_no_token() -> None:
    assert _ask(limits={"hosts": None}, host="10.0.0.5:8080")[0] == 200
    assert _ask(limits={"hosts": None}, host="[")[0] == 421


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # no browser
        ({"origin": "http://localhost"}, 200),
        ({"origin": "https://LOCALHOST"}, 200),  # behind a proxy that takes off the TLS
        ({"origin": "http://localhost:8081"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "http://["}, 403),
        ({"origin": "http://localhost@evil.example"}, 403),
        ({"origin": "http://localhost.evil.example"}, 403),
        ({"sec_fetch_site": "same-origin", "origin": "http://localhost"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"sec_fetch_site": "cross-site", "origin": "http://localhost"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}, 403),
        ({"sec_fetch_site": "what"}, 403),
    ],
)
@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS", "TRACE", "post"])
def test_what_changes_something_must_come_from_our_pages_or_from_no_page(
    method: str, headers: dict[str, str], status: int
) -> None:
    found, said, _ = _ask(method, **headers)
    assert found == status
    assert status == 200 or said["error"]["code"] == "ORIGIN"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}, 200),  # a link
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"}, 403),
        ({"sec_fetch_site": "same-site", "sec_fetch_mode": "cors"}, 403),
        ({"sec_fetch_site": "same-origin", "sec_fetch_mode": "cors"}, 200),
    ],
)
def test_a_page_elsewhere_may_link_here_and_load_nothing(headers: dict[str, str], status: int) -> None:
    assert _ask("GET", **headers)[0] == status


def test_roles_come_from_the_token_or_the_session_and_a_wrong_token_is_not_mended_by_a_session() -> None:
    token, line = new_token("anna", "operate")
    access = Access({line.split()[2]: Who("anna", "operate")})
    session = access.open_session(Who("ben", "view"))
    limits = {"access": access}
    said = [
        _ask(limits=limits, authorization=f"Bearer {token}"),
        _ask(limits=limits, authorization=f"bearer  {token} "),
        _ask(limits=limits, cookie=f"flawmap={session}"),
        _ask(limits=limits, authorization=f"Basic {token}", cookie=f"flawmap={session}"),
    ]
    assert [(status, found["who"], found["role"]) for status, found, _ in said] == [
        (200, "anna", "operate"),
        (200, "anna", "operate"),
        (200, "ben", "view"),
        (200, "ben", "view"),
    ]
    refused = [
        _ask(limits=limits),
        _ask(limits=limits, authorization="Bearer x", cookie=f"flawmap={session}"),
        _ask(limits=limits, cookie="flawmap=é\xff"),
        _ask(limits=limits, cookie=f"flawmap={token}"),  # a token is no session
        _ask(limits=limits, authorization=f"Bearer {session}"),  # and the other way round
    ]
    assert {(status, found["error"]["code"]) for status, found, _ in refused} == {(401, "TOKEN")}
    assert refused[0][2]["www-authenticate"] == "Bearer"


def test_a_browser_without_a_token_is_sent_to_the_login_and_a_program_is_not() -> None:
    limits = {"access": Access({"0" * 64: LOCAL})}
    status, _, headers = _ask("GET", "/", limits=limits, accept="text/html")
    assert (status, headers["location"]) == (303, "/login")
    assert _ask("POST", "/v1/inspect", limits=limits, accept="text/html")[0] == 401
    status, said, _ = _ask("GET", "/v2", limits=limits)
    assert (status, said) == (401, {"error": "TOKEN: give a token: Authorization: Bearer TOKEN"})  # text, of /v2


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/v2/health/live", "/static/x.css", "/login"])
def test_health_login_and_what_the_login_looks_like_take_no_token(path: str) -> None:
    assert _ask("GET", path, limits={"access": Access({"0" * 64: LOCAL})})[0] == 200


@pytest.mark.parametrize(
    "path", ["//health/live", "/v1/health/", "/health", "/v2/healthx", "/STATIC/x", "/metrics", "/"]
)
def test_nothing_else_is_open(path: str) -> None:
    assert _ask("GET", path, limits={"access": Access({"0" * 64: LOCAL})})[0] == 401


def test_every_answer_carries_the_headers_that_hold_a_browser_back() -> None:
    for _, _, headers in (_ask(), _ask(host="evil"), _ask("POST", origin="null")):
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin"


# ---- bodies

INSPECT = "/v1/inspect"


@pytest.mark.parametrize(
    ("length", "status"),
    [("100", 200), *((wrong, 413) for wrong in ("101", "9" * 19, "9" * 5000, "-1", "1e2", "+5", "0x10", " ", "\xb2"))],
)
def test_a_length_that_is_told_is_held_against_the_limit_before_anything_is_read(length: str, status: int) -> None:
    assert _ask("POST", INSPECT, content_length=length)[0] == status


@pytest.mark.parametrize("pieces", [[101], [100, 1], [1] * 101, [50, 0, 0, 51]])
def test_a_body_is_counted_while_it_is_read_whatever_its_head_says(pieces: list[int]) -> None:
    sent = [(b"x" * n, number < len(pieces) - 1) for number, n in enumerate(pieces)]
    status, said, _ = _ask("POST", INSPECT, sent)
    assert (status, said["error"]["code"]) == (413, "SIZE")
    assert _ask("POST", INSPECT, [(b"x" * 100, False)])[:2] == (200, {"length": 100, "who": "local", "role": "admin"})


def test_only_what_takes_pictures_takes_a_large_body() -> None:
    body, limits = [(b"x" * 70_000, False)], {"most_bytes": 100_000}
    for path in (INSPECT, "/v2/models/a/infer", "/v2/models/a/versions/1/infer"):
        assert _ask("POST", path, body, limits=limits)[0] == 200
    for path in ("/v1/parts/1/decision", "/login", "/v1/inspect/", "/v2/models/a/b/infer", "/v1/challenge"):
        assert _ask("POST", path, body, limits=limits)[0] == 413


async def _forgives(scope: Any, receive: Any, send: Any) -> None:
    """As frameworks do: makes an answer of its own of whatever went wrong with the body."""
    try:
        await _echo(scope, receive, send)
    except Exception:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


@pytest.mark.parametrize("app", [_echo, _forgives])
def test_what_is_wrong_with_a_body_is_answered_whatever_the_application_makes_of_it(app: Any) -> None:
    status, said, _ = _ask("POST", INSPECT, [(b"x" * 101, False)], app)
    assert (status, said["error"]["code"]) == (413, "SIZE")
    status, said, headers = _ask("POST", INSPECT, [(b"x", True)], app, limits={"body_s": 0.05})
    assert (status, said["error"]["code"], headers["connection"]) == (408, "SLOW", "close")


def test_a_drip_does_not_prolong_the_time_of_a_body() -> None:
    async def drip(scope: Any, receive: Any, send: Any) -> None:
        async def slow() -> Any:
            await asyncio.sleep(0.02)
            return await receive()

        await _echo(scope, slow, send)

    assert _ask("POST", INSPECT, [(b"x", True)] * 90 + [(b"", False)], drip, limits={"body_s": 0.2})[0] == 408


def test_bodies_together_are_bounded_and_the_room_comes_back() -> None:
    guard = Guard(_echo, Access(), hosts=None, most_bytes=100)
    guard.held = access_module.TOGETHER * 100  # others are being read
    status, said, headers = _ask("POST", INSPECT, [(b"x", False)], limits={"guard": guard})
    assert (status, said["error"]["code"], headers["retry-after"]) == (503, "FULL", "1")
    assert guard.held == access_module.TOGETHER * 100
    guard.held = 0
    assert _ask("POST", INSPECT, [(b"x" * 60, False)], limits={"guard": guard})[0] == 200
    assert _ask("POST", INSPECT, [(b"x" * 60, True), (b"x" * 60, False)], limits={"guard": guard})[0] == 413
    assert guard.held == 0


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "x"])
def test_a_compressed_body_is_not_unpacked(encoding: str) -> None:
    status, said, _ = _ask("POST", INSPECT, content_encoding=encoding)
    assert (status, said["error"]["code"]) == (415, "ENCODING")
    assert _ask("POST", INSPECT, content_encoding="identity")[0] == 200


def test_a_length_told_in_two_ways_is_refused() -> None:
    status, said, _ = _ask("POST", INSPECT, content_length="5", transfer_encoding="chunked")
    assert (status, said["error"]["code"]) == (400, "HEADER")


@pytest.mark.parametrize("name", access_module.ONCE)
def test_a_header_that_decides_something_comes_once(name: str) -> None:
    got: list[Any] = []

    async def send(message: Any) -> None:
        got.append(message)

    pairs = [(b"host", b"localhost"), (name.encode(), b"localhost"), (name.encode(), b"localhost")]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": pairs}
    asyncio.run(Guard(_echo, Access(), hosts=None, most_bytes=9)(scope, None, send))
    assert got[0]["status"] == 400


def test_a_websocket_is_closed() -> None:
    got: list[Any] = []

    async def send(message: Any) -> None:
        got.append(message)

    asyncio.run(Guard(_echo, Access(), hosts=None, most_bytes=9)({"type": "websocket"}, None, send))
    assert got == [{"type": "websocket.close", "code": 1008}]

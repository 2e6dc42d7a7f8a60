"""Who may do what: named tokens with roles, sessions for browsers, and what every request must pass.

Nothing here trusts a header that a page of another site can set: a request that changes something must come from our
own pages or from no page at all.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawmap.errors import UsageError

ROLES = ("view", "operate", "admin")  # each may do what those before it may
ENVIRONMENT = "FLAWMAP_TOKENS"
COOKIE = "flawmap"
SESSION_S = 12 * 3600
MOST_SESSIONS = 1000
OPEN = ("/health/", "/v2/health/", "/static/", "/login")
SAFE = ("GET", "HEAD")
NAME = re.compile(r"[A-Za-z0-9._-]{1,60}")
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
ONCE = ("host", "origin", "authorization", "content-length", "transfer-encoding", "content-type", "content-encoding")
PICTURES = re.compile(r"/v1/inspect|/v2/models/[^/]+(/versions/[^/]+)?/infer")  # what takes a large body
SMALL = 65_536  # bytes of any other
TOGETHER = 8  # of the largest bodies are held in memory at once
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Who:
    name: str
    role: str

    def may(self, role: str) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)


Refusal = tuple[int, str, str]  # status, code, and in words
LOCAL = Who("local", "admin")  # without tokens, which only loopback may be


class Forbidden(Exception):
    """Not with this token. Not a PermissionError, which a disk raises, too."""


class Access:
    """Tokens by their SHA-256, and the sessions of browsers that showed one. Without tokens all may do all."""

    def __init__(self, tokens: Mapping[str, Who] | None = None) -> None:
        self._tokens = dict(tokens or {})
        self._sessions: dict[str, tuple[Who, float]] = {}

    @property
    def needed(self) -> bool:
        return bool(self._tokens)

    def of_token(self, token: str) -> Who | None:
        """Compares with every token in constant time."""
        given, found = hashlib.sha256(token.encode("utf-8", "replace")).hexdigest(), None
        for known, who in self._tokens.items():
            if hmac.compare_digest(given, known):
                found = who
        return found

    def open_session(self, who: Who) -> str:
        now = time.monotonic()
        self._sessions = {key: value for key, value in self._sessions.items() if value[1] > now}
        while len(self._sessions) >= MOST_SESSIONS:
            self._sessions.pop(next(iter(self._sessions)))
        session = secrets.token_urlsafe(32)
        self._sessions[hashlib.sha256(session.encode()).hexdigest()] = (who, now + SESSION_S)
        return session

    def of_session(self, session: str) -> Who | None:
        who, until = self._sessions.get(hashlib.sha256(session.encode("utf-8", "replace")).hexdigest(), (None, 0.0))
        return who if until > time.monotonic() else None

    def close_session(self, session: str) -> None:
        self._sessions.pop(hashlib.sha256(session.encode("utf-8", "replace")).hexdigest(), None)


def new_token(name: str, role: str) -> tuple[str, str]:
    """A token, and the line for the tokens file that lets it in."""
    if role not in ROLES or not NAME.fullmatch(name):
        raise UsageError(
            f"a token has a name of 1 to 60 letters, digits, dots, dashes, underscores, and a role: {', '.join(ROLES)}"
        )
    token = secrets.token_urlsafe(32)
    return token, f"{name} {role} {hashlib.sha256(token.encode()).hexdigest()}"


def read_tokens(path: Path | None) -> dict[str, Who]:
    """Of a file, or of FLAWMAP_TOKENS, lines of NAME ROLE SHA256; in the variable commas may stand for line ends."""
    where = str(path) if path else ENVIRONMENT
    try:
        text = path.read_text() if path else os.environ.get(ENVIRONMENT, "").replace(",", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: the tokens cannot be read: {error}") from error
    found: dict[str, Who] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        whole = len(words) == 3 and NAME.fullmatch(words[0]) and re.fullmatch("[0-9a-f]{64}", words[2])
        if not whole or words[1] not in ROLES:
            raise UsageError(f"{where}, line {number}: a token is NAME ROLE SHA256, of a role {', '.join(ROLES)}")
        found[words[2]] = Who(words[0], words[1])
    if path and not found:
        raise UsageError(f"{path}: there is no token in it")
    return found


def loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Around the whole application: host, origin, token, size and pace of the body, headers of the answer.

    hosts       names that a request may ask for; None: any (with tokens only)
    most_bytes  of a body with pictures, of others 64 KiB; counted while it is read, whatever its header says
    body_s      seconds in which a body must have come
    large       the paths that take a body with pictures
    """

    def __init__(
        self,
        app: Any,
        access: Access,
        *,
        hosts: Sequence[str] | None,
        most_bytes: int,
        body_s: float = 30.0,
        large: re.Pattern[str] = PICTURES,
    ) -> None:
        self.app, self.access, self.most_bytes, self.body_s, self.large = app, access, most_bytes, body_s, large
        self.hosts = None if hosts is None else {host.lower() for host in hosts}
        self.held = 0  # bytes of bodies in memory

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, started = _Body(self, receive, self._most(scope["path"])), False

        async def answer(message: Any) -> None:
            nonlocal started
            if body.refused and not started:
                return  # whatever was made of half a body
            if message["type"] == "http.response.start":
                started = True
                names = {key.lower() for key, _ in message["headers"]}
                extra = {**HEADERS, "cache-control": "no-store"}
                more = [(k.encode(), v.encode()) for k, v in extra.items() if k.encode() not in names]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        refused = self._refused(scope)
        if refused is None:
            try:
                await self.app(scope, body, answer)
            except Exception:
                if body.refused is None or started:
                    raise
            finally:
                self.held -= body.got
            refused, body.refused = body.refused, None
        if refused is not None and not started:
            await _refuse(scope, answer, *refused)

    def _most(self, path: str) -> int:
        return self.most_bytes if self.large.fullmatch(path) else min(SMALL, self.most_bytes)

    def _refused(self, scope: Any) -> Refusal | None:
        """Why a request goes no further, from its head alone."""
        pairs = [(key.decode("latin-1").lower(), value.decode("latin-1")) for key, value in scope["headers"]]
        headers = dict(pairs)
        for name in ONCE:
            if sum(key == name for key, _ in pairs) > 1:
                return 400, "HEADER", f"the header {name} came more than once"
        if "content-length" in headers and "transfer-encoding" in headers:
            return 400, "HEADER", "a body's length is told by content-length or by transfer-encoding, not by both"
        host = HOST.fullmatch(headers.get("host", ""))
        if not host or (self.hosts is not None and host[1].strip("[]").lower() not in self.hosts):
            return 421, "HOST", "this station does not answer to that host name; start it with --allow-host NAME"
        if not _own(headers, scope["method"]):
            return 403, "ORIGIN", "a page of another site may not ask for this"
        who = self._who(headers)
        if who is None and not scope["path"].startswith(OPEN):
            return 401, "TOKEN", "give a token: Authorization: Bearer TOKEN"
        told = {"who": who.name if who else "", "role": who.role if who else "view", "known": who}
        scope["state"] = {**scope.get("state", {}), **told}
        return self._unread(headers, self._most(scope["path"]))

    def _unread(self, headers: Mapping[str, str], most: int) -> Refusal | None:
        """What can be told of a body before it is read."""
        if headers.get("content-encoding", "identity").lower() != "identity":
            return 415, "ENCODING", "a body must not be compressed; pictures are already"
        length = headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,15}", length) or int(length) > most:
            return 413, "SIZE", f"a body has at most {most} bytes here"
        return None

    def _who(self, headers: Mapping[str, str]) -> Who | None:
        if not self.access.needed:
            return LOCAL
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self.access.of_token(token.strip())
        if session := session_of(headers.get("cookie", "")):
            return self.access.of_session(session)
        return None


class _Body:
    """What is read of a request, counted and timed. A body that is too large or too slow is read no further."""

    def __init__(self, guard: Guard, receive: Any, most: int) -> None:
        self.guard, self.receive, self.most = guard, receive, most
        self.got, self.ended, self.until = 0, False, 0.0
        self.refused: Refusal | None = None

    async def __call__(self) -> Any:
        if self.ended:
            return await self.receive()  # waits for the client to go
        now = time.monotonic()
        self.until = self.until or now + self.guard.body_s
        try:
            if now >= self.until:  # pieces that are there already do not prolong it either
                raise TimeoutError
            message = await asyncio.wait_for(self.receive(), self.until - now)
        except TimeoutError:
            raise self._stop(408, "SLOW", f"the body did not come within {self.guard.body_s:g} s") from None
        length = len(message.get("body", b""))
        self.got += length
        self.guard.held += length
        self.ended = not message.get("more_body", False)
        if self.got > self.most:
            raise self._stop(413, "SIZE", f"a body has at most {self.most} bytes here")
        if self.guard.held > max(TOGETHER * self.guard.most_bytes, self.got):
            raise self._stop(503, "FULL", "too many large requests at once; try again")
        return message

    def _stop(self, *refused: Any) -> Exception:
        self.refused, self.ended = refused, True
        return _Stop(refused[2])


class _Stop(Exception):
    """Ends the reading of a body; the guard answers, whatever is made of this."""


def _own(headers: Mapping[str, str], method: str) -> bool:
    """Whether a request may come from where it says: our own pages, no page, or for pages a link elsewhere."""
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        opened = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        return method in SAFE and opened
    if method in SAFE or "origin" not in headers:
        return True
    # A proxy may have taken off the TLS, so that the scheme says nothing.
    return re.sub("^https?://", "", headers["origin"].lower()) == headers["host"].lower()


def session_of(cookies: str) -> str:
    pairs = (pair.strip().partition("=") for pair in cookies.split(";"))
    return next((value for name, _, value in pairs if name == COOKIE), "")


async def _refuse(scope: Any, send: Any, status: int, code: str, message: str) -> None:
    html = any(key == b"accept" and b"text/html" in value for key, value in scope["headers"])
    if status == 401 and scope["method"] in SAFE and html:
        await send({"type": "http.response.start", "status": 303, "headers": [(b"location", b"/login")]})
        await send({"type": "http.response.body", "body": b""})
        return
    of_protocol = scope["path"].startswith("/v2")  # whose errors are one text
    error = f"{code}: {message}" if of_protocol else {"code": code, "message": message}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")] if status == 408 else []
    headers += [(b"retry-after", b"1")] if status == 503 else []
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""Who may do what: named tokens with roles, sessions for browsers, and what every request must pass.

Nothing here trusts a header that a page of another site can set: a request that changes something must come from our
own pages or from no page at all.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flawmap.errors import UsageError

ROLES = ("view", "operate", "admin")  # each may do what those before it may
ENVIRONMENT = "FLAWMAP_TOKENS"
COOKIE = "flawmap"
SESSION_S = 12 * 3600
MOST_SESSIONS = 1000
OPEN = ("/health/", "/v2/health/", "/static/", "/login")
SAFE = ("GET", "HEAD")
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Who:
    name: str
    role: str

    def may(self, role: str) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)


LOCAL = Who("local", "admin")  # without tokens, which only loopback may be


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
    if role not in ROLES or not re.fullmatch(r"[A-Za-z0-9._-]{1,60}", name):
        raise UsageError(f"a token has a name of letters and digits, and a role: {', '.join(ROLES)}")
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
        if len(words) != 3 or words[1] not in ROLES or not re.fullmatch("[0-9a-f]{64}", words[2]):
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
    most_bytes  of a body; counted while it is read, whatever its header says
    body_s      seconds in which a body must have come
    """

    def __init__(
        self, app: Any, access: Access, *, hosts: Sequence[str] | None, most_bytes: int, body_s: float = 30.0
    ) -> None:
        self.app, self.access, self.hosts, self.most_bytes, self.body_s = app, access, hosts, most_bytes, body_s

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        started = False

        async def answer(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                names = {key.lower() for key, _ in message["headers"]}
                extra = {**HEADERS, "cache-control": "no-store"}
                more = [(k.encode(), v.encode()) for k, v in extra.items() if k.encode() not in names]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        refused = self._refused(scope, headers)
        if refused is None:
            try:
                await self.app(scope, self._counted(receive), answer)
                return
            except _Body as error:
                if started:
                    raise
                refused = (error.status, error.code, str(error))
        if refused[0] == 401 and scope["method"] in SAFE and "text/html" in headers.get("accept", ""):
            await answer({"type": "http.response.start", "status": 303, "headers": [(b"location", b"/login")]})
            await answer({"type": "http.response.body", "body": b""})
            return
        await _refuse(answer, *refused)

    def _refused(self, scope: Any, headers: Mapping[str, str]) -> tuple[int, str, str] | None:
        host, path, method = headers.get("host", ""), scope["path"], scope["method"]
        name = urlsplit(f"//{host}").hostname or "" if host.isprintable() and "@" not in host else ""
        if not name or (self.hosts is not None and name not in self.hosts):
            return 421, "HOST", "this station does not answer to that host name; start it with --allow-host NAME"
        if method not in SAFE and not self._own(headers, host):
            return 403, "ORIGIN", "a page of another site may not ask for this"
        who = self._who(headers)
        if who is None and not path.startswith(OPEN):
            return 401, "TOKEN", "give a token: Authorization: Bearer TOKEN"
        scope.setdefault("state", {})
        scope["state"] |= {"who": who.name if who else "", "role": who.role if who else "view", "known": who}
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length) > self.most_bytes:
            return 413, "SIZE", f"a body has at most {self.most_bytes} bytes"
        return None

    def _own(self, headers: Mapping[str, str], host: str) -> bool:
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return False
        origin = headers.get("origin")  # a proxy may have taken off the TLS, so that the scheme says nothing
        return origin is None or urlsplit(origin).netloc.lower() == host.lower()

    def _who(self, headers: Mapping[str, str]) -> Who | None:
        if not self.access.needed:
            return LOCAL
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self.access.of_token(token.strip())
        if session := session_of(headers.get("cookie", "")):
            return self.access.of_session(session)
        return None

    def _counted(self, receive: Any) -> Any:
        left, until, ended = self.most_bytes, None, False

        async def counted() -> Any:
            nonlocal left, until, ended
            if ended:
                return await receive()  # waits for the client to go
            until = until or time.monotonic() + self.body_s
            try:
                message = await asyncio.wait_for(receive(), max(0.001, until - time.monotonic()))
            except TimeoutError:
                raise _Body(408, "SLOW", f"the body did not come within {self.body_s:g} s") from None
            left -= len(message.get("body", b""))
            ended = not message.get("more_body", False)
            if left < 0:
                raise _Body(413, "SIZE", f"a body has at most {self.most_bytes} bytes")
            return message

        return counted


class _Body(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def session_of(cookies: str) -> str:
    pairs = (pair.strip().partition("=") for pair in cookies.split(";"))
    return next((value for name, _, value in pairs if name == COOKIE), "")


async def _refuse(send: Any, status: int, code: str, message: str) -> None:
    import json

    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")] if status in (408, 413) else []
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

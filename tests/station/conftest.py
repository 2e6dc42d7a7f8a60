"""What the tests of the station share: one small bundle, and lines that judge with it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from flawmap.station.access import Access, new_token, read_tokens
from flawmap.station.app import create_app
from flawmap.station.ledger import Ledger
from flawmap.station.line import Line, Picture
from flawmap.station.recipes import Recipes
from flawmap.station.server import Protocol
from flawmap.types import Verdict


@pytest.fixture(scope="session")
def recipes(flaw: Path) -> Recipes:
    """Read only: tests that switch recipes make their own."""
    return Recipes({"square": flaw})


@pytest.fixture(scope="session")
def pictures(world: Path, recipes: Recipes) -> dict[str, Picture]:
    """By their part's name: "good" is judged OK, "bad" NOK, "broken" cannot be read."""
    found = {"broken": Picture("broken.png", b"\x89PNG and no more")}
    for name, folder, verdict in (("good", "test/good", Verdict.OK), ("bad", "test/square", Verdict.NOK)):
        paths = sorted((world / folder).glob("*.png"))
        path = next(path for path in paths if recipes.active.model.inspect(path).verdict == verdict)
        found[name] = Picture(path.name, path.read_bytes())
    return found


@pytest.fixture
def line(tmp_path: Path, recipes: Recipes) -> Iterator[Line]:
    made = Line(recipes, Ledger(tmp_path / "line.db", station="s1"))
    yield made
    made.close()


@pytest.fixture
def until() -> Callable[..., Any]:
    """Waits until something is so, and gives it back; fails after so many seconds."""

    def wait(what: Callable[[], Any], seconds: float = 20.0) -> Any:
        end = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < end, "never came"
            time.sleep(0.005)
        return found

    return wait


@dataclass
class Service:
    """A station's service in this process, behind real sockets."""

    line: Line
    port: int
    tokens: dict[str, str]  # by role
    access: Access
    guard: Any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, role: str = "admin", **more: Any) -> httpx.Response:
        """As one who has this role; "": without a token."""
        headers = {**({"authorization": f"Bearer {self.tokens[role]}"} if self.tokens and role else {})}
        headers |= more.pop("headers", {})
        with httpx.Client(base_url=self.url, timeout=30, trust_env=False, verify=False) as client:  # no TLS here
            return client.request(method, path, headers=headers, **more)

    def raw(self, sent: bytes, seconds: float = 5.0) -> bytes:
        """What comes for these very bytes until the other side closes, or nothing more comes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as client:
            client.sendall(sent)
            found = b""
            with contextlib.suppress(TimeoutError, ConnectionError):
                while more := client.recv(65_536):
                    found += more
                    head, _, body = found.partition(b"\r\n\r\n")
                    length = next((w for w in head.lower().split(b"\r\n") if w.startswith(b"content-length:")), None)
                    if length and len(body) >= int(length.split(b":")[1]):
                        break
            return found


@contextlib.contextmanager
def _serving(line: Line, *, tokens: bool = True, body_s: float = 30.0, **how: Any) -> Iterator[Service]:
    made = {role: new_token(f"the-{role}", role) for role in ("view", "operate", "admin")} if tokens else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAWMAP_TOKENS", ",".join(written for _, written in made.values()))
        access = Access(read_tokens(None))
    app = create_app(line, access, **how)
    app.body_s = body_s
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # As serve() does it, but for signals.
        more: dict[str, Any] = {"ws": "none", "log_level": "critical", "server_header": False, "proxy_headers": False}
        server = uvicorn.Server(uvicorn.Config(app, http=Protocol, timeout_graceful_shutdown=2, **more))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield Service(
                line, listening.getsockname()[1], {role: token for role, (token, _) in made.items()}, access, app
            )
        finally:
            server.should_exit = server.force_exit = True
            thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def serving() -> Callable[..., AbstractContextManager[Service]]:
    """serving(line) is a context in which a line is served; with tokens=False to all of this machine."""
    return _serving


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, recipes: Recipes) -> Iterator[Service]:
    """One with tokens that the tests of a file share."""
    folder = tmp_path_factory.mktemp("service")
    line = Line(recipes, Ledger(folder / "line.db", station="s1"), waiting=64)
    with _serving(line) as made:
        yield made
    line.close()

"""Webhooks against an HTTP server of the standard library on loopback, and the outbox that MQTT shares."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flawmap.errors import UsageError
from flawmap.station.line import Line, Picture
from flawmap.station.outbox import Outbox, message
from flawmap.station.webhook import Webhook, sign, verify

PAGE = Path(__file__).parents[2] / "docs" / "plc.md"
SECRET = b"a secret of 21 bytes."
FAST = (0.02, 0.1)


class Receiver:
    """Takes what comes. `answers` are the next status codes; then it is 204."""

    def __init__(self, port: int = 0) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.gate.wait(5)
                receiver.got.append((dict(self.headers), body))
                self.send_response(receiver.answers.pop(0) if receiver.answers else 204)
                self.send_header("Location", f"http://127.0.0.1:{receiver.port}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @property
    def parts(self) -> list[str]:
        return [json.loads(body)["part"] for _, body in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.gate.set()
    made.close()


@pytest.fixture
def hook(line: Line, receiver: Receiver) -> Iterator[Callable[..., Webhook]]:
    made = []

    def make(**how: Any) -> Webhook:
        how = {"retry_s": FAST, "timeout_s": 1.0, "url": f"http://127.0.0.1:{receiver.port}/hook"} | how
        made.append(Webhook(line, how.pop("url"), SECRET, **how))
        return made[-1]

    yield make
    for each in made:
        each.close(0)


def test_a_part_is_sent_as_it_stands_in_the_ledger_and_signed(
    line: Line, hook: Any, receiver: Receiver, pictures: dict[str, Picture], until: Any
) -> None:
    sender = hook()
    row = line.inspect("good", [pictures["good"]])
    until(lambda: receiver.got)
    headers, body = receiver.got[0]
    said = json.loads(body)
    assert (said["type"], said["station"], said["row"], said["hash"]) == ("part", "s1", row["seq"], row["hash"])
    assert {name: said[name] for name in ("part", "verdict", "score", "time")} == {
        name: row[name] for name in ("part", "verdict", "score", "time")
    }
    assert said["views"] == [
        {
            "name": pictures["good"].name,
            "sha256": hashlib.sha256(pictures["good"].content).hexdigest(),
            "score": row["score"],
            "regions": 0,
        }
    ]
    timestamp, signature = headers["X-Flawmap-Timestamp"], headers["X-Flawmap-Signature"]
    by_hand = hmac.new(SECRET, f"{timestamp}.".encode() + body, "sha256").hexdigest()
    assert signature == f"v1={by_hand}"
    assert verify(SECRET, timestamp, signature, body)
    assert headers["X-Flawmap-Event"] == "part"
    until(lambda: line.lamps["webhook"] == ("ok", f"webhook http://127.0.0.1:{receiver.port}: 1 sent"))
    sender.close()
    assert line.lamps["webhook"][0] == "off"


def test_what_was_changed_or_is_old_or_has_another_secret_is_not_verified() -> None:
    body, now = b'{"part":"a"}', "1764345600"
    good = sign(SECRET, now, body)
    assert verify(SECRET, now, good, body, at=1764345600 + 300)
    assert verify(SECRET, now, good, body, at=1764345600 - 300)
    assert not verify(SECRET, now, good, body, at=1764345600 + 301)
    assert not verify(SECRET, now, good, body, at=1764345600 - 301)
    assert not verify(SECRET, now, good, body + b" ", at=1764345600)
    assert not verify(SECRET, "1764345601", good, body, at=1764345600)
    assert not verify(b"another secret of bytes", now, good, body, at=1764345600)
    for wrong in ("", "v1=", good.removeprefix("v1="), good.replace("v1", "v2"), "é"):
        assert not verify(SECRET, now, wrong, body, at=1764345600)
    for wrong in ("", "now", "-1764345600", "1e9", "٣", "9" * 40):
        assert not verify(SECRET, wrong, sign(SECRET, wrong, body), body, at=1764345600)


def test_it_is_tried_again_with_the_same_delivery_until_it_is_taken(
    line: Line, hook: Any, receiver: Receiver, until: Any
) -> None:
    hook()
    receiver.answers = [500, 503, 429]
    line.event("TEST", "tried four times")
    until(lambda: len(receiver.got) == 4)
    assert len({headers["X-Flawmap-Delivery"] for headers, _ in receiver.got}) == 1
    assert all(verify(SECRET, h["X-Flawmap-Timestamp"], h["X-Flawmap-Signature"], b) for h, b in receiver.got)
    until(lambda: line.lamps["webhook"][0] == "ok")


@pytest.mark.parametrize("code", [301, 302, 307, 308, 400, 401, 404])
def test_a_redirect_is_not_followed_and_a_refusal_is_not_tried_again(
    line: Line, hook: Any, receiver: Receiver, until: Any, code: int
) -> None:
    sender = hook()
    receiver.answers = [code]
    line.event("TEST", "refused")
    until(lambda: sender.outbox.lost == 1)
    assert len(receiver.got) == 1
    assert line.lamps["webhook"][0] == "bad"
    line.event("TEST", "the next one is sent")
    until(lambda: len(receiver.got) == 2)


def test_a_receiver_that_is_gone_gets_all_in_order_when_it_is_back(line: Line, until: Any) -> None:
    first = Receiver()
    sender = Webhook(line, f"http://127.0.0.1:{first.port}/", SECRET, retry_s=FAST, timeout_s=1.0, tries=500)
    first.close()
    for number in range(5):
        line.event("TEST", f"{number}")
    until(lambda: line.lamps["webhook"][0] == "bad")
    assert "refused" in line.lamps["webhook"][1]
    again = Receiver(first.port)
    until(lambda: len(again.got) == 5)
    assert [json.loads(body)["reason"] for _, body in again.got] == ["0", "1", "2", "3", "4"]
    sender.close()
    again.close()


def test_a_message_is_given_up_after_so_many_tries(line: Line, hook: Any, receiver: Receiver, until: Any) -> None:
    sender = hook(tries=3)
    receiver.answers = [500] * 3
    line.event("TEST", "given up")
    until(lambda: sender.outbox.lost == 1)
    assert (len(receiver.got), len(sender.outbox)) == (3, 0)


def test_a_receiver_that_hangs_holds_up_no_verdict(
    line: Line, hook: Any, receiver: Receiver, pictures: dict[str, Picture], until: Any
) -> None:
    line.inspect("warm", [pictures["good"]])
    sender = hook(most=3, timeout_s=5.0)
    receiver.gate.clear()
    begun = time.monotonic()
    for number in range(6):
        assert line.inspect(f"part-{number}", [pictures["good"]])["verdict"] == "OK"
    assert time.monotonic() - begun < 4.0
    assert (len(sender.outbox), sender.outbox.lost) == (3, 3)
    receiver.gate.set()
    until(lambda: receiver.parts[-3:] == ["part-3", "part-4", "part-5"])
    until(lambda: line.lamps["webhook"][0] == "bad" and "lost" in line.lamps["webhook"][1])


def test_only_what_was_chosen_is_sent(
    line: Line, hook: Any, receiver: Receiver, pictures: dict[str, Picture], until: Any
) -> None:
    hook(what=("decision",))
    row = line.inspect("bad", [pictures["bad"]])
    line.decide(row["seq"], "really bad", "a square", "anna")
    until(lambda: receiver.got)
    assert [headers["X-Flawmap-Event"] for headers, _ in receiver.got] == ["decision"]
    assert json.loads(receiver.got[0][1])["refers"] == row["seq"]


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://", "127.0.0.1", "http://u:p@host/x"]
)
def test_another_url_than_of_http_is_refused(line: Line, url: str) -> None:
    with pytest.raises(UsageError, match="a URL of http or https"):
        Webhook(line, url, SECRET)


def test_a_short_secret_and_an_unknown_message_are_refused(line: Line) -> None:
    with pytest.raises(UsageError, match="at least 16 bytes"):
        Webhook(line, "http://127.0.0.1/", b"short")
    with pytest.raises(UsageError, match="not 'picture'"):
        Webhook(line, "http://127.0.0.1/", SECRET, what=("part", "picture"))


def test_an_outbox_loses_the_oldest_and_counts_them_once() -> None:
    box = Outbox(2, lambda: None)
    for number in range(2):
        box.put(number)
    held = box.first()
    assert held == (0, 0)
    box.put(2)
    box.remove(held[0], lost=True)  # it has made room already
    assert (len(box), box.lost, box.first()) == (2, 1, (1, 1))
    box.remove(1)
    assert (len(box), box.lost, box.first()) == (1, 1, (2, 2))
    with pytest.raises(UsageError, match="at least 1"):
        Outbox(0, lambda: None)


def test_a_message_names_no_path(line: Line, pictures: dict[str, Picture]) -> None:
    row = line.inspect("good", [pictures["good"]])
    row["views"][0]["path"] = "2026-11-28/x.png"
    assert "path" not in json.dumps(message("part", row, "s1"))
    assert message("fault", {"part": "a", "code": "LEDGER", "reason": "disk", "source": "http"}, "s1")["row"] is None


def test_the_headers_stand_in_the_page() -> None:
    text = PAGE.read_text("utf-8")
    for name in ("Timestamp", "Signature", "Delivery", "Event"):
        assert f"`X-Flawmap-{name}`" in text

"""Rows of the ledger to an HTTP server of the plant: JSON, signed, tried again. A verdict never waits for it.

    X-Flawmap-Timestamp: 1764345600           seconds since 1970, when this was sent
    X-Flawmap-Signature: v1=HEX               HMAC-SHA256 with the shared secret over timestamp + "." + body
    X-Flawmap-Delivery: UUID                  the same one each time a message is tried again
    X-Flawmap-Event: part                     or decision, event, fault

A receiver calls `verify` with what it got, and leaves out deliveries that it has seen.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import logging
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from flawmap.errors import UsageError
from flawmap.station.ledger import Row
from flawmap.station.line import Line
from flawmap.station.outbox import WHAT, Outbox, message

LEAST_SECRET = 16  # bytes
TOLERANCE_S = 300.0
AGAIN = {408, 425, 429}  # besides 500 and above: what of a client's errors may pass
_LOG = logging.getLogger("flawmap.station")


def sign(secret: bytes, timestamp: str, body: bytes) -> str:
    """What X-Flawmap-Signature holds."""
    return "v1=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def verify(
    secret: bytes,
    timestamp: str,
    signature: str,
    body: bytes,
    *,
    tolerance_s: float = TOLERANCE_S,
    at: float | None = None,
) -> bool:
    """Whether a request came from who has the secret, unchanged, at most so long ago. For receivers.

    body  the bytes as they came, before JSON is read
    """
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 20):
        return False
    fresh = abs((time.time() if at is None else at) - int(timestamp)) <= tolerance_s
    return hmac.compare_digest(sign(secret, timestamp, body).encode(), signature.encode("utf-8", "replace")) and fresh


class Webhook:
    """Runs beside the service until it is closed. One receiver; for several make several.

    secret   shared with the receiver, at least 16 bytes
    what     which messages: part, decision, event, fault
    most     messages that wait; then the oldest are lost, and counted
    tries    of one message, before it is given up
    retry_s  the first pause after a failure, doubled up to the second

    A redirect is an error, and so is another scheme than http and https: the station talks to who was named, only.
    """

    def __init__(
        self,
        line: Line,
        url: str,
        secret: bytes,
        *,
        what: Sequence[str] = WHAT,
        most: int = 1000,
        tries: int = 10,
        retry_s: tuple[float, float] = (1.0, 60.0),
        timeout_s: float = 5.0,
        lamp: str = "webhook",
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise UsageError("a webhook is a URL of http or https, without a user or password in it")
        if len(secret) < LEAST_SECRET:
            raise UsageError(f"the secret of a webhook has at least {LEAST_SECRET} bytes")
        if unknown := sorted(set(what) - set(WHAT)):
            raise UsageError(f"a webhook sends {', '.join(WHAT)}, not {unknown[0]!r}")
        self.line, self.where, self.lamp = line, f"{parts.scheme}://{parts.netloc}", lamp
        self.tries, self.retry_s, self.timeout_s, self.sent = tries, retry_s, timeout_s, 0
        self._url, self._secret = url, secret
        self._ending, self._woken = threading.Event(), threading.Event()
        self.outbox = Outbox(most, self._woken.set)
        self._opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._thread.start()
        self._light("ok", "waits for the first part")
        chosen = frozenset(what)
        self._unlisten = line.listen(lambda what, row: self._put(what, row) if what in chosen else None)

    def close(self, wait_s: float = 2.0) -> None:
        """Sends what waits, for so long, and ends."""
        self._unlisten()
        until = time.monotonic() + wait_s
        while len(self.outbox) and time.monotonic() < until:
            time.sleep(0.02)
        self._ending.set()
        self._woken.set()
        self._thread.join(self.timeout_s + 1)
        self.line.lamps[self.lamp] = ("off", "closed")

    def _put(self, what: str, row: Row) -> None:
        self.outbox.put((str(uuid.uuid4()), what, row))

    def _run(self) -> None:
        while not self._ending.is_set():
            self._woken.clear()
            if self._ending.is_set():  # else its waking could be what was cleared
                return
            while (found := self.outbox.first()) is not None and not self._ending.is_set():
                number, (delivery, what, row) = found
                delivered = self._deliver(delivery, what, row)
                if self._ending.is_set() and not delivered:
                    break
                self.outbox.remove(number, lost=not delivered)
                lost = f", {self.outbox.lost} lost" if self.outbox.lost else ""
                self._light("bad" if lost else "ok", f"{self.sent} sent{lost}")
            self._woken.wait()

    def _deliver(self, delivery: str, what: str, row: Row) -> bool:
        body = json.dumps(message(what, row, self.line.ledger.station)).encode()
        pause = self.retry_s[0]
        for number in range(1, self.tries + 1):
            said, final = self._post(delivery, what, body)
            if not said:
                self.sent += 1
                return True
            _LOG.warning("webhook %s: %s, try %d of %d", self.where, said, number, self.tries)
            self._light("bad", f"{said}; {len(self.outbox)} waiting")
            if final or number == self.tries or self._ending.wait(pause):
                return False
            pause = min(2 * pause, self.retry_s[1])
        return False

    def _post(self, delivery: str, what: str, body: bytes) -> tuple[str, bool]:
        """ "" or what went wrong, and whether it is of no use to try again."""
        timestamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "flawmap",
            "X-Flawmap-Event": what,
            "X-Flawmap-Delivery": delivery,
            "X-Flawmap-Timestamp": timestamp,
            "X-Flawmap-Signature": sign(self._secret, timestamp, body),
        }
        request = urllib.request.Request(self._url, body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.timeout_s):
                return "", False
        except urllib.error.HTTPError as error:
            with error:
                return f"HTTP {error.code}", error.code < 500 and error.code not in AGAIN
        except (OSError, http.client.HTTPException, ValueError) as error:
            return f"{getattr(error, 'reason', error)}", False
        except Exception as error:  # whatever it is, the next message gets its turn
            _LOG.exception("webhook")
            return type(error).__name__, False

    def _light(self, state: str, text: str) -> None:
        self.line.lamps[self.lamp] = (state, f"webhook {self.where}: {text}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None

"""`flawmap serve` as a process of its own: it starts, judges, is stopped with parts inside, and refuses to start."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest

from flawmap import cli
from flawmap.station.access import new_token
from flawmap.station.ledger import Ledger
from flawmap.station.line import Picture

Pictures = dict[str, Picture]


@contextmanager
def _running(flaw: Path, folder: Path, *words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and where it says that it listens."""
    command = [sys.executable, "-m", "flawmap.cli", "serve", f"square={flaw}", "--port", "0"]
    command += ["--ledger", str(folder / "line.db"), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr
        try:
            url, said = "", ""
            while not url and (line := process.stderr.readline()):
                said += line
                url = next(iter(re.findall(r"^flawmap: (https?://\S+) \(", line)), "")
            assert url, said
            # What else it says must not fill the pipe.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            _answers(url)
            yield process, url
        finally:
            process.kill()


def _answers(url: str) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            httpx.get(f"{url}/health/live", verify=False, trust_env=False)
            return
        except httpx.TransportError:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_a_station_stopped_with_parts_inside_answers_and_writes_them_all(
    flaw: Path, tmp_path: Path, pictures: Pictures, until: Callable[..., object]
) -> None:
    with (
        _running(flaw, tmp_path, "--station", "s7") as (process, url),
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        post = lambda n: client.post(f"/v1/inspect?part=P{n}", content=pictures["bad"].content)  # noqa: E731
        assert post(0).json()["verdict"] == "NOK"
        with (
            closing(sqlite3.connect(tmp_path / "line.db", isolation_level=None)) as other,
            ThreadPoolExecutor(6) as pool,
        ):
            other.execute("BEGIN IMMEDIATE")  # holds the ledger, so that what is accepted stays inside
            inside = [pool.submit(post, n) for n in range(1, 7)]
            until(lambda: client.get("/v1/status").json()["inside"] == 6)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)  # once more changes nothing
            with pytest.raises(httpx.TransportError):
                until(lambda: httpx.get(f"{url}/health/live", trust_env=False) and False, 3)
            other.execute("ROLLBACK")
            answers = [one.result() for one in inside]
        assert process.wait(20) == 0
    assert [(answer.status_code, answer.json()["part"]) for answer in answers] == [(200, f"P{n}") for n in range(1, 7)]
    ledger = Ledger(tmp_path / "line.db")
    heads = {answer.json()["seq"]: answer.json()["hash"] for answer in answers}
    assert ledger.verify(heads) == (9, [])
    assert [row["code"] for row in ledger.rows(kinds=("event",))] == ["STOP", "START"]
    assert {row["station"] for row in ledger.rows()} == {"s7"}
    ledger.close()


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_a_station_killed_at_any_moment_has_every_answer_in_its_ledger_once(
    kills: int, flaw: Path, tmp_path: Path, pictures: Pictures
) -> None:
    """Clients ask again, by the same id, what was not answered, as a line would."""
    answered: dict[str, tuple[int, str]] = {}  # id -> row and hash
    random_ = random.Random(kills)

    def client(url: str, n: int) -> None:
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as line, suppress(httpx.TransportError):
            for id in (f"{n}-{number}" for number in range(40 * kills)):
                if id not in answered:
                    said = line.post(f"/v1/inspect?part={id}&id={id}", content=pictures["bad"].content).json()
                    answered[id] = (said["seq"], said["hash"])

    for _ in range(kills):
        with _running(flaw, tmp_path) as (process, url), ThreadPoolExecutor(4) as pool:
            running = [pool.submit(client, url, n) for n in range(4)]
            time.sleep(random_.uniform(0.05, 0.8))
            process.kill()
            process.wait()
        for one in running:
            one.result()
    with _running(flaw, tmp_path) as (process, url):
        before = len(answered)
        client(url, 0)
        assert len(answered) > before  # it was killed before all were judged
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    ledger = Ledger(tmp_path / "line.db")
    assert ledger.verify(dict(answered.values()))[1] == []
    rows = [row for row in ledger.all() if row["kind"] == "verdict"]
    asked = [row["request"] for row in rows]
    assert len(set(asked)) == len(asked) >= len(answered)  # a row may be written whose answer was never heard
    assert {row["part"] for row in rows} == set(asked)
    ledger.close()


def _certificate(folder: Path) -> tuple[Path, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "station")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost")])
    made = made.add_extension(names, False).add_extension(x509.BasicConstraints(True, None), True)
    signed = made.sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    secret = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    (folder / "key.pem").write_bytes(key.private_bytes(*secret, serialization.NoEncryption()))
    (folder / "locked.pem").write_bytes(key.private_bytes(*secret, serialization.BestAvailableEncryption(b"x")))
    return folder / "cert.pem", folder / "key.pem"


def test_a_station_on_the_network_speaks_tls_and_takes_tokens(flaw: Path, tmp_path: Path, pictures: Pictures) -> None:
    cert, key = _certificate(tmp_path)
    token, line = new_token("anna", "operate")
    (tmp_path / "tokens").write_text(line + "\n")
    words = ("--host", "0.0.0.0", "--tokens", tmp_path / "tokens", "--tls-cert", cert, "--tls-key", key)
    with _running(flaw, tmp_path, *words) as (process, url):
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert url.startswith("https://")
        context = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(base_url=url, verify=context, trust_env=False, timeout=20) as client:
            assert client.get("/v1/status").status_code == 401
            auth = {"authorization": f"Bearer {token}"}
            said = client.post("/v1/inspect", content=pictures["good"].content, headers=auth).json()
            assert said["verdict"] == "OK"
            login = client.post("/login", data={"token": token})
            assert login.status_code == 303
            cookie = login.headers["set-cookie"].lower()
            assert all(word in cookie for word in ("httponly", "secure", "samesite=strict"))
            assert client.get("/v1/status").json()["ready"]  # by the cookie
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http"), trust_env=False)
        old = ssl.create_default_context(cafile=str(cert))
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(httpx.TransportError):
            httpx.get(url, verify=old, trust_env=False)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    ledger = Ledger(tmp_path / "line.db")
    assert ledger.rows()[0]["who"] == "anna"
    ledger.close()


# ---- what refuses to start; nothing is written then


def _refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    code = cli.main(["serve", *map(str, words), "--ledger", str(tmp_path / "line.db")])
    assert code == 2
    assert not (tmp_path / "line.db").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "station.example", ""])
def test_without_tokens_nothing_but_this_machine_is_served(
    flaw: Path, tmp_path: Path, host: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLAWMAP_TOKENS", raising=False)
    assert "give tokens with --tokens FILE or FLAWMAP_TOKENS" in _refused(tmp_path, capsys, flaw, "--host", host)


def test_a_port_in_use_is_said_before_anything_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = _refused(tmp_path, capsys, tmp_path / "absent.flaw", "--port", port)
    assert (
        said
        == f"flawmap: 127.0.0.1:{port} cannot be listened on: Address already in use; choose another --port or --host\n"
    )


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--port", 65536), "a port is below 65536"),
        (("--port", -1), "a port is below 65536"),
        (("--most-mb", 0), "at least a byte"),
        (("--most-mb", "nan"), "at least a byte"),
        (("--most-mb", "inf"), "at least a byte"),
        (("--deadline", "inf"), "a number of seconds"),
        (("--block",), "--block goes with --challenge"),
        (("--tls-cert", "cert.pem"), "TLS takes both"),
        (("--tls-cert", "absent.pem", "--tls-key", "key.pem"), "there is no such file"),
        (("--tls-cert", "key.pem", "--tls-key", "cert.pem"), "no certificate in PEM with its key"),
        (("--tls-cert", "cert.pem", "--tls-key", "locked.pem"), "unencrypted"),
        (("--tokens", "cert.pem"), "a token is NAME ROLE SHA256"),
        (("--tokens", "absent"), "cannot be read"),
    ],
)
def test_options_that_make_no_station_are_refused(
    flaw: Path, tmp_path: Path, words: tuple[object, ...], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _certificate(tmp_path)
    given = [tmp_path / word if str(word).endswith(("pem", "absent")) else word for word in words]
    port = () if "--port" in words else ("--port", 0)
    assert why in _refused(tmp_path, capsys, flaw, *port, *given)


def test_two_bundles_of_one_name_are_refused(flaw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "two recipes are called 'square'" in _refused(tmp_path, capsys, flaw, f"square={flaw}")

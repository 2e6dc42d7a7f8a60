"""A station under load: docs/load.md. A real `flawmap serve`, clients on loopback, the ledger against their list.

python benchmarks/load.py judges      stations with one and with two judges, in turn: one client, then four
python benchmarks/load.py overload [--seconds 300]

overload: twice the rate that a station can take, whether it answers or not; every answer is held against the ledger,
afterwards. Every part has an id of its own.

SimpleNet on Lite0, PNGs of mvtec/bottle at their own size with one pixel changed. Clients share the cores with it.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from paired import CATEGORY, bundle, made_by, section
from PIL import Image
from results import DATA, HERE

from flawmap.station.ledger import Ledger

PAGE = HERE.parent / "docs" / "load.md"
CLOSED_S, CLIENTS, ROUNDS = 8, 4, 5
JUDGES = (1, 2)
SENDERS = 48  # that wait for an answer at once: more than the station lets wait


class Client:
    """One connection that is kept; opened again when it was closed."""

    def __init__(self, port: int) -> None:
        self.port, self.connection = port, None

    def send(self, number: int, content: bytes) -> tuple[int, dict[str, Any], float]:
        """Status, answer, and seconds; status 0: no answer."""
        begun = time.perf_counter()
        try:
            self.connection = self.connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            path = f"/v1/inspect?part=load-{number}&id=load-{number}"
            self.connection.request("POST", path, content, {"content-type": "image/png"})
            answer = self.connection.getresponse()
            return answer.status, json.loads(answer.read()), time.perf_counter() - begun
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.connection = None
            return 0, {"error": {"code": type(error).__name__}}, time.perf_counter() - begun


@contextmanager
def station(folder: Path, judges: int) -> Iterator[tuple[int, subprocess.Popen[bytes], Path]]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    ledger = folder / f"judges-{judges}-{port}.db"
    words = [sys.executable, "-m", "flawmap.cli", "serve", str(bundle("simplenet")), "--port", str(port)]
    words += ["--ledger", str(ledger), "--judges", str(judges), "--keep", str(folder / "kept"), "--keep-gb", "0.2"]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        _wait(port, process)
        yield port, process, ledger
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "the station did not start"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError("the station did not start")


def pictures() -> list[np.ndarray]:
    paths = sorted((DATA / CATEGORY / "test" / "good").glob("*.png"))[:8]
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def different(pixels: list[np.ndarray], number: int) -> bytes:
    """A picture that no other number has."""
    picture = pixels[number % len(pixels)].copy()
    picture[0, :3, 0] = number // 65536 % 256, number // 256 % 256, number % 256
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=0)
    return file.getvalue()


def alone(port: int, pixels: list[np.ndarray], first: int, parts: int = 20) -> list[float]:
    """Milliseconds of parts that find the station idle."""
    client, times = Client(port), []
    for number in range(first, first + parts):
        status, _, seconds = client.send(number, different(pixels, number))
        assert status == 200
        times.append(1000 * seconds)
        time.sleep(0.02)
    return times


def closed(port: int, pixels: list[np.ndarray], first: int) -> float:
    """Parts a second with a few clients that send as soon as they have their answer."""
    count, end = Counter[int](), time.monotonic() + CLOSED_S

    def work(worker: int) -> None:
        client, number = Client(port), 0
        while time.monotonic() < end:
            number += CLIENTS
            status, *_ = client.send(first + number + worker, different(pixels, number + worker))
            count[status] += 1

    _all(work, CLIENTS)
    assert set(count) == {200}, count
    return count[200] / CLOSED_S


def open_loop(
    port: int, process: subprocess.Popen[bytes], pixels: list[np.ndarray], rate: float, seconds: float
) -> Any:
    """Sends at a rate, whether it is answered or not; every answer by the part's number, and the memory on the way."""
    answers: dict[int, tuple[int, dict[str, Any], float]] = {}
    begun, lock, following = time.monotonic(), threading.Lock(), iter(range(10**9))
    memory: list[tuple[float, float]] = []
    prepared = [different(pixels, number) for number in range(16)]

    def work(worker: int) -> None:
        client = Client(port)
        while True:
            with lock:
                number = next(following)
            due = begun + number / rate
            if due > begun + seconds:
                return
            time.sleep(max(0.0, due - time.monotonic()))
            answers[number] = client.send(number, prepared[number % 16])
            if worker == 0:
                memory.append((time.monotonic() - begun, resident(process.pid)))

    _all(work, SENDERS)
    return answers, memory, time.monotonic() - begun


def resident(pid: int) -> float:
    """MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _all(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def held_against(answers: dict[int, tuple[int, dict[str, Any], float]], path: Path) -> dict[str, int]:
    """The ledger against what the clients were told. Raises where they differ: a lost or doubled verdict."""
    ledger = Ledger(path)
    rows = {row["request"]: row for row in ledger.all() if (row["request"] or "").startswith("load-")}
    told = {f"load-{number}": answer for number, (status, answer, _) in answers.items() if status == 200}
    mine = {request for request in rows if int(request[5:]) < 10**6}
    lost = [request for request, answer in told.items() if rows.get(request, {}).get("hash") != answer["hash"]]
    untold = mine - set(told)
    heads = {answer["seq"]: answer["hash"] for answer in told.values()}
    count, wrong = ledger.verify(heads)
    assert not lost, f"{len(lost)} answers are not in the ledger"
    assert not untold, f"{len(untold)} rows of which nobody was told"
    assert not wrong, wrong
    return {"rows": count, "told": len(told)}


def judges() -> None:
    pixels, first = pictures(), 10**6
    idle: dict[int, list[float]] = {n: [] for n in JUDGES}
    rates: dict[int, list[float]] = {n: [] for n in JUDGES}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stations:
        ports = {n: stations.enter_context(station(Path(scratch), n))[0] for n in JUDGES}
        for _ in range(ROUNDS):
            for n, port in ports.items():
                idle[n] += alone(port, pixels, first)
                rates[n].append(closed(port, pixels, first + 100))
                first += 10**5
                print(n, f"{rates[n][-1]:.1f} parts a second", flush=True)
    table = [f"| {n} | {_middle(idle[n])} | {sorted(idle[n])[-2]:.0f} | {_middle(rates[n], 1)} |" for n in JUDGES]
    lines = [
        made_by("load.py judges") + f" {ROUNDS} rounds in turn; the middle half in brackets.",
        "",
        "| judges | ms a part, idle | one in 50 takes longer than | parts a second, 4 clients |",
        "|---|---|---|---|",
        *table,
    ]
    section("Judges", lines, PAGE)


def _middle(values: list[float], digits: int = 0) -> str:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def overload(seconds: float) -> None:
    pixels = pictures()
    with tempfile.TemporaryDirectory() as scratch:
        with station(Path(scratch), 2) as (port, process, path):
            rate = closed(port, pixels, 10**6)
            answers, memory, took = open_loop(port, process, pixels, 2 * rate, seconds)
        found = held_against(answers, path)
    times = sorted(1000 * seconds for status, _, seconds in answers.values() if status == 200)
    codes = Counter(f"{status} {(a.get('error') or {}).get('code', '')}".strip() for status, a, _ in answers.values())
    warm = [mb for at, mb in memory if at > took / 5]
    lines = [
        made_by("load.py overload"),
        "",
        f"Twice the {rate:.1f} parts a second that it judged when nobody was refused, for {took:.0f} s: "
        f"{len(answers):,} parts were sent. Answers: {', '.join(f'{n:,} times {code}' for code, n in codes.items())}. "
        f"Of the {found['told']:,} verdicts each stands in the ledger once, with the hash that was answered; the "
        f"ledger has no part of which nobody was told, and its chain of {found['rows']:,} rows is whole. Verdicts took "
        f"{times[len(times) // 2]:.0f} ms (median) and {times[int(len(times) * 0.99)]:.0f} ms (99 %), "
        f"{len(times) / took:.1f} a second. Memory: "
        f"{warm[0]:.0f} MB after a fifth of the time, {warm[-1]:.0f} MB at the end, {max(warm):.0f} MB at most.",
    ]
    section("Overload", lines, PAGE)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("judges", "overload"))
    parser.add_argument("--seconds", type=float, default=300)
    args = parser.parse_args()
    judges() if args.what == "judges" else overload(args.seconds)


if __name__ == "__main__":
    main()

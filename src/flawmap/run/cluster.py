"""Work on a Ray cluster: shards of pictures, or any function over jobs. The only file that knows Ray.

Ray sends its messages as pickles, so who may speak to a cluster may run code on it: an address is joined with token
authentication unless RAY_AUTH_MODE says otherwise, a local cluster listens on the loopback only, and Ray reports
nothing about its use.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from flawmap.errors import FlawmapError, MissingExtra, UsageError
from flawmap.run.progress import progress
from flawmap.run.shards import Job, Judge

LOCAL = "local"
WAIT_S = 2.0  # before shards are asked for again that other processes are at


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The package ray, joined to a cluster (HOST:PORT, auto), or to one of this machine's cores that ends with us.

    MissingExtra: no ray. FlawmapError: no cluster there, or no token for it.
    """
    address = address or LOCAL
    local = address == LOCAL
    if "ray" not in sys.modules:  # it reads these once; who imported it before has chosen for himself
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if local:
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on all systems: the loopback only
            if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray leaves one in the home folder
    try:
        import ray
        from ray.exceptions import RayError
    except ModuleNotFoundError as error:
        raise MissingExtra("ray", "cluster", "work on a cluster") from error
    if ray.is_initialized():  # the caller's own
        yield ray
        return
    try:
        ray.init(
            address, log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False if local else None
        )
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise FlawmapError(f"no Ray cluster at {address}: {error}") from error
    try:
        with redirect_stdout(_Ours()):  # type: ignore[type-var]
            yield ray
    finally:
        with redirect_stdout(sys.stderr):
            ray.shutdown()


class _Ours:
    """Stdout of the thread that is here; what Ray's threads remark goes to stderr, and not between results."""

    def __init__(self) -> None:
        self.stdout, self.thread = sys.stdout, threading.get_ident()

    def write(self, text: str) -> int:
        return (self.stdout if threading.get_ident() == self.thread else sys.stderr).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stdout, name)


class _Actor:
    """One core of the cluster, with the model of a job."""

    def __init__(self, out: str) -> None:
        os.environ.setdefault("FLAWMAP_THREADS", "1")
        self.judge = Judge(Path(out))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"shard": batch["shard"], "mine": [self.judge(int(shard)) for shard in batch["shard"]]}


def judge(job: Job, address: str, workers: int | None = None) -> None:
    """Until every shard of the job has its file: Ray Data hands them to actors, and starts those anew that die.

    `job.out` and the pictures must lie on storage that all nodes see under the same path.
    """
    total = sum(job.sizes)
    with connected(address) as ray, progress("inspect", total) as tick:
        import ray.data as data

        data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        actors = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        while left := job.left():
            done = total - sum(job.sizes[shard] for shard in left)
            shards = data.from_items([{"shard": shard} for shard in left], override_num_blocks=len(left))
            judged = shards.map_batches(
                _Actor,
                fn_constructor_args=(str(job.out.absolute()),),
                batch_size=1,
                num_cpus=1,
                compute=data.ActorPoolStrategy(size=min(actors, len(left))),
            )
            try:
                found = 0
                for row in judged.iter_rows():
                    found += bool(row["mine"])
                    done += job.sizes[int(row["shard"])] * bool(row["mine"])
                    tick(done)
            except ray.exceptions.RayError as error:
                raise FlawmapError(f"the cluster stopped: {_text(error)}") from error
            if not found:
                time.sleep(WAIT_S)


def fill(
    work: Callable[[Any], Any], jobs: Iterable[Any], address: str = LOCAL, gpus: float = 0, retries: int = 2
) -> Iterator[tuple[Any, Any]]:
    """(job, what `work` returns of it) as they finish; of one that failed at all its retries (job, why, a text).

    gpus  of each job, such as 0.25; a core besides. The nodes must be able to import `work`, and jobs to be pickled.
    UsageError: no GPU in the cluster.
    """
    with connected(address) as ray:
        if gpus > ray.cluster_resources().get("GPU", 0):
            raise UsageError(
                f"jobs of {gpus:g} GPUs would wait for ever: the cluster has too few; start nodes with GPUs"
            )
        # A process each, so that its peak of memory is its own.
        # Its errors are tried again too: of jobs that share a GPU, one may find its memory taken.
        task = ray.remote(num_gpus=gpus, num_cpus=1, max_retries=retries, max_calls=1, retry_exceptions=True)(_do)
        waiting = {task.remote(work, job): job for job in jobs}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(done)
            try:
                found = ray.get(done)
            except ray.exceptions.RayError as error:
                found = _text(error)
            yield job, found


def _do(work: Callable[[Any], Any], job: Any) -> Any:
    return work(job)


def _text(error: Exception) -> str:
    """What went wrong in the work itself, where that is known."""
    cause = getattr(error, "cause", None) or error
    words = " ".join(str(cause).split())
    return words if isinstance(cause, FlawmapError) else f"{type(cause).__name__}: {words}"

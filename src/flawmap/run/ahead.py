"""Reading ahead: the next picture is decoded on another thread while the engine is at this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(work: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """`work` of each item, in order; at most one is made before it is asked for. What it raises comes in its place."""
    with ThreadPoolExecutor(1) as thread:
        left = iter(items)
        coming = [thread.submit(work, item) for item in islice(left, 1)]
        while coming:
            found = coming.pop()
            coming += [thread.submit(work, item) for item in islice(left, 1)]
            yield found.result()

"""Cutting samples into disjoint sets by part: views of one part always stay together, and sizes count parts.

Parts are put in the order of a hash of seed and name, so that a cut depends on nothing but the set of parts, the seed
and the shares: not on the order of the input, the platform or a generator's version.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

from flawmap.errors import DataError, UsageError
from flawmap.types import Sample


def split(samples: Iterable[Sample], shares: Sequence[float], seed: int) -> list[list[Sample]]:
    """One set a share, in proportion and each with a part at least. DataError: fewer parts than shares."""
    if not shares or not all(0 < share < float("inf") for share in shares):
        raise UsageError(f"shares are {list(shares)}; give positive numbers such as (0.7, 0.3)")
    parts = _shuffled(samples, seed)
    if len(parts) < len(shares):
        raise DataError(f"{len(parts)} parts cannot be cut into {len(shares)} sets; add pictures of other parts")
    sets, start = [], 0
    for size in _sizes(len(parts), shares):
        sets.append(_gather(parts[start : start + size]))
        start += size
    return sets


def folds(samples: Iterable[Sample], k: int, seed: int) -> list[list[Sample]]:
    """`k` sets whose numbers of parts differ by one at most. DataError: fewer parts than folds."""
    if k < 2:
        raise UsageError(f"k is {k}; give 2 folds or more")
    parts = _shuffled(samples, seed)
    if len(parts) < k:
        raise DataError(f"{len(parts)} parts cannot be cut into {k} folds; add pictures of other parts or lower k")
    return [_gather(parts[fold::k]) for fold in range(k)]


def shots(samples: Iterable[Sample], k: int, draw: int) -> list[Sample]:
    """All views of `k` parts, one of many draws: the same ones for every method. DataError: fewer parts than `k`."""
    if k < 1 or draw < 0:
        raise UsageError(f"shots is {k} and draw is {draw}; give 1 part or more, and draws from 0")
    parts = _shuffled(samples, f"shots {draw}")
    if len(parts) < k:
        raise DataError(f"{k} shots were asked for and there are {len(parts)} good parts")
    return _gather(parts[:k])


def _shuffled(samples: Iterable[Sample], seed: int | str) -> list[list[Sample]]:
    """The samples of each part, parts in the order of their hashes."""
    by_part: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_part[sample.part].append(sample)

    def key(part: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{part}".encode(errors="surrogateescape")).digest()

    return [by_part[part] for part in sorted(by_part, key=key)]


def _gather(parts: list[list[Sample]]) -> list[Sample]:
    return sorted((sample for part in parts for sample in part), key=lambda sample: sample.name)


def _sizes(total: int, shares: Sequence[float]) -> list[int]:
    """Largest remainders, then one part at least to each from the largest set."""
    exact = [total * share / sum(shares) for share in shares]
    sizes = [int(size) for size in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: sizes[i] - exact[i])
    for i in by_remainder[: total - sum(sizes)]:
        sizes[i] += 1
    while 0 in sizes:
        sizes[sizes.index(max(sizes))] -= 1
        sizes[sizes.index(0)] += 1
    return sizes

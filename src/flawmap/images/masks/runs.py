"""Masks as run lengths: COCO's (by columns, as numbers or as text), CVAT's (by rows), Label Studio's packed bits.

Runs begin with the length of what is not marked, which may be 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flawmap.errors import DataError

_SIZES = (3, 4, 8, 16)  # bits of a run's length in Label Studio's, as its own packer has them
_CHANNELS = 4  # Label Studio keeps RGBA, one value repeated


def lengths(mask: np.ndarray) -> list[int]:
    """By rows."""
    flat = mask.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


def unrolled(runs: Sequence[int], size_hw: tuple[int, int], where: str) -> np.ndarray:
    """(H, W) bool, by rows. DataError: a negative run, or their sum is another number of pixels."""
    _refuse_other(runs, size_hw, where)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size_hw)


def lengths_by_columns(mask: np.ndarray, left: int, top: int, size_hw: tuple[int, int]) -> list[int]:
    """Of a picture in which `mask` lies at (left, top), without drawing the picture: there may be many such masks."""
    high, wide = size_hw
    edges = np.diff(np.pad(mask, ((1, 1), (0, 0))).astype(np.int8), axis=0)
    (first, begin_rows), (last, end_rows) = np.nonzero(edges.T > 0), np.nonzero(edges.T < 0)
    begins = ((left + first) * high + top + begin_rows).tolist()
    ends = ((left + last) * high + top + end_rows).tolist()
    runs, done = [], 0
    for begin, end in zip(begins, ends, strict=True):
        if begin == done and len(runs) > 1:  # the column before it ended marked
            runs[-1] += end - begin
        else:
            runs += [begin - done, end - begin]
        done = end
    return [*runs, high * wide - done] if done < high * wide else runs


def unrolled_columns(runs: Sequence[int], size_hw: tuple[int, int], where: str) -> tuple[int, np.ndarray]:
    """The first column with a mark, and (H, w) bool from there to the last one. DataError as of `unrolled`."""
    _refuse_other(runs, size_hw, where)
    high = size_hw[0]
    bounds = np.cumsum([0, *runs])  # what is marked lies from each odd one to the next
    marked = np.flatnonzero(np.diff(bounds)[1::2]) * 2 + 1
    if not marked.size:
        return 0, np.zeros((high, 0), bool)
    left, right = int(bounds[marked[0]]) // high, -(-int(bounds[marked[-1] + 1]) // high)
    inner = np.diff(np.clip(bounds, left * high, right * high))
    return left, np.repeat(np.arange(len(inner)) % 2 == 1, inner).reshape(right - left, high).T


def _refuse_other(runs: Sequence[int], size_hw: tuple[int, int], where: str) -> None:
    if min(runs, default=0) < 0 or sum(runs) != size_hw[0] * size_hw[1]:
        raise DataError(
            f"{where}: the runs are {sum(runs)} pixels long, the mask has {size_hw[0] * size_hw[1]}; export it again"
        )


def packed(runs: Sequence[int]) -> str:
    """COCO's text: from the fourth run on the difference to the run before last, five bits a letter, lowest first."""
    letters = []
    for index, run in enumerate(runs):
        left, more = run - (runs[index - 2] if index > 2 else 0), True
        while more:
            five, left = left & 31, left >> 5
            more = left != (-1 if five & 16 else 0)
            letters.append(chr(48 + (five | 32 * more)))
    return "".join(letters)


def unpacked(text: str, where: str) -> list[int]:
    runs: list[int] = []
    value, shift = 0, 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 60:
            raise DataError(f"{where}: {letter!r} stands where COCO's run lengths cannot hold it; export it again")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise DataError(f"{where}: the run lengths end in the middle of one; the file is cut off, export it again")
    return runs


def brushed(mask: np.ndarray) -> list[int]:
    """The bytes of Label Studio's brush: runs of equal values of (H, W, 4), marked 255, not marked 0."""
    bits = [f"{mask.size * _CHANNELS:032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for index, run in enumerate(lengths(mask)):
        left = run * _CHANNELS
        while left:
            now = min(left, 1 << _SIZES[-1])
            which = next(i for i, size in enumerate(_SIZES) if now <= 1 << size)
            bits.append(f"1{which:02b}{now - 1:0{_SIZES[which]}b}{'11111111' if index % 2 else '00000000'}")
            left -= now
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def unbrushed(values: bytes, size_hw: tuple[int, int], where: str) -> np.ndarray:
    """(H, W) bool: where the last of the four channels is above half. DataError: cut off, or of another size."""
    bits = "".join(f"{value:08b}" for value in values)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        if place > len(bits):
            raise DataError(f"{where}: the brush is cut off; export it again")
        return int(bits[place - count : place], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    if word != 8 or total != size_hw[0] * size_hw[1] * _CHANNELS:
        raise DataError(
            f"{where}: the brush holds {total} values of {word} bits, a picture of {size_hw[1]} x {size_hw[0]} has "
            f"{size_hw[0] * size_hw[1] * _CHANNELS} of 8; export it again"
        )
    flat, done = np.zeros(total, np.uint8), 0
    while done < total:
        same = take(1)
        end = done + 1 + take(sizes[take(2)])
        if end > total:
            raise DataError(f"{where}: the brush is longer than the picture; export it again")
        if same:
            flat[done:end] = take(word)
        else:
            flat[done:end] = [take(word) for _ in range(end - done)]
        done = end
    return flat.reshape(*size_hw, _CHANNELS)[..., -1] > 127

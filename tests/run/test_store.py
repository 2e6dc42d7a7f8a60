from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flawmap.run.store import FLUSH, FeatureStore

SHAPES = [(3, 4, 5), (2, 2, 2)]
PICTURES = FLUSH + 9


class Stopped(BaseException):
    pass


def _image(row: int) -> np.ndarray:
    return np.full((3, 2, 2), row, np.float32)


def _features(image_B3HW: np.ndarray) -> tuple[np.ndarray, ...]:
    """Every number tells its picture, stage and place."""
    row = image_B3HW[0, 0, 0, 0]
    return tuple(
        (row * 1000 + stage * 100 + np.arange(np.prod(shape), dtype=np.float32)).reshape(1, *shape)
        for stage, shape in enumerate(SHAPES)
    )


def _fill(store: FeatureStore, stop_at: int | None = None) -> list[int]:
    computed = []

    def image(row: int) -> np.ndarray:
        if row == stop_at:
            raise Stopped
        computed.append(row)
        return _image(row)

    store.fill(image, _features, lambda done: None)
    return computed


def test_a_batch_is_the_features_of_its_pictures_in_order(tmp_path: Path):
    store = FeatureStore(tmp_path, SHAPES, PICTURES)
    assert _fill(store) == list(range(PICTURES))
    rows = [7, 40, 7, 0]
    batch = store.batch(np.array(rows))
    assert batch.features is not None
    for stage, found in enumerate(batch.features):
        expected = np.concatenate([_features(_image(row)[None])[stage] for row in rows])
        assert torch.equal(found, torch.from_numpy(expected))


def test_an_interrupted_store_goes_on_from_its_last_mark(tmp_path: Path):
    with pytest.raises(Stopped):
        _fill(FeatureStore(tmp_path, SHAPES, PICTURES), stop_at=FLUSH + 5)
    store = FeatureStore(tmp_path, SHAPES, PICTURES)
    assert store.done == FLUSH
    assert _fill(store) == list(range(FLUSH, PICTURES))
    whole = FeatureStore(tmp_path / "whole", SHAPES, PICTURES)
    _fill(whole)
    for ours, theirs in zip(store.stages, whole.stages, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert _fill(FeatureStore(tmp_path, SHAPES, PICTURES)) == []


@pytest.mark.parametrize("left", [b"", b"\x93NUMPY", bytes(500)])
def test_half_a_file_left_by_a_kill_before_the_first_mark_is_written_anew(tmp_path: Path, left: bytes):
    (tmp_path / "stage0.npy").write_bytes(left)
    store = FeatureStore(tmp_path, SHAPES, PICTURES)
    assert _fill(store) == list(range(PICTURES))
    assert float(store.stages[0][PICTURES - 1, 0, 0, 0]) == (PICTURES - 1) * 1000

"""PaDiM: its Gaussians and distances against scipy and plain sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from flawmap.detectors.padim import PaDiM
from flawmap.errors import UsageError
from flawmap.types import Batch

TINY = {"size": 64, "dims": 7, "sigma_px": 0, "equalise": False}


def _detector(**options: object) -> PaDiM:
    return PaDiM(PaDiM.configure({**TINY, **options}), pretrained=False)


def _batch(detector: PaDiM, seed: int, count: int) -> Batch:
    random = torch.Generator().manual_seed(seed)
    return Batch(features=tuple(torch.rand(count, *shape, generator=random) for shape in detector.backbone.shapes))


def _joined(detector: PaDiM, batch: Batch) -> np.ndarray:
    """(B, D, h, w) of the features that were drawn, by plain numpy and torch."""
    assert batch.features is not None
    return detector.embed(batch.features)[:, detector.drawn_D].double().numpy()


def test_every_place_has_the_distance_to_its_own_gaussian() -> None:
    detector = _detector(ridge=0.05)
    normals = [_batch(detector, 0, 5), _batch(detector, 1, 6)]
    detector.begin(normals)
    good = np.concatenate([_joined(detector, batch) for batch in normals])
    covariance = np.stack([[np.cov(good[:, :, y, x].T) for x in range(8)] for y in range(8)])
    ridge = 0.05 * np.mean(np.diagonal(covariance, axis1=2, axis2=3))
    tested = _batch(detector, 2, 2)
    feat = _joined(detector, tested)
    expected = np.zeros((2, 8, 8))
    for b, y, x in np.ndindex(2, 8, 8):
        inverse = np.linalg.inv(covariance[y, x] + ridge * np.eye(7))
        expected[b, y, x] = mahalanobis(feat[b, :, y, x], good[:, :, y, x].mean(axis=0), inverse)
    with torch.no_grad():
        found = detector.head(tested.features or ())
    enlarged = detector.enlarge(torch.from_numpy(expected).float())
    torch.testing.assert_close(found.map, enlarged, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.score, enlarged.flatten(1).amax(dim=1), rtol=1e-3, atol=1e-3)


def test_batches_do_not_matter() -> None:
    detector, other = _detector(), _detector()
    whole = _batch(detector, 0, 6)
    parts = [Batch(features=tuple(feat[i : i + 2] for feat in whole.features or ())) for i in (0, 2, 4)]
    detector.begin([whole])
    other.begin(parts)
    torch.testing.assert_close(detector.whiten_PDD, other.whiten_PDD, rtol=1e-4, atol=1e-4)


def test_features_are_drawn_by_the_seed_each_once() -> None:
    first, again, other = (_detector(seed=seed).drawn_D.tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) == 7
    assert len(_detector(dims=0).drawn_D) == 176


@pytest.mark.parametrize("pictures", [1, 2])
def test_few_pictures_give_finite_distances(pictures: int) -> None:
    detector = _detector()
    detector.begin([_batch(detector, 0, pictures)])
    with torch.no_grad():
        found = detector.head(_batch(detector, 1, 3).features or ())
    assert torch.isfinite(found.map).all()
    assert float(found.score.min()) > 0


def test_more_features_than_there_are_is_refused() -> None:
    with pytest.raises(UsageError, match="dims is 999, but the stages have 176"):
        _detector(dims=999)

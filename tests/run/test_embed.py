from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flawmap.errors import UsageError
from flawmap.images.folder import find
from flawmap.run.embed import embedding, tsne
from flawmap.run.evaluate import evaluate
from flawmap.run.model import Model


def test_two_groups_lie_apart_and_it_is_the_same_each_time():
    random = np.random.default_rng(0)
    vectors = np.concatenate([random.normal(0, 1, (30, 20)), random.normal(8, 1, (30, 20))])
    points = tsne(vectors)
    assert points.shape == (60, 2)
    assert np.array_equal(points, tsne(vectors))
    nearest = np.argsort(np.linalg.norm(points[:, None] - points[None], axis=2), axis=1)[:, 1]
    assert ((nearest < 30) == (np.arange(60) < 30)).all()


@pytest.mark.parametrize("fixture", ["crossed", "held"])
def test_every_picture_of_a_test_has_its_point_in_the_report(
    fixture: str, world: Path, tmp_path: Path, request: pytest.FixtureRequest
):
    model: Model = request.getfixturevalue(fixture)
    found = evaluate(model, world, tmp_path / "out", tsne=True)
    assert found.embedding is not None
    assert found.embedding.shape == (12, 2)
    assert np.isfinite(found.embedding).all()
    page = (tmp_path / "out/report.html").read_text()
    assert "t-SNE" in page
    assert evaluate(model, world, tmp_path / "plain").embedding is None
    assert 'id="embedding-t"' in page
    assert 'id="embedding-t"' not in (tmp_path / "plain/report.html").read_text()


def test_few_pictures_are_not_laid_out(crossed: Model, world: Path):
    with pytest.raises(UsageError, match="t-SNE of 4 pictures says nothing"):
        embedding(crossed, find(world / "test/good")[:4])

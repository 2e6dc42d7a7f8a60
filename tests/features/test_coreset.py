"""The coreset against the plain greedy loop, and the reservoir against the uniform distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import chi2
from torch import Tensor

from flawmap.errors import DataError
from flawmap.features import coreset
from flawmap.features.coreset import Reservoir, k_centre


def _rows(n: int, d: int, seed: int, scale: float = 1.0) -> Tensor:
    """In double precision, where no rounding decides which of two rows is farther."""
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, (n, d)))


def _greedy(rows: np.ndarray, keep: int, first: int) -> list[int]:
    """PatchCore algorithm 1, word for word: all rows are measured against each new centre."""
    chosen = [first]
    gap = np.square(rows - rows[first]).sum(1)
    while len(chosen) < keep:
        chosen.append(int(gap.argmax()))
        gap = np.minimum(gap, np.square(rows - rows[chosen[-1]]).sum(1))
    return chosen


@pytest.mark.parametrize(
    ("n", "d", "keep"), [(1, 3, 1), (50, 3, 50), (300, 8, 40), (1000, 2, 300), (5000, 5, 700), (9000, 16, 150)]
)
def test_it_chooses_what_the_plain_loop_chooses(n: int, d: int, keep: int) -> None:
    rows = _rows(n, d, seed=n)
    chosen = k_centre(rows, keep, seed=0).tolist()
    assert chosen == _greedy(rows.numpy(), keep, chosen[0])


@pytest.mark.parametrize("blocks", [(40, 7), (7, 1), (8192, 512)])
def test_the_sizes_of_the_blocks_decide_nothing(monkeypatch: pytest.MonkeyPatch, blocks: tuple[int, int]) -> None:
    monkeypatch.setattr(coreset, "BLOCKS", blocks)
    monkeypatch.setattr(coreset, "SPAN", 16)
    monkeypatch.setattr(coreset, "WIDE", 5)
    rows = _rows(600, 4, seed=21)
    chosen = k_centre(rows, 80, seed=0).tolist()
    assert chosen == _greedy(rows.numpy(), 80, chosen[0])


def test_in_clusters_with_copies_it_chooses_what_the_plain_loop_chooses() -> None:
    """Bounds that fall at once by much, and rows that are there many times."""
    clusters = _rows(30, 6, seed=22, scale=10).repeat_interleave(200, 0) + _rows(6000, 6, seed=23, scale=0.1)
    rows = clusters[torch.randint(6000, (9000,), generator=torch.Generator().manual_seed(0))]
    chosen = k_centre(rows, 400, seed=0)
    plain = _greedy(rows.numpy(), 400, int(chosen[0]))
    assert torch.equal(rows[chosen], rows[plain])


@pytest.mark.parametrize("blocks", [(8192, 512), (50, 8), (1, 1)])
def test_of_equally_far_rows_it_takes_the_first_as_the_plain_loop_does(
    monkeypatch: pytest.MonkeyPatch, blocks: tuple[int, int]
) -> None:
    """A grid about the origin: whole numbers, so no rounding, and most distances are there many times."""
    monkeypatch.setattr(coreset, "BLOCKS", blocks)
    line = torch.arange(-5.0, 6.0, dtype=torch.float64)
    rows = torch.cartesian_prod(line, line, line)
    assert rows.mean() == 0
    chosen = k_centre(rows, 300, seed=0).tolist()
    assert chosen == _greedy(rows.numpy(), 300, chosen[0])


def test_it_chooses_what_the_plain_loop_chooses_far_from_the_origin() -> None:
    rows = _rows(2000, 6, seed=1, scale=0.1) + 50
    chosen = k_centre(rows, 200, seed=0).tolist()
    assert chosen == _greedy(rows.numpy(), 200, chosen[0])


def test_with_a_projection_it_chooses_by_the_projected_rows() -> None:
    """The projection is drawn after the first row, from the same seed (Johnson-Lindenstrauss: normal, over root k)."""
    rows = _rows(3000, 40, seed=2)
    chosen = k_centre(rows, 200, seed=5, projection=8).tolist()
    generator = torch.Generator().manual_seed(5)
    first = int(torch.randint(3000, (1,), generator=generator))
    projected = rows @ torch.randn(40, 8, generator=generator).double() / 8**0.5
    assert chosen == _greedy(projected.numpy(), 200, first)
    assert chosen != _greedy(rows.numpy(), 200, first)


def test_a_projection_to_as_many_dimensions_is_none() -> None:
    rows = _rows(200, 8, seed=3)
    assert torch.equal(k_centre(rows, 20, seed=0, projection=8), k_centre(rows, 20, seed=0))


def test_a_projection_keeps_most_of_the_cover() -> None:
    rows = _rows(2000, 128, seed=4)

    def radius(chosen: Tensor) -> float:
        return float(cdist(rows, rows[chosen]).min(1).max())

    exact, projected = radius(k_centre(rows, 200, seed=0)), radius(k_centre(rows, 200, seed=0, projection=64))
    assert exact < projected < 1.2 * exact


def test_the_rows_are_covered_within_twice_the_best_radius() -> None:
    """Gonzalez 1985: any two of the k centres and the farthest row lie at least the radius apart."""
    rows = _rows(1500, 4, seed=6)
    chosen = k_centre(rows, 60, seed=0)
    radius = cdist(rows, rows[chosen]).min(1).max()
    apart = cdist(rows[chosen], rows[chosen])[np.triu_indices(60, 1)]
    assert apart.min() >= radius
    assert radius < cdist(rows, rows[:60]).min(1).max()


@pytest.mark.parametrize("away", [0, 3000])
def test_in_single_precision_the_cover_is_as_good(away: float) -> None:
    rows = (_rows(5000, 16, seed=7) + away).float().double()
    double, single = k_centre(rows, 500, seed=0), k_centre(rows.float(), 500, seed=0)
    radii = [cdist(rows, rows[chosen]).min(1).max() for chosen in (double, single)]
    assert radii[1] == pytest.approx(radii[0], rel=1e-3)
    assert len(set(single.tolist())) == 500


def test_it_gives_as_many_rows_as_there_are_when_asked_for_more() -> None:
    assert sorted(k_centre(_rows(20, 3, seed=8), 50, seed=0).tolist()) == list(range(20))


def test_copies_of_kept_rows_are_not_kept() -> None:
    rows = _rows(5, 4, seed=9).repeat(30, 1)
    chosen = k_centre(rows, 20, seed=0)
    assert len(chosen) == 5
    assert len(torch.unique(rows[chosen], dim=0)) == 5


def test_where_most_rows_are_copies_the_others_are_kept_in_their_order() -> None:
    """A dark background: fewer rows are left than a block holds, and what is no candidate stays out of it."""
    rows = torch.cat([torch.zeros(3000, 4, dtype=torch.float64), _rows(60, 4, seed=24)])
    chosen = k_centre(rows, 200, seed=0).tolist()
    assert chosen[0] < 3000
    assert chosen == _greedy(rows.numpy(), 61, chosen[0])


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3])
def test_of_constant_rows_one_is_kept(value: float) -> None:
    assert len(k_centre(torch.full((100, 12), value), 10, seed=0)) == 1


def test_the_seed_decides() -> None:
    rows = _rows(400, 6, seed=10)
    same = [k_centre(rows, 30, seed=1, projection=3) for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], k_centre(rows, 30, seed=2, projection=3))


def test_the_rows_are_left_as_they_were() -> None:
    rows = _rows(100, 6, seed=11)
    before = rows.clone()
    k_centre(rows, 10, seed=0)
    assert torch.equal(rows, before)


def _sample(seed: int, rows: int, most: int, block: int) -> list[int]:
    reservoir = Reservoir(most, seed)
    for part in torch.arange(rows, dtype=torch.float32)[:, None].split(block):
        reservoir.add(part)
    return reservoir.rows()[:, 0].int().tolist()


@pytest.mark.parametrize("block", [1, 7, 30, 60])
def test_every_row_is_as_likely_to_be_in_the_sample_however_it_comes(block: int) -> None:
    draws, rows, most = 200, 60, 15
    count = np.zeros(rows)
    for seed in range(draws):
        sample = _sample(seed, rows, most, block)
        assert len(set(sample)) == most
        count[sample] += 1
    # Counts of draws without replacement vary by p (1 - p), and one degree of freedom is the fixed total.
    share = most / rows
    statistic = np.square(count - draws * share).sum() / (draws * share * (1 - share)) * (rows - 1) / rows
    assert 0.001 < chi2.cdf(statistic, rows - 1) < 0.999


def test_pairs_of_rows_are_as_likely_as_in_a_uniform_sample() -> None:
    """Neighbours in the stream must not come or go together: P(both) = n (n - 1) / (N (N - 1))."""
    draws = 1000
    both = sum({2 * i, 2 * i + 1} <= set(_sample(seed, 20, 8, 20)) for seed in range(draws) for i in (0, 4, 9))
    expected = 3 * draws * 8 * 7 / (20 * 19)
    assert abs(both - expected) < 4 * np.sqrt(expected)


def test_it_keeps_all_rows_in_order_while_there_is_room() -> None:
    assert _sample(0, 40, 40, 7) == list(range(40))
    assert _sample(0, 5, 40, 2) == list(range(5))


def test_it_never_holds_more_than_its_room() -> None:
    reservoir = Reservoir(10, seed=0)
    for _ in range(50):
        reservoir.add(torch.zeros(33, 4))
        assert reservoir.rows_ND is not None
        assert reservoir.rows_ND.shape == (10, 4)
    assert reservoir.seen == 50 * 33
    assert reservoir.rows().shape == (10, 4)


def test_the_sample_is_the_seeds() -> None:
    assert _sample(3, 200, 20, 16) == _sample(3, 200, 20, 16)
    assert _sample(3, 200, 20, 16) != _sample(4, 200, 20, 16)


@pytest.mark.parametrize("size", [1e-4, 1.0, 100.0])
def test_copies_in_float32_are_told_from_distinct_rows_at_any_size(size: float) -> None:
    rows = (torch.randn(20, 176, generator=torch.Generator().manual_seed(0)) * size).repeat(24, 1)
    chosen = k_centre(rows, 240, seed=0)
    assert len(chosen) == 20
    assert len(torch.unique(rows[chosen], dim=0)) == 20


def test_a_row_that_is_not_a_number_is_an_error() -> None:
    with pytest.raises(DataError, match="not a finite number"):
        k_centre(torch.tensor([[0.0], [torch.nan], [1.0]]), 2, seed=0)

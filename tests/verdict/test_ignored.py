"""Pixels to ignore: every pixel metric is that of the other pixels, by scikit-learn and by loops over thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from skimage.measure import label
from sklearn.metrics import average_precision_score, jaccard_score, precision_recall_curve, roc_auc_score

from flawmap.errors import DataError
from flawmap.verdict.pixels import PixelMetrics

POOLED = ("p_auroc", "p_ap", "pro", "p_f1_max_oracle", "iou_max_oracle")
METRICS = (*POOLED, "spro", "aupimo")
COUNTS = ("ignored_pixels", "ignoring", "only_ignored")


class Wide(PixelMetrics):
    """Bands that small pictures resolve."""

    SPRO_LIMIT = 0.5
    AUPIMO_BAND = (0.01, 0.3)
    AUPIMO_POINTS = -1


def world(seed, levels=None):
    """(map, mask, ignored, regions): two good pictures, one with a band; a mask cut in two by one; one all ignored."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(5):
        mask, ignored = np.zeros((2, 18, 16 + i), bool)
        if i >= 2:
            mask[2:8, 3:12] = True
            mask[13:15, 2:5] = True
        if i == 1:
            ignored[4:9, 4:9] = True
        if i == 2:
            ignored[:, 6:8] = True
        if i == 4:
            ignored = mask.copy()
        top = mask.copy()
        top[10:] = False
        regions = [(top, 9.5), (mask & ~top, 4.0)] if i >= 2 else None
        map = rng.normal(size=mask.shape) + mask
        found.append(((np.round(map * levels) if levels else map).astype(np.float32), mask, ignored, regions))
    return found


def measure(pictures, kind: type[PixelMetrics] = Wide, **options):
    metrics = kind(**options)
    for number, (map, mask, ignored, regions) in enumerate(pictures):
        metrics.add(map, mask, good=number < 2, ignored=ignored, regions=regions)
    return metrics


def expected(pictures):
    """All metrics of the pixels that are not ignored."""
    truth = np.concatenate([mask[~ignored] for _, mask, ignored, _ in pictures])
    values = np.concatenate([map[~ignored] for map, _, ignored, _ in pictures])
    precision, recall, thresholds = precision_recall_curve(truth, values)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    components, regions = [], []
    for map, mask, ignored, given_regions in pictures:
        labels = np.asarray(label(mask & ~ignored, connectivity=2))
        components += [(map[labels == i], (labels == i).sum()) for i in range(1, labels.max() + 1)]
        for region, enough in given_regions or ():
            left = map[region & ~ignored]
            regions += [(left, min(enough, len(left)))] if len(left) else []
    return {
        "p_auroc": roc_auc_score(truth, values),
        "p_ap": average_precision_score(truth, values),
        "p_f1_max_oracle": f1.max(),
        "iou_max_oracle": jaccard_score(truth, values >= thresholds[np.argmax(f1)]),
        "pro": _covered(values[~truth], values, components, 0.3),
        "spro": _covered(values[~truth], values, regions, Wide.SPRO_LIMIT),
        "aupimo": _aupimo(pictures),
    }


def _curve(values, x, y):
    """(0, 0), then a point a threshold."""
    thresholds = sorted(set(values.tolist()), reverse=True)
    return [0.0, *map(x, thresholds)], [0.0, *map(y, thresholds)]


def _covered(good, values, pieces, limit):
    x, y = _curve(
        values,
        lambda t: np.mean(good >= t),
        lambda t: np.mean([min(np.sum(found >= t) / enough, 1) for found, enough in pieces]),
    )
    area = 0.0
    for x0, x1, y0, y1 in zip(x, x[1:], y, y[1:], strict=False):
        end = min(x1, limit)
        if x0 < end:
            area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return area / limit


def _aupimo(pictures):
    low, high = Wide.AUPIMO_BAND
    values = np.concatenate([map[~ignored] for map, _, ignored, _ in pictures])
    good = [map[~ignored] for map, _, ignored, _ in pictures[:2]]
    found = []
    for map, mask, ignored, _ in pictures[2:]:
        own = map[mask & ~ignored]
        if not len(own):
            continue
        x, y = _curve(values, lambda t: np.mean([np.mean(g >= t) for g in good]), lambda t, own=own: np.mean(own >= t))
        area = 0.0
        for x0, x1, y0, y1 in zip(x, x[1:], y, y[1:], strict=False):
            start, end = max(x0, low), min(x1, high)
            if start < end:
                area += quad(lambda v, a=x0, b=x1, c=y0, d=y1: (c + (d - c) * (v - a) / (b - a)) / v, start, end)[0]
        found.append(area / np.log(high / low))
    return np.mean(found)


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_metric_is_that_of_the_other_pixels(seed, levels):
    pictures = world(seed, levels)
    found = measure(pictures).result()
    for name, value in expected(pictures).items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
        assert found[f"{name}_error"] == 0.0
    ignored = sum(int(left.sum()) for _, _, left, _ in pictures)
    assert tuple(found[key] for key in COUNTS) == (ignored, 3, 1)
    assert found["components"] == 3 + 2  # the band cuts one in two
    assert (found["lost"], found["regions"]) == (0, 4)
    assert found["good_pixels"] + found["defect_pixels"] + ignored == sum(map.size for map, *_ in pictures)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([8, 40, 2**19]), st.floats(-1e6, 1e6, width=32))
def test_no_value_inside_the_band_changes_any_figure_capped_or_not(seed, cap, value):
    pictures = world(seed)
    rng = np.random.default_rng(seed + 1)
    changed = []
    for map, mask, ignored, regions in pictures:
        other = np.where(ignored, np.where(rng.random(map.shape) < 0.5, value, rng.normal(size=map.shape)), map)
        changed.append((other.astype(np.float32), mask, ignored, regions))
    one, other = measure(pictures, cap=cap), measure(changed, cap=cap)
    assert one.result() == other.result()
    np.testing.assert_array_equal(one.aupimo_of_pictures(), other.aupimo_of_pictures())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([8, 40]))
def test_within_its_bins_the_error_is_never_above_the_one_it_states(seed, cap):
    pictures = world(seed)
    exact, coarse = measure(pictures).result(), measure(pictures, cap=cap).result()
    for name in METRICS:
        assert abs(coarse[name] - exact[name]) <= coarse[f"{name}_error"] + 1e-9


def test_what_was_ignored_changes_the_figures_once_it_is_good_or_defect():
    pictures = world(3)
    band = measure(pictures).result()
    nothing = [(map, mask & ~ignored, mask & False, None) for map, mask, ignored, _ in pictures]
    defect = [
        (map, mask | (ignored & (n > 1)), mask & False, None) for n, (map, mask, ignored, _) in enumerate(pictures)
    ]
    for changed in (nothing, defect):
        found = measure(changed).result()
        assert all(found[name] != band[name] for name in (*POOLED, "aupimo"))
        assert not found.keys() & set(COUNTS)


def test_a_band_of_nothing_is_none_bit_by_bit():
    pictures = world(4)
    plain = [(map, mask, None, regions) for map, mask, _, regions in pictures]
    empty = [(map, mask, mask & False, regions) for map, mask, _, regions in pictures]
    assert repr(measure(plain).result()) == repr(measure(empty).result())


def test_a_defective_picture_all_of_whose_marks_are_ignored_gives_good_pixels_and_no_defect():
    mask = np.zeros((6, 8), bool)
    mask[2:4, 2:4] = True
    maps = np.random.default_rng(0).normal(size=(3, 6, 8)).astype(np.float32)
    metrics = Wide()
    metrics.add(maps[0], good=True)
    metrics.add(maps[1], mask, good=False)
    before = metrics.result()
    metrics.add(maps[2], mask & False, good=False, ignored=mask)
    found = metrics.result()
    assert found["p_auroc"] == pytest.approx(
        roc_auc_score(
            np.concatenate([np.zeros(48), mask.ravel(), np.zeros(44)]),
            np.concatenate([maps[0].ravel(), maps[1].ravel(), maps[2][~mask]]),
        ),
        abs=1e-12,
    )
    assert found["good_pixels"] - before["good_pixels"] == 44
    assert found["aupimo"] == before["aupimo"]  # its good pictures are as before
    assert (found["lost"], found["only_ignored"]) == (0, 1)
    assert np.isnan(metrics.aupimo_of_pictures()[1])


def test_a_good_picture_that_is_ignored_throughout_is_not_one_of_the_good_pictures_of_aupimo():
    pictures = world(5)
    whole = np.ones_like(pictures[0][1])
    with_it = [pictures[0], pictures[1], *pictures[2:]]
    metrics = measure(with_it)
    before = metrics.result()["aupimo"]
    metrics.add(pictures[0][0], good=True, ignored=whole)
    assert metrics.result()["aupimo"] == before


def test_what_is_ignored_is_taken_from_a_mask_that_holds_it_too():
    map, mask = np.eye(6, dtype=np.float32), np.eye(6, dtype=bool)
    ignored = np.zeros((6, 6), bool)
    ignored[2:4] = True
    found = []
    for given_mask in (mask, mask & ~ignored):
        metrics = PixelMetrics()
        metrics.add(map, given_mask, good=False, ignored=ignored)
        found.append(metrics.result())
    assert found[0] == found[1]
    assert found[0]["components"] == 2
    with pytest.raises(DataError, match="what is ignored"):
        PixelMetrics().add(map, mask, good=False, ignored=ignored[:3])
    with pytest.raises(DataError, match="a good picture has a mask with defect pixels"):
        PixelMetrics().add(map, mask, good=True, ignored=ignored)
    PixelMetrics().add(map, mask & ignored, good=True, ignored=ignored)

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from adeval.au_pro import calculate_au_pro
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label
from sklearn.metrics import average_precision_score, jaccard_score, precision_recall_curve, roc_auc_score

from flawmap.errors import DataError
from flawmap.verdict import pixels
from flawmap.verdict.pixels import PixelMetrics

METRICS = ("p_auroc", "p_ap", "pro", "p_f1_max_oracle", "iou_max_oracle")


def measure(maps, masks, **options):
    metrics = PixelMetrics(**options)
    for map, mask in zip(maps, masks, strict=True):
        metrics.add(map, mask, good=not mask.any())
    return metrics.result()


def slow_pro(maps, masks, limit=0.3):
    """MVTec's published rule, one threshold after the other."""
    components = []
    for map, mask in zip(maps, masks, strict=True):
        labels = np.asarray(label(mask, connectivity=2))
        components += [map[labels == i] for i in range(1, labels.max() + 1)]
    good = np.concatenate([map[~mask] for map, mask in zip(maps, masks, strict=True)])
    fpr, pro = [0.0], [0.0]
    for threshold in sorted({float(v) for map in maps for v in map.flat}, reverse=True):
        fpr.append(float(np.mean(good >= threshold)))
        pro.append(float(np.mean([np.mean(c >= threshold) for c in components])))
    area = 0.0
    for x0, x1, y0, y1 in zip(fpr, fpr[1:], pro, pro[1:], strict=False):
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
        elif x0 < limit:
            cut = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            area += (limit - x0) * (y0 + cut) / 2
    return area / limit


def pictures(seed, count=6, side=24, levels=None):
    """Maps that see their defects dimly; every third picture is good."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for i in range(count):
        mask = np.zeros((side, side), bool)
        if i % 3:
            mask[2 : 5 + i, 3:9] = True
            mask[side - 3, side - 4] = True
        map = rng.normal(size=(side, side)) + 0.8 * mask
        maps.append((map if levels is None else np.round(map * levels)).astype(np.float32))
        masks.append(mask)
    return maps, masks


@pytest.mark.parametrize("levels", [None, 3, 1])
def test_pixel_metrics_agree_with_scikit_learn_and_the_published_rule(levels):
    maps, masks = pictures(0, levels=levels)
    found = measure(maps, masks)
    values, truth = np.ravel(maps), np.ravel(masks)
    assert found["p_auroc"] == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
    assert found["p_ap"] == pytest.approx(average_precision_score(truth, values), abs=1e-12)
    assert found["pro"] == pytest.approx(slow_pro(maps, masks), abs=1e-12)
    shares, recalls, thresholds = precision_recall_curve(truth, values)
    f1 = 2 * shares * recalls / np.maximum(shares + recalls, 1e-12)
    assert found["p_f1_max_oracle"] == pytest.approx(np.max(f1), abs=1e-12)
    at_best = jaccard_score(truth, values >= thresholds[np.argmax(f1)])
    assert found["iou_max_oracle"] == pytest.approx(at_best, abs=1e-12)
    assert [found[f"{m}_error"] for m in METRICS] == [0.0] * len(METRICS)
    assert (found["components"], found["defect_pixels"]) == (8, truth.sum())
    assert found["good_pixels"] == (~truth).sum()
    assert found["why"] is None


@pytest.mark.parametrize("seed", range(3))
def test_pro_agrees_with_adeval(seed):
    maps, masks = pictures(seed)
    good = sum(int((~mask).sum()) for mask in masks)
    theirs, _ = calculate_au_pro([m.astype(int) for m in masks], maps, num_thresholds=good)
    # adeval has thresholds at good pixels only: its steps are slanted over one good pixel each.
    assert measure(maps, masks)["pro"] == pytest.approx(theirs, abs=1 / (0.3 * good))


def test_a_constant_map_gives_0_15():
    mask = np.zeros((10, 10), bool)
    mask[2:4, 2:4] = True
    found = measure([np.full((10, 10), 7.0, np.float32)] * 2, [mask, ~mask & False])
    assert found["pro"] == pytest.approx(0.15, abs=1e-12)
    assert found["p_auroc"] == pytest.approx(0.5, abs=1e-12)
    assert found["p_ap"] == pytest.approx(4 / 200, abs=1e-12)


def test_a_small_component_weighs_as_much_as_a_large_one():
    mask = np.zeros((20, 20), bool)
    mask[:10, :10] = True
    mask[15, 15] = True
    map = np.zeros((20, 20), np.float32)
    map[:10, :10] = 1.0
    found = measure([map], [mask])
    # After the large one, half the components are found; the rest joins linearly until FPR 1.
    assert found["pro"] == pytest.approx(0.5 + 0.5 * 0.3 / 2, abs=1e-12)
    assert found["components"] == 2


def test_a_diagonal_line_is_one_component():
    assert measure([np.eye(6, dtype=np.float32)], [np.eye(6, dtype=bool)])["components"] == 1
    assert measure([np.eye(6, dtype=np.float32)], [np.eye(6, dtype=bool)])["pro"] == pytest.approx(1.0, abs=1e-12)


def test_a_false_positive_rate_that_jumps_over_the_limit_is_interpolated():
    mask = np.zeros((1, 12), bool)
    mask[0, :2] = True
    map = np.array([[3, 1, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0]], np.float32)
    # Points (0, 0.5), then (0.6, 0.5): the curve is flat at a half up to 0.3.
    assert measure([map], [mask])["pro"] == pytest.approx(0.5, abs=1e-12)
    map[0, 1] = 2.0
    # Now (0, 0.5), then (0.6, 1): at 0.3 the curve stands at 0.75.
    assert measure([map], [mask])["pro"] == pytest.approx((0.5 + 0.75) / 2, abs=1e-12)


def test_good_pictures_count_in_the_false_positive_rate():
    maps, masks = pictures(3)
    quiet = [*maps, np.full((24, 24), -99, np.float32)], [*masks, np.zeros((24, 24), bool)]
    loud = [*maps, np.full((24, 24), 99, np.float32)], [*masks, np.zeros((24, 24), bool)]
    assert measure(*loud)["pro"] < measure(maps, masks)["pro"] < measure(*quiet)["pro"]
    assert measure(*loud)["pro"] == pytest.approx(slow_pro(*loud), abs=1e-12)


def test_pictures_of_different_sizes_and_zeros_of_both_signs_pool():
    a, b = np.array([[0.0, 1.0]], np.float32), np.array([[-0.0], [2.0], [-1.0]], np.float32)
    found = measure([a, b], [np.array([[True, False]]), np.array([[False], [True], [False]])])
    assert found["p_auroc"] == pytest.approx(roc_auc_score([1, 0, 0, 1, 0], [0, 1, 0, 2, -1]), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([4, 16, 64, 400]), st.sampled_from([None, 1, 5]))
def test_within_its_bins_the_error_is_never_above_the_one_it_states(seed, cap, levels):
    maps, masks = pictures(seed, count=3, side=12, levels=levels)
    maps[0] = maps[0] * np.float32(1e-3)  # many octaves
    exact, coarse = measure(maps, masks), measure(maps, masks, cap=cap)
    for name in METRICS:
        assert abs(coarse[name] - exact[name]) <= coarse[f"{name}_error"] + 1e-9


def test_half_a_million_bins_keep_the_error_below_a_ten_thousandth():
    rng = np.random.default_rng(5)
    mask = np.zeros((512, 512), bool)
    mask[40:90, 100:300] = True
    maps = [(rng.normal(size=(512, 512)) + 1.5 * mask).astype(np.float32) for _ in range(5)]
    masks = [mask & (i > 1) for i in range(5)]
    found = measure(maps, masks)
    values, truth = np.ravel(maps), np.ravel(masks)
    assert all(0 < found[f"{m}_error"] < 1e-4 for m in (*METRICS, "aupimo"))
    assert found["p_auroc"] == pytest.approx(roc_auc_score(truth, values), abs=found["p_auroc_error"] + 1e-12)
    assert found["p_ap"] == pytest.approx(average_precision_score(truth, values), abs=found["p_ap_error"] + 1e-9)


def test_a_picture_larger_than_the_buffer_is_counted_whole(monkeypatch):
    monkeypatch.setattr(pixels, "_BUFFER_PX", 2**14)
    monkeypatch.setattr(pixels, "_PIECE_PX", 2**11)
    mask = np.zeros((300, 300), bool)
    mask[:140] = True
    map = np.arange(mask.size, dtype=np.float32).reshape(mask.shape) % 97
    found = measure([map], [mask])
    assert (found["good_pixels"], found["defect_pixels"], found["components"]) == (160 * 300, 140 * 300, 1)
    assert found["p_auroc"] == pytest.approx(roc_auc_score(mask.ravel(), map.ravel()), abs=1e-12)


def test_a_map_saturated_at_one_value_costs_no_error():
    maps, masks = pictures(6)
    maps = [np.where(mask, np.float32(1), np.clip(map, 0, 1)) for map, mask in zip(maps, masks, strict=True)]
    exact, coarse = measure(maps, masks), measure(maps, masks, cap=200)
    assert coarse["p_ap"] == pytest.approx(exact["p_ap"], abs=1e-12)
    assert [coarse[f"{m}_error"] for m in METRICS] == [0.0] * len(METRICS)


def test_memory_does_not_grow_with_the_number_of_pictures(monkeypatch):
    monkeypatch.setattr(pixels, "_BUFFER_PX", 2**20)

    def peak(count):
        rng = np.random.default_rng(0)
        mask = np.zeros((256, 256), bool)
        mask[50:100, 50:100] = True
        metrics = PixelMetrics(cap=2**16)
        tracemalloc.start()
        for i in range(count):
            metrics.add(rng.random((256, 256), np.float32), mask if i % 2 else None, good=not i % 2)
        metrics.result()
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    few, many = peak(32), peak(128)
    assert many < 1.1 * few
    assert many < 20 * 2**20


def test_a_defective_picture_whose_mask_is_empty_is_lost_and_its_pixels_are_good():
    maps, masks = pictures(4)
    metrics = PixelMetrics()
    for map, mask in zip(maps, masks, strict=True):
        metrics.add(map, mask, good=False)  # masks 0 and 3 are empty
    found = metrics.result()
    assert found["lost"] == 2
    assert {m: found[m] for m in METRICS} == {m: measure(maps, masks)[m] for m in METRICS}
    assert measure(maps, masks)["lost"] == 0
    assert found["aupimo_why"] == "there is no good picture"


def test_a_mask_that_covers_its_picture_leaves_no_good_pixel_there():
    maps, masks = pictures(5)
    masks[1] = np.ones_like(masks[1])
    found = measure(maps, masks)
    assert found["good_pixels"] == sum(int((~mask).sum()) for mask in masks)
    assert found["pro"] == pytest.approx(slow_pro(maps, masks), abs=1e-12)


def test_a_set_without_defects_is_undefined():
    found = measure([np.zeros((4, 4), np.float32)], [np.zeros((4, 4), bool)])
    assert [found[m] for m in METRICS] == [None] * len(METRICS)
    assert found["why"] == "no picture has a defect pixel"
    assert PixelMetrics().result()["why"] == "no picture has a defect pixel"
    assert measure([np.zeros((2, 2), np.float32)], [np.ones((2, 2), bool)])["why"] == "no picture has a good pixel"


def test_a_defective_picture_without_a_mask_makes_pixel_metrics_undefined():
    metrics = PixelMetrics()
    metrics.add(np.eye(4, dtype=np.float32), np.eye(4, dtype=bool), good=False)
    metrics.add(np.eye(4, dtype=np.float32), good=False)
    metrics.add(np.eye(4, dtype=np.float32), good=True)
    found = metrics.result()
    assert [found[m] for m in METRICS] == [None] * len(METRICS)
    assert found["good_pixels"] is None
    assert found["why"] == "1 of the defective pictures has no mask"


def test_maps_and_masks_that_cannot_serve_are_refused():
    map, mask = np.zeros((4, 4), np.float32), np.eye(4, dtype=bool)
    metrics = PixelMetrics()
    for bad in (np.nan, np.inf, 1e39):
        with pytest.raises(DataError, match="NaN or infinity"):
            metrics.add(np.full((4, 4), bad), mask, good=False)
    with pytest.raises(DataError, match="bring the map to the mask's size"):
        metrics.add(map, mask[:3], good=False)
    with pytest.raises(DataError, match="a good picture has a mask"):
        metrics.add(map, mask, good=True)
    with pytest.raises(DataError, match=r"a map is \(H, W\)"):
        metrics.add(map[None], mask, good=False)

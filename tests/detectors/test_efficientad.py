"""EfficientAD: its cost, its loss and maps against slow computations, and its teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from flawmap.detectors import create
from flawmap.detectors.efficientad import PDN, AutoEncoder, EfficientAD, hardest, jittered, normalised
from flawmap.errors import DataError, UsageError
from flawmap.types import Batch

TINY = {"size": 64, "width": 4, "dim": 6, "ae_width": 4, "steps": 10}
SHAPE = {"pdn": "small", "width": 4, "dim": 6}


@pytest.fixture
def detector() -> EfficientAD:
    torch.manual_seed(0)
    found = EfficientAD(EfficientAD.configure({**TINY, "batch": 2}), pretrained=False)
    found.begin([_batch(seed) for seed in range(3)])
    return found


def _batch(seed: int, count: int = 2) -> Batch:
    random = torch.Generator().manual_seed(seed)
    image, generic = (torch.rand(count, 3, 64, 64, generator=random) for _ in range(2))
    return Batch(image=image, clean=image, generic=generic)


def _teacher(path: Path, shape: dict[str, Any] | None = None, **notes: Any) -> Path:
    shape = shape or SHAPE
    torch.manual_seed(1)
    state = {key: value.half() for key, value in _pdn(shape).state_dict().items()}
    save_file(state, path, {"flawmap": json.dumps({**shape, "backbone": "some net", "photos": "9 photos", **notes})})
    return path


def _pdn(shape: dict[str, Any]) -> PDN:
    return PDN(shape["pdn"], shape["width"], shape["dim"])


@pytest.mark.parametrize(
    ("kind", "width", "teacher", "student", "gmac"),
    [("small", 128, 2.694, 4.267, 15.31), ("medium", 256, 8.027, 11.615, 52.03)],
)
def test_the_networks_have_the_papers_parameters(
    kind: str, width: int, teacher: float, student: float, gmac: float
) -> None:
    with torch.device("meta"):
        found = PDN(kind, width, 384)
        with FlopCounterMode(display=False) as counter:
            assert found(torch.empty(1, 3, 256, 256)).shape == (1, 384, 56, 56)
        assert sum(p.numel() for p in found.parameters()) / 1e6 == pytest.approx(teacher, abs=1e-3)
        assert sum(p.numel() for p in PDN(kind, width, 768).parameters()) / 1e6 == pytest.approx(student, abs=1e-3)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, abs=0.01)


def test_the_auto_encoder_is_that_of_the_paper() -> None:
    found = AutoEncoder(32, 384, 256, 56)
    assert sum(p.numel() for p in found.parameters()) == 1_096_320
    assert found.sides == [3, 8, 15, 32, 63, 127]
    coded = found.encoder(torch.rand(1, 3, 256, 256))
    assert coded.shape == (1, 64, 1, 1)


def test_the_preset_for_a_cpu_costs_a_billion_multiplications_a_network() -> None:
    config = EfficientAD.configure({"preset": "small"})
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        PDN(config.pdn, config.width, config.dim)(torch.empty(1, 3, 256, 256))
    assert counter.get_total_flops() / 2e9 == pytest.approx(1.03, abs=0.01)


@pytest.mark.parametrize("kind", ["small", "medium"])
def test_a_feature_sees_33_pixels(kind: str) -> None:
    torch.manual_seed(0)
    net = PDN(kind, 8, 4).double()
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    net(image)[0, :, 3, 2].sum().backward()
    assert image.grad is not None
    rows, columns = (torch.nonzero(image.grad[0].abs().sum(dim=(0, axis))).flatten() for axis in (2, 1))
    assert (int(rows[0]), int(rows[-1])) == (12, 12 + 32)
    assert (int(columns[0]), int(columns[-1])) == (8, 8 + 32)


@pytest.mark.parametrize("kind", ["small", "medium"])
def test_a_part_of_the_features_is_what_it_is_among_all(kind: str) -> None:
    net, image = PDN(kind, 4, 10), torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(net(image, slice(4)), net(image)[:, :4])
    torch.testing.assert_close(net(image, slice(4, None)), net(image)[:, 4:])


def test_hard_features_are_those_from_the_quantile_up() -> None:
    gap = torch.rand(3, 7, 40, 40)
    each = []
    for picture in gap:
        least = torch.quantile(picture.flatten(), 0.999)
        each.append(picture[picture >= least].mean())
    assert float(hardest(gap)) == pytest.approx(float(torch.stack(each).mean()), abs=1e-6)


def test_the_teachers_features_are_scaled_over_the_good_pictures(detector: EfficientAD) -> None:
    with torch.no_grad():
        every = torch.cat([detector.teacher(normalised(_batch(seed).image)) for seed in range(3)])
    torch.testing.assert_close(detector.mean_D11.flatten(), every.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    deviation = every.transpose(0, 1).flatten(1).std(dim=1, correction=0)
    torch.testing.assert_close(detector.std_D11.flatten(), deviation, rtol=1e-3, atol=1e-5)


def test_the_loss_is_the_sum_of_the_papers_four(detector: EfficientAD) -> None:
    batch, dim = _batch(7), 6
    detector.eval().requires_grad_(False)  # no dropout
    torch.manual_seed(3)
    loss, parts = detector.loss(batch)
    torch.manual_seed(3)
    changed = normalised(jittered(batch.image))
    image, generic = normalised(batch.image), normalised(batch.generic)
    scaled = [(detector.teacher(x) - detector.mean_D11) / detector.std_D11 for x in (image, changed)]
    student = [detector.student(x) for x in (image, generic, changed)]
    coded = detector.autoencoder(changed)
    expected = [
        hardest((scaled[0] - student[0][:, :dim]) ** 2),
        (student[1][:, :dim] ** 2).mean(),
        ((coded - scaled[1]) ** 2).mean(),
        ((coded - student[2][:, dim:]) ** 2).mean(),
    ]
    assert list(parts.values()) == pytest.approx([float(e) for e in expected], rel=1e-5)
    assert float(loss) == pytest.approx(sum(float(e) for e in expected), rel=1e-5)


def test_training_moves_student_and_auto_encoder_and_never_the_teacher(detector: EfficientAD) -> None:
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    optimiser, schedule = detector.optimisers(20)[0]
    assert schedule is not None
    for step in range(20):
        optimiser.zero_grad()
        detector.loss(_batch(step))[0].backward()
        optimiser.step()
        schedule.step()
    moved = {key.split(".")[0] for key, value in detector.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"student", "autoencoder"}
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.1 * detector.config.rate)


def test_each_picture_is_changed_on_its_own() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 8, 8).expand(12, 3, 8, 8)
    found = jittered(image)
    assert found.shape == image.shape
    assert len({tuple(one.flatten().tolist()) for one in found}) > 6
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1


def test_quantiles_of_good_pictures_become_0_and_a_tenth(detector: EfficientAD) -> None:
    held = [_batch(seed) for seed in (20, 21, 22)]
    detector.end(held)
    for number in range(2):
        with torch.no_grad():
            values = torch.cat([detector._maps(batch.image)[number].flatten() for batch in held])
        low, high = detector.low_M[number], detector.high_M[number]
        scaled = (0.1 * (values - low) / (high - low)).numpy()
        assert np.quantile(scaled, (0.9, 0.995)) == pytest.approx([0, 0.1], abs=1e-4)


def test_the_map_is_half_of_either_scaled_enlarged_and_0_at_the_border(detector: EfficientAD) -> None:
    detector.end([_batch(20)])
    image = _batch(5).image
    with torch.no_grad():
        found, (first, second) = detector(image), detector._maps(image)
        x = normalised(image)
        teacher = (detector.teacher(x) - detector.mean_D11) / detector.std_D11
        student = detector.student(x)
    torch.testing.assert_close(first, ((teacher - student[:, :6]) ** 2).mean(dim=1))
    torch.testing.assert_close(second, ((detector.autoencoder(x) - student[:, 6:]) ** 2).mean(dim=1))
    low, high = detector.low_M, detector.high_M
    both = sum(0.05 * (m - low[i]) / (high[i] - low[i]) for i, m in enumerate((first, second)))
    expected = F.interpolate(F.pad(both, (4,) * 4)[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(found.map, expected, rtol=1e-4, atol=1e-5)
    inside = expected[:, 18:46, 18:46].flatten(1)
    torch.testing.assert_close(found.score, inside.max(dim=1).values, rtol=1e-4, atol=1e-5)
    assert float(found.map[:, :10].abs().max()) == 0  # features near the edge are not computed


def test_pictures_calmer_than_the_border_still_differ(detector: EfficientAD) -> None:
    detector.low_M[:], detector.high_M[:] = 100.0, 101.0  # all is below what good pictures reach at 90 %
    with torch.no_grad():
        score = detector(_batch(5, 4).image).score
    assert float(score.max()) < 0
    assert len(set(score.tolist())) == 4


def test_a_batch_is_as_large_as_asked(detector: EfficientAD) -> None:
    assert detector.batch_size == 2
    assert EfficientAD(EfficientAD.configure(TINY), pretrained=False).batch_size == 1


def test_a_teacher_is_read_from_its_file_and_remembered(tmp_path: Path) -> None:
    path = _teacher(tmp_path / "teacher.safetensors")
    found = create("efficientad", {**TINY, "teacher": str(path)})
    assert isinstance(found, EfficientAD)
    torch.manual_seed(1)
    for ours, theirs in zip(found.teacher.parameters(), PDN("small", 4, 6).parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    given = found.given()
    assert given["teacher_origin"] == "file teacher.safetensors: some net on 9 photos"
    assert len(given["teacher_sha256"]) == 64


def test_without_a_teacher_of_its_shape_it_says_how_to_make_one() -> None:
    with pytest.raises(UsageError, match=r"flawmap distill PHOTOS --out teacher.safetensors --pdn small --width 4"):
        create("efficientad", TINY)
    with pytest.raises(UsageError, match=r"--dim 384 --stages 2,3,4, and give"):  # there are not so many in 2 and 3
        create("efficientad")


def test_the_preset_for_a_cpu_has_its_teacher_embedded() -> None:
    found = create("efficientad", {"preset": "small"})
    assert isinstance(found, EfficientAD)
    assert found.origin.startswith("embedded: tf_efficientnet_lite0 on ")


def _other_shape(path: Path) -> None:
    _teacher(path, {**SHAPE, "dim": 7})


def _not_ours(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


def _wrong_tensors(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path, {"flawmap": json.dumps(SHAPE)})


def _torn(path: Path) -> None:
    path.write_bytes(_teacher(path).read_bytes()[:200])


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (_other_shape, UsageError, "a teacher of pdn small, width 4, dim 7; asked for pdn small, width 4, dim 6"),
        (_not_ours, UsageError, "asked for"),
        (_wrong_tensors, DataError, "tensors"),
        (_torn, DataError, "not a teacher made by flawmap distill"),
        (lambda path: None, DataError, "not a teacher made by flawmap distill"),
    ],
)
def test_a_file_that_is_no_such_teacher_is_refused(
    spoil: Callable[[Path], None], error: type[Exception], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "teacher.safetensors"
    spoil(path)
    with pytest.raises(error, match=words):
        create("efficientad", {**TINY, "teacher": str(path)})


@pytest.mark.parametrize(
    ("options", "words"), [({"pdn": "large"}, "it is small or medium"), ({"size": 80}, "a multiple of 32")]
)
def test_shapes_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        EfficientAD(EfficientAD.configure({**TINY, **options}), pretrained=False)

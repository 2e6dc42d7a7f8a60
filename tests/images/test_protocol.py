"""How pictures and masks come to one size: held against torchvision, and against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Resize

from flawmap.errors import UsageError
from flawmap.images.intake import Intake
from flawmap.images.protocol import PRESETS, Protocol, protocol


@pytest.mark.parametrize("size", [(90, 90), (90, 121), (140, 77)])
def test_a_crop_is_torchvisions_resize_and_centre_crop(size: tuple[int, int]):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    ours, own = Intake((32, 32), resize=37)(picture)
    theirs = CenterCrop(32)(Resize(37)(Image.fromarray(picture)))
    np.testing.assert_array_equal(ours, np.asarray(theirs, np.float32).transpose(2, 0, 1) / 255)
    assert own == size


def test_sixteen_bits_are_cropped_as_eight_are():
    picture = np.random.default_rng(0).integers(0, 256, (90, 121), np.uint8)
    eight = Intake((32, 32), resize=37)(picture)[0]
    sixteen = Intake((32, 32), 65535, resize=37)(picture.astype(np.uint16) * 257)[0]
    assert np.abs(eight - sixteen).max() <= 1 / 255  # eight bits are rounded between the two passes


def test_what_is_seen_is_the_middle_of_the_picture():
    intake = Intake((224, 224), resize=256)
    assert intake.seen((256, 256)) == (16, 16, 240, 240)
    assert intake.seen((512, 1024)) == (288, 32, 736, 480)  # 512 wide in the middle of 1024, less a sixteenth each side
    assert Intake((224, 224)).seen((512, 1024)) == (0, 0, 1024, 512)


def test_a_mask_is_reduced_by_its_rule():
    mask = np.zeros((8, 8), bool)
    mask[0:2, 0:1] = True  # half of its cell: not more than half
    mask[4:6, 4:6] = True
    mask[6, 6] = mask[7, 7] = mask[6, 7] = True  # three quarters
    small = Protocol("own", 4, mask="area", at="network").reduced(mask, Intake((4, 4)))
    assert [tuple(place) for place in np.argwhere(small)] == [(2, 2), (3, 3)]
    nearest = Protocol("own", 4, at="network").reduced(mask, Intake((4, 4)))
    np.testing.assert_array_equal(nearest, mask[1::2, 1::2])  # Pillow takes the pixel right and below of the middle


def test_a_mask_is_cropped_as_its_picture_is():
    mask = np.zeros((80, 100), bool)
    mask[38:42, 48:52] = True
    mask[0:5, 0:5] = True
    rules, intake = Protocol("own", 32, 40, "area", "network"), Intake((32, 32), resize=40)
    small = rules.reduced(mask, intake)
    image = intake(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2))[0][0]
    assert small.sum() == 4
    np.testing.assert_array_equal(small, image > 0.5)


def test_the_presets_say_what_they_are():
    assert list(PRESETS) == ["plain", "patchcore-crop", "simplenet-crop"]
    assert "no crop" in PRESETS["plain"].sentence
    assert "329 px (shorter side), the middle 288 px" in PRESETS["simplenet-crop"].sentence
    assert "more than half" in PRESETS["simplenet-crop"].sentence


def test_a_protocol_comes_by_name_or_from_a_table_and_nonsense_is_told():
    assert protocol("patchcore-crop").resize == 256
    assert protocol({"size": 100, "mask": "area", "at": "network"}) == Protocol("own", 100, None, "area", "network")
    assert protocol("patchcore-crop").options({"keep": 0.1}) == {"keep": 0.1, "size": 224}
    for wrong, words in (
        ("paper", "there are: plain"),
        ({"sise": 3}, "sise"),
        ({"mask": "bilinear"}, "nearest, area"),
        ({"size": 64, "resize": 32}, "resize 32"),
        ({"resize": 32}, "resize 32"),
    ):
        with pytest.raises(UsageError, match=words):
            protocol(wrong)
    with pytest.raises(UsageError, match="224 px, the options say 256"):
        protocol("patchcore-crop").options({"size": 256})
    with pytest.raises(UsageError, match="resize"):
        Intake((64, 64), resize=63)


def test_an_intake_of_before_crops_is_read():
    assert Intake.from_dict({"size": [4, 4], "white": None, "max_mpx": 64.0}) == Intake((4, 4))


def test_torch_sees_the_same_crop():
    picture = torch.arange(6 * 8).reshape(1, 6, 8).float()
    assert CenterCrop(4)(picture)[0, 0, 0] == picture[0, 1, 2]
    left, top, *_ = Intake((4, 4), resize=6).seen((6, 8))
    assert (left, top) == (2, 1)

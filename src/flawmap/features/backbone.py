"""A named backbone of timm, cut after the last stage that is asked for, with its weights' own normalisation.

B images  H W pixels  C channels of a stage  h w its grid
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flawmap.errors import DataError, UsageError
from flawmap.features import weights as _weights

EMBEDDED = _weights.EMBEDDED


class Backbone(nn.Module):
    """Frozen: never trained, always in evaluation mode.

    name     a model of timm; with a tag after a dot (`resnet18.tv_in1k`) where there is more than one set of weights
    stages   timm's out_indices: 2 is stride 8 and 3 is stride 16 in convolutional nets; block numbers in ViTs
    weights  a .safetensors file; empty: the embedded package, else the hub's cache, else the hub
    pretrained  off only where the weights come from elsewhere: a bundle, a test
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(
        self, name: str, stages: Sequence[int], size: int, *, weights: str = "", pretrained: bool = True
    ) -> None:
        super().__init__()
        if not stages or list(stages) != sorted(set(stages)):
            raise UsageError(f"stages {tuple(stages)}: give one or more, each once, the finest first")
        self.net = _create(name, tuple(stages), size)
        found = _weights.find(name, weights) if pretrained else None
        config = getattr(self.net, "pretrained_cfg", {})
        mean, std = config.get("mean", (0.5,) * 3), config.get("std", (0.5,) * 3)
        if found is not None:
            _load(self.net, found.state, f"{name} from {found.origin}")
            mean, std = found.mean or mean, found.std or std
        self.origin = found.origin if found else "random"
        self.sha256 = found.sha256 if found else ""
        self.register_buffer("mean_C11", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std_C11", torch.tensor(std).view(3, 1, 1))
        self.requires_grad_(False).eval()
        with torch.no_grad():
            self.shapes = tuple(
                tuple(feat.shape[1:]) for feat in self(torch.zeros(1, 3, size, size))
            )  # (C, h, w) a stage

    def train(self, mode: bool = True) -> Backbone:
        return super().train(False)

    def forward(self, image_B3HW: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) in [0, 1] -> one (B, C, h, w) a stage, in the order of the stages."""
        return tuple(self.net((image_B3HW - self.mean_C11) / self.std_C11))


def _create(name: str, stages: tuple[int, ...], size: int) -> nn.Module:
    import timm

    options = {"features_only": True, "out_indices": stages}
    if name.startswith("vit_") or "dinov2" in name:
        options["img_size"] = size
    try:
        net = timm.create_model(name, pretrained=False, **options)
    except RuntimeError as error:
        if "Unknown model" not in str(error) and "Invalid pretrained tag" not in str(error):
            raise
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=4)
        raise UsageError(f"timm knows no backbone {name!r}; did you mean {', '.join(near) or 'another'}?") from error
    except (AssertionError, IndexError, ValueError) as error:
        raise UsageError(f"{name} has no stages {stages}: {error}") from error
    return _cut(net)


def _cut(net: nn.Module) -> nn.Module:
    """timm keeps the unused last stages of EfficientNets: weight in a bundle for nothing."""
    blocks, info = getattr(net, "blocks", None), getattr(net, "feature_info", None)
    if isinstance(blocks, nn.Sequential) and info is not None:
        last = info.get_dicts()[-1]["module"]  # such as "blocks.4"
        if last.startswith("blocks.") and last.split(".")[1].isdigit():
            net.blocks = blocks[: int(last.split(".")[1]) + 1]
    return net


def _load(net: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Every tensor of the cut net must be found; what the file has beyond them (its last stages, its head) is left."""
    own = net.state_dict()
    # timm's features_only nets name the layers of some families with "_" where the file has "."
    for key in own:
        dotted = key.replace("_", ".", 1)
        if key not in state and dotted in state:
            state[key] = state[dotted]
    missing = [key for key in own if key not in state]
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
    if missing or wrong:
        first = (missing + wrong)[0]
        raise DataError(f"{what}: {len(missing)} tensors missing, {len(wrong)} of another shape, the first is {first}")
    net.load_state_dict({key: state[key] for key in own})

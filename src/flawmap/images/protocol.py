"""How pictures and masks come to one size before they are compared. Papers differ in it, and their numbers with them:
every table says its protocol.

plain           pictures squashed to the network's size; maps brought to the picture's own size, masks as they are
patchcore-crop  256 px, of which the middle 224 are seen, and compared at 224; masks nearest, as in PaDiM and SPADE
simplenet-crop  329 px, of which the middle 288 are seen, and compared at 288; masks by area

The originals of the last two cut a bilinear mask to integers, which wears it away; that is not repeated. A crop can cut
a defect off: such pictures keep their kind, and are counted. Pixels to ignore go the way of the mask; by area a pixel
is ignored where any part of it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from PIL import Image

from flawmap.errors import UsageError
from flawmap.images.intake import Intake

MASKS = {"nearest": "nearest neighbour", "area": "a pixel is a defect where more than half of it is"}
PLACES = ("picture", "network")


@dataclass(frozen=True)
class Protocol:
    name: str = "plain"
    size: int | None = None  # pixels of the network's input; None: the method's own
    resize: int | None = None  # pixels of the shorter side before the middle is taken; None: squashed, no crop
    mask: str = "nearest"  # how a mask becomes smaller: one of MASKS
    at: str = "picture"  # maps and masks are compared at the picture's own size, or the network's

    def __post_init__(self) -> None:
        numbers = [side for side in (self.size, self.resize) if side is not None]
        if not all(isinstance(side, int) and side > 0 for side in numbers) or not isinstance(self.name, str):
            raise UsageError(f"protocol {self.name}: size and resize are whole numbers of pixels, a name is a text")
        if self.mask not in MASKS or self.at not in PLACES:
            raise UsageError(
                f"protocol {self.name}: mask is one of {', '.join(MASKS)}, at one of {', '.join(PLACES)}; "
                f"given are {self.mask!r} and {self.at!r}"
            )
        if self.resize is not None and (self.size is None or self.resize < self.size):
            raise UsageError(f"protocol {self.name}: resize {self.resize} wants a size that is not larger")

    def said(self, intake: Intake) -> str:
        """Of a model that takes its pictures so. UsageError: this protocol is of another size or crop."""
        other = self.size is not None and (self.size, self.size) != intake.size
        if other or (self.resize is not None and self.resize != intake.resize):
            raise UsageError(
                f"protocol {self.name} is of {self.size} px{f' of {self.resize}' if self.resize else ''}, the model "
                f"takes {intake.size[0]} px{f' of {intake.resize}' if intake.resize else ', no crop'}: fit it with the "
                "same --protocol"
            )
        if not intake.words or intake.resize is not None:
            return replace(self, size=intake.size[0] if intake.resize else self.size, resize=intake.resize).sentence
        if self.at == "network":
            raise UsageError(
                f"protocol {self.name} compares at the network's size, and this model sees tiles or a part: use plain"
            )
        return f"Protocol {self.name}. {'. '.join(intake.words)}. Maps and masks at the picture's own size."

    @property
    def sentence(self) -> str:
        """For below a table."""
        size = "the network's size" if self.size is None else f"{self.size} px"
        seen = f"Pictures squashed to {size}, no crop; "
        if self.resize is not None:
            seen = f"Pictures brought to {self.resize} px (shorter side), the middle {size} seen; "
        if self.at == "picture":
            return f"Protocol {self.name}. {seen}maps brought to the picture's own size, masks as given."
        return f"Protocol {self.name}. {seen}compared at the network's size, masks brought to it ({MASKS[self.mask]})."

    def options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """A method's options under it. UsageError: they name another size."""
        if self.size is None:
            return dict(options)
        if str(options.get("size", self.size)) != str(self.size):
            raise UsageError(f"protocol {self.name} is for {self.size} px, the options say {options['size']}")
        return {**options, "size": self.size}

    def reduced(self, mask: np.ndarray, intake: Intake, least: float = 0.5) -> np.ndarray:
        """(H, W) bool of the picture's size at the size that the network saw.

        By area: where it fills more than `least` of a pixel; 0 for what is ignored, so that any part is enough.
        """
        image = Image.fromarray(mask.astype(np.float32))
        if self.mask == "nearest":
            return np.asarray(intake.place(image, Image.Resampling.NEAREST)) > 0.5
        return np.asarray(intake.place(image, Image.Resampling.BOX)) > least


PRESETS = {
    protocol.name: protocol
    for protocol in (
        Protocol(),
        Protocol("patchcore-crop", 224, 256, "nearest", "network"),
        Protocol("simplenet-crop", 288, 329, "area", "network"),
    )
}


def protocol(given: str | Mapping[str, Any] | Protocol) -> Protocol:
    """By name, or from the table of a recipe. UsageError: unknown."""
    if isinstance(given, Protocol):
        return given
    if not isinstance(given, str | Mapping):
        raise UsageError(f"protocol is {given!r}; give a name ({', '.join(PRESETS)}) or a table")
    if isinstance(given, str):
        if given not in PRESETS:
            raise UsageError(f"unknown protocol {given!r}; there are: {', '.join(PRESETS)}")
        return PRESETS[given]
    known = {field.name for field in fields(Protocol)}
    if wrong := set(given) - known:
        raise UsageError(f"protocol: unknown {', '.join(sorted(wrong))}; known are {', '.join(sorted(known))}")
    own = Protocol(**{"name": "own", **given})
    if own != PRESETS.get(own.name, own):
        raise UsageError(f"protocol: {own.name} is the name of other rules; give yours another name")
    return own

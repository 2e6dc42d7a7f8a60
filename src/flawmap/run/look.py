"""From a picture to its score and map, tile by tile where the model sees tiles; every engine goes this road."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, SupportsIndex, overload

import numpy as np

from flawmap.errors import FlawmapError
from flawmap.images.decode import Source
from flawmap.images.intake import Intake, View
from flawmap.images.tiles import enlarge
from flawmap.types import Prediction

BATCH = 4  # tiles that the engine is given at once: more fill the memory and are no faster on a CPU


class Looked(NamedTuple):
    score: float  # of tiles the largest, as of the views of a part
    map: np.ndarray  # (h, w) float32 as the network gives it; of tiles in the size of the largest scale
    size: tuple[int, int]  # height, width of the picture as given


class Maps(Sequence[np.ndarray]):
    """The maps of a part's views in the size of their pictures, each made when it is first asked for.

    Most parts are good, and nobody asks: enlarging a map can take as long as half of the network.
    """

    def __init__(self, intake: Intake, views: Sequence[Looked]) -> None:
        self.intake, self.views = intake, views
        self._made: list[np.ndarray | None] = [None] * len(views)

    def __len__(self) -> int:
        return len(self.views)

    @overload
    def __getitem__(self, place: SupportsIndex) -> np.ndarray: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[np.ndarray, ...]: ...
    def __getitem__(self, place: SupportsIndex | slice) -> np.ndarray | tuple[np.ndarray, ...]:
        if isinstance(place, slice):
            return tuple(self[number] for number in range(len(self))[place])
        number = range(len(self))[place]
        map = self._made[number]
        if map is None:
            map = self._made[number] = over(self.intake, self.views[number].map, self.views[number].size)
        return map


def look(engine: Callable[[np.ndarray], Prediction], intake: Intake, source: Source | View) -> Looked:
    """DataError: the picture cannot be judged."""
    view = source if isinstance(source, View) else intake.view(source)
    scores: list[float] = []
    map = view.layout.join(_maps(engine, view, scores))
    return Looked(float(np.max(scores)), covered(intake, map, view.size), view.size)


def decoded(intake: Intake, sources: Sequence[Source]) -> Sequence[Source | View] | FlawmapError:
    """The picture of a part, ready for the engine, or why it is not; of several views, as many as there are, none."""
    if len(sources) > 1:
        return sources
    try:
        return [intake.view(source).ready() for source in sources]
    except FlawmapError as error:
        return error


def covered(intake: Intake, map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What the polygons take from the picture gets the map's least value. `map` is over what the network sees."""
    hidden = intake.hidden(size)
    if hidden is None:
        return map
    left, top, right, bottom = intake.seen(size)
    rows = (np.arange(map.shape[0]) * (bottom - top) // map.shape[0]) + top
    columns = (np.arange(map.shape[1]) * (right - left) // map.shape[1]) + left
    return np.where(hidden[np.ix_(rows, columns)], map.min(), map)


def over(intake: Intake, map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The network's map over the whole picture. What was cut off or hidden has the map's least value."""
    left, top, right, bottom = intake.seen(size)
    seen = enlarge(map, (bottom - top, right - left))
    if seen.shape != size:
        whole = np.full(size, map.min(), np.float32)
        whole[top:bottom, left:right] = seen
        seen = whole
    hidden = intake.hidden(size)
    return seen if hidden is None else np.where(hidden, map.min(), seen)


def _maps(engine: Callable[[np.ndarray], Prediction], view: View, scores: list[float]) -> Iterator[np.ndarray]:
    for first in range(0, len(view), BATCH):
        tiles = range(first, min(first + BATCH, len(view)))
        found = engine(np.stack([view.tile(number) for number in tiles]))
        scores += [float(score) for score in found.score]
        yield from found.map

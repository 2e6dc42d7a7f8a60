"""The recipes of a station: named bundles, the one in use, and the way back to the one before."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flawmap.errors import BundleError, CalibrationError, FlawmapError, GateError, UsageError
from flawmap.run.engine import TOLERANCE
from flawmap.run.model import Model, load
from flawmap.verdict.regions import regions

BACK = 5  # recipes that are kept to go back to, each with its model in memory
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Recipe:
    """A model under the name that operators and the PLC know it by."""

    name: str
    model: Model
    bundle: str  # SHA-256
    calibration: str  # SHA-256
    version: int  # counts the bundles that were loaded under this name

    @property
    def views(self) -> tuple[int, int]:
        """Least and most views a part."""
        assert self.model.calibration
        return self.model.calibration.views

    @property
    def least_p(self) -> float:
        """The p-value at the threshold: parts with this one or less are not OK."""
        calibration = self.model.calibration
        assert calibration
        return calibration.promise or 1 / (calibration.parts + 1)

    @property
    def promise(self) -> str:
        assert self.model.calibration
        return self.model.calibration.sentence


class Recipes:
    """Bundles that were loaded, warmed and held against their golden pictures before they may judge.

    A part is judged to its end by the recipe it came in with: a switch swaps one reference, and loses nothing.
    """

    def __init__(self, paths: Mapping[str, Path], *, engine: str = "onnx", key: Path | None = None) -> None:
        if not paths:
            raise UsageError("a station needs a bundle")
        self.paths, self._engine, self._key = dict(paths), engine, key
        self._lock = threading.Lock()
        self._versions = dict.fromkeys(self.paths, 1)
        self._loaded = {name: self._load(name, 1) for name in self.paths}
        self._before: deque[Recipe] = deque(maxlen=BACK)
        self._active = next(iter(self._loaded.values()))

    @property
    def active(self) -> Recipe:
        return self._active

    @property
    def previous(self) -> Recipe | None:
        """What `roll_back` goes back to."""
        return self._before[-1] if self._before else None

    @property
    def names(self) -> list[str]:
        return list(self._loaded)

    def get(self, name: str | None = None) -> Recipe:
        """The one in use, or one by name. UsageError: there is none of that name."""
        if name is None:
            return self._active
        if name not in self._loaded:
            raise UsageError(f"there is no recipe {name!r}; there are: {', '.join(self._loaded)}")
        return self._loaded[name]

    def use(self, name: str, *, reload: bool = False) -> Recipe:
        """Judges by this one from now on; `reload`: with the bundle as it now lies on the disk.

        BundleError, GateError, CalibrationError: the bundle cannot judge; the old one stays.
        """
        with self._lock:
            found = self.get(name)
            if reload and (read := self._load(name, self._versions[name] + 1)).bundle != found.bundle:
                found, self._versions[name] = read, read.version
                self._loaded[name] = found
            if found is not self._active:
                self._before.append(self._active)
                self._active = found
        return found

    def roll_back(self) -> Recipe:
        """Back to the recipe, and the very bundle, before the last switch; five deep. UsageError: there was none."""
        with self._lock:
            if not self._before:
                raise UsageError("there is nothing to go back to")
            self._active = self._before.pop()
            self._loaded[self._active.name] = self._active
        return self._active

    def state(self) -> tuple[Recipe, dict[str, Recipe], list[Recipe]]:
        """For `restore`: which is in use, those that can be, and the way back."""
        with self._lock:
            return self._active, dict(self._loaded), list(self._before)

    def restore(self, state: tuple[Recipe, dict[str, Recipe], list[Recipe]]) -> None:
        """Takes a switch back as if it had not been."""
        with self._lock:
            self._active, self._loaded = state[0], dict(state[1])
            self._before = deque(state[2], BACK)

    def _load(self, name: str, version: int) -> Recipe:
        try:
            return self._proven(name, version)
        except FlawmapError:
            raise
        except Exception as error:  # of the engine, for a graph that it cannot take
            raise BundleError(f"{self.paths[name]}: {type(error).__name__}: {error}; it may not judge here") from error

    def _proven(self, name: str, version: int) -> Recipe:
        if not NAME.fullmatch(name):
            raise UsageError(f"recipe {name!r}: a name has letters, digits, dots, dashes and underscores")
        model = load(self.paths[name], self._engine, self._key)
        if model.calibration is None:
            raise CalibrationError(f"{self.paths[name]}: not calibrated, so that it gives no verdict: calibrate it")
        if model.unfit:
            raise CalibrationError(f"{self.paths[name]}: {model.unfit}")
        if not any(entry.startswith("golden/") for entry in model.bundle.files):
            raise BundleError(f"{self.paths[name]}: has no golden pictures to hold it against; fit it again")
        gap, flips = model.golden()  # warms the engine, too
        regions(np.eye(8, dtype=np.float32), 0.5)  # and what marks the first bad part
        if not gap <= TOLERANCE or flips or not np.isfinite(gap):
            raise GateError(
                f"{self.paths[name]}: on this machine scores of its golden pictures differ by {gap:.1e} of their scale "
                f"(allowed {TOLERANCE:.0e}), {len(flips)} verdicts flip: it may not judge here"
            )
        digest = hashlib.sha256(json.dumps(model.calibration.to_dict(), sort_keys=True).encode()).hexdigest()
        return Recipe(name, model, model.bundle.sha256, digest, version)

"""A model as the line uses it: a bundle, an engine, and what they say of a part. Only the engine torch needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flawmap.errors import BundleError, CalibrationError, GateError, UsageError
from flawmap.images.intake import Intake, View
from flawmap.run.bundle import Bundle, read
from flawmap.run.engine import TOLERANCE, Engine, OnnxEngine, OpenVinoEngine, TorchEngine
from flawmap.run.export import LEAST_SCALE, flipped, judged_alone
from flawmap.run.look import Looked, Maps, look, over
from flawmap.types import Inspection, Region, Verdict
from flawmap.verdict.calibration import Calibration
from flawmap.verdict.regions import regions

if TYPE_CHECKING:
    from flawmap.images.decode import Source


ROUNDING = 1e-6  # of a value: bilinear weights add up to 1, but for the last bits


class Model:
    """Inspects pictures with a bundle.

    engine  "onnx" (ONNX Runtime, the default), "openvino" (extra `openvino`) or "torch" (extra `train`)

    OpenVINO was not there when the bundle was made: it is held against the golden pictures first. GateError when it
    says something else of them.
    """

    run: Path | None = None  # the folder of the fit that made it

    def __init__(self, bundle: Bundle, engine: str = "onnx") -> None:
        self.bundle = bundle
        config = bundle.config
        try:
            self.method: str = config["method"]
            self.intake = Intake.from_dict(config["intake"])
        except (KeyError, TypeError, UsageError) as error:
            raise BundleError(f"{bundle.origin}: config.json lacks {error}; fit again") from error
        self.calibration = None
        if "calibration.json" in bundle.files:
            self.calibration = Calibration.from_dict(bundle.json("calibration.json"))
        self.engine: Engine = self._engine(engine)
        self._proven: tuple[str, ...] = tuple(config.get("parity", {}).get("engines", ()))
        if engine == "openvino":
            self._prove()

    def _engine(self, name: str) -> Engine:
        if name == "onnx":
            return OnnxEngine(self.bundle.files["model.onnx"])
        if name == "torch":
            return TorchEngine.from_bundle(self.bundle.config, self.bundle.files["weights.safetensors"])
        if name == "openvino":
            return OpenVinoEngine(self.bundle.files["model.onnx"])
        raise UsageError(f"no engine {name!r}; there are: onnx, openvino, torch")

    def golden(self) -> tuple[float, list[str]]:
        """Largest difference to what was said of the golden pictures, in units of the scale; verdicts that flip."""
        gaps, flips = [0.0], []
        for entry in self.bundle.json("golden.json"):
            score, _, _ = self.look(self.bundle.files[f"golden/{entry['name']}"])
            scale = self.calibration.scale if self.calibration else abs(entry["score"])
            gaps.append(abs(score - entry["score"]) / max(scale, LEAST_SCALE))
            if flipped(entry, judged_alone(score, self.calibration)):
                flips.append(entry["name"])
        return float(np.max(gaps)), flips  # NaN stays NaN, which is within nothing

    def _prove(self) -> None:
        gap, flips = self.golden()
        if not gap <= TOLERANCE or flips:
            raise GateError(
                f"{self.engine.name}: scores of the golden pictures differ by {gap:.1e} of their scale (allowed "
                f"{TOLERANCE:.0e}), {len(flips)} verdicts flip: use the engine onnx on this machine"
            )
        self._proven = (*self._proven, self.engine.name)

    def inspect(self, picture: Source, *, name: str = "", part: str = "") -> Inspection:
        """One picture of one part: a file, its bytes, or an array (H, W[, 3]) of uint8 or uint16.

        DataError when the picture cannot be judged; CalibrationError when parts need several views.
        """
        return self.inspect_part([picture], names=[name] if name else None, part=part)

    def inspect_part(
        self, views: Sequence[Source | View], *, names: Sequence[str] | None = None, part: str = ""
    ) -> Inspection:
        """All views of one part: its score is the largest of theirs, or by the calibration's rule; one verdict."""
        if not isinstance(views, Sequence) or isinstance(views, str | bytes):
            raise UsageError(f"views are a list of pictures, not a {type(views).__name__}; inspect() takes one picture")
        if not views:
            raise UsageError("a part without a picture cannot be judged")
        if names is None:
            names = [str(v) if isinstance(v, (str, Path)) else f"view {i}" for i, v in enumerate(views)]
        looked = [self.look(view) for view in views]
        for name, view in zip(names, looked, strict=True):
            if not (np.isfinite(view.score) and np.isfinite(view.map).all()):
                raise CalibrationError(f"{name}: the score or the map is not a number, so no verdict can be given")
        scores = tuple(view.score for view in looked)
        maps = Maps(self.intake, looked)
        calibration = self.calibration
        score, verdict, p_value = self.judge(scores)
        return Inspection(
            names=tuple(names),
            part=part or names[0],
            score=score,
            scores=scores,
            maps=maps,
            regions=tuple(self._regions(view, maps, place) for place, view in enumerate(looked)),
            verdict=verdict,
            p_value=p_value,
            threshold=calibration.threshold if calibration else None,
        )

    def _regions(self, view: Looked, maps: Maps, place: int) -> tuple[Region, ...]:
        """None without a calibration, nor where all of the map is below, which no enlarging brings above."""
        calibration = self.calibration
        if calibration is None:
            return ()
        threshold = calibration.map_threshold
        if view.map.max() < threshold - ROUNDING * abs(threshold):
            return ()
        return regions(maps[place], threshold, calibration.min_area_px, calibration.pitch_mm)

    def judge(self, scores: Sequence[float]) -> tuple[float, Verdict | None, float | None]:
        """Score, verdict and p-value of a part by the scores of its views; no verdict without a calibration.

        CalibrationError: too many or too few views, NaN, or a calibration that does not hold for this engine.
        """
        if self.calibration is None:
            return max(scores), None, None
        if self.unfit:
            raise CalibrationError(f"{self.unfit}, with flawmap calibrate")
        score = self.calibration.score(scores)
        return score, self.calibration.verdict(scores), self.calibration.p_value(score)

    @property
    def unfit(self) -> str | None:
        """Why the calibration does not hold for this engine, or None."""
        return self.calibration.unfit(self.engine.name, self._proven) if self.calibration else None

    def predict(self, picture: Source | View) -> tuple[float, np.ndarray]:
        """Score, and the map in the size of the picture as given: (H, W) float32."""
        score, map, size = self.look(picture)
        return score, self.over(map, size)

    def look(self, picture: Source | View) -> Looked:
        """Score, the map as the network gives it, (h, w) float32, and the picture's own height and width."""
        return look(self.engine, self.intake, picture)

    def over(self, map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """The network's map over the whole picture. What was cut off or hidden has the map's least value."""
        return over(self.intake, map, size)

    def save(self, path: str | Path) -> Path:
        """Writes the bundle, whole or not at all."""
        return self.bundle.write(Path(path))

    @property
    def card(self) -> str:
        """What the model is and promises, as Markdown."""
        if "card.md" not in self.bundle.files:
            raise BundleError(f"{self.bundle.origin}: card.md is missing; get the bundle again")
        return self.bundle.files["card.md"].decode()

    def __repr__(self) -> str:
        promise = self.calibration.sentence if self.calibration else "not calibrated: gives no verdict"
        return f"<flawmap model {self.method}, {self.bundle.origin}: {promise}>"


def load(path: str | Path, engine: str = "onnx", key: str | Path | None = None) -> Model:
    """A model from a bundle (a .flaw file or a folder). BundleError when it is damaged or was changed.

    With the public `key` of who made it (default: what FLAWMAP_KEY names) also when it is not signed with that one.
    """
    return Model(read(Path(path), key), engine)

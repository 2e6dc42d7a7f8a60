"""From the fitted detector to a graph that says the same, and the gate that makes sure of it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from flawmap.errors import GateError
from flawmap.images.decode import decode
from flawmap.images.intake import Intake
from flawmap.run.engine import TOLERANCE, Engine
from flawmap.run.look import Looked, look
from flawmap.types import Verdict
from flawmap.verdict.calibration import Calibration

GOLDEN_BYTES = 2**21  # a larger picture is thinned before it is carried along in the bundle
LEAST_SCALE = 1e-12  # what a score scale is at least where something is divided by it


@dataclass(frozen=True)
class Golden:
    """A picture whose scores the bundle remembers: its file's bytes."""

    name: str
    content: bytes


def to_onnx(detector: Any) -> bytes:
    """The whole detector as one ONNX graph: image (B, 3, H, W) -> map (B, H, W), score (B,)."""
    import onnx
    import torch

    from flawmap.detectors.base import FrozenDetector
    from flawmap.features.frozen import export, graph_file

    detector = detector.to("cpu").eval()
    size = detector.config.size
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        if isinstance(detector, FrozenDetector):
            # The backbone's graph is there already: only the head is traced, and the two are joined.
            feats = tuple(torch.zeros(2, *shape) for shape in detector.backbone.shapes)
            names = [f"feat{i}" for i in range(len(feats))]
            export(_Head(detector), (feats,), path, names, ["map", "score"])
            graph = _joined(onnx.load(graph_file(detector.backbone, size)), onnx.load(path), names)
        else:
            export(detector, (torch.zeros(2, 3, size, size),), path, ["image"], ["map", "score"])
            graph = onnx.load(path)
    _strip(graph)
    onnx.checker.check_model(graph)
    return graph.SerializeToString()


def gate(
    trained: Engine, exported: Engine, intake: Intake, golden: Sequence[Golden], calibration: Calibration | None
) -> dict[str, Any]:
    """Both engines from file bytes to verdict over the golden pictures. GateError when they differ.

    Returns the largest differences in units of the scale, and what the exported engine said of every picture.
    """
    worst_score, worst_map, entries = 0.0, 0.0, []
    found = [tuple(look(engine, intake, picture.content) for engine in (trained, exported)) for picture in golden]
    if calibration:
        scale, least = max(calibration.scale, LEAST_SCALE), abs(calibration.map_threshold)
    else:  # nothing says where good ends: the scales are those of a picture that is plainly not good
        spoilt = [look(trained, intake, _spoilt(intake, picture.content)) for picture in golden]
        scale = max([abs(one.score) for one in spoilt] + [LEAST_SCALE])
        least = max([float(np.abs(one.map).max()) for one in spoilt] + [0.0])
    for picture, (ours, theirs) in zip(golden, found, strict=True):
        map_scale = max(least, float(np.abs(ours.map).max()), 1e-12)
        score_gap = abs(ours.score - theirs.score) / scale
        map_gap = float(np.abs(ours.map - theirs.map).max()) / map_scale
        worst_score, worst_map = max(worst_score, score_gap), max(worst_map, map_gap)
        flips = judged_alone(ours.score, calibration) != judged_alone(theirs.score, calibration)
        if not score_gap <= TOLERANCE or not map_gap <= TOLERANCE or flips:
            raise GateError(
                f"{picture.name}: {trained.name} says {ours.score:.6f} and {exported.name} says {theirs.score:.6f} "
                f"(difference {score_gap:.1e} of the scale, map {map_gap:.1e}; allowed {TOLERANCE:.0e}"
                f"{', and the verdict flips' if flips else ''}): the bundle is not written"
            )
        entries.append(_entry(picture.name, theirs, calibration))
    return {
        "engines": [trained.name, exported.name],
        "tolerance": TOLERANCE,
        "worst_score": worst_score,
        "worst_map": worst_map,
        "pictures": entries,
    }


def _spoilt(intake: Intake, source: Any) -> np.ndarray:
    """The picture with a square, a quarter of each side of what is seen, in inverted colours."""
    picture, white = decode(source, intake.max_mpx).copy(), intake.white or 255
    left, top, right, bottom = intake.seen((picture.shape[0], picture.shape[1]))
    sides = ((top, bottom - top), (left, right - left))
    square = tuple(slice(at + side // 4, at + max(side // 4 + 1, side // 2)) for at, side in sides)
    picture[square] = white - np.minimum(picture[square], white)
    return picture


def judged_alone(score: float, calibration: Calibration | None) -> Verdict | None:
    """Of one picture, by the thresholds alone, whatever the number of views a part has; None: not calibrated."""
    if calibration is None:
        return None
    if score > calibration.threshold:
        return Verdict.NOK
    review = calibration.review_threshold
    return Verdict.REVIEW if review is not None and score > review else Verdict.OK


def flipped(entry: Mapping[str, Any], verdict: Verdict | None) -> bool:
    """Whether a verdict is another than golden.json says; entries of old bundles know only whether it was NOK."""
    return (verdict == Verdict.NOK) != entry["nok"] or verdict != entry.get("verdict", verdict)


def golden(sources: Sequence[Any], engine: Engine, intake: Intake, calibration: Calibration | None) -> list[Golden]:
    """A few pictures as they came, and for each threshold two that were made to stand next to it."""
    found = [carried(f"good-{number}", source) for number, source in enumerate(sources)]
    return found + (_near(engine, intake, sources, calibration) if calibration else [])


def golden_anew(
    engine: Engine, intake: Intake, files: Mapping[str, bytes], calibration: Calibration
) -> dict[str, bytes]:
    """All files of a bundle, with the golden ones made anew for another calibration by the engine at hand.

    The good pictures stay; those next to the old thresholds go, and others are made next to the new ones where a fading
    crosses them. golden.json says what the engine finds in each. GateError: its score or map is not a finite number.
    """
    old = [Golden(name.removeprefix("golden/"), files[name]) for name in files if name.startswith("golden/")]
    good = [picture for picture in old if PurePosixPath(picture.name).stem not in _NEAR]
    pictures = good + _near(engine, intake, [picture.content for picture in good], calibration)
    entries = []
    for picture in pictures:
        found = look(engine, intake, picture.content)
        if not (np.isfinite(found.score) and np.isfinite(found.map).all()):
            raise GateError(f"golden picture {picture.name}: {engine.name} finds no finite score and map of it")
        entries.append(_entry(picture.name, found, calibration))
    others = {name: content for name, content in files.items() if not name.startswith("golden/")}
    return {**others, **entries_of(pictures), "golden.json": json.dumps(entries, indent=1).encode()}


def _entry(name: str, found: Looked, calibration: Calibration | None) -> dict[str, Any]:
    """What golden.json says of a picture; `nok` is there for readers that know no `verdict`."""
    verdict = judged_alone(found.score, calibration)
    peak = float(found.map.max())
    return {"name": name, "score": found.score, "peak": peak, "nok": verdict == Verdict.NOK, "verdict": verdict}


def _near(engine: Engine, intake: Intake, sources: Sequence[Any], calibration: Calibration) -> list[Golden]:
    """A pair at each threshold, made of the first picture whose fading crosses it."""
    found: list[Golden] = []
    wanted = {"threshold": calibration.threshold}
    if calibration.review_threshold is not None:
        wanted["review"] = calibration.review_threshold
    for what, threshold in wanted.items():
        for source in sources:
            if near := near_threshold(engine, intake, thinned(source), threshold, what):
                found += near
                break
    return found


def carried(name: str, source: Path | np.ndarray) -> Golden:
    """A picture for the bundle: the file byte by byte, or what is left of a large one when it is thinned."""
    if isinstance(source, Path) and source.stat().st_size <= GOLDEN_BYTES:
        return Golden(name + source.suffix.lower(), source.read_bytes())
    return Golden(f"{name}.png", _png(thinned(source)))


def thinned(source: Path | np.ndarray | bytes) -> np.ndarray:
    """Every pixel of a picture, or every second, fourth ... in both directions until its PNG is small enough."""
    pixels = decode(source)
    while len(_png(pixels)) > GOLDEN_BYTES:
        pixels = np.ascontiguousarray(pixels[::2, ::2])
    return pixels


_NEAR = tuple(f"{where}-{what}" for what in ("threshold", "review") for where in ("below", "above"))


def near_threshold(
    engine: Engine, intake: Intake, source: Any, threshold: float, what: str = "threshold"
) -> list[Golden]:
    """A good picture disturbed until its score stands as close below and above the threshold as 8 or 16 bits allow.

    A block in the middle is faded into its negative; the fading is bisected. Empty when no fading crosses.
    """
    picture = decode(source, intake.max_mpx)
    disturbed = _spoilt(intake, source)

    def faded(share: float) -> np.ndarray:
        return np.rint(picture + share * (disturbed.astype(np.float64) - picture)).astype(picture.dtype)

    def score(share: float) -> float:
        return look(engine, intake, faded(share)).score

    low, high = 0.0, 1.0
    if not score(low) <= threshold < score(high):
        return []
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (low, middle) if score(middle) > threshold else (middle, high)
    return [Golden(f"{where}-{what}.png", _png(faded(share))) for where, share in (("below", low), ("above", high))]


def _png(pixels: np.ndarray) -> bytes:
    import io

    from PIL import Image

    # Pillow writes 16 bits in grey only, and a disturbed picture need not keep its colours to be a test.
    grey = pixels if pixels.ndim == 2 else pixels[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(grey if pixels.dtype == np.uint16 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _Head(detector: Any) -> Any:
    import torch

    class Head(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.detector = detector

        def forward(self, feats: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
            return tuple(self.detector.head(feats))

    return Head()


def _joined(backbone: Any, head: Any, names: Sequence[str]) -> Any:
    from onnx import compose

    backbone = compose.add_prefix(backbone, "backbone/", rename_inputs=False, rename_outputs=False)
    head.ir_version = backbone.ir_version
    return compose.merge_models(backbone, head, io_map=[(name, name) for name in names])


def _strip(graph: Any) -> None:
    """The exporter notes source lines and paths of the machine in every node: not for the customer."""
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del graph.graph.metadata_props[:]
    del graph.metadata_props[:]
    graph.graph.name, graph.doc_string, graph.graph.doc_string = "flawmap", "", ""
    versions = {entry.domain: entry.version for entry in graph.opset_import}
    del graph.opset_import[:]  # joined graphs name theirs twice
    for domain, version in versions.items():
        graph.opset_import.add(domain=domain, version=version)


def entries_of(golden: Sequence[Golden]) -> Mapping[str, bytes]:
    return {f"golden/{picture.name}": picture.content for picture in golden}

"""Export: from a bundle to what judges elsewhere, by another engine, in int8, as a folder, a bundle or for Triton."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flawmap.errors import GateError, UsageError
from flawmap.run.bundle import carded, graph_line, read
from flawmap.run.engine import TOLERANCE, OnnxEngine, OpenVinoEngine, TorchEngine, engine_of
from flawmap.run.export import Golden, gate, to_onnx
from flawmap.run.graph import described, in_words, precision
from flawmap.run.model import Model
from flawmap.run.triton import config as triton_config
from flawmap.run.triton import repository
from flawmap.verdict.parts import said_views

ENGINES, PRECISIONS, FORMATS = ("onnx", "openvino"), ("fp32", "int8"), ("folder", "bundle", "triton")
STEPS = ("resize", "tile", "overlap", "scales", "roi", "ignore")  # of the intake: a client takes them by itself
OPTIONS = {  # of int8, as the command line calls them
    "pictures": "--pictures",
    "fresh": "--fresh",
    "part_pattern": "--part-pattern",
    "most_lost": "--loss",
    "most_flipped": "--flips",
}


def export_bundle(
    path: Path,
    out: Path,
    *,
    engine: str | None = None,
    kind: str | None = None,
    form: str = "folder",
    name: str | None = None,
    pictures: Any = None,
    fresh: Any = None,
    part_pattern: str | None = None,
    most_lost: float | None = None,
    most_flipped: float | None = None,
) -> dict[str, str]:
    """The graph made anew from the bundle's weights, through the gate, with what it takes to use it.

    engine    onnx or openvino: which one judges; None: the one that the bundle was calibrated with
    kind      fp32 or int8; None: as the bundle is
    form      folder (graph, threshold, how to use them), bundle (a file NAME.flaw), or triton (a model repository)
    pictures  of int8: where the pictures lie that the bundle was made of; those of a test split are judged too
    fresh     of int8: good parts that the model has not seen, to calibrate by in place of its own

    most_lost, most_flipped   of int8: of the I-AUROC, and of the verdicts; 0.01 and 0.05 unless given

    Returns what is said to people. GateError: the engines or the precisions say something else, or the calibration
    does not hold for the engine that will judge; nothing is written.
    """
    given = dict(zip(OPTIONS, (pictures, fresh, part_pattern, most_lost, most_flipped), strict=True))
    int8 = {what: value for what, value in given.items() if value is not None}
    _check(engine, kind, form, name, int8)
    _check_out(out, form, name or path.stem)
    bundle = read(path)
    stated = str(bundle.json("calibration.json").get("engine", "")) if "calibration.json" in bundle.files else ""
    model = Model(bundle, "openvino" if engine_of(stated) == "openvino" else "onnx")
    if model.unfit:
        raise GateError(f"{path}: {model.unfit}, with flawmap calibrate; nothing is written")
    if precision(bundle.files["model.onnx"]) == "int8":
        made, told = _as_it_is(model, path, engine, kind)
    else:
        judge = engine or ("onnx" if form == "triton" else engine_of(model.engine.name))
        made, told = _exact(model, judge)
        if kind == "int8":
            from flawmap.run.int8 import in_int8

            allowed: dict[str, Any] = {what: int8[what] for what in ("most_lost", "most_flipped") if what in int8}
            made, more = in_int8(made, judge, pictures, fresh, part_pattern, **allowed)
            told |= more
    _holds(made, path, form)
    return {**_write(made, out, form, name or path.stem), **told, "operators": in_words(made.bundle.config["graph"])}


def _holds(made: Model, path: Path, form: str) -> None:
    """GateError: the calibration does not hold for the engine that will judge."""
    judge = Model(made.bundle) if form == "triton" else made  # Triton's is ONNX Runtime, whatever the bundle's is
    if judge.unfit:
        raise GateError(
            f"{path}: {judge.unfit}, with flawmap calibrate, or export for {engine_of(judge.engine.name)} from the "
            "bundle in single precision that it was made of; nothing is written"
        )


def _check(engine: str | None, kind: str | None, form: str, name: str | None, int8: Mapping[str, Any]) -> None:
    given = (("engine", engine, ENGINES), ("precision", kind, PRECISIONS), ("format", form, FORMATS))
    for what, value, known in given:
        if value is not None and value not in known:
            raise UsageError(f"no {what} {value!r}; there are: {', '.join(known)}")
    if kind == "int8" and "pictures" not in int8:
        raise UsageError(
            "int8 takes its ranges from the pictures that were fitted on: say with --pictures where they lie"
        )
    if kind != "int8" and int8:
        raise UsageError(f"{OPTIONS[next(iter(int8))]} belongs to the precision int8: give --precision int8 as well")
    for what in ("most_lost", "most_flipped"):
        if not 0 <= int8.get(what, 0) <= 1:
            raise UsageError(f"{OPTIONS[what]} is {int8[what]}: give a share from 0 to 1")
    if form == "triton" and engine == "openvino":
        raise UsageError("the format triton is made for Triton's ONNX Runtime; export for the engine onnx")
    if name is not None and form != "triton":
        raise UsageError("a name belongs to the format triton")


def _check_out(out: Path, form: str, name: str) -> None:
    """Before the work: whether what is asked for can be written there. UsageError: it cannot."""
    if form == "bundle" and out.is_dir():
        raise UsageError(f"{out} is a folder, and --format bundle writes one file: give --out {out / name}.flaw")
    folder = out.parent if form == "bundle" else out
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise UsageError(f"{place} is a file, and --format {form} needs a folder there: give another --out")
    if form == "triton":
        triton_config(name, (1, 1))  # which refuses what Triton cannot call a model
        if (out / name).exists():
            raise UsageError(f"{out / name} is there already; give another --name, or remove it")


def _as_it_is(model: Model, path: Path, engine: str | None, kind: str | None) -> tuple[Model, dict[str, str]]:
    """Of a bundle in int8: its graph was measured when it was made, and another one would be another model."""
    if kind == "int8":
        raise UsageError(
            f"{path} is in int8 already and is exported as it is: leave out --precision and the options of int8 "
            f"({', '.join(OPTIONS.values())}), or export from the bundle that it was made of"
        )
    if kind == "fp32" or engine not in (None, engine_of(model.engine.name)):
        raise UsageError(f"{path} is in int8, for {model.engine.name}: export from the bundle that it was made of")
    gap, flips = model.golden()
    if not gap <= TOLERANCE or flips:
        raise GateError(
            f"{path}: on this machine scores of the golden pictures differ by {gap:.1e} of their scale (allowed "
            f"{TOLERANCE:.0e}), {len(flips)} verdicts flip; nothing is written. Make it in int8 on a machine like this"
        )
    return model, {"golden pictures": f"scores within {gap:.1e} of their scale"}


def _exact(model: Model, engine: str) -> tuple[Model, dict[str, str]]:
    """In single precision: the graph anew, held against torch by every engine that is to judge."""
    files, config = model.bundle.files, model.bundle.config
    trained = TorchEngine.from_bundle(config, files["weights.safetensors"])
    graph = to_onnx(trained.detector)
    pictures = [Golden(name.removeprefix("golden/"), files[name]) for name in files if name.startswith("golden/")]
    judge = OnnxEngine(graph)
    parity, calibration = gate(trained, judge, model.intake, pictures, model.calibration), model.calibration
    judges = judge.name
    if "openvino" in (engine, engine_of(model.engine.name)):  # it will judge, or it calibrated
        other = OpenVinoEngine(graph)
        found = gate(trained, other, model.intake, pictures, calibration)
        worst = {what: max(parity[what], found[what]) for what in ("worst_score", "worst_map")}
        said, judges = (found, other.name) if engine == "openvino" else (parity, judge.name)
        parity = {**said, **worst, "engines": [*parity["engines"], other.name]}
    if calibration and (engine == "openvino" or engine_of(calibration.engine) != engine):
        calibration = replace(calibration, engine=judges)  # the gate held all of them
    told = {key: value for key, value in parity.items() if key != "pictures"}
    config = {**config, "parity": told, "graph": described(graph)}
    changed = {
        "model.onnx": graph,
        "config.json": json.dumps(config, indent=1).encode(),
        "golden.json": json.dumps(parity["pictures"], indent=1).encode(),
        "card.md": carded(model.card, graph_line(config)),
    }
    if calibration:
        changed["calibration.json"] = json.dumps(calibration.to_dict(), indent=1).encode()
    return Model(model.bundle.replace(changed), engine), {
        "engines": ", ".join(parity["engines"]),
        "largest score difference": f"{parity['worst_score']:.1e} of the scale (allowed {TOLERANCE:.0e})",
        "golden pictures": str(len(pictures)),
        "verdicts flipped": "0",
    }


def _write(model: Model, out: Path, form: str, name: str) -> dict[str, str]:
    if form == "bundle":
        return {"bundle": str(model.save(out)), "SHA-256": model.bundle.sha256}
    beside = {"calibration.json": model.bundle.files.get("calibration.json"), "use.json": use(model)}
    if form == "triton":
        return {"repository": str(out), "model": str(repository(model, out, name, beside))}
    write_all(out, {"model.onnx": model.bundle.files["model.onnx"], **beside})
    return {"graph": str(out / "model.onnx")}


def write_all(folder: Path, files: Mapping[str, bytes | None]) -> None:
    """None: there is no such file, and one of an earlier export is removed; its threshold is another model's."""
    for name, content in files.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def use(model: Model) -> bytes:
    """use.json: how input and output look, how a file becomes the input, and what this graph was held against."""
    intake, config = model.intake.to_dict(), model.bundle.config
    found: dict[str, Any] = {
        "input": "image, float32 (batch, 3, height, width) in [0, 1], RGB",
        "output": "map (batch, height, width), score (batch)",
        "engine": model.engine.name,
        "intake": intake,
    }
    if client := _client(model, intake):
        found["client"] = client
    kept = {key: config[key] for key in ("graph", "parity", "int8") if key in config}
    return json.dumps({**found, **kept, "parity": _pictured(model, kept["parity"])}, indent=1).encode()


def _client(model: Model, intake: Mapping[str, Any]) -> str:
    """What is left to whoever feeds the graph, beside squashing a picture to its size; empty: nothing."""
    words = []
    if own := [key for key in STEPS if intake.get(key) is not None]:
        words.append(
            f"The intake has {', '.join(own)}: the graph takes one input of its size, so whoever feeds it first does "
            "as the intake says: cuts out the region, blacks out the polygons, brings the shorter side to `resize` and "
            "cuts out the middle, or scales and cuts the tiles. Of tiles, a picture's score is the largest."
        )
    made = model.calibration
    if made and (made.views[1] > 1 or made.rule != "largest"):
        words.append(
            f"The threshold is of parts with {said_views(made.views)}, not of single pictures: a part's score is the "
            f"{made.rule} of its pictures' scores, and a part with another number of views has no verdict."
        )
    return " ".join(words)


def _pictured(model: Model, parity: Mapping[str, Any]) -> dict[str, Any]:
    return {**parity, "pictures": model.bundle.json("golden.json")}

"""Verbs on models: made, judged, exported, told of. Heavy imports stand inside the commands."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from flawmap.cli.words import about_data, about_key, about_view, add_verb, show, view
from flawmap.errors import UsageError


def demo(verbs: Any) -> None:
    verb = add_verb(verbs, "demo", _run_demo, "fit, calibrate, inspect and report on pictures that come along")
    verb.add_argument(
        "what", nargs="?", choices=("station",), help="a station with camera, PLC and page; else a report"
    )
    verb.add_argument("--woven", action="store_true", help="on drawn woven fabric; else on photos of solar cells")
    verb.add_argument("--method", default="patchcore", help="see flawmap list")
    verb.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="default: demo")
    verb.add_argument("--port", type=int, default=8080, help="of the station: 8080")
    verb.add_argument("--every", type=float, default=2.0, metavar="S", help="seconds between parts of the station: 2")


def _run_demo(args: argparse.Namespace) -> None:
    if args.what == "station":
        from flawmap.station.demo import demo as station

        show(args, station(args.out, port=args.port, every_s=args.every))
        return
    from flawmap.run.demo import demo

    show(args, demo(args.out, woven=args.woven, method=args.method))


def fit(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "fit",
        _run_fit,
        "good pictures in, a calibrated bundle and a report out",
        epilog="Further --NAME VALUE are options of the method: flawmap list METHOD shows them.",
    )
    verb.add_argument("data", help="a folder, a data set in MVTec's layout, or a list (.csv, .jsonl)")
    verb.add_argument("--method", default="patchcore", help="default: patchcore; see flawmap list")
    verb.add_argument("--preset", help="a named set of the method's options")
    verb.add_argument("--save", type=Path, metavar="FILE", help="also write the bundle here")
    verb.add_argument("--seed", type=int, default=0, help="default: 0")
    verb.add_argument("--false-alarm", type=float, metavar="RATE", help="default: max(0.01, 1 / (good parts + 1))")
    verb.add_argument("--confidence", type=float, metavar="C", help="the rate holds with it, as 0.95; else on average")
    verb.add_argument(
        "--held-out", type=float, default=0.2, metavar="SHARE", help="of the parts, for calibration: 0.2; 0: no verdict"
    )
    verb.add_argument("--folds", type=int, default=5, help="of cross-fitting, when parts are few: 5")
    verb.add_argument("--shots", type=int, metavar="K", help="fit on so many good parts only")
    verb.add_argument("--draw", type=int, default=0, help="which draw of them: 0")
    verb.add_argument("--protocol", default="plain", help="plain, patchcore-crop or simplenet-crop; default: plain")
    about_view(verb)
    verb.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="where runs go; default: runs")
    verb.add_argument("--device", default="auto", help="auto, cpu or cuda")
    verb.add_argument("--resume", action="store_true", help="go on with the newest stopped run of the same recipe")
    verb.add_argument("--resume-run", type=Path, metavar="DIR", help="go on with this run")
    about_data(verb)
    verb.set_defaults(takes_options=True)


def _run_fit(args: argparse.Namespace) -> None:
    from flawmap.run.fit import fit

    options = {**({"preset": args.preset} if args.preset else {}), **args.options}
    model = fit(
        args.data,
        args.method,
        options=options,
        seed=args.seed,
        false_alarm=args.false_alarm,
        confidence=args.confidence,
        held_out=args.held_out,
        folds=args.folds,
        shots=args.shots,
        draw=args.draw,
        out=args.out,
        part_pattern=args.part_pattern,
        skip_bad=args.skip_bad,
        device=args.device,
        resume=args.resume_run or args.resume,
        protocol=args.protocol,
        **view(args),
    )
    if os.environ.get("RANK", "0") != "0":
        return  # of several processes that train together, the first one speaks
    found = {"bundle": str(model.bundle.origin), "report": str(Path(model.bundle.origin).with_name("report.html"))}
    if args.save:
        found["bundle"] = str(model.save(args.save))
    found["promise"] = model.calibration.sentence if model.calibration else "not calibrated: gives no verdict"
    show(args, found)


def distill(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "distill",
        _run_distill,
        "a teacher for efficientad, from a frozen backbone and photos of anything",
        epilog="Further --NAME VALUE: backbone stages weights pdn width dim size crops steps batch rate seed.",
    )
    verb.add_argument("photos", type=Path, nargs="?", help="a folder of photos; without it drawn textures serve")
    verb.add_argument("--out", type=Path, required=True, metavar="FILE", help="the teacher, .safetensors")
    verb.add_argument("--device", default="auto", help="auto, cpu or cuda")
    verb.set_defaults(takes_options=True)


def _run_distill(args: argparse.Namespace) -> None:
    from flawmap.run.distill import distill

    show(args, distill(args.photos, args.out, options=args.options, device=args.device))


def evaluate(verbs: Any) -> None:
    verb = add_verb(verbs, "evaluate", _run_evaluate, "judge a test set: scores, metrics and a report")
    verb.add_argument("bundle", type=Path)
    verb.add_argument("data", help="as for fit; of a data set with train and test, test is judged")
    verb.add_argument("--out", type=Path, metavar="DIR", help="default: evaluation beside the bundle")
    verb.add_argument("--protocol", default="plain", help="at what size maps and masks are compared; default: plain")
    verb.add_argument("--tsne", action="store_true", help="lay the pictures out in the report (needs torch)")
    verb.add_argument("--acceptance", action="store_true", help="also escapes by kind and size, agreement, gauge R&R")
    verb.add_argument("--trial-pattern", metavar="REGEX", help="with --acceptance: its group in a name is the trial")
    about_key(verb)
    about_data(verb)


def _run_evaluate(args: argparse.Namespace) -> None:
    from flawmap.run.evaluate import evaluate, in_words
    from flawmap.run.model import load

    if args.trial_pattern is not None and not args.acceptance:
        raise UsageError("--trial-pattern goes with --acceptance")
    model = load(args.bundle, key=args.key)
    out = args.out or args.bundle.resolve().parent / "evaluation"
    how = {name: getattr(args, name) for name in ("part_pattern", "skip_bad", "protocol", "tsne")}
    accepted, words = {}, {}
    if args.acceptance:
        from flawmap.run import acceptance

        found, accepted["acceptance"] = acceptance.accept(
            model, args.data, out, trial_pattern=args.trial_pattern, **how
        )
        words = acceptance.in_words(accepted["acceptance"])
    else:
        found = evaluate(model, args.data, out, **how)
    if args.json:
        told = {**found.metrics, "notes": list(found.notes), "report": str(out / "report.html"), **accepted}
        print(json.dumps(told, default=str))
    else:
        show(args, {**in_words(found), **words, "report": str(out / "report.html")})


def calibrate(verbs: Any) -> None:
    verb = add_verb(verbs, "calibrate", _run_calibrate, "a new threshold, and what it promises in a sentence")
    verb.add_argument("bundle", type=Path)
    verb.add_argument("data", nargs="?", help="good pictures that the model has not seen; default: those it remembers")
    verb.add_argument("--save", type=Path, required=True, metavar="FILE", help="the calibrated bundle")
    verb.add_argument("--policy", default="false-alarm", help="false-alarm, no-escape, cost, manual or f1-oracle")
    verb.add_argument("--false-alarm", type=float, metavar="RATE", help="default: max(0.01, 1 / (good parts + 1))")
    verb.add_argument("--confidence", type=float, metavar="C", help="the rate holds with it, as 0.95; else on average")
    verb.add_argument("--defects", metavar="DATA", help="known defects: a folder of kinds, a data set, a list")
    verb.add_argument("--margin", type=float, metavar="SHARE", help="of no-escape: so much closer to the good parts")
    verb.add_argument("--escape-cost", type=float, metavar="X", help="of cost: what an escape costs")
    verb.add_argument("--reject-cost", type=float, metavar="X", help="of cost: what a false alarm costs")
    verb.add_argument("--review-cost", type=float, metavar="X", help="of cost: what a look costs; gives two thresholds")
    verb.add_argument("--defect-rate", type=float, metavar="RATE", help="of cost: defective parts at the line")
    verb.add_argument("--threshold", type=float, metavar="SCORE", help="of manual")
    verb.add_argument("--views", dest="rule", help="a part's score over its views: largest (default) or mean")
    verb.add_argument("--per-picture", action="store_true", help="pictures as parts: promises less than it seems to")
    verb.add_argument("--min-area", type=int, metavar="PX", help="smaller regions are not marked")
    verb.add_argument("--min-area-mm2", type=float, metavar="MM2", help="the same on the part, with --pitch")
    verb.add_argument("--pitch", type=float, metavar="MM", help="side of a pixel on the part; gives areas in mm2")
    about_data(verb)


def _run_calibrate(args: argparse.Namespace) -> None:
    from flawmap.run.calibrate import calibrate
    from flawmap.run.model import load

    same = ("policy", "false_alarm", "confidence", "margin", "escape_cost", "reject_cost", "review_cost")
    same += ("defect_rate", "threshold", "defects", "rule", "min_area_mm2", "part_pattern", "skip_bad")
    wishes = {name: getattr(args, name) for name in same}
    wishes |= {"min_area_px": args.min_area, "pitch_mm": args.pitch, "per_picture": args.per_picture or None}
    model = calibrate(load(args.bundle), args.data, **wishes)
    if args.per_picture:
        print("flawmap: calibrated per picture: this promises nothing for parts with several views", file=sys.stderr)
    path, made = model.save(args.save), model.calibration
    found = {"bundle": str(path), "policy": args.policy, "threshold": made.threshold if made else None}
    if made and made.review_threshold is not None:
        found["review above"] = made.review_threshold
    show(args, {**found, "promise": made.sentence if made else ""})


def inspect(verbs: Any) -> None:
    verb = add_verb(verbs, "inspect", _run_inspect, "judge pictures: one line a part (with --json one object a line)")
    verb.add_argument("bundle", type=Path)
    verb.add_argument("pictures", nargs="+", help="files, folders or lists; -: one from standard input")
    verb.add_argument("--overlay", type=Path, metavar="DIR", help="write each picture with its map over it")
    verb.add_argument("--maps", type=Path, metavar="DIR", help="write each map as .npy, float32")
    verb.add_argument("--part-pattern", metavar="REGEX", help="its first group in a picture's name is the part shown")
    verb.add_argument("--engine", default="onnx", help="onnx, openvino or torch; default: onnx")
    about_key(verb)
    verb.add_argument("--out", type=Path, metavar="DIR", help="Parquet tables instead of lines, by workers; resumed")
    verb.add_argument("--workers", type=int, metavar="N", help="with --out: processes; default: one a core")
    verb.add_argument("--save-maps", action="store_true", help="with --out: keep each map, float16, network's size")
    verb.add_argument("--ray", metavar="ADDRESS", help="with --out: on a Ray cluster; local: one started for this run")


def _run_inspect(args: argparse.Namespace) -> int:
    if args.out is not None:
        return _run_inspect_bulk(args)
    from flawmap.run.inspect import inspect
    from flawmap.run.model import load

    if alone := [word for word in ("workers", "save_maps", "ray") if getattr(args, word)]:
        raise UsageError(f"--{alone[0].replace('_', '-')} goes with --out")
    return inspect(
        load(args.bundle, args.engine, args.key),
        args.pictures,
        part_pattern=args.part_pattern,
        overlay=args.overlay,
        maps=args.maps,
        as_json=args.json,
    )


def _run_inspect_bulk(args: argparse.Namespace) -> int:
    from flawmap.run.bulk import inspect_bulk

    if args.overlay or args.maps:
        raise UsageError("--overlay and --maps write a file a picture; with --out, --save-maps keeps the maps")
    if "-" in args.pictures:
        raise UsageError("- is a picture from standard input; --out takes files, folders and lists")
    if args.key is not None:
        os.environ["FLAWMAP_KEY"] = str(args.key.resolve())  # for the workers, which read the bundle again
    found, code = inspect_bulk(
        args.bundle,
        args.pictures,
        args.out,
        workers=args.workers,
        engine=args.engine,
        part_pattern=args.part_pattern,
        maps=args.save_maps,
        ray=args.ray,
    )
    show(args, found)
    return code


def export(verbs: Any) -> None:
    verb = add_verb(verbs, "export", _run_export, "make the ONNX graph anew from the weights, through the parity gate")
    verb.add_argument("bundle", type=Path)
    verb.add_argument(
        "--out", type=Path, required=True, metavar="PATH", help="a folder, or the file of --format bundle"
    )
    verb.add_argument("--engine", help="onnx or openvino: which one will judge; default: as the bundle was calibrated")
    verb.add_argument("--precision", help="fp32 or int8 (static, QDQ); default: as the bundle is")
    verb.add_argument("--format", default="folder", help="folder, bundle or triton (a model repository)")
    verb.add_argument("--name", help="of triton: the model's name; default: the bundle's")
    verb.add_argument("--pictures", metavar="DATA", help="of int8: where the pictures lie that the bundle was made of")
    verb.add_argument(
        "--fresh", metavar="DATA", help="of int8: good parts that the model has not seen, to calibrate by"
    )
    verb.add_argument("--part-pattern", metavar="REGEX", help="its first group in a picture's name is the part shown")
    verb.add_argument("--loss", type=float, metavar="X", help="of int8: at most so much of the I-AUROC; default 0.01")
    verb.add_argument("--flips", type=float, metavar="SHARE", help="of int8: at most so many verdicts; default 0.05")


def _run_export(args: argparse.Namespace) -> None:
    from flawmap.run.deliver import export_bundle

    asked = {"engine": args.engine, "kind": args.precision, "form": args.format, "name": args.name}
    asked |= {"pictures": args.pictures, "fresh": args.fresh, "part_pattern": args.part_pattern}
    show(args, export_bundle(args.bundle, args.out, **asked, most_lost=args.loss, most_flipped=args.flips))


def sign(verbs: Any) -> None:
    verb = add_verb(verbs, "sign", _run_sign, "sign a bundle, so that others know who made it; or make a pair of keys")
    verb.add_argument("bundle", type=Path, nargs="?")
    verb.add_argument("--key", type=Path, metavar="PEM", help="the private key to sign with")
    verb.add_argument("--save", type=Path, metavar="FILE", help="the signed bundle; default: in its place")
    verb.add_argument("--new-key", type=Path, metavar="DIR", help="write private.pem and public.pem here, and no more")


def _run_sign(args: argparse.Namespace) -> None:
    from flawmap.run.sign import new_key, sign

    if args.new_key is not None:
        if args.bundle or args.key or args.save:
            raise UsageError("--new-key makes a pair of keys and signs nothing: give it alone")
        show(args, new_key(args.new_key))
        return
    if args.bundle is None or args.key is None:
        raise UsageError("give a bundle and the private key to sign it with: flawmap sign BUNDLE --key private.pem")
    show(args, sign(args.bundle, args.key, args.save))


def report(verbs: Any) -> None:
    verb = add_verb(verbs, "report", _run_report, "a page of what a bundle promises, or of evaluations side by side")
    verb.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="a bundle, or two evaluations and more")
    verb.add_argument("--out", type=Path, metavar="FILE", help="default: NAME.html beside the bundle, or compare.html")
    verb.add_argument("--shared", action="store_true", help="of evaluations: only the parts that all have alike")


def _run_report(args: argparse.Namespace) -> None:
    source = args.sources[0]
    if len(args.sources) > 1:
        from flawmap.run.versus import in_words
        from flawmap.run.versus import report as compare

        found = compare(args.sources, args.out or Path("compare.html"), shared=args.shared)
        show(args, found if args.json else in_words(found))
        return
    if args.shared or (source / "scores.csv").exists():
        raise UsageError("a comparison takes two evaluations and more, the baseline first")
    from flawmap.run.model import load
    from flawmap.run.show import bundle_report

    show(args, {"report": str(bundle_report(load(source), args.out or source.with_suffix(".html")))})

"""The command line: reads words, calls run/, prints. Heavy imports stand inside the commands."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flawmap.errors import FlawmapError, MissingExtra, UsageError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 ok, 1 error, 2 usage, 3 data, 4 a gate failed, 130 interrupted."""
    parser = _parser()
    try:
        args, rest = parser.parse_known_args(_tied(parser, sys.argv[1:] if argv is None else argv))
        if rest and not getattr(args, "takes_options", False):
            raise UsageError(f"unknown: {' '.join(rest)}; see flawmap {args.verb} --help")
        args.options = _options(rest)
        code = args.run(args) or 0
        sys.stdout.flush()
        return code
    except FlawmapError as error:
        print(f"flawmap: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if error.name in ("torch", "timm", "onnx", "onnxscript"):
            missing = MissingExtra(error.name, "train", f"flawmap {args.verb}")
            print(f"flawmap: {missing}", file=sys.stderr)
            return missing.exit_code
        raise
    except KeyboardInterrupt:
        print("flawmap: interrupted; nothing half-written is left. A fit goes on with --resume", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has gone (head, less): not an error, and Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a folder that may not be written, a full disk
        print(f"flawmap: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    from flawmap import __version__

    parser = argparse.ArgumentParser(
        prog="flawmap",
        description="Visual inspection from good photos: find and outline what is not good.",
        epilog="first steps: flawmap demo --woven",
    )
    parser.add_argument("--version", action="version", version=f"flawmap {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for add in (_demo, _fit, _evaluate, _calibrate, _inspect, _export, _report, _reproduce, _data, _doctor, _list):
        add(verbs)
    return parser


def _verb(verbs: Any, name: str, run: Any, text: str, **more: Any) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, description=text, allow_abbrev=False, **more)
    verb.set_defaults(run=run)
    verb.add_argument("--json", action="store_true", help="results as JSON on stdout")
    return verb


def _about_data(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--part-pattern", metavar="REGEX", help="its first group in a picture's name is the part shown")
    verb.add_argument("--skip-bad", action="store_true", help="leave out pictures that cannot be used, and list them")


def _demo(verbs: Any) -> None:
    verb = _verb(verbs, "demo", _run_demo, "fit, calibrate, inspect and report on pictures that come along")
    verb.add_argument("--woven", action="store_true", help="on drawn woven fabric; else on photos of solar cells")
    verb.add_argument("--method", default="patchcore", help="see flawmap list")
    verb.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="default: demo")


def _run_demo(args: argparse.Namespace) -> None:
    from flawmap.run.demo import demo

    _print(args, demo(args.out, woven=args.woven, method=args.method))


def _fit(verbs: Any) -> None:
    verb = _verb(
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
    verb.add_argument(
        "--held-out", type=float, default=0.2, metavar="SHARE", help="of the parts, for calibration: 0.2; 0: no verdict"
    )
    verb.add_argument("--folds", type=int, default=5, help="of cross-fitting, when parts are few: 5")
    verb.add_argument("--shots", type=int, metavar="K", help="fit on so many good parts only")
    verb.add_argument("--draw", type=int, default=0, help="which draw of them: 0")
    verb.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="where runs go; default: runs")
    verb.add_argument("--device", default="auto", help="auto, cpu or cuda")
    verb.add_argument("--resume", action="store_true", help="go on with the newest stopped run of the same recipe")
    verb.add_argument("--resume-run", type=Path, metavar="DIR", help="go on with this run")
    _about_data(verb)
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
        held_out=args.held_out,
        folds=args.folds,
        shots=args.shots,
        draw=args.draw,
        out=args.out,
        part_pattern=args.part_pattern,
        skip_bad=args.skip_bad,
        device=args.device,
        resume=args.resume_run or args.resume,
    )
    if os.environ.get("RANK", "0") != "0":
        return  # of several processes that train together, the first one speaks
    found = {"bundle": str(model.bundle.origin), "report": str(Path(model.bundle.origin).with_name("report.html"))}
    if args.save:
        found["bundle"] = str(model.save(args.save))
    found["promise"] = model.calibration.sentence if model.calibration else "not calibrated: gives no verdict"
    _print(args, found)


def _evaluate(verbs: Any) -> None:
    verb = _verb(verbs, "evaluate", _run_evaluate, "judge a test set: scores, metrics and a report")
    verb.add_argument("bundle", type=Path)
    verb.add_argument("data", help="as for fit; of a data set with train and test, test is judged")
    verb.add_argument("--out", type=Path, metavar="DIR", help="default: evaluation beside the bundle")
    _about_data(verb)


def _run_evaluate(args: argparse.Namespace) -> None:
    from flawmap.run.evaluate import evaluate, in_words
    from flawmap.run.model import load

    model = load(args.bundle)
    out = args.out or args.bundle.resolve().parent / "evaluation"
    found = evaluate(model, args.data, out, part_pattern=args.part_pattern, skip_bad=args.skip_bad)
    if args.json:
        print(
            json.dumps({**found.metrics, "notes": list(found.notes), "report": str(out / "report.html")}, default=str)
        )
    else:
        _print(args, {**in_words(found), "report": str(out / "report.html")})


def _calibrate(verbs: Any) -> None:
    verb = _verb(verbs, "calibrate", _run_calibrate, "a new threshold from good parts that the model has not seen")
    verb.add_argument("bundle", type=Path)
    verb.add_argument("data", help="good pictures: a folder or a list")
    verb.add_argument("--save", type=Path, required=True, metavar="FILE", help="the calibrated bundle")
    verb.add_argument("--false-alarm", type=float, metavar="RATE", help="default: max(0.01, 1 / (good parts + 1))")
    _about_data(verb)


def _run_calibrate(args: argparse.Namespace) -> None:
    from flawmap.run.evaluate import calibrate
    from flawmap.run.model import load

    model = calibrate(
        load(args.bundle),
        args.data,
        false_alarm=args.false_alarm,
        part_pattern=args.part_pattern,
        skip_bad=args.skip_bad,
    )
    path = model.save(args.save)
    _print(args, {"bundle": str(path), "promise": model.calibration.sentence if model.calibration else ""})


def _inspect(verbs: Any) -> None:
    verb = _verb(verbs, "inspect", _run_inspect, "judge pictures: one line a part (with --json one object a line)")
    verb.add_argument("bundle", type=Path)
    verb.add_argument("pictures", nargs="+", help="files, folders or lists")
    verb.add_argument("--overlay", type=Path, metavar="DIR", help="write each picture with its map over it")
    verb.add_argument("--maps", type=Path, metavar="DIR", help="write each map as .npy, float32")
    verb.add_argument("--part-pattern", metavar="REGEX", help="its first group in a picture's name is the part shown")
    verb.add_argument("--engine", default="onnx", help="onnx or torch; default: onnx")


def _run_inspect(args: argparse.Namespace) -> int:
    from flawmap.run.inspect import inspect
    from flawmap.run.model import load

    return inspect(
        load(args.bundle, args.engine),
        args.pictures,
        part_pattern=args.part_pattern,
        overlay=args.overlay,
        maps=args.maps,
        as_json=args.json,
    )


def _export(verbs: Any) -> None:
    verb = _verb(verbs, "export", _run_export, "make the ONNX graph anew from the weights, through the parity gate")
    verb.add_argument("bundle", type=Path)
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="model.onnx and what it takes to use it")


def _run_export(args: argparse.Namespace) -> None:
    from flawmap.run.export import export_bundle

    _print(args, export_bundle(args.bundle, args.out))


def _report(verbs: Any) -> None:
    verb = _verb(verbs, "report", _run_report, "one HTML page of what a bundle is and promises")
    verb.add_argument("bundle", type=Path)
    verb.add_argument("--out", type=Path, metavar="FILE", help="default: NAME.html beside the bundle")


def _run_report(args: argparse.Namespace) -> None:
    from flawmap.run.model import load
    from flawmap.run.show import bundle_report

    path = args.out or args.bundle.with_suffix(".html")
    _print(args, {"report": str(bundle_report(load(args.bundle), path))})


def _reproduce(verbs: Any) -> None:
    verb = _verb(
        verbs, "reproduce", _run_reproduce, "a table or a figure of a paper, from runs that are kept and go on"
    )
    verb.add_argument("name", nargs="?", help="which one; without it: the list")
    verb.add_argument("--full", action="store_true", help="the paper's settings (wants a GPU); else those for a CPU")
    verb.add_argument("--data", type=Path, metavar="DIR", help="the data set's folder; default: FLAWMAP_DATA")
    verb.add_argument("--out", type=Path, default=Path("reproduce"), metavar="DIR", help="default: reproduce")
    verb.add_argument("--only", default="", metavar="TEXT", help="run only what has this in its name")
    verb.add_argument("--seeds", type=int, nargs="+", help="run only these")
    verb.add_argument("--textures", default="", metavar="DIR", help="pictures to paint with, such as DTD")
    verb.add_argument("--no-run", action="store_true", help="write the page from what has been run")
    verb.add_argument("--device", default="auto", help="auto, cpu or cuda")


def _run_reproduce(args: argparse.Namespace) -> None:
    from flawmap.run.reproduce import names, read, reproduce

    if not args.name:
        _print(args, {name: read(name).title for name in names()})
        return
    data = args.data or os.environ.get("FLAWMAP_DATA")
    found = reproduce(
        args.name,
        Path(data) if data else None,
        args.out,
        full=args.full,
        only=args.only,
        seeds=args.seeds,
        textures=args.textures,
        train=not args.no_run,
        device=args.device,
    )
    _print(args, found)
    if not args.json:
        print(f"\n{Path(found['page']).read_text(encoding='utf-8')}")


def _data(verbs: Any) -> None:
    verb = _verb(verbs, "data", _run_data, "audit a data set; exit code 3 when something would spoil a result")
    verb.add_argument("data", help="a folder, a data set in MVTec's layout, or a list (.csv, .jsonl)")
    verb.add_argument("--part-pattern", metavar="REGEX", help="its first group in a picture's name is the part shown")
    verb.add_argument("--show-synthesis", type=Path, metavar="PNG", help="write a sheet of good pictures with defects")
    verb.add_argument("--synthesis", default="pouta", help="the sheet's recipe: pouta, draem or memseg; default: pouta")
    verb.add_argument("--textures", default="", metavar="DIR", help="the sheet's pictures to paint with")
    verb.add_argument("--foreground", default="", help="the sheet's part to paint on: bright, dark, or as dark:250")
    verb.add_argument("--size", type=int, default=224, metavar="PX", help="of the sheet's pictures; default: 224")


def _run_data(args: argparse.Namespace) -> int:
    if args.show_synthesis:
        from flawmap.run.sheet import synthesis_sheet

        path = synthesis_sheet(
            args.data, args.show_synthesis, args.synthesis, args.textures, args.size, args.foreground
        )
        _print(args, {"sheet": str(path)})
        return 0
    from flawmap.images.audit import audit
    from flawmap.images.folder import find, strays

    samples = find(args.data, part_pattern=args.part_pattern)
    folder = Path(args.data)
    found = audit(samples, strays(folder, samples) if folder.is_dir() else ())
    print(json.dumps(found.to_dict()) if args.json else found.text())
    return 3 if found.spoils else 0


def _doctor(verbs: Any) -> None:
    verb = _verb(
        verbs, "doctor", _run_doctor, "what is installed here, and whether a bundle says here what it said there"
    )
    verb.add_argument("bundle", type=Path, nargs="?")


def _run_doctor(args: argparse.Namespace) -> int:
    from flawmap.run.doctor import doctor

    found, sound = doctor(args.bundle)
    _print(args, found)
    return 0 if sound else 4


def _list(verbs: Any) -> None:
    verb = _verb(verbs, "list", _run_list, "the methods, or the options of one")
    verb.add_argument("method", nargs="?", help="shows its options, defaults and presets (needs the extra train)")


def _run_list(args: argparse.Namespace) -> None:
    from flawmap.detectors import DETECTORS, describe

    if args.method is None:
        print(json.dumps(list(DETECTORS)) if args.json else "\n".join(DETECTORS))
        return
    found = describe(args.method)
    if args.json:
        print(json.dumps(found))
        return
    print(f"{found['title']}, {found['paper']}\n")
    for name, row in found["options"].items():
        print(f"  --{name.replace('_', '-'):<16} {row['default']!s:<24} {row['help']}")
    for name, values in found["presets"].items():
        print(f"  --preset {name:<9} {', '.join(f'{key} {value}' for key, value in values.items())}")


def _tied(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """After `fit`, `--keep 0.1 DATA` becomes `--keep=0.1 DATA`: argparse would take the value of a flag that it does
    not know, a method's option, for DATA. All options of methods take a value."""
    verbs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    known = verbs.choices["fit"]._option_string_actions
    tied, left = list(words[:1]), list(words[1:])
    if tied != ["fit"]:
        return list(words)
    while left:
        word = left.pop(0)
        alone = word.startswith("--") and len(word) > 2 and "=" not in word and word not in known
        tied.append(f"{word}={left.pop(0)}" if alone and left else word)
    return tied


def _options(rest: Sequence[str]) -> dict[str, str]:
    """--name=value of a method's options."""
    options: dict[str, str] = {}
    for word in rest:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise UsageError(f"unexpected {word!r}: options of the method are --NAME VALUE")
        if not equals:
            raise UsageError(f"option {word} needs a value")
        options[name.replace("-", "_")] = value
    return options


def _print(args: argparse.Namespace, found: dict[str, Any]) -> None:
    if args.json:
        print(json.dumps(found, default=str))
        return
    width = max(map(len, found), default=0)
    for key, value in found.items():
        print(f"{key:<{width}}  {value}")


if __name__ == "__main__":
    sys.exit(main())

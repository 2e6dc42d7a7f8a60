"""Verbs that look: papers reproduced, pictures audited, what is installed. Heavy imports inside the commands."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from flawmap.cli.words import about_key, add_verb, show
from flawmap.errors import UsageError


def reproduce(verbs: Any) -> None:
    verb = add_verb(
        verbs, "reproduce", _run_reproduce, "a table or a figure of a paper, from runs that are kept and go on"
    )
    verb.add_argument("name", nargs="?", help="which one; without it: the list")
    verb.add_argument("--full", action="store_true", help="the paper's settings (wants a GPU); else those for a CPU")
    verb.add_argument("--data", type=Path, metavar="DIR", help="the data set's folder; default: FLAWMAP_DATA")
    verb.add_argument("--out", type=Path, default=Path("reproduce"), metavar="DIR", help="default: reproduce")
    verb.add_argument("--only", default="", metavar="TEXT", help="run only what has this in its name")
    verb.add_argument("--seeds", type=int, nargs="+", help="run only these")
    verb.add_argument("--textures", default="", metavar="DIR", help="pictures to paint with, such as DTD")
    verb.add_argument("--weights", type=Path, metavar="DIR", help="backbones' weights, BACKBONE.safetensors")
    verb.add_argument("--no-run", action="store_true", help="write the page from what has been run")
    verb.add_argument("--device", default="auto", help="auto, cpu or cuda")


def _run_reproduce(args: argparse.Namespace) -> None:
    from flawmap.run.reproduce import names, read, reproduce

    if not args.name:
        show(args, {name: read(name).title for name in names()})
        return
    data = args.data or os.environ.get("FLAWMAP_DATA")
    wishes = {key: getattr(args, key) for key in ("full", "only", "seeds", "textures", "weights", "device")}
    found = reproduce(args.name, Path(data) if data else None, args.out, train=not args.no_run, **wishes)
    show(args, found)
    if not args.json:
        print(f"\n{Path(found['page']).read_text(encoding='utf-8')}")


def benchmark(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "benchmark",
        _run_benchmark,
        "methods x categories x seeds x shots, in tables that say their protocol; runs are kept and go on",
    )
    verb.add_argument("data", type=Path, nargs="?", help="the data set's folder; default: FLAWMAP_DATA")
    verb.add_argument("--recipe", type=Path, metavar="TOML", help="a plan in a file, instead of flags")
    verb.add_argument("--methods", nargs="+", metavar="NAME", help="as patchcore or, with a preset, pouta:small")
    verb.add_argument("--categories", nargs="+", default=[], metavar="NAME", help="default: all of the data set")
    verb.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    verb.add_argument("--shots", type=int, nargs="+", default=[], metavar="K", help="good parts to fit on; 0: all")
    verb.add_argument("--draws", type=int, default=1, metavar="N", help="so many draws of them; --draw fits one: 1")
    verb.add_argument("--draw", type=int, metavar="I", help="this draw only")
    verb.add_argument("--held-out", type=float, default=0.2, metavar="SHARE", help="of the parts, for the threshold")
    verb.add_argument("--protocol", default="plain", help="plain, patchcore-crop or simplenet-crop; default: plain")
    verb.add_argument("--looks", type=int, default=0, metavar="N", help="at the test set in training: BEST ON TEST")
    verb.add_argument("--out", type=Path, default=Path("benchmark"), metavar="DIR", help="default: benchmark")
    verb.add_argument("--workers", type=int, default=1, metavar="N", help="processes at a time; default: 1")
    verb.add_argument("--gpus", default="", metavar="IDS", help="as 0,1: worker k has the k-th of them, in turn")
    verb.add_argument("--shard", default="1/1", metavar="I/N", help="run only the I-th of N shares of the runs")
    verb.add_argument("--engine", default="local", help="local or ray (extra cluster); default: local")
    verb.add_argument("--address", default="", help="of a Ray cluster; without it one is started here")
    verb.add_argument("--gpu-share", type=float, default=0.0, metavar="X", help="of a GPU, a run on a Ray cluster")
    verb.add_argument("--retry", action="store_true", help="run again what has failed")
    verb.add_argument("--no-run", action="store_true", help="write the tables from what has been run")
    verb.add_argument("--device", default="auto", help="auto, cpu or cuda")


def _run_benchmark(args: argparse.Namespace) -> int:
    from flawmap.run.benchmark import How, benchmark, plan_of, shard_of

    data = args.data or os.environ.get("FLAWMAP_DATA")
    if not data:
        raise UsageError("name the data set's folder, or set FLAWMAP_DATA")
    how = How(
        workers=args.workers,
        gpus=tuple(filter(None, args.gpus.split(","))),
        shard=shard_of(args.shard),
        engine=args.engine,
        address=args.address,
        gpu_share=args.gpu_share,
        retry=args.retry,
        train=not args.no_run,
        device=args.device,
    )
    found = benchmark(plan_of(args.recipe, vars(args)), Path(data), args.out, how)
    show(args, found)
    return 1 if found["failed"] else 0


def data(verbs: Any) -> None:
    verb = add_verb(verbs, "data", _run_data, "audit a data set; exit code 3 when something would spoil a result")
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
        show(args, {"sheet": str(path)})
        return 0
    from flawmap.images.audit import audit
    from flawmap.images.folder import find, strays

    samples = find(args.data, part_pattern=args.part_pattern)
    folder = Path(args.data)
    found = audit(samples, strays(folder, samples) if folder.is_dir() else ())
    print(json.dumps(found.to_dict()) if args.json else found.text())
    return 3 if found.spoils else 0


def doctor(verbs: Any) -> None:
    verb = add_verb(
        verbs, "doctor", _run_doctor, "what is installed here, and whether a bundle says here what it said there"
    )
    verb.add_argument("bundle", type=Path, nargs="?")
    about_key(verb)


def _run_doctor(args: argparse.Namespace) -> int:
    from flawmap.run.doctor import doctor

    found, sound = doctor(args.bundle, args.key)
    show(args, found)
    return 0 if sound else 4


def list_methods(verbs: Any) -> None:
    verb = add_verb(verbs, "list", _run_list, "the methods, or the options of one")
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

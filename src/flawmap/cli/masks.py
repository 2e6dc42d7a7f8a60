"""The verbs on masks: to another tool's file, and back; the editor. Heavy imports inside the commands."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from flawmap.cli.words import add_verb, show


def masks(verbs: Any) -> None:
    """`flawmap masks WHAT ...`: each of WHATS adds itself, with its own options and --json."""
    text = "masks for COCO, LabelMe, CVAT and Label Studio, and back; and what is wrong with them"
    verb = verbs.add_parser("masks", help=text, description=text, allow_abbrev=False)
    whats = verb.add_subparsers(dest="what", required=True, metavar="WHAT")
    for add in WHATS:
        add(whats)


def _export(whats: Any) -> None:
    verb = add_verb(whats, "export", _run_export, "from the data set to another tool's file, the same to the pixel")
    verb.add_argument("data", type=Path, help="the data set")
    verb.add_argument("--format", required=True, metavar="NAME", help="coco, labelme, cvat, labelstudio; see masks.md")
    verb.add_argument("--out", type=Path, required=True, metavar="PATH", help="the new file, or LabelMe's new folder")


def _run_export(args: argparse.Namespace) -> None:
    from flawmap.images.masks.exchange import export_masks

    show(args, export_masks(args.data, args.out, args.format))


def _import(whats: Any) -> None:
    verb = add_verb(whats, "import", _run_import, "from another tool's file to masks in MVTec's layout")
    verb.add_argument("data", type=Path, help="the data set, the folder with train and test")
    verb.add_argument("--format", required=True, metavar="NAME", help="coco, labelme, cvat or labelstudio")
    verb.add_argument("--file", type=Path, required=True, metavar="PATH", help="the file, or LabelMe's folder")
    verb.add_argument("--out", type=Path, metavar="PATH", help="a new folder; default: DATA/ground_truth")


def _run_import(args: argparse.Namespace) -> None:
    from flawmap.images.masks.exchange import import_masks

    show(args, import_masks(args.file, args.data, args.format, args.out))


def _audit(whats: Any) -> None:
    verb = add_verb(
        whats, "audit", _run_audit, "what is wrong with masks; exit code 3 when something would spoil a result"
    )
    verb.add_argument("data", help="a data set in MVTec's layout, or a list (.csv, .jsonl)")
    verb.add_argument("--second", type=Path, metavar="DIR", help="another person's masks, laid out as ground_truth")
    verb.add_argument("--model", type=Path, metavar="BUNDLE", help="how far its figures hang on the outlines")
    verb.add_argument("--speck", type=int, default=12, metavar="PX", help="what is smaller is a speck; default: 12")
    verb.add_argument("--out", type=Path, metavar="DIR", help="a new folder for the page, masks.html")


def _run_audit(args: argparse.Namespace) -> int:
    from flawmap.run.masks import masks_audit

    found, depends, page = masks_audit(args.data, args.second, args.model, args.out, args.speck)
    if args.json:
        more = {} if depends is None else {"depends": depends.to_dict()}
        print(json.dumps({**found.to_dict(), **more, **({} if page is None else {"page": str(page)})}))
    else:
        lines = [found.text()]
        lines += [] if depends is None else ["", *depends.lines()]
        lines += [] if page is None else ["", f"page  {page}"]
        print("\n".join(lines))
    return 3 if found.spoils else 0


def _edit(whats: Any) -> None:
    verb = add_verb(whats, "edit", _run_edit, "draw and mend masks in a browser on this machine")
    verb.add_argument("data", type=Path, help="the data set, the folder with test")
    verb.add_argument("--model", type=Path, metavar="BUNDLE", help="its anomaly maps, to see and to fill from")
    verb.add_argument("--who", metavar="NAME", help="who saves, as the history says it; default: your login")
    verb.add_argument("--port", type=int, default=8090, help="default: 8090; 0: any that is free")
    verb.add_argument("--host", default="127.0.0.1", help="an address of this machine; beyond 127.0.0.1 give tokens")
    verb.add_argument("--tokens", type=Path, metavar="FILE", help="who may look (view) and who may save (operate)")
    verb.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="answer to this name, too")


def _run_edit(args: argparse.Namespace) -> None:
    from flawmap.editor.serve import edit

    def started(url: str, pictures: int) -> None:
        if args.json:
            print(json.dumps({"url": url, "pictures": pictures}), flush=True)

    how = {name: getattr(args, name) for name in ("model", "who", "host", "port", "tokens")}
    edit(args.data, hosts=args.allow_host, started=started, **how)


WHATS = (_export, _import, _audit, _edit)

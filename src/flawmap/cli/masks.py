"""The verb on masks: from a data set to another tool's file, and back. Heavy imports inside the commands."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flawmap.cli.words import add_verb, show
from flawmap.errors import UsageError


def masks(verbs: Any) -> None:
    verb = add_verb(
        verbs, "masks", _run_masks, "masks for COCO, LabelMe, CVAT and Label Studio, and back, the same to the pixel"
    )
    verb.add_argument("what", choices=("export", "import"), help="from the data set to a file, or from a file to it")
    verb.add_argument(
        "data", type=Path, help="the data set; to import in MVTec's layout, the folder with train and test"
    )
    verb.add_argument(
        "--format", required=True, metavar="NAME", help="coco, labelme, cvat or labelstudio; see the page"
    )
    verb.add_argument("--file", type=Path, metavar="PATH", help="to import: the file, or LabelMe's folder")
    verb.add_argument(
        "--out", type=Path, metavar="PATH", help="new; when exporting needed, else default: DATA/ground_truth"
    )


def _run_masks(args: argparse.Namespace) -> None:
    from flawmap.images.masks.exchange import export_masks, import_masks

    if args.what == "export":
        if args.out is None or args.file is not None:
            raise UsageError(
                "flawmap masks export DATA --format NAME --out PATH: --out says where to, --file is not used"
            )
        show(args, export_masks(args.data, args.out, args.format))
        return
    if args.file is None:
        raise UsageError("flawmap masks import DATA --format NAME --file PATH: --file is missing")
    show(args, import_masks(args.file, args.data, args.format, args.out))

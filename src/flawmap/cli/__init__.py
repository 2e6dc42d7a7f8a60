"""The command line: reads words, calls run/, prints."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from flawmap.cli import masks, models, station, studies
from flawmap.cli.capture import capture
from flawmap.cli.words import options, tied
from flawmap.errors import FlawmapError, MissingExtra, UsageError

INTERRUPTED = 130
VERBS = (
    *(models.demo, models.fit, models.distill, models.evaluate, models.calibrate, models.inspect, models.export),
    *(models.sign, models.report, studies.benchmark, studies.reproduce, studies.data, masks.masks),
    *(studies.doctor, studies.list_methods, station.serve, station.token, station.ledger, capture),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 ok, 1 error, 2 usage, 3 data, 4 a gate failed, 130 interrupted."""
    parser = _parser()
    try:
        args, rest = parser.parse_known_args(tied(parser, sys.argv[1:] if argv is None else argv))
        if rest and not getattr(args, "takes_options", False):
            raise UsageError(f"unknown: {' '.join(rest)}; see flawmap {args.verb} --help")
        args.options = options(rest)
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
        print(
            "flawmap: interrupted; nothing half-written is left. A fit goes on with --resume, a capture as it is",
            file=sys.stderr,
        )
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
    for add in VERBS:
        add(verbs)
    return parser

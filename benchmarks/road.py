"""How long is the road of one picture, from disk to verdict? Own files, their lines, stack frames.

python benchmarks/road.py BUNDLE PICTURE

Targets: at most 8 own files, 1,000 lines in them, and 10 frames from the caller to the engine. Imports do not count.
"""

from __future__ import annotations

import sys
from pathlib import Path

import flawmap

ROOT = Path(flawmap.__file__).parent


def main(bundle: str, picture: str) -> int:
    model = flawmap.load(bundle)
    model.inspect(picture)
    files: set[Path] = set()
    depths: list[int] = []

    def watch(frame, event, _):  # type: ignore[no-untyped-def]
        if event != "call":
            return
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT):
            files.add(path)
            if path.name == "engine.py":
                depth, here = 0, frame
                while here is not None and here.f_code.co_name != "main":
                    depth, here = depth + 1, here.f_back
                depths.append(depth)

    sys.setprofile(watch)
    model.inspect(picture)
    sys.setprofile(None)
    lines = {path: len(path.read_text().splitlines()) for path in sorted(files)}
    for path, count in lines.items():
        print(f"{count:5}  {path.relative_to(ROOT)}")
    print(f"{sum(lines.values()):5}  lines in {len(lines)} files; {max(depths)} frames from inspect to the engine")
    return 0 if len(lines) <= 8 and sum(lines.values()) <= 1000 and max(depths) <= 10 else 4


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

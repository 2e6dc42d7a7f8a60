"""The demo: the whole road on pictures that come along, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flawmap.images import elpv
from flawmap.images import woven as fabric
from flawmap.run.evaluate import evaluate, in_words
from flawmap.run.fit import fit
from flawmap.run.progress import say


def demo(out: Path, *, woven: bool = False, method: str = "patchcore") -> dict[str, Any]:
    """Fits, calibrates and evaluates; says where the report is."""
    source: Any
    if woven:
        say("drawing woven fabric: good parts, and five kinds of defects")
        source, name = fabric.write(out / "woven-parts"), "woven"
    else:
        say(f"photos of solar cells (ELPV): {elpv.LICENCE}")
        source, name = elpv.samples(), "elpv"
    model = fit(source, method, out=out / "runs", name=name)
    bundle = model.save(out / f"{name}.flaw")
    found = evaluate(model, source, out / f"{name}-evaluation", name=name)
    return {**in_words(found), "bundle": str(bundle), "report": str(out / f"{name}-evaluation" / "report.html")}

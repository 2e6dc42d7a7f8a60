"""The house holds: who may import whom, how long a file may be, and what works without torch installed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flawmap

ROOT = Path(flawmap.__file__).parent
FILES = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}

_BASE = {"types", "errors"}
_LINE = _BASE | {"images", "verdict", "report", "run", "detectors/__init__"}
MAY_IMPORT = {
    "types": set[str](),
    "errors": set[str](),
    **dict.fromkeys(("images", "synthesis", "verdict", "features"), _BASE),
    "detectors": _BASE | {"features", "synthesis"},
    "report": _BASE | {"verdict"},
    "run": _BASE | {"images", "synthesis", "features", "detectors", "verdict", "report"},
    "station": _LINE | {"__init__"},
    "editor": _LINE | {"__init__", "station"},
    "cli": _LINE | {"__init__", "station", "editor"},
    "__init__": _BASE | {"verdict", "run"},
}
TRAINING = {"torch", "torchvision", "timm", "onnx", "onnxscript"}
# The road of training; all else of `run` works at the line.
NEEDS_TORCH = {f"run/{name}" for name in ("fit", "train", "store", "feed", "demo", "parallel", "estimate")}
NEEDS_TORCH |= {"run/distill", "run/roles", "run/cost", "run/explain", "run/figures", "run/epochs", "run/spread"}
NEEDS_TORCH |= {"run/watch", "run/fitting"}
BLOCKED = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {TRAINING!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def _torch_free(name: str) -> bool:
    layer = name.split("/")[0]
    return layer not in ("features", "detectors", "synthesis") and name not in NEEDS_TORCH


def _imports(name: str, nodes: Iterator[ast.AST]) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of all that is imported; of `from a import b` it is a.b."""
    package = ["flawmap", *name.split("/")][:-1]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def _file_of(dotted: str) -> str | None:
    """Ours, as a key of FILES: the longest prefix of the name that is a file."""
    words = dotted.split(".")
    if words[0] != "flawmap":
        return None
    stems = ["/".join(words[1:count]) for count in range(len(words), 1, -1)]
    candidates = (candidate for stem in stems for candidate in (stem, f"{stem}/__init__"))
    return next((candidate for candidate in candidates if candidate in FILES), "__init__")


def _at_module_level(tree: ast.Module) -> Iterator[ast.AST]:
    """What runs on import: not inside functions, nor under `if TYPE_CHECKING`."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting.extend(node.orelse)
            continue
        yield node
        waiting.extend(ast.iter_child_nodes(node))


def _strays(name: str, tree: ast.Module) -> list[str]:
    layer = name.split("/")[0]
    found = []
    for line, dotted in _imports(name, ast.walk(tree)):
        target = _file_of(dotted)
        if target is None or target.split("/")[0] == layer:
            continue
        if not {target, target.split("/")[0]} & MAY_IMPORT[layer]:
            found.append(f"{name}.py:{line} imports {dotted}")
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_module_imports_only_from_the_layers_below_it(name: str) -> None:
    assert _strays(name, TREES[name]) == []


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("images/decode", "from flawmap.verdict import regions"),
        ("images/decode", "from .. import cli"),
        ("verdict/regions", "def f():\n    import flawmap.run.model"),
        ("report/page", "from ..run.model import Model"),
        ("detectors/patchcore", "from flawmap.verdict.metrics import auroc"),
        ("run/fit", "from flawmap import cli"),
        ("cli", "from flawmap.detectors.patchcore import PatchCore"),
        ("types", "from flawmap import errors"),
    ],
)
def test_an_import_against_the_order_is_noticed(name: str, code: str) -> None:
    assert len(_strays(name, ast.parse(code))) == 1


def test_every_file_belongs_to_a_layer() -> None:
    assert {name.split("/")[0] for name in FILES} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("name", FILES)
def test_a_module_says_what_it_is(name: str) -> None:
    assert (ast.get_docstring(TREES[name]) or "").strip()


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_at_most_400_lines_and_a_function_50(name: str) -> None:
    assert len(FILES[name].read_text().splitlines()) <= 400
    long = {
        node.name: lines
        for node in ast.walk(TREES[name])
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > 50
    }
    assert long == {}


@pytest.mark.parametrize("name", [name for name in FILES if _torch_free(name) or name == "detectors/__init__"])
def test_what_runs_at_the_line_imports_nothing_of_training_at_module_level(name: str) -> None:
    found = [dotted for _, dotted in _imports(name, _at_module_level(TREES[name]))]
    assert [dotted for dotted in found if dotted.split(".")[0] in TRAINING] == []


def test_what_runs_at_the_line_can_be_imported_without_torch() -> None:
    names = [name for name in FILES if _torch_free(name)]
    dotted = [".".join(["flawmap", *name.removesuffix("__init__").strip("/").split("/")]).strip(".") for name in names]
    assert {"flawmap.cli", "flawmap.run.model", "flawmap.run.evaluate", "flawmap.images.decode"} <= set(dotted)
    code = f"import importlib\nfor name in {dotted!r}: importlib.import_module(name)\n"
    code += "import flawmap.cli\nsys.exit(flawmap.cli.main(['list']))"
    done = subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[:2] == ["patchcore", "simplenet"]


def test_the_block_on_torch_blocks() -> None:
    code = BLOCKED + "import flawmap.features.backbone"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "No module named 'torch'" in done.stderr

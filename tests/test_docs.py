"""The pages say what the code does: verbs, options, names, trees, links, command lines, examples."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flawmap
from flawmap import cli
from flawmap.cli.words import options, tied
from flawmap.detectors import DETECTORS, detector_class
from flawmap.run.distill import Distilling
from flawmap.run.model import Model

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".svg", ".ico", ".npy", ".npz"}
MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"RIFF", b"\x93NUMPY")
MOST_BYTES = 600_000
# Written in two halves, so that this file does not hold them.
MACHINE = ["/wo" + "rk/", "/tmp/ba" + "sh", "/ro" + "ot/", "/ho" + "me/"]
REGISTRIES = ["py" + "pi.org", "python" + "hosted", "registry.np" + "mjs", "proxy.go" + "lang", "artifac" + "tory"]


def _files() -> list[Path]:
    """What is committed, or would be; outside a repository, all that is not hidden."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if shutil.which("git") and (listed := subprocess.run(command, capture_output=True)).returncode == 0:
        names = sorted(set(listed.stdout.decode().split("\0")))
    else:
        names = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*"))
        names = [name for name in names if not re.search(r"(^|/)(\.|__pycache__)", name)]
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


FILES = _files()
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in FILES if path.suffix == ".md"}


def _verbs() -> dict[str, argparse.ArgumentParser]:
    action = next(a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


VERBS = _verbs()


def _whats(verb: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The verbs below a verb, as of `flawmap masks`."""
    return next((dict(a.choices) for a in verb._actions if isinstance(a, argparse._SubParsersAction)), {})


def _options_of(verb: argparse.ArgumentParser) -> set[str]:
    return {name for action in verb._actions for name in action.option_strings} - {"-h", "--help"}


def _section(page: str, heading: str) -> str:
    """From `## heading` to the next of its rank."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGES[page], re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no heading '## {heading}'"
    return found[1]


def _blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# ---- the command line


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_stands_under_its_heading_and_no_other(verb: str) -> None:
    section = _section("docs/cli.md", verb)
    first, *below = re.split(r"^### ", section, flags=re.MULTILINE)
    parsers = {verb: VERBS[verb]} | {f"{verb} {what}": parser for what, parser in _whats(VERBS[verb]).items()}
    sections = {verb: first} | dict(each.split("\n", 1) for each in below)
    if len(parsers) == 1:
        sections = {verb: section}
    assert sections.keys() == parsers.keys()
    for words, parser in parsers.items():
        documented = set(re.findall(r"^\| `(--[a-z0-9-]+)`", sections[words], re.MULTILINE))
        assert documented == _options_of(parser)
        assert re.search(rf"^flawmap {words}\b", sections[words], re.MULTILINE), "no command line to copy"


def test_every_verb_stands_in_the_table_of_verbs() -> None:
    assert re.findall(r"^\| \[(\w+)\]\(#\1\)", PAGES["docs/cli.md"], re.MULTILINE) == list(VERBS)


def test_every_environment_variable_that_is_read_is_documented() -> None:
    source = "".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    read = set(re.findall(r"FLAWMAP_[A-Z_]+", source))
    assert read
    assert [name for name in read if f"`{name}`" not in PAGES["docs/cli.md"]] == []


def _command_lines() -> Iterator[tuple[str, str]]:
    for page, text in PAGES.items():
        for _, block in _blocks(text):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.strip().removeprefix("$ ")
                if command.startswith("flawmap ") and "VERB" not in command:
                    yield page, command


@pytest.mark.parametrize(("page", "command"), sorted(set(_command_lines())))
def test_a_command_line_of_the_pages_is_understood(page: str, command: str) -> None:
    words = shlex.split(re.split(r"\s(?:\||>|&&)\s", command)[0], comments=True)[1:]
    try:
        args, rest = cli._parser().parse_known_args(tied(cli._parser(), words))
    except SystemExit as stop:
        if stop.code != 0:  # --help and --version stop with 0
            raise AssertionError(f"{page}: {command}") from stop
        return
    assert not rest or getattr(args, "takes_options", False), f"{page}: {command}: unknown {rest}"
    if args.verb == "fit":
        preset = {"preset": args.preset} if args.preset else {}
        detector_class(args.method).configure({**preset, **options(rest)})
    if args.verb == "distill":
        Distilling.configure(options(rest))


def test_there_are_command_lines_to_check() -> None:
    checked = {shlex.split(command)[1] for _, command in _command_lines()}
    assert checked == VERBS.keys()


def test_every_verb_that_a_page_names_exists() -> None:
    named = {(page, verb) for page, text in PAGES.items() for verb in re.findall(r"`flawmap ([a-z]+)", text)}
    assert {verb for _, verb in named} >= {"fit", "evaluate", "inspect"}
    assert [(page, verb) for page, verb in named if verb not in VERBS] == []


# ---- detectors


def _shown(value: Any) -> str:
    """A default as it is typed on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value) or "(none)"


def _tables(name: str) -> dict[str, str]:
    """The tables that a detector's page must hold."""
    cls = detector_class(name)
    options = ["| option | default | |", "|---|---|---|"]
    options += [
        f"| `{f.name}` | `{_shown(f.default)}` | {f.metadata['help']} |" for f in dataclasses.fields(cls.Config)
    ]
    presets = ["| preset | sets |", "|---|---|"]
    for preset, values in cls.presets.items():
        presets.append(f"| `{preset}` | {', '.join(f'`{key}` {_shown(value)}' for key, value in values.items())} |")
    return {"options": "\n".join(options), "presets": "\n".join(presets)}


@pytest.mark.parametrize("table", ["options", "presets"])
@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_has_its_page_with_all_options_and_presets(name: str, table: str) -> None:
    page = f"docs/detectors/{name}.md"
    assert page in PAGES, f"{page} is missing"
    if detector_class(name).presets or table == "options":
        expected = _tables(name)[table]
        assert expected in PAGES[page], f"paste this into {page}:\n\n{expected}\n"


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detectors_page_names_its_paper_and_the_command_of_its_numbers(name: str) -> None:
    text = PAGES[f"docs/detectors/{name}.md"]
    assert detector_class(name).paper in text
    assert f"python benchmarks/results.py --methods {name}" in text or "flawmap reproduce " in text
    headings = re.findall(r"^## (.+)", text, re.MULTILINE)
    assert headings == ["Options", "Presets", "Departures", "Cost", "When to use it", "Limits", "Our numbers"]


def test_no_page_is_about_a_detector_that_is_not_there() -> None:
    assert sorted(DETECTORS) == sorted(path.stem for path in (DOCS / "detectors").glob("*.md"))


# ---- Python


@pytest.mark.parametrize("name", flawmap.__all__)
def test_a_name_of_the_door_is_explained_with_its_signature(name: str) -> None:
    section = _section("docs/python.md", name)
    found: Any = getattr(flawmap, name)
    wanted: set[str] = set()
    if inspect.isfunction(found):
        wanted = set(inspect.signature(found).parameters)
    elif dataclasses.is_dataclass(found) and name != "Calibration":  # whose fields are those of calibration.json
        wanted = {field.name for field in dataclasses.fields(found)}
    wanted |= {key for key, value in vars(found).items() if not key.startswith("_") and _of_use(value)}
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`]+`|```.*?```", section, re.DOTALL))))
    assert sorted(wanted - words) == []


def _of_use(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, property | classmethod)


def test_signatures_in_the_page_are_those_of_the_functions() -> None:
    code = "\n".join(block for language, block in _blocks(PAGES["docs/python.md"]) if language == "python")
    for name in ("fit", "load", "evaluate", "calibrate"):
        shown = re.search(rf"^{name}\((.*?)\) ->", code, re.MULTILINE | re.DOTALL)
        assert shown, name
        ours = inspect.signature(getattr(flawmap, name)).parameters.values()
        stars = {inspect.Parameter.VAR_KEYWORD: "**"}
        names = [stars.get(p.kind, "") + p.name for p in ours]
        expected = [
            name if p.default is p.empty else f"{name}={p.default!r}" for name, p in zip(names, ours, strict=True)
        ]
        star = next((i for i, p in enumerate(ours) if p.kind is p.KEYWORD_ONLY), None)
        if star is not None:
            expected.insert(star, "*")
        assert re.sub(r"\s+", " ", shown[1]).replace('"', "'") == ", ".join(expected)


def test_the_fields_of_a_calibration_are_explained() -> None:
    text = PAGES["docs/bundle.md"]
    assert [f.name for f in dataclasses.fields(flawmap.Calibration) if f"`{f.name}`" not in text] == []


def test_python_in_the_pages_compiles() -> None:
    blocks = [block for text in PAGES.values() for language, block in _blocks(text) if language == "python"]
    assert blocks
    for block in blocks:
        signatures_as_code = re.sub(r"^[\w.]+(\([^()]*\) -> \w+)$", r"def f\1: ...", block, flags=re.MULTILINE)
        compile(signatures_as_code, "page", "exec")


# ---- trees and links


def _tree(text: str) -> set[str]:
    """Paths named in a block that draws the tree: the first words of a line, remarks behind them left out."""
    block = next((content for _, content in _blocks(text) if "src/flawmap/\n" in content), "")
    above: list[tuple[int, str]] = []
    found = set()
    for line in re.sub("[│├└─]", " ", block).splitlines():
        depth = len(line) - len(line.lstrip())
        above = [(d, path) for d, path in above if d < depth]
        folder = above[-1][1] if above else ""
        for word in line.split():
            if not re.fullmatch(r"[\w./-]+(/|\.py|\.html)", word):
                break
            found.add(folder + word)
            if word.endswith("/"):
                above.append((depth, folder + word))
    return found


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_the_tree_of_a_page_is_that_of_the_package(page: str) -> None:
    listed = _tree(PAGES[page])
    assert listed, f"{page} has no block that draws src/flawmap/"
    package = [path for path in FILES if path.is_relative_to(ROOT / "src" / "flawmap") and path.suffix == ".py"]
    folders = {path.parent.relative_to(ROOT).as_posix() + "/" for path in package}
    files = {path.relative_to(ROOT).as_posix() for path in package}
    # The folder's own line speaks for its __init__.py; the door has a line of its own.
    optional = {path for path in files if path.endswith("/__init__.py")} - {"src/flawmap/__init__.py"}
    assert sorted((folders | files) - optional - listed) == []
    assert sorted(path for path in listed if not (ROOT / path).exists()) == []


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if not path.exists() or (anchor and anchor not in _anchors(path.read_text("utf-8"))):
            broken.append(target)
    assert broken == []


def test_every_page_can_be_reached_from_the_index() -> None:
    linked = set(re.findall(r"\]\(([\w./-]+\.md)", PAGES["docs/index.md"]))
    reached = {(DOCS / name).resolve().relative_to(ROOT).as_posix() for name in linked}
    assert sorted(page for page in PAGES if page.startswith("docs/") and page not in reached | {"docs/index.md"}) == []


# ---- what is committed


def test_no_file_names_a_path_of_a_machine_or_a_registry() -> None:
    found = []
    for path in FILES:
        text = path.read_bytes().decode("utf-8", "replace")
        found += [f"{path.relative_to(ROOT)}: {word}" for word in MACHINE + REGISTRIES if word in text]
    assert found == []


WEB = ROOT / "src" / "flawmap" / "station" / "web"


def test_no_image_is_committed_but_figures_that_a_script_makes_and_a_page_shows() -> None:
    scripts = "".join(path.read_text("utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    for path in FILES:
        if path.suffix.lower() not in IMAGES and not path.read_bytes().startswith(MAGIC):
            continue
        if path.parent == WEB and path.suffix == ".svg":  # the pages' own signs: lines and circles
            assert not re.search("<image|data:|base64", path.read_text("utf-8")), path
            continue
        assert path.parent == DOCS, path
        assert path.suffix in (".png", ".svg"), path
        assert path.stat().st_size < MOST_BYTES, path
        assert path.name in scripts, f"no script in benchmarks/ names {path.name}"
        assert any(path.name in text for text in PAGES.values()), f"no page shows {path.name}"


# ---- examples

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def _run(name: str, *words: object) -> None:
    """As `python examples/NAME.py WORD ...` would, in this process: torch is imported once."""
    before = sys.argv
    sys.argv = [name, *map(str, words)]
    try:
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def _one_thread() -> Iterator[None]:
    """The nets are tiny: threads would wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def first(_one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the first example has run."""
    from flawmap.images.woven import write

    folder = tmp_path_factory.mktemp("examples")
    write(folder / "woven-parts", good=30, test_good=2, per_kind=1, size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _run("01_first_model.py", "woven-parts", 64)
        assert cli.main(["export", "first.flaw", "--out", "onnx"]) == 0
    return folder


def test_the_first_model_finds_the_hole(first: Path) -> None:
    model = flawmap.load(first / "first.flaw")
    assert isinstance(model, Model)
    verdicts = [model.inspect(first / f"woven-parts/test/{kind}/000.png").verdict for kind in ("good", "hole")]
    assert verdicts == ["OK", "NOK"]


def test_the_graph_alone_says_what_flawmap_says(
    first: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [first / "woven-parts/test" / name for name in ("good/000.png", "hole/000.png", "stain/000.png")]
    monkeypatch.chdir(first)
    _run("04_onnx_alone.py", "onnx", *pictures)
    model = flawmap.load("first.flaw")
    for line, picture in zip(capsys.readouterr().out.splitlines(), pictures, strict=True):
        found = model.inspect(picture)
        verdict, score = re.match(r"(\w+)\s+score ([\d.]+)", line).groups()  # type: ignore[union-attr]
        assert verdict == found.verdict
        assert float(score) == pytest.approx(found.score, abs=1e-4)


def _calibrated(first: Path, folder: Path, **changed: object) -> Path:
    """What the first model was exported to, with another calibration."""
    calibration = json.loads((first / "onnx/calibration.json").read_text())
    shutil.copytree(first / "onnx", folder)
    (folder / "calibration.json").write_text(json.dumps({**calibration, **changed}))
    return folder


def test_the_graph_alone_sends_to_review_what_is_between_two_thresholds(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = sorted((first / "woven-parts/test").rglob("*.png"))
    model = flawmap.load(first / "first.flaw")
    scores = sorted(model.inspect(picture).score for picture in pictures)
    low, high = ((scores[i] + scores[i + 1]) / 2 for i in (0, 2))
    folder = _calibrated(first, tmp_path / "band", threshold=high, review_threshold=low)
    assert model.calibration
    banded = dataclasses.replace(model.calibration, threshold=high, review_threshold=low)
    _run("04_onnx_alone.py", folder, *pictures)
    found = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert found == [banded.verdict([model.inspect(picture).score]) for picture in pictures]
    assert (found.count("OK"), found.count("REVIEW"), found.count("NOK")) == (1, 2, len(pictures) - 3)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"views": [2, 2]}, "parts of several views"),
        ({"views": [1, 2]}, "parts of several views"),
        ({"rule": "mean"}, "by their mean"),
    ],
)
def test_the_graph_alone_refuses_parts_of_several_views(
    first: Path, tmp_path: Path, changed: dict[str, object], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _calibrated(first, tmp_path / "views", **changed)
    with pytest.raises(SystemExit, match=why):
        _run("04_onnx_alone.py", folder, first / "woven-parts/test/good/000.png")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("changed", "warning"),
    [
        ({}, ""),
        ({"unit": "picture"}, "promise nothing for parts of several views"),
        ({"policy": "f1-oracle"}, "read off the answers, no operating point"),
    ],
)
def test_the_graph_alone_warns_of_verdicts_that_are_no_promise(
    first: Path, tmp_path: Path, changed: dict[str, object], warning: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _calibrated(first, tmp_path / "warned", **changed)
    _run("04_onnx_alone.py", folder, first / "woven-parts/test/hole/000.png")
    captured = capsys.readouterr()
    assert captured.out.startswith("NOK ")
    assert captured.err.count("\n") == bool(warning)
    assert warning in captured.err


def test_the_graph_alone_is_used_without_flawmap() -> None:
    tree = ast.parse((ROOT / "examples/04_onnx_alone.py").read_text())
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"numpy", "onnxruntime", "PIL"}


@pytest.mark.usefixtures("_one_thread")
def test_pictures_of_ones_own_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _run("02_own_pictures.py", 64)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["OK", "NOK"]
    assert int(lines[2].split("%")[0]) >= 50


def test_several_views_get_one_verdict(
    first: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(first)
    _run("03_several_views.py", "first.flaw", 64)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("25 good parts promise at most 3.9 % false alarms")
    assert lines[1] == "NOK  part100"
    assert lines[-1].startswith("no verdict: the calibration judges parts of 2 views, this part has 1")


@pytest.mark.usefixtures("_one_thread")
def test_a_simulated_robot_takes_a_data_set_that_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rtde_control", reason="ur-rtde has no wheel for this platform")
    address = f"127.{os.getpid() % 200 + 2}.{os.getpid() // 200 % 250}.77"
    _run("05_robot_capture.py", tmp_path, "--parts", 4, "--size", 64, "--address", address)
    said = capsys.readouterr().out
    assert "{'pictures': 12, 'parts': 4," in said
    assert "4 good parts promise at most 20.0 % false alarms" in said
    facts = [json.loads(side.read_text()) for side in tmp_path.glob("captured/*/*.json")]
    assert sorted(round(each["pose"][0]) for each in facts) == [200] * 4 + [205] * 4 + [210] * 4
    assert (tmp_path / "evaluation/report.html").exists()


def test_every_example_is_run_by_a_test() -> None:
    source = Path(__file__).read_text("utf-8")
    assert [path.name for path in EXAMPLES if f'_run("{path.name}"' not in source] == []
    assert len(EXAMPLES) == 5

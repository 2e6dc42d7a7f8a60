"""The clients of examples/ as commands, compiled once; and a folder that `flawmap export` wrote."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import pytest

from flawmap import cli
from flawmap.images.intake import Intake
from flawmap.run.model import Model

ROOT = Path(__file__).resolve().parents[3]
CPP, CSHARP, CHECKS = ROOT / "examples/cpp", ROOT / "examples/csharp", Path(__file__).parent


@dataclass(frozen=True)
class Client:
    """Commands, and where the library of ONNX Runtime is: `inspect` judges, `check` shows what the network sees."""

    name: str
    inspect: list[str]
    check: list[str]
    folder: Path

    def judge(self, *words: object) -> subprocess.CompletedProcess[bytes]:
        return self._run(self.inspect, *words)

    def resize(self, given: bytes) -> subprocess.CompletedProcess[bytes]:
        return self._run(self.check, "resize", given=given)

    def planes(self, intake: Intake, *pictures: Path) -> subprocess.CompletedProcess[bytes]:
        use = self.folder / "use.json"
        use.write_text(json.dumps({"intake": intake.to_dict()}))
        return self._run(self.check, "planes", use, *pictures)

    def _run(self, command: list[str], *words: object, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "LD_LIBRARY_PATH": str(self.folder)}
        return subprocess.run([*command, *map(str, words)], input=given, capture_output=True, env=environment)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library that pip installed, under the names by which it is asked for."""
    found = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"), None)
    if found is None:
        pytest.skip("this package of onnxruntime brings no libonnxruntime.so")
    folder = tmp_path_factory.mktemp("clients")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(found)
    return folder


@pytest.fixture(scope="session")
def cpp(library: Path) -> Client:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    headers = "#include <cstdio>\n#include <png.h>\n#include <jpeglib.h>\n"
    if subprocess.run([compiler, "-x", "c++", "-E", "-"], input=headers.encode(), capture_output=True).returncode:
        pytest.skip("no headers of libpng and libjpeg (Debian: libpng-dev, libjpeg-dev)")
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-ffp-contract=off"]
    command = [compiler, *flags, f"-I{CPP}", f"-I{CPP / 'minimal'}", f"-L{library}"]
    made = [
        subprocess.Popen(
            [*command, source, "-o", library / source.stem, "-lonnxruntime", "-lpng", "-ljpeg"], stderr=subprocess.PIPE
        )
        for source in (CPP / "inspect.cpp", CHECKS / "check.cpp")
    ]
    for process in made:
        said = process.communicate()[1].decode()
        assert process.returncode == 0, said
    return Client("C++", [str(library / "inspect")], [str(library / "check")], library)


@pytest.fixture(scope="session")
def csharp(library: Path) -> Client:
    if not (shutil.which("mcs") and shutil.which("mono")):
        pytest.skip("no C# compiler (Debian: mono-mcs)")
    parts = [f"-r:{name}" for name in ("System.Runtime.Serialization", "System.Xml", "System.Xml.Linq", "System.Core")]
    command = ["mcs", "-warnaserror", *parts, *sorted(CSHARP.glob("*.cs")), CHECKS / "Check.cs"]
    for main in ("Program", "Check"):
        program = library / f"{main}.exe"
        done = subprocess.run([*command, f"-main:{main}", f"-out:{program}"], capture_output=True, text=True)
        if "CS0006" in done.stderr:
            pytest.skip("Mono without JSON (Debian: libmono-system-{runtime-serialization,xml-linq}4.0-cil)")
        assert done.returncode == 0, done.stdout + done.stderr
    return Client("C#", ["mono", str(library / "Program.exe")], ["mono", str(library / "Check.exe")], library)


@pytest.fixture(params=["cpp", "csharp"])
def client(request: pytest.FixtureRequest) -> Client:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def exported(crossed: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    bundle = crossed.save(folder / "part.flaw")
    assert cli.main(["export", str(bundle), "--out", str(folder / "graph")]) == 0
    return folder / "graph"

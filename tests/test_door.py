"""The door: a dozen names, there at once, and each brings only what it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import flawmap


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def _without(*packages: str) -> str:
    return f"import sys\nsys.modules.update(dict.fromkeys({packages!r}))\n"


def test_the_names_are_sorted_and_at_most_13() -> None:
    assert flawmap.__all__ == sorted(flawmap.__all__)
    assert len(set(flawmap.__all__)) == len(flawmap.__all__) <= 13


@pytest.mark.parametrize("name", flawmap.__all__)
def test_every_name_resolves(name: str) -> None:
    found = getattr(flawmap, name)
    assert found.__name__ == name
    assert found.__module__.startswith("flawmap.")
    assert name in dir(flawmap)


def test_importing_it_loads_neither_numpy_nor_torch() -> None:
    done = _run("import sys, flawmap\nprint([m for m in ('numpy', 'torch', 'onnxruntime', 'PIL') if m in sys.modules])")
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_a_misspelt_name_is_answered_with_the_names() -> None:
    with pytest.raises(AttributeError, match="flawmap has no 'Modell'") as caught:
        _ = flawmap.Modell  # type: ignore[attr-defined]
    assert all(name in str(caught.value) for name in flawmap.__all__)


def test_fit_without_torch_names_the_extra() -> None:
    done = _run(
        _without("torch") + "import flawmap\n"
        "try: flawmap.fit\n"
        "except flawmap.FlawmapError as error: print(type(error).__name__, error)"
    )
    assert done.stdout.strip() == 'MissingExtra flawmap.fit needs torch: pip install "flawmap[train]"'


@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"], ["inspect", "--help"], ["--version"], ["list"]])
def test_help_needs_neither_numpy_nor_torch(words: list[str]) -> None:
    done = _run(
        _without("numpy", "torch", "onnxruntime", "PIL") + f"from flawmap.cli import main\nsys.exit(main({words!r}))"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) > 10


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert flawmap.__version__ == version("flawmap")

"""The page of speed is written by several scripts: none may touch what another wrote."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def paired(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import paired

    yield paired
    for name in ("paired", "results"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("title", ["One", "Two", "Three", "New"])
def test_a_section_replaces_itself_and_nothing_else(paired, tmp_path, title):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\nHead.\n\n## One\n\nfirst\n\n## Two\n\nsecond\n\n## Three\n\nthird\n")
    paired.section(title, ["| a |", "|---|", "| new |"], page)
    once = page.read_text()
    kept = {"One": "first", "Two": "second", "Three": "third"}
    for name, text in kept.items():
        assert (f"## {name}\n\n{text}\n" in once) == (name != title)
    assert once.count(f"## {title}\n\n| a |\n|---|\n| new |\n") == 1
    assert once.startswith("# Page\n\nHead.\n\n## One\n")
    paired.section(title, ["| a |", "|---|", "| new |"], page)
    assert page.read_text() == once


def test_every_variant_is_measured_once_a_round_and_in_turn(paired):
    calls: list[str] = []
    took = paired.in_turn({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3, warm_up=1)
    assert "".join(calls) == "abababab"
    assert {name: len(seconds) for name, seconds in took.items()} == {"a": 3, "b": 3}
    assert paired.ratio({"a": [2.0, 9.0], "b": [1.0, 3.0]}, "a", "b") == [2.0, 3.0]
    assert paired.quartiles([1, 2, 3, 4, 5]) == "3.00 (2.00 to 4.00)"

"""A book of pages: one file, nothing outside it, all pages in the list of contents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from flawmap.report.book import write

pytest.importorskip("markdown_it")


def test_a_book_holds_its_pictures_and_nothing_else_is_loaded(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "one.png")
    (tmp_path / "two.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    wide = f"| {' | '.join('abcdefghi')} |\n|{'---|' * 9}\n| {' | '.join('123456789')} |"
    pages = [
        ("first", "## First & best\n\n![a](one.png)\n\n| a | b |\n|---|---|\n| 1 | <b>2</b> |"),
        ("second", f"## Second\n\n![b](two.svg) ![c](gone.png) ![d](http://elsewhere/x.png)\n\n{wide}"),
    ]
    html = write(tmp_path / "book.html", "A <title>", "Of *two* pages.", pages).read_text()
    assert [source[:14] for source in re.findall(r'src="([^"]+)"', html)] == ["data:image/png", "data:image/svg"]
    assert "<link" not in html
    assert "<script" not in html
    assert re.findall(r'href="([^"]+)"', html) == ["#first", "#second"]
    assert {"first", "second"} <= set(re.findall(r'id="([^"]+)"', html))
    assert "no picture gone.png" in html
    assert "A &lt;title&gt;" in html
    assert "&lt;b&gt;2" in html
    assert html.count('<table class="many">') == 1
    assert html.count("<table>") == 1
    assert "@page { size: A4" in html

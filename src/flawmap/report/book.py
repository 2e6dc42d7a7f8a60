"""Many pages of Markdown, with their pictures, as one HTML file that needs nothing beside it, for screen and print."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from flawmap.errors import MissingExtra

TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
MANY, MOST = 9, 14  # columns from which a table is set smaller, and smallest
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #222; max-width: 1100px; margin: 2em auto;
  padding: 0 1.5em; }
h1 { font-size: 1.7em; } h2 { font-size: 1.3em; margin-top: 2.5em; border-bottom: 1px solid #ccc; }
nav ol { columns: 2; column-gap: 4em; } nav a { color: #0b5394; }
p, li { overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; font-variant-numeric: tabular-nums; }
table.many, table.most { font-size: 11px; }
th, td { border-bottom: 1px solid #ddd; padding: 3px 8px; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #888; }
table.many th, table.many td, table.most th, table.most td { padding: 2px 5px; }
@page { size: A4; margin: 14mm; }
@media print {
  body { max-width: none; margin: 0; padding: 0; font-size: 9.5pt; }
  h2 { break-before: page; break-after: avoid; margin-top: 0; } h3 { break-after: avoid; }
  tr, img, figure { break-inside: avoid; } thead { display: table-header-group; }
  img { max-height: 205mm; }
  p:has(> strong:only-child) { break-after: avoid; }
  .wide { overflow: visible; }
  table { font-size: 8pt; width: 100%; } table.many { font-size: 6.5pt; }
  table.most { font-size: 5pt; }
  th, td { padding: 1.5pt 4pt; } table.many th, table.many td, table.most th, table.most td { padding: 1pt 1.5pt; }
}
"""


def write(path: Path, title: str, lead: str, pages: Sequence[tuple[str, str]]) -> Path:
    """`pages` are (anchor, Markdown that begins with its heading); pictures are looked for beside `path`."""
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise MissingExtra("markdown-it-py", "research", "this page") from error
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    contents = "".join(f'<li><a href="#{escape(name)}">{escape(_heading(text))}</a></li>' for name, text in pages)
    sections = "".join(
        f'<section id="{escape(name)}">{_set(_inlined(markdown.render(text), path.parent))}</section>\n'
        for name, text in pages
    )
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n{markdown.render(lead)}"
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>\n{sections}</body></html>\n',
        encoding="utf-8",
    )
    return path


def _heading(text: str) -> str:
    return text.lstrip().splitlines()[0].lstrip("# ")


def _inlined(html: str, folder: Path) -> str:
    """Pictures become part of the page; one that is not there is named."""

    def inline(found: re.Match[str]) -> str:
        picture = folder / found[1]
        if picture.suffix not in TYPES or not picture.is_file():
            return f"<em>no picture {found[1]}</em>"
        content = base64.b64encode(picture.read_bytes()).decode()
        return f'<img src="data:{TYPES[picture.suffix]};base64,{content}" alt="{found[2]}">'

    return re.sub(r'<img src="([^"]+)" alt="([^"]*)" />', inline, html)


def _set(html: str) -> str:
    """Tables may be scrolled sideways; those of many columns are set smaller."""

    def table(found: re.Match[str]) -> str:
        columns = found[0].split("</tr>")[0].count("<th>")
        size = ' class="most"' if columns >= MOST else ' class="many"' if columns >= MANY else ""
        return f'<div class="wide"><table{size}>{found[1]}</table></div>'

    return re.sub(r"<table>(.*?)</table>", table, html, flags=re.DOTALL)

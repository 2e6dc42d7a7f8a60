"""All pages of a report as one: each is reproduced in turn, then all are bound to one HTML file."""

from __future__ import annotations

from dataclasses import replace

from flawmap.errors import FlawmapError, UsageError
from flawmap.report.book import write
from flawmap.run.progress import say
from flawmap.run.reproduce import NothingCalled, Recipe, Wish, one, read
from flawmap.run.table import made


def book(recipe: Recipe, wish: Wish) -> dict[str, str]:
    """Runs what is missing of every page of `recipe.pages`, and writes OUT/NAME.md and OUT/NAME.html.

    UsageError: nothing of any page is called as the wish says.
    """
    texts, named = [], 0
    for name in recipe.pages:
        say(f"=== {name}")
        page = read(name)
        try:
            why = _made(page, wish)
            named += page.kind != "cost"
        except NothingCalled:
            why = _made(page, replace(wish, train=False))  # the page from what there is
        path = wish.out / f"{name}.md"
        text = path.read_text(encoding="utf-8") if path.exists() else f"## {page.title}\n\nNot run.\n"
        texts.append((name, f"{text}\n{why}\n" if why else text))
    if not named:
        raise UsageError(f"nothing of {recipe.name} is called so: see the names on its pages, {wish.out}")
    where = made()
    lead = f"{recipe.source}. {recipe.says}\n\nBound on {where['date']}, commit {where['commit']}, {where['machine']}."
    wish.out.mkdir(parents=True, exist_ok=True)
    file = wish.out / f"{recipe.name}.md"
    contents = "\n".join(f"- {text.splitlines()[0].lstrip('# ')} (`{name}`)" for name, text in texts)
    file.write_text("\n\n".join([f"# {recipe.title}", lead, contents, *(text for _, text in texts)]), encoding="utf-8")
    html = write(wish.out / f"{recipe.name}.html", recipe.title, lead, texts)
    return {"page": str(file), "html": str(html)}


def _made(recipe: Recipe, wish: Wish) -> str:
    """Why the page is not as it was wished for; the other pages are made all the same."""
    if recipe.kind == "cost" and (not wish.train or wish.only or wish.seeds):
        return ""  # what was measured stays: it is not measured by the way
    try:
        one(recipe, wish)
        return ""
    except NothingCalled:
        raise
    except FlawmapError as error:
        say(f"{recipe.name}: {error}")
        failed = error
    try:
        one(recipe, replace(wish, train=False))  # the page from what there is
    except FlawmapError as error:
        failed = error
    return f"*Not complete:* {str(failed).splitlines()[0]}"

"""All pages of a report as one: each is reproduced in turn, then all are bound to one HTML file."""

from __future__ import annotations

from dataclasses import replace

from flawmap.errors import FlawmapError, UsageError
from flawmap.report.book import write
from flawmap.run.progress import say
from flawmap.run.reproduce import Recipe, Wish, one, read
from flawmap.run.table import made


def book(recipe: Recipe, wish: Wish) -> dict[str, str]:
    """Runs what is missing of every page of `recipe.pages`, and writes OUT/NAME.md and OUT/NAME.html."""
    texts = []
    for name in recipe.pages:
        say(f"=== {name}")
        why = _made(read(name), wish)
        path = wish.out / f"{name}.md"
        text = path.read_text(encoding="utf-8") if path.exists() else f"## {read(name).title}\n\nNot run.\n"
        texts.append((name, f"{text}\n{why}\n" if why else text))
    where = made()
    lead = f"{recipe.source}. {recipe.says}\n\nBound on {where['date']}, commit {where['commit']}, {where['machine']}."
    wish.out.mkdir(parents=True, exist_ok=True)
    page = wish.out / f"{recipe.name}.md"
    contents = "\n".join(f"- {text.splitlines()[0].lstrip('# ')} (`{name}`)" for name, text in texts)
    page.write_text("\n\n".join([f"# {recipe.title}", lead, contents, *(text for _, text in texts)]), encoding="utf-8")
    html = write(wish.out / f"{recipe.name}.html", recipe.title, lead, texts)
    return {"page": str(page), "html": str(html)}


def _made(recipe: Recipe, wish: Wish) -> str:
    """Why the page is not as it was wished for; the other pages are made all the same."""
    if recipe.kind == "cost" and (not wish.train or wish.only or wish.seeds):
        return ""  # what was measured stays: it is not measured by the way
    try:
        one(recipe, wish)
        return ""
    except UsageError as error:  # as a rule: nothing of this page is called as the wish says
        failed = error
    except FlawmapError as error:
        say(f"{recipe.name}: {error}")
        failed = error
    try:
        one(recipe, replace(wish, train=False))  # the page from what there is
    except FlawmapError as error:
        failed = error
    else:
        if isinstance(failed, UsageError):
            return ""
    return f"*Not complete:* {str(failed).splitlines()[0]}"

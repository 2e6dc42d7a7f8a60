"""The station's pages for people: live, history, a part, threshold, recipes and the API's page.

Rendered here, without a script or a style in the page itself, so that `default-src 'self'` holds. What moves (the live
page, the sliders, forms) is done by the small modules in web/. A page hides what a role may not do; the API refuses it.
"""

from __future__ import annotations

import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import jinja2
import numpy as np

from flawmap.errors import DataError, FlawmapError, MissingExtra, Unavailable
from flawmap.images.decode import decode, size_of
from flawmap.images.png import write_png
from flawmap.report.heatmap import picture
from flawmap.run.nearest import SIZES, Near, around, crop, nearest
from flawmap.station.ledger import Row
from flawmap.station.line import DECISIONS, Line
from flawmap.station.proposal import decided, judged_by, propose
from flawmap.station.recipes import Recipe
from flawmap.verdict.rates import anywhere

try:
    from fastapi import APIRouter, HTTPException, Query, Request, Response
    from fastapi.responses import HTMLResponse, JSONResponse
    from fastapi.routing import APIRoute
except ImportError as error:
    raise MissingExtra("fastapi", "serve", "the station's pages") from error

PAGE = 50  # rows of the history
STRIP = 240  # parts that the live page is given at first
WHAT_IF = 1000  # parts of the ledger that the slider counts
MOST_BOUNDS = 400  # refused good parts for which the slider knows a bound
EVENTS = 500  # among which the last challenge is looked for
KEPT = 16  # parts whose nearest good patches are kept
ROLES = ("view", "operate", "admin")
SHOW = {  # what the history can be narrowed to: kinds and verdicts
    "": (("verdict", "error"), ()),
    "OK": (("verdict",), ("OK",)),
    "NOK": (("verdict",), ("NOK",)),
    "REVIEW": (("verdict",), ("REVIEW",)),
    "ERROR": (("error",), ()),
    "decisions": (("decision",), ()),
    "events": (("event",), ()),
}
PAGES = (("/", "Live"), ("/history", "History"), ("/threshold", "Threshold"), ("/recipes", "Recipes"), ("/docs", "API"))
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
WEB = resources.files("flawmap.station").joinpath("web")


class _Route(APIRoute):
    """An error on a page is a page, too."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        inner = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await inner(request)
            except FlawmapError as error:
                return page(request, "message.html", status=503, heading="The page cannot be shown", words=str(error))
            except HTTPException as error:
                words = str(error.detail)
                return page(request, "message.html", status=error.status_code, heading="Not here", words=words)

        return handler


def router(line: Line, *, good: Path | None = None) -> APIRouter:
    """All pages of a station, with their files below /static.

    good  folder with the good pictures that were fitted: of the nearest good patch more than its name is shown
    """
    routes = APIRouter(include_in_schema=False, route_class=_Route)
    _live(routes, line)
    _history(routes, line)
    _part(routes, line, good)
    _threshold(routes, line)
    _others(routes, line)
    return routes


def _live(routes: APIRouter, line: Line) -> None:
    @routes.get("/", response_class=HTMLResponse)
    def live(request: Request) -> Response:
        return page(request, "live.html", line, most=STRIP)

    @routes.get("/live.json")
    def state(request: Request, n: int = STRIP) -> Response:
        told = live_state(line, max(1, min(n, STRIP)))
        return JSONResponse(told, headers={"Cache-Control": "no-store"})


def live_state(line: Line, n: int) -> dict[str, Any]:
    """All that the live page shows, with the last `n` parts, newest first."""
    recipe, times, drift = line.recipes.active, sorted(line.times_ms), line.drift
    calibration = recipe.model.calibration
    assert calibration
    return {
        "station": line.ledger.station,
        "recipe": recipe.name,
        "threshold": calibration.threshold,
        "review": calibration.review_threshold,
        "promised": calibration.promise or calibration.bound,
        "promise": calibration.sentence,
        "ready": line.ready,
        "blocked": line.blocked,
        "fault": line.fault,
        "waiting": line.inside,
        "lamps": [{"name": name, "state": state, "text": text} for name, (state, text) in dict(line.lamps).items()],
        "counts": dict(line.counts),
        "latency": {
            "n": len(times),
            "p50": float(np.percentile(times, 50)) if times else None,
            "p99": float(np.percentile(times, 99)) if times else None,
        },
        "drift": None
        if drift is None
        else {"parts": len(drift.scores), "alarm_at": drift.alarm_at, "signal_at": drift.signal_at},
        "parts": line.ledger.rows(limit=n),
    }


def _history(routes: APIRouter, line: Line) -> None:
    @routes.get("/history", response_class=HTMLResponse)
    def history(
        request: Request,
        part: str = "",
        show: str = "",
        recipe: str = "",
        since: str = "",
        until: str = "",
        before: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
    ) -> Response:
        kinds, verdicts = SHOW.get(show, SHOW[""])
        said = {"part": part, "show": show, "recipe": recipe, "since": since, "until": until}
        wrong, times = "", ["", ""]
        try:
            times = [_utc(since), _utc(until)]
        except (ValueError, OverflowError, OSError):
            wrong = "The times are not understood and were left out: give them as 2026-11-28T14:30."
        rows = line.ledger.rows(
            kinds=kinds,
            verdicts=verdicts,
            part=part.strip(),
            recipe=recipe,
            since=times[0],
            until=times[1],
            before=before,
            limit=PAGE + 1,
        )
        more = len(rows) > PAGE
        rows = rows[:PAGE]
        older = urlencode({**said, "before": rows[-1]["seq"]}) if more else ""
        about = line.ledger.about([row["seq"] for row in rows])
        facts = {"rows": rows, "about": about, "said": said, "older": older, "before": before, "shows": list(SHOW)}
        return page(request, "history.html", line, wrong=wrong, newest=urlencode(said), **facts)


def _part(routes: APIRouter, line: Line, good: Path | None) -> None:
    kept: OrderedDict[tuple[int, int], tuple[Near, bytes, bytes | None] | None] = OrderedDict()
    lock = threading.Lock()

    def near_of(row: Row, view: int) -> tuple[Near, bytes, bytes | None] | None:
        key = row["seq"], view
        if key in kept:
            return kept[key]
        if not lock.acquire(blocking=False):  # it takes a second or more of the machine that judges; nobody waits
            raise Unavailable("another part's nearest patch is being looked for; try again", "BUSY", 2)
        try:
            kept[key] = found = _nearest(line, row, view, good)
            while len(kept) > KEPT:
                kept.popitem(last=False)
            return found
        finally:
            lock.release()

    @routes.get("/parts/{seq}", response_class=HTMLResponse)
    def part(request: Request, seq: int, near: int | None = None) -> Response:
        row = _row(line, seq)
        views = [_view(line, row, number) for number in range(len(row["views"]))]
        found = None if near is None or not 0 <= near < len(views) else (near_of(row, near) or "none")
        facts = {"row": row, "views": views, "decisions": line.ledger.about([seq]).get(seq, [])}
        facts |= {"older": _beside(line, seq, -1), "newer": _beside(line, seq, 1), "choices": DECISIONS}
        facts |= {"tells_near": _tells_near(_recipe_of(line, row)), "near": found, "near_view": near}
        return page(request, "part.html", line, **facts)

    @routes.get("/parts/{seq}/nearest/{view}/{which}.png")
    def patch(request: Request, seq: int, view: int, which: str) -> Response:
        found = near_of(_row(line, seq), view)
        content = found and {"strange": found[1], "good": found[2]}.get(which)
        if not content:
            raise HTTPException(404, "There is no such patch.")
        return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


def _threshold(routes: APIRouter, line: Line) -> None:
    @routes.get("/threshold", response_class=HTMLResponse)
    def threshold(request: Request) -> Response:
        recipe = line.recipes.active
        proposal = propose(line.ledger, recipe, line.recipes.paths[recipe.name])
        return page(request, "threshold.html", line, proposal=proposal, calibration=recipe.model.calibration)

    @routes.get("/threshold.json")
    def what_if(request: Request) -> Response:
        return JSONResponse(what_if_of(line), headers={"Cache-Control": "no-store"})

    @routes.get("/proposal.json")
    def proposal(request: Request) -> Response:
        recipe = line.recipes.active
        found = propose(line.ledger, recipe, line.recipes.paths[recipe.name]).to_dict()
        name = f"proposal-{recipe.name}-{found['made'][:10]}.json"
        return JSONResponse(found, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def what_if_of(line: Line) -> dict[str, Any]:
    """What the slider counts: good parts of the calibration with their bounds, the last parts of the line, decisions.

    bounds  by refused good parts: largest false-alarm rate with 95 % confidence, wherever the slider stands; who moves
            a slider looks at the scores, so the bound holds for all thresholds at once
    """
    recipe = line.recipes.active
    calibration = recipe.model.calibration
    assert calibration
    n = len(calibration.scores)
    rows = line.ledger.rows(kinds=("verdict",), recipe=recipe.name, limit=WHAT_IF)
    said = decided(line.ledger.rows(kinds=("decision",), limit=WHAT_IF), recipe)
    return {
        "threshold": calibration.threshold,
        "review": calibration.review_threshold,
        "good": list(calibration.scores),
        "bounds": [anywhere(k, n) for k in range(min(n, MOST_BOUNDS) + 1)],
        "defects": list(calibration.defect_scores),
        "line": [row["score"] for row in judged_by(recipe, rows)],
        "decided": [{"score": d.score, "good": d.good} for d in said],
    }


def _others(routes: APIRouter, line: Line) -> None:
    @routes.get("/recipes", response_class=HTMLResponse)
    def recipes(request: Request) -> Response:
        found = [line.recipes.get(name) for name in line.recipes.names]
        events = line.ledger.rows(kinds=("event",), limit=EVENTS)
        challenged = next((row for row in events if row["code"] in ("PASSED", "FAILED")), None)
        facts = {"previous": line.recipes.previous, "challenged": challenged}
        return page(request, "recipes.html", line, recipes=found, **facts)

    @routes.get("/docs", response_class=HTMLResponse)
    def docs(request: Request) -> Response:
        return page(request, "docs.html", line, api=request.app.openapi(), type_of=_type)

    @routes.get("/static/{name}")
    def static(request: Request, name: str) -> Response:
        return static_file(name, WEB)


def static_file(name: str, *folders: Any) -> Response:
    """Of the first folder that has it."""
    suffix = Path(name).suffix
    for file in (folder.joinpath(name) for folder in folders):
        if "/" not in name and suffix in TYPES and file.is_file():
            return Response(file.read_bytes(), media_type=TYPES[suffix], headers={"Cache-Control": "no-cache"})
    raise HTTPException(404, "There is no such file.")


def page(
    request: Request, name: str, line: Line | None = None, *, status: int = 200, of: Any = None, **facts: Any
) -> HTMLResponse:
    role = getattr(request.state, "role", "view")
    rank = ROLES.index(role) if role in ROLES else 0
    known = {
        "who": getattr(request.state, "who", "") or "",
        "role": role,
        "operates": rank >= 1,
        "administers": rank >= 2,
        "path": request.url.path,
        "line": line,
        "pages": getattr(request.app.state, "pages", PAGES),
        "zone": f"UTC{datetime.now().astimezone().isoformat()[-6:]}",
    }
    text = (of or ENVIRONMENT).get_template(name).render(**known, **facts)
    return HTMLResponse(text, status, headers={"Cache-Control": "no-store"})


def _row(line: Line, seq: int) -> Row:
    row = line.ledger.get(seq) if 0 < seq < 2**31 else None
    if row is None or row["kind"] not in ("verdict", "error"):
        raise HTTPException(404, f"Row {seq} of the ledger is no part.")
    return row


def _beside(line: Line, seq: int, step: int) -> int | None:
    """The part before or after, where it is among the next 20 rows."""
    if step < 0:
        return next((row["seq"] for row in line.ledger.rows(before=seq, limit=1)), None)
    for number in range(seq + 1, seq + 21):
        if (row := line.ledger.get(number)) is None:
            return None
        if row["kind"] in ("verdict", "error"):
            return number
    return None


def _content(line: Line, row: Row, number: int) -> bytes | None:
    """A view's file, from memory or as it was kept."""
    if shown := line.recent.get(row["seq"], number):
        return shown.content
    path = row["views"][number].get("path") if 0 <= number < len(row["views"]) else None
    return line.keep.read(path) if path and line.keep else None


def _view(line: Line, row: Row, number: int) -> dict[str, Any]:
    """A view's facts, with the size that its regions are in; None where the picture is gone or cannot be read."""
    content, size = _content(line, row, number), None
    if content is not None:
        try:
            size = size_of(content)
        except DataError:
            content = None
    shown = line.recent.get(row["seq"], number)
    mapped = content is not None and shown is not None and shown.looked is not None
    seen = {"there": content is not None, "mapped": mapped, "size": size}
    return {"score": None, "regions": [], **row["views"][number], **seen}


def _recipe_of(line: Line, row: Row) -> Recipe | None:
    """The recipe that judged the part, where its very bundle is still loaded."""
    found = [line.recipes.get(name) for name in line.recipes.names]
    return next((recipe for recipe in found if recipe.bundle == row["bundle"]), None)


def _tells_near(recipe: Recipe | None) -> bool:
    return recipe is not None and SIZES in recipe.model.bundle.config and importlib.util.find_spec("torch") is not None


def _nearest(line: Line, row: Row, view: int, good: Path | None) -> tuple[Near, bytes, bytes | None] | None:
    """The good patch nearest to a view's strangest place, both as PNG; the good one where its picture is at hand."""
    recipe, content = _recipe_of(line, row), _content(line, row, view)
    if recipe is None or content is None:
        return None
    found = nearest(recipe.model, content)
    if found is None:
        return None
    patch = crop(good, found) if good else None
    seen = write_png(picture(around(decode(content), found.at)))
    return found, seen, None if patch is None else write_png(picture(patch))


def _utc(text: str) -> str:
    """A time of the station's own clock, as the page's field gives it, as the ledger writes times."""
    if not text:
        return ""
    there = datetime.fromisoformat(text).astimezone(UTC)
    return there.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _local(text: str, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """A time of the ledger by the station's own clock."""
    try:
        return datetime.fromisoformat(text).astimezone().strftime(form)
    except ValueError:
        return text


def _type(schema: Any) -> str:
    """A JSON schema in a few words."""
    if not isinstance(schema, dict) or not schema:
        return "any"
    if "$ref" in schema:
        return schema["$ref"].rsplit("/", 1)[-1]
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    if several := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        return " or ".join(_type(one) for one in several)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items'))}"
    return str(schema.get("format") or schema.get("type") or "any")


ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FunctionLoader(lambda name: WEB.joinpath(name).read_text("utf-8")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {"local": _local}

"""The editor's service: its page, the list, pictures, maps and masks; behind the station's guard.

A page names a picture by its number in the server's own list, and a mask by its version. No path comes from a page.
Every request says of which list its numbers are, so that a page that outlives a restart never gets or saves another
picture's mask.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Annotated, Any

import jinja2
import numpy as np

from flawmap.editor.maps import Maps
from flawmap.editor.pictures import Pictures
from flawmap.editor.sent import Empty, checked
from flawmap.editor.store import NONE, Conflict
from flawmap.errors import DataError, FlawmapError, MissingExtra, UsageError
from flawmap.station.access import Access, Forbidden, Guard

try:
    from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Query, Request, Response
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import HTMLResponse, JSONResponse
except ImportError as error:
    raise MissingExtra("fastapi", "serve", "the editor of masks") from error

MOST_BYTES = 64_000_000  # of a mask's PNG
MASKS = re.compile(r"/api/pictures/\d{1,9}/mask")  # what takes a large body
PAGES = (("/", "Masks"),)
WEB = resources.files("flawmap.editor").joinpath("web")
NO_STORE = {"Cache-Control": "no-store"}
RAW = "application/octet-stream"
VERSION = r"^[0-9a-f]{64}$|^none$"
Base = Annotated[str, Header(alias="if-match", pattern=VERSION)]


class Changed(FlawmapError):
    """The page was opened on another list of pictures."""


def create_app(
    pictures: Pictures,
    access: Access | None = None,
    *,
    who: str = "",
    maps: Maps | None = None,
    hosts: Sequence[str] | None = ("127.0.0.1", "localhost", "::1"),
    most_bytes: int = MOST_BYTES,
) -> Any:
    """The ASGI application.

    who    whose name a save bears where there are no tokens; with tokens it is the token's
    maps   of a model; None: the page has no map
    hosts  names it answers to; None: any
    """
    from flawmap import __version__
    from flawmap.station import login
    from flawmap.station.app import handlers

    access = access or Access()
    about: dict[str, Any] = {"title": "flawmap masks", "version": __version__}
    app = FastAPI(**about, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.pages = PAGES
    app.include_router(_page(pictures, maps, who))
    app.include_router(_looking(pictures, maps))
    app.include_router(_saving(pictures, who))
    app.include_router(login.router(access))
    mine = ((Empty, 422, "EMPTY"), (Changed, 409, "LIST"), (FlawmapError, 503, "FAULT"))
    handlers(app, mine, called="editor", see="")

    @app.exception_handler(Conflict)
    async def _(request: Request, error: Conflict) -> JSONResponse:
        told = {"version": error.version, "who": error.who, "when": error.when}
        return JSONResponse({"error": {"code": "CONFLICT", "message": str(error)}, **told}, 409, NO_STORE)

    return Guard(app, access, hosts=hosts, most_bytes=most_bytes, large=MASKS)


def _page(pictures: Pictures, maps: Maps | None, who: str) -> APIRouter:
    from flawmap.station import pages

    routes = APIRouter(include_in_schema=False)
    mine = jinja2.FunctionLoader(lambda name: _text(name))
    assert pages.ENVIRONMENT.loader
    environment = pages.ENVIRONMENT.overlay(loader=jinja2.ChoiceLoader([mine, pages.ENVIRONMENT.loader]))

    @routes.get("/", response_class=HTMLResponse)
    def editor(request: Request) -> Response:
        kinds = sorted({sample.kind or "" for sample in pictures.samples})
        request.state.who = _author(request, who)
        facts = {"data": pictures.name, "key": pictures.key, "kinds": kinds, "mapped": maps is not None}
        facts |= {"author": request.state.who, "writes": request.state.known.may("operate")}
        return pages.page(request, "editor.html", of=environment, **facts)

    @routes.get("/static/{name}")
    def static(name: str) -> Response:
        return pages.static_file(name, WEB, pages.WEB)

    return routes


def _text(name: str) -> str | None:
    file = WEB.joinpath(name)
    return file.read_text("utf-8") if file.is_file() else None


def _looking(pictures: Pictures, maps: Maps | None) -> APIRouter:
    routes = APIRouter()

    @routes.get("/api/pictures")
    def rows() -> Response:
        return Response(pictures.rows(), media_type="application/json", headers=NO_STORE)

    routes.include_router(_one(pictures, maps))
    return routes


def _one(pictures: Pictures, maps: Maps | None) -> APIRouter:
    routes = APIRouter(prefix="/api/pictures", dependencies=[Depends(_of(pictures))])

    @routes.get("/{number}")
    def about(number: int) -> Response:
        return JSONResponse(pictures.about(_known(pictures, number)), headers=NO_STORE)

    @routes.get("/{number}/picture")
    def picture(request: Request, number: int) -> Response:
        stamp = pictures.stamp(_known(pictures, number))
        return _unless_known(request, stamp, lambda: pictures.shown(number))

    @routes.get("/{number}/thumb")
    def thumb(request: Request, number: int) -> Response:
        stamp = pictures.stamp(_known(pictures, number))
        return _unless_known(request, stamp, lambda: (pictures.thumb(number), "image/jpeg"))

    @routes.get("/{number}/mask")
    def mask(number: int) -> Response:
        found = pictures.levels(_known(pictures, number))
        return _raw(found.levels, {"version": found.version, "cut": found.cut, "unread": found.unread})

    @routes.get("/{number}/versions/{version}")
    def earlier(number: int, version: int) -> Response:
        sample = pictures.fresh(_known(pictures, number))
        levels, cut = pictures.store.read(*pictures.store.kept(sample, version), pictures.size(number), sample.name)
        return _raw(levels, {"cut": cut})

    @routes.get("/{number}/map")
    def map_of(number: int) -> Response:
        sample = pictures.samples[_known(pictures, number)]
        if maps is None:
            raise HTTPException(404, "There is no model: start the editor with --model FILE.flaw")
        found = maps.of(sample.source)  # type: ignore[arg-type]
        return _raw(found.levels, {"low": found.low, "high": found.high, "threshold": maps.threshold})

    return routes


def _saving(pictures: Pictures, who: str) -> APIRouter:
    routes = APIRouter(prefix="/api/pictures", dependencies=[Depends(_of(pictures, needed=True))])

    @routes.put("/{number}/mask")
    async def save(request: Request, number: int, base: Base, empty: Annotated[bool, Query()] = False) -> Response:
        author = _may_save(request, who)
        sample = pictures.fresh(_known(pictures, number))
        if request.headers.get("content-type") != "image/png":
            raise HTTPException(415, "a mask is sent as image/png")
        content = await request.body()

        def work() -> Response:
            png, levels = checked(content, pictures.size(number), sample.good, empty)
            return _saved(pictures, number, None if sample.good and not levels.any() else png, base, author)

        return await run_in_threadpool(work)

    @routes.post("/{number}/restore/{version}")
    def restore(request: Request, number: int, version: int, base: Base) -> Response:
        author = _may_save(request, who)
        sample = pictures.fresh(_known(pictures, number))
        content, levels = pictures.store.again(sample, version, pictures.size(number))
        if sample.good and (levels == 255).any():
            raise DataError("that version has a defect, and the picture is called good")
        return _saved(pictures, number, content, base, author, "restore")

    return routes


def _saved(
    pictures: Pictures, number: int, content: bytes | None, base: str, author: str, action: str = "save"
) -> Response:
    sample = pictures.fresh(number)
    if content is None and base == NONE:
        raise DataError("nothing is marked and there is no mask: there is nothing to save")
    path = pictures.store.save(sample, content, base, author, action)
    pictures.now_at(number, path)
    return JSONResponse(pictures.about(number), headers=NO_STORE)


def _of(pictures: Pictures, needed: bool = False) -> Callable[[Request], Any]:
    """Refuses a number of another list; a picture in a page cannot send a header, so it says it in its address."""

    async def same(request: Request) -> None:
        given = request.headers.get("x-list") or request.query_params.get("list")
        if given != pictures.list and (needed or given):
            raise Changed("the list has changed since this page was opened; reload")

    return same


def _unless_known(request: Request, stamp: str, made: Callable[[], tuple[bytes, str]]) -> Response:
    """A browser may keep it, and asks each time whether it is the same still."""
    headers = {"Cache-Control": "private, no-cache", "ETag": f'"{stamp}"'}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    content, media = made()
    return Response(content, media_type=media, headers=headers)


def _known(pictures: Pictures, number: int) -> int:
    if not 0 <= number < len(pictures):
        raise HTTPException(404, f"there is no picture {number}; there are {len(pictures)}, from 0 on")
    return number


def _may_save(request: Request, who: str) -> str:
    if not request.state.known.may("operate"):
        raise Forbidden(f"{request.state.who} may look, not save; that takes the role operate")
    return _author(request, who)


def _author(request: Request, who: str) -> str:
    """Without tokens the name that the editor was started with."""
    known = request.state.known.name
    return who if known == "local" and who else known


def _raw(values: np.ndarray, facts: dict[str, Any]) -> Response:
    """Bytes of the array, packed: a canvas that decodes a PNG may give other values back than those in the file."""
    packed = zlib.compress(np.ascontiguousarray(values).data, 1)
    return Response(packed, media_type=RAW, headers={**NO_STORE, "X-Facts": json.dumps(facts)})


def author(name: str) -> str:
    """A name as it can stand in the log. UsageError: it is empty, too long, or has control characters."""
    if not (1 <= len(name.strip()) <= 60) or any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        raise UsageError(f"--who {name!r}: give a name of 1 to 60 letters, without control characters")
    return name.strip()

"""The service's own API, below /v1: parts in, verdicts out, the ledger, recipes, live events."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Path, Query, Request
from fastapi.responses import Response, StreamingResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field
from python_multipart.multipart import parse_options_header

from flawmap.errors import FlawmapError, UsageError
from flawmap.station.access import Forbidden
from flawmap.station.challenge import Challenge
from flawmap.station.events import Streams, state
from flawmap.station.ledger import Row
from flawmap.station.line import DECISIONS, Line, Picture
from flawmap.station.shown import MEDIA as SHOWN
from flawmap.station.shown import Gone, shown

MOST_VIEWS = 100
DRAWN = 2  # pictures drawn at once: each may take a gigabyte
TEXT = r"^[^\x00]*$"  # databases take no null in text
MEDIA = ("image/png", "image/jpeg", "image/tiff", "image/bmp", "application/octet-stream")
BINARY = {"type": "string", "format": "binary"}


class View(BaseModel):
    name: str
    sha256: str
    bytes: int
    path: str | None = Field(description="below the folder of kept pictures, where it was kept")
    note: str = Field(description="why it was not kept, or nothing")
    score: float | None = None
    regions: list[dict[str, Any]] = []
    overlay: str | None = Field(None, description="PNG, base64; when asked for")
    map: str | None = Field(None, description=".npy, float16, at most 512 px a side, base64; when asked for")


class Answer(BaseModel):
    """A part's row in the ledger."""

    seq: int
    hash: str
    time: str
    kind: Literal["verdict", "error"]
    verdict: Literal["OK", "NOK", "REVIEW"] | None
    code: str | None
    reason: str | None
    part: str
    recipe: str | None
    bundle: str | None
    calibration: str | None
    score: float | None
    p_value: float | None
    threshold: float | None
    latency_ms: float | None
    source: str
    request: str | None
    views: list[View]


class Fault(BaseModel):
    error: dict[str, str]
    row: Answer | None = None


STATUS = (400, 401, 403, 404, 408, 409, 413, 415, 421, 422, 500, 503)
FAULTS: dict[int | str, dict[str, Any]] = {code: {"model": Fault} for code in STATUS}
TOKEN = Depends(HTTPBearer(auto_error=False, description="made by `flawmap token`; the guard has looked at it already"))
Seq = Annotated[int, Path(ge=1, le=2**31 - 1)]


def needs(role: str) -> Any:
    """A dependency: the request's token has the role. Forbidden otherwise."""

    def check(request: Request) -> None:
        if not request.state.known.may(role):
            raise Forbidden(f"this takes the role {role}; yours is {request.state.role}")

    return Depends(check)


def router(line: Line, challenge: Challenge | None, ending: Callable[[], bool]) -> APIRouter:
    api = APIRouter(prefix="/v1", responses=FAULTS, dependencies=[TOKEN])
    drawing = asyncio.Semaphore(DRAWN)
    _inspect(api, line, drawing)
    _parts(api, line, drawing)
    _recipes(api, line, challenge)
    streams = Streams(line, ending)

    @api.get("/status")
    async def status() -> dict[str, Any]:
        """What the station does and how it is."""
        return state(line)

    @api.get(
        "/events", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {"schema": {}}}}}
    )
    async def events() -> StreamingResponse:
        """Server-sent events: part, decision, event, fault as they come, status every two seconds."""
        return streams.answer()

    return api


def _inspect(api: APIRouter, line: Line, drawing: asyncio.Semaphore) -> None:
    bodies: dict[str, Any] = {media: {"schema": BINARY} for media in MEDIA}
    bodies["multipart/form-data"] = {
        "schema": {
            "type": "object",
            "required": ["view"],
            "properties": {"view": {"type": "array", "minItems": 1, "items": BINARY}},
            "additionalProperties": False,
        }
    }

    @api.post(
        "/inspect",
        response_model=Answer,
        dependencies=[needs("operate")],
        openapi_extra={"requestBody": {"required": True, "content": bodies}},
    )
    async def inspect(
        request: Request,
        part: Annotated[
            str, Query(max_length=500, pattern=TEXT, description="its name; else of the picture's SHA-256")
        ] = "",
        recipe: Annotated[str | None, Query(max_length=100, pattern=TEXT, description="else the one in use")] = None,
        id: Annotated[
            str | None, Query(max_length=200, pattern=TEXT, description="the same one is judged once")
        ] = None,
        include: Annotated[str, Query(pattern="^(overlay|map|overlay,map|map,overlay)?$")] = "",
    ) -> Response:
        """Judge one part: a picture as the body, or several as files of a form, each called `view`."""
        views = await _views(request)
        row = await judged(line, part, views, recipe=recipe, request=id, who=request.state.who)
        wanted = set(include.split(",")) - {""}
        async with drawing if wanted else contextlib.nullcontext():
            return await asyncio.to_thread(_answer, line, row, wanted)


async def judged(line: Line, part: str, views: Sequence[Picture], **how: Any) -> Row:
    """The part's row. Hashing and looking up are done beside the loop, which serves all others meanwhile."""

    def submit() -> Any:
        return line.submit(part or _name(views), views, **how)

    return await asyncio.shield(asyncio.wrap_future(await asyncio.to_thread(submit)))


def _parts(api: APIRouter, line: Line, drawing: asyncio.Semaphore) -> None:
    @api.get("/parts", response_model=list[Answer])
    def parts(
        part: Annotated[str, Query(max_length=500, pattern=TEXT)] = "",
        verdict: Annotated[Literal["", "OK", "NOK", "REVIEW", "ERROR"], Query()] = "",
        recipe: Annotated[str, Query(max_length=100, pattern=TEXT)] = "",
        since: Annotated[datetime | None, Query(description="ISO 8601; without an offset UTC")] = None,
        until: Annotated[datetime | None, Query(description="up to, and not at, this time")] = None,
        before: Annotated[int | None, Query(ge=0, le=2**31 - 1, description="rows before this number")] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> list[Row]:
        """Parts in the ledger, newest first."""
        how: dict[str, Any] = {"part": part, "recipe": recipe, "since": _time(since), "until": _time(until)}
        how |= {"before": before, "limit": limit}
        kinds = ("error",) if verdict == "ERROR" else ("verdict",) if verdict else ("verdict", "error")
        return line.ledger.rows(kinds=kinds, verdicts=[verdict] if verdict not in ("", "ERROR") else [], **how)

    @api.get("/parts/{seq}")
    def one(seq: Seq) -> dict[str, Any]:
        """A part's row as it stands in the ledger, and the decisions on it."""
        return {**_row(line, seq), "decisions": line.ledger.about([seq]).get(seq, [])}

    @api.get(
        "/parts/{seq}/views/{view}/{what}",
        response_class=Response,
        responses={200: {"content": {media: {"schema": BINARY} for media in SHOWN}}},
    )
    async def view(
        seq: Seq, view: Annotated[int, Path(ge=0, lt=MOST_VIEWS)], what: Literal["picture", "overlay", "map"]
    ) -> Response:
        """The file as it came; the picture with its map over it (PNG, made a PNG of 8 bits); the map (.npy, float16).

        Of the last parts, and the picture of those that were kept.
        """
        async with drawing:
            content, media = await asyncio.to_thread(lambda: shown(line, _row(line, seq), view, what))
        return Response(content, media_type=media, headers={"cache-control": "private, max-age=3600"})

    @api.post("/parts/{seq}/decision", dependencies=[needs("operate")])
    def decide(
        request: Request,
        seq: Seq,
        decision: Annotated[Literal[DECISIONS], Body()],  # pyright: ignore[reportInvalidTypeForm]
        reason: Annotated[str, Body(min_length=1, max_length=2000)],
    ) -> dict[str, Any]:
        """An operator's decision on a part; a row of its own, which changes no verdict."""
        _row(line, seq)
        return line.decide(seq, decision, reason, request.state.who)


def _recipes(api: APIRouter, line: Line, challenge: Challenge | None) -> None:
    @api.get("/recipes")
    def recipes() -> dict[str, Any]:
        """The recipes, the one in use, and the one before it."""
        before = line.recipes.previous
        listed = [_said(line.recipes.get(name)) for name in line.recipes.names]
        return {"active": line.recipes.active.name, "previous": before and before.name, "recipes": listed}

    @api.post("/recipes/rollback", dependencies=[needs("admin")])
    def roll_back(request: Request) -> dict[str, Any]:
        """Back to the recipe before the last switch."""
        return _said(line.roll_back(request.state.who))

    @api.post("/recipes/{name}/use", dependencies=[needs("admin")])
    def use(request: Request, name: str, reload: bool = False) -> dict[str, Any]:
        """Judge by this recipe from now on; reload: with the bundle as it now lies on the disk."""
        return _said(line.use(name, request.state.who, reload=reload))

    @api.post("/challenge", dependencies=[needs("operate")])
    def run(request: Request) -> dict[str, Any]:
        """Judge the challenge parts."""
        if challenge is None:
            raise UsageError("this station has no challenge parts; start it with --challenge DIR")
        result = challenge.run(request.state.who)
        return {"passed": result.passed, "reason": result.reason, "rows": [row["seq"] for row in result.rows]}


async def _views(request: Request) -> Sequence[Picture]:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    body = await request.body()
    if kind.lower() != b"multipart/form-data":
        if not body:
            raise UsageError("the body is empty; send a picture, or a form with files called view")
        return [Picture("view 0", body)]
    boundary = options.get(b"boundary", b"")
    if not boundary or not body.rstrip().endswith(b"--" + boundary + b"--"):  # its last view would be left out
        raise UsageError("the form does not end with its boundary; it was cut off, or is none")
    try:
        async with request.form(max_files=MOST_VIEWS, max_fields=0) as form:
            if other := sorted({name for name, _ in form.multi_items()} - {"view"}):
                raise UsageError(
                    f"the form has {other[0][:100]!r}; give files called view, and all else in the address"
                )
            files = [file for file in form.getlist("view") if not isinstance(file, str)]
            if not files:
                raise UsageError("the form has no file called view")
            return [Picture(_text(file.filename) or f"view {n}", await file.read()) for n, file in enumerate(files)]
    except UnicodeError as error:  # of a charset that the sender has made up
        raise UsageError(f"the form's names cannot be read: {error}") from error


def _text(name: str | None) -> str:
    """A name as databases and JSON take it."""
    return (name or "").replace("\0", "").encode("utf-8", "replace").decode()


def _time(time: datetime | None) -> str:
    """As the ledger writes times."""
    if time is None:
        return ""
    try:
        there = time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except OverflowError as error:
        raise UsageError(f"{time} is no time that UTC can tell") from error
    return there.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _name(views: Sequence[Picture]) -> str:
    return hashlib.sha256(b"".join(view.content for view in views)).hexdigest()[:16]


def _answer(line: Line, row: Row, include: set[str]) -> Response:
    """200 with a verdict; 422 where the picture is at fault, 503 and 500 where the station is."""
    answer = Answer.model_validate(row).model_dump()
    if row["kind"] == "verdict":
        for number, view in enumerate(answer["views"]):
            for what in include:
                with contextlib.suppress(Gone, FlawmapError):  # the verdict stands without it
                    view[what] = base64.b64encode(shown(line, row, number, what)[0]).decode()
        return _json(200, answer)
    status = {"DATA": 422, "TIMEOUT": 503}.get(row["code"], 500)
    return _json(status, {"error": {"code": row["code"], "message": row["reason"]}, "row": answer})


def _json(status: int, content: Any) -> Response:
    more = {"retry-after": "1"} if status == 503 else {}
    return Response(json.dumps(content), status, more, "application/json")


def _row(line: Line, seq: int) -> Row:
    row = line.ledger.get(seq)
    if row is None or row["kind"] not in ("verdict", "error"):
        raise Gone(f"row {seq} of the ledger is no part's")
    return row


def _said(recipe: Any) -> dict[str, Any]:
    said = {"name": recipe.name, "method": recipe.model.method, "bundle": recipe.bundle, "version": recipe.version}
    return said | {"calibration": recipe.calibration, "views": list(recipe.views), "promise": recipe.promise}

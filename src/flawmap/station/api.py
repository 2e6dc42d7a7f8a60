"""The service's own API, below /v1: parts in, verdicts out, the ledger, recipes, live events."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Body, Depends, Query, Request
from fastapi.responses import Response, StreamingResponse
from PIL import Image
from pydantic import BaseModel, Field

from flawmap.errors import DataError, UsageError
from flawmap.images.decode import decode
from flawmap.report import heatmap
from flawmap.run.model import enlarge
from flawmap.run.show import scale
from flawmap.station.challenge import Challenge
from flawmap.station.ledger import Row
from flawmap.station.line import DECISIONS, Line, Picture

MOST_VIEWS = 100
BEAT_S = 2.0  # between two states that are sent without being asked
WAITING = 200  # events of a listener that does not read; then it is sent away, and comes again
MEDIA = ("image/png", "image/jpeg", "image/tiff", "image/bmp", "application/octet-stream")


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


FAULTS: dict[int | str, dict[str, Any]] = {code: {"model": Fault} for code in (400, 401, 403, 404, 408, 413, 422, 503)}


def needs(role: str) -> Any:
    """A dependency: the request's token has the role. PermissionError otherwise."""

    def check(request: Request) -> None:
        if not request.state.known.may(role):
            raise PermissionError(f"this takes the role {role}; yours is {request.state.role}")

    return Depends(check)


def router(line: Line, challenge: Challenge | None, ending: Callable[[], bool]) -> APIRouter:
    api = APIRouter(prefix="/v1", responses=FAULTS)
    _parts(api, line)
    _recipes(api, line, challenge)

    @api.get("/status")
    def status() -> dict[str, Any]:
        """What the station does and how it is."""
        return state(line)

    @api.get("/events", response_class=StreamingResponse)
    async def events() -> StreamingResponse:
        """Server-sent events: part, decision, event, fault as they come, status every two seconds."""
        return StreamingResponse(_events(line, ending), media_type="text/event-stream")

    return api


def _parts(api: APIRouter, line: Line) -> None:
    bodies = {media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA}
    bodies["multipart/form-data"] = {
        "schema": {
            "type": "object",
            "required": ["view"],
            "properties": {"view": {"type": "array", "items": {"type": "string", "format": "binary"}}},
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
        part: Annotated[str, Query(max_length=500, description="its name; else the picture's SHA-256")] = "",
        recipe: Annotated[str | None, Query(max_length=100, description="else the one in use")] = None,
        id: Annotated[str | None, Query(max_length=200, description="the same one is judged once")] = None,
        include: Annotated[str, Query(pattern="^(overlay|map|overlay,map|map,overlay)?$")] = "",
    ) -> Response:
        """Judge one part: a picture as the body, or several as files of a form, each called `view`."""
        views = await _views(request)
        how = {"recipe": recipe, "request": id, "who": request.state.who}
        future = await asyncio.to_thread(line.submit, part or _name(views), views, **how)
        row = await asyncio.shield(asyncio.wrap_future(future))
        return await asyncio.to_thread(_answer, line, row, set(include.split(",")) - {""})

    @api.get("/parts", response_model=list[Answer])
    def parts(
        part: Annotated[str, Query(max_length=500)] = "",
        verdict: Annotated[Literal["", "OK", "NOK", "REVIEW", "ERROR"], Query()] = "",
        recipe: Annotated[str, Query(max_length=100)] = "",
        since: Annotated[str, Query(max_length=40, description="ISO 8601, UTC")] = "",
        until: Annotated[str, Query(max_length=40)] = "",
        before: Annotated[int | None, Query(ge=0, le=2**31 - 1, description="rows before this number")] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> list[Row]:
        """Parts in the ledger, newest first."""
        how = {"part": part, "recipe": recipe, "since": since, "until": until, "before": before, "limit": limit}
        kinds = ("error",) if verdict == "ERROR" else ("verdict",) if verdict else ("verdict", "error")
        return line.ledger.rows(kinds=kinds, verdicts=[verdict] if verdict not in ("", "ERROR") else [], **how)

    @api.get("/parts/{seq}")
    def one(seq: Annotated[int, _seq()]) -> dict[str, Any]:
        """A part's row as it stands in the ledger, and the decisions on it."""
        return {**_row(line, seq), "decisions": line.ledger.about([seq]).get(seq, [])}

    @api.get("/parts/{seq}/views/{view}/{what}", response_class=Response)
    def view(seq: Annotated[int, _seq()], view: int, what: Literal["picture", "overlay", "map"]) -> Response:
        """The file as it came; the picture with its map over it (PNG, made a PNG of 8 bits); the map (.npy, float16).

        Of the last parts, and the picture of those that were kept.
        """
        content, media = _shown(line, _row(line, seq), view, what)
        return Response(content, media_type=media, headers={"cache-control": "private, max-age=3600"})

    @api.post("/parts/{seq}/decision", dependencies=[needs("operate")])
    def decide(
        request: Request,
        seq: Annotated[int, _seq()],
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


def state(line: Line) -> dict[str, Any]:
    times = sorted(line.times_ms)
    drift = line.drift
    return {
        "station": line.ledger.station,
        "ready": line.ready,
        "blocked": line.blocked,
        "fault": line.fault,
        "recipe": line.recipes.active.name,
        "inside": line.inside,
        "waiting": line.waiting,
        "counts": dict(line.counts),
        "p50_ms": times[len(times) // 2] if times else None,
        "p99_ms": times[min(len(times) - 1, int(len(times) * 0.99))] if times else None,
        "drift": {"alarm": bool(drift and drift.alarm_at), "signal": bool(drift and drift.signal_at)},
        "lamps": {name: list(lamp) for name, lamp in line.lamps.items()},
    }


async def _views(request: Request) -> Sequence[Picture]:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "multipart/form-data":
        body = await request.body()
        if not body:
            raise UsageError("the body is empty; send a picture, or a form with files called view")
        return [Picture("view 0", body)]
    async with request.form(max_files=MOST_VIEWS, max_fields=10) as form:
        files = [file for file in form.getlist("view") if not isinstance(file, str)]
        if not files:
            raise UsageError("the form has no file called view")
        return [Picture(file.filename or f"view {n}", await file.read()) for n, file in enumerate(files)]


def _name(views: Sequence[Picture]) -> str:
    import hashlib

    return hashlib.sha256(b"".join(view.content for view in views)).hexdigest()[:16]


def _answer(line: Line, row: Row, include: set[str]) -> Response:
    """200 with a verdict; 422 where the picture is at fault, 503 and 500 where the station is."""
    answer = Answer.model_validate(row).model_dump()
    if row["kind"] == "verdict":
        for number, view in enumerate(answer["views"]):
            for what in include:
                view[what] = base64.b64encode(_shown(line, row, number, what)[0]).decode()
        return _json(200, answer)
    status = {"DATA": 422, "TIMEOUT": 503}.get(row["code"], 500)
    return _json(status, {"error": {"code": row["code"], "message": row["reason"]}, "row": answer})


def _json(status: int, content: Any) -> Response:
    more = {"retry-after": "1"} if status == 503 else {}
    return Response(json.dumps(content), status, more, "application/json")


def _row(line: Line, seq: int) -> Row:
    row = line.ledger.get(seq)
    if row is None or row["kind"] not in ("verdict", "error"):
        raise LookupError(f"row {seq} of the ledger is no part's")
    return row


def _shown(line: Line, row: Row, number: int, what: str) -> tuple[bytes, str]:
    """LookupError: it was not kept."""
    if not 0 <= number < len(row["views"]):
        raise LookupError(f"row {row['seq']} has {len(row['views'])} views")
    view, shown = row["views"][number], line.recent.get(row["seq"], number)
    content = shown.content if shown else line.keep.read(view["path"]) if line.keep and view["path"] else None
    if content is None or (what != "picture" and (shown is None or shown.map is None)):
        raise LookupError(f"the {what} of row {row['seq']} is not there any more")
    if what == "map":
        assert shown is not None and shown.map is not None
        return _npy(shown.map), "application/octet-stream"
    if what == "picture":
        return _picture(content)
    assert shown is not None and shown.map is not None
    pixels = decode(content)
    map = enlarge(shown.map.astype(np.float32), (pixels.shape[0], pixels.shape[1]))
    drawn = heatmap.overlay(pixels, map, scale(line.recipes.get(row["recipe"]).model))
    return _png(drawn), "image/png"


def _picture(content: bytes) -> tuple[bytes, str]:
    """As it came where browsers show that; else a PNG of it. Its name and kind are ours, never the sender's."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content, "image/png"
    if content.startswith(b"\xff\xd8\xff"):
        return content, "image/jpeg"
    try:
        return _png(heatmap.picture(decode(content))), "image/png"
    except DataError as error:
        raise LookupError(f"it is no picture: {error}") from error


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _npy(map: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, map, allow_pickle=False)
    return file.getvalue()


def _said(recipe: Any) -> dict[str, Any]:
    said = {"name": recipe.name, "method": recipe.model.method, "bundle": recipe.bundle, "version": recipe.version}
    return said | {"calibration": recipe.calibration, "views": list(recipe.views), "promise": recipe.promise}


def _seq() -> Any:
    from fastapi import Path

    return Path(ge=1, le=2**31 - 1)


async def _events(line: Line, ending: Callable[[], bool]) -> AsyncIterator[str]:
    loop, waiting = asyncio.get_running_loop(), asyncio.Queue[tuple[str, Any]](WAITING)
    late = False

    def put(what: str, row: Row) -> None:
        nonlocal late
        if waiting.full():
            late = True
        else:
            waiting.put_nowait((what, row))

    end = line.listen(lambda what, row: _unless_closed(loop, put, what, row))
    try:
        yield _event("status", state(line))
        told = loop.time()
        while not (late or ending()):
            try:
                what, row = await asyncio.wait_for(waiting.get(), 0.25)
                yield _event(what, row)
            except TimeoutError:
                pass
            if loop.time() - told >= BEAT_S:
                told = loop.time()
                yield _event("status", state(line))
    finally:
        end()


def _unless_closed(loop: asyncio.AbstractEventLoop, put: Callable[..., None], what: str, row: Row) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(put, what, row)


def _event(what: str, content: Any) -> str:
    return f"event: {what}\ndata: {json.dumps(content)}\n\n"

"""The service: routes put together, what they raise turned into answers, and the guard around all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from flawmap.errors import (
    BundleError,
    CalibrationError,
    DataError,
    GateError,
    LedgerError,
    MissingExtra,
    Unavailable,
    UsageError,
)
from flawmap.station import access as _access
from flawmap.station.challenge import Challenge
from flawmap.station.line import Line
from flawmap.station.shown import Gone

try:
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, PlainTextResponse
    from starlette.exceptions import HTTPException
except ImportError as error:
    raise MissingExtra("fastapi", "serve", "the station") from error

MOST_BYTES = 64_000_000
STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (UsageError, 400, "USAGE"),
    (DataError, 422, "DATA"),
    (_access.Forbidden, 403, "ROLE"),
    (Gone, 404, "GONE"),
    (LedgerError, 503, "LEDGER"),
    (BundleError, 409, "BUNDLE"),
    (GateError, 409, "GATE"),
    (CalibrationError, 409, "CALIBRATION"),
)
WORDS = {404: ("PATH", "there is no such path"), 405: ("METHOD", "not with this method")}
ABOUT = "Parts in, verdicts out. Every answer about a part is its row in the ledger."
_LOG = logging.getLogger("flawmap.station")


def create_app(
    line: Line,
    access: _access.Access | None = None,
    *,
    challenge: Challenge | None = None,
    hosts: Sequence[str] | None = ("127.0.0.1", "localhost", "::1"),
    most_bytes: int = MOST_BYTES,
    ending: Callable[[], bool] = lambda: False,
    good: Path | None = None,
) -> Any:
    """The ASGI application.

    hosts       names it answers to; None: any
    most_bytes  of a request's body
    good        the pictures that the model was fitted on, for the nearest good patch on a part's page
    ending      says when streams shall end, for a graceful stop
    """
    from flawmap import __version__
    from flawmap.station import api, login, measures, oip, pages

    access = access or _access.Access()
    about: dict[str, Any] = {"title": "flawmap station", "version": __version__, "description": ABOUT}
    app = FastAPI(**about, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.include_router(api.router(line, challenge, ending))
    app.include_router(oip.router(line))
    app.include_router(pages.router(line, good=good))
    app.include_router(login.router(access))
    measured = measures.Measures(line)

    # These three wait for no thread, so that they answer when all threads are busy.
    @app.get("/health/live", response_class=PlainTextResponse)
    async def live() -> str:
        """The process answers."""
        return "alive\n"

    @app.get("/health/ready", responses={503: {"description": "No parts are judged."}})
    async def ready() -> JSONResponse:
        """Whether parts are judged: 200, or 503 and why not."""
        return JSONResponse({"ready": line.ready, "why": line.blocked or line.fault}, 200 if line.ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse, dependencies=[api.TOKEN], responses=api.FAULTS)
    async def metrics() -> PlainTextResponse:
        """For Prometheus."""
        return PlainTextResponse(measured.text(), media_type=measures.MEDIA)

    handlers(app)
    return _access.Guard(app, access, hosts=hosts, most_bytes=most_bytes)


def handlers(
    app: FastAPI,
    more: Sequence[tuple[type[Exception], int, str]] = (),
    called: str = "station",
    see: str = "; see /docs",
) -> None:
    """What is raised becomes an answer; `more` errors of the caller's own; what it is `called`, and where to look."""
    for kind, status, code in (*STATUS, *more):
        app.add_exception_handler(kind, _handler(status, code))

    @app.exception_handler(Unavailable)
    async def _(request: Request, error: Unavailable) -> JSONResponse:
        return _fault(request, 503, error.code, str(error), {"retry-after": str(error.retry_s)})

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> JSONResponse:
        said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return _fault(request, 422, "REQUEST", said)

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        code, words = WORDS.get(error.status_code, ("REQUEST", ""))
        own = not words or (not see and error.detail != HTTPStatus(error.status_code).phrase)
        said = str(error.detail) if own else f"{words}{see}"
        return _fault(request, error.status_code, code, said, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def _(request: Request, _: Exception) -> JSONResponse:  # uvicorn logs it
        return _fault(request, 500, "INTERNAL", f"a fault of the {called}'s own; its log says more")


def _handler(status: int, code: str) -> Any:
    async def handler(request: Request, error: Exception) -> JSONResponse:
        return _fault(request, status, code, str(error), {"retry-after": "1"} if status == 503 else None)

    return handler


def _fault(
    request: Request, status: int, code: str, message: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    if request.url.path.startswith("/v2"):  # the protocol's errors are one text
        return JSONResponse({"error": f"{code}: {message}"}, status, headers)
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)

"""A browser shows its token once, and is known by a cookie from then on."""

from __future__ import annotations

from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from flawmap.station import pages
from flawmap.station.access import COOKIE, SESSION_S, Access, session_of

MOST_BODY = 4096


def router(access: Access) -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    def page(request: Request, wrong: str = "", status: int = 200) -> Response:
        return pages.page(request, "login.html", wrong=wrong, needed=access.needed, status=status)

    @routes.get("/login")
    def show(request: Request) -> Response:
        return page(request)

    @routes.post("/login")
    async def enter(request: Request) -> Response:
        body = await request.body()
        if len(body) > MOST_BODY:
            return page(request, "that is no token", 413)
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()
        who = access.of_token(given)
        if who is None:
            return page(request, "no such token", 401)
        access.close_session(session_of(request.headers.get("cookie", "")))
        found = RedirectResponse("/", 303)
        # A proxy may have taken off the TLS; the browser tells what it sees.
        secure = request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")
        session = access.open_session(who)
        found.set_cookie(COOKIE, session, max_age=SESSION_S, httponly=True, samesite="strict", secure=secure)
        return found

    @routes.post("/logout")
    def leave(request: Request) -> Response:
        access.close_session(session_of(request.headers.get("cookie", "")))
        found = RedirectResponse("/login", 303)
        found.delete_cookie(COOKIE)
        return found

    return routes

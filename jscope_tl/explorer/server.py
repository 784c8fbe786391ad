"""The server: a static page and a JSON interface, by default only for this machine."""

import json
import logging
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_address
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from jscope_tl.errors import InputError
from jscope_tl.explorer.answers import about as facts_of
from jscope_tl.explorer.frozen import STATIC, shell, to_json
from jscope_tl.explorer.questions import QUESTIONS
from jscope_tl.explorer.work import Busy, Cancelled, Worker

MOST_BYTES = 400_000
"""The largest size of a request."""
MOST_VIEWS = 8
"""How many circuitsvis views are kept; older ones are deleted."""
POLICY = "Content-Security-Policy"
VIEW_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; sandbox allow-scripts; frame-ancestors {ancestors}"
"""The policy for views: pages with their own scripts and without network access."""
HEADERS = {
    POLICY: "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; frame-ancestors {ancestors}",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
TOKEN_HEADER = "x-jscope-token"
log = logging.getLogger("jscope_tl.explorer")


def app(model: Any, token: str, hosts: frozenset[str], ancestors: str = "'self'") -> Starlette:
    """The explorer of a model.

    Args:
        token: the token that the page must send with every request to ``/api/``.
        hosts: the names and ports under which the server may be reached, as browsers send them in the Host header.
        ancestors: pages that may show it in a frame, in the syntax of the Content-Security-Policy.
    """
    worker, facts = Worker(), facts_of(model)
    views: OrderedDict[str, str] = OrderedDict()

    async def about(request: Request) -> Response:
        return JSONResponse(facts)

    async def answer(question: Callable[[Any, Any], Any], request: Request) -> Response:
        given = await _body(request)
        job = given.get("job") if isinstance(given, dict) else None
        found = await worker.run(job if isinstance(job, str) else "", partial(question, model, given), _gone(request))
        if "page" in found:
            found = {**found, "view": _kept(views, found.pop("page"))}
        return Response(to_json(found), media_type="application/json")

    async def view(request: Request) -> Response:
        page = views.get(request.path_params["name"])
        if page is None:
            return _refusal(404, "This view was deleted; request it again.")
        return Response(page, media_type="text/html", headers={POLICY: VIEW_POLICY.format(ancestors=ancestors)})

    async def cancel(request: Request) -> Response:
        return JSONResponse({"cancelled": worker.cancel(_job(await _body(request)))})

    async def progress(request: Request) -> Response:
        job = worker.progress(request.query_params.get("job", ""))
        if job is None:
            return _refusal(404, "There is no call with this name.")
        return JSONResponse({"state": job.state, "what": job.what, "done": job.done, "total": job.total})

    routes = [
        Route("/", _page, methods=["GET"]),
        Route("/healthz", lambda request: PlainTextResponse("ok"), methods=["GET"]),
        Route("/views/{name}", view, methods=["GET"]),
        Route("/api/about", about, methods=["GET"]),
        Route("/api/shell", lambda request: PlainTextResponse(shell()), methods=["GET"]),
        Route("/api/progress", progress, methods=["GET"]),
        Route("/api/cancel", cancel, methods=["POST"]),
        *(Route(f"/api/{name}", partial(answer, question), methods=["POST"]) for name, question in QUESTIONS.items()),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    guard = Middleware(BaseHTTPMiddleware, dispatch=partial(_guarded, token, hosts, ancestors))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        worker.close()

    return Starlette(routes=routes, middleware=[guard], lifespan=lifespan)


async def _page(request: Request) -> Response:
    return Response((STATIC / "index.html").read_text(encoding="utf-8"), media_type="text/html")


Next = Callable[[Request], Awaitable[Response]]


async def _guarded(token: str, hosts: frozenset[str], ancestors: str, request: Request, following: Next) -> Response:
    """Refuse requests that do not come from the page, and convert errors to sentences."""
    refused = _refused(token, hosts, request)
    response = refused if refused is not None else await _answered(request, following)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value.format(ancestors=ancestors))
    return response


def _kept(views: OrderedDict[str, str], page: str) -> str:
    """Keep a view, and return its address, which cannot be guessed."""
    name = secrets.token_urlsafe(24)
    views[name] = page
    while len(views) > MOST_VIEWS:
        views.popitem(last=False)
    return f"views/{name}"


def _refused(token: str, hosts: frozenset[str], request: Request) -> Response | None:
    if not _is_own(request.headers.get("host", ""), hosts):
        return _refusal(403, "This server only answers under its own address (the Host header has another one).")
    origin = request.headers.get("origin")
    if origin is not None and not _is_own(origin.partition("://")[2], hosts):
        return _refusal(403, "This server only answers its own page (the Origin header has another one).")
    asked = request.url.path
    if asked.startswith("/api/") and not secrets.compare_digest(
        request.headers.get(TOKEN_HEADER, "").encode(), token.encode()
    ):
        return _refusal(403, "The token of this launch is missing or wrong; open the address that jscope app printed.")
    return None


def _is_own(address: str, hosts: frozenset[str]) -> bool:
    """Whether an address belongs to this server. If the server listens on all addresses, any IP address does, because DNS rebinding needs a name."""
    number, _, port = address.rpartition(":")
    return address in hosts or (f"*:{port}" in hosts and _is_number(number.strip("[]")))


def _is_number(address: str) -> bool:
    try:
        ip_address(address)
    except ValueError:
        return False
    return True


async def _answered(request: Request, following: Next) -> Response:
    try:
        return await following(request)
    except InputError as error:
        return _refusal(400, str(error))
    except Cancelled:
        return _refusal(409, "Cancelled.")
    except Busy:
        return _refusal(429, "Too many explanations are waiting; wait for one of them, or cancel it.")
    except Exception as error:  # no error of a model may stop the server
        log.exception("a call failed")
        return _refusal(500, f"Something went wrong: {type(error).__name__}: {str(error)[:300]}")


async def _gone(request: Request) -> None:
    """Wait until the client disconnects. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> Any:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise InputError(f"The request is longer than {MOST_BYTES} bytes.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError("The request is not JSON.") from error


def _job(given: Any) -> str:
    job = given.get("job") if isinstance(given, dict) else None
    if not isinstance(job, str):
        raise InputError("job must be the name of the call to cancel.")
    return job


def _refusal(status: int, says: str) -> Response:
    return JSONResponse({"error": says}, status_code=status)

"""Which requests are refused before anything is read of them."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Scope

from dawn.apps.server_settings import is_loopback
from dawn.apps.serving.answers import error_body
from dawn.apps.serving.service import Service


def refusal(service: Service, open_to_all: bool, scope: Scope) -> JSONResponse | None:
    """Turns a request away while the service stops and, if it asks for no token, one that a foreign web page makes.

    A service on loopback can be reached by every page that is open in a browser of the machine, and by a foreign name that
    points to it: so the name must be of this machine, and the page of this service.
    """
    if service.stopping and scope["path"] != "/health":
        body = error_body("Stopping", "the service is being stopped; try again soon")
        return JSONResponse(body, 503, {"Retry-After": "10"})
    if open_to_all and (reason := _foreign(Headers(scope=scope))):
        return JSONResponse(error_body("Forbidden", f"{reason}; without a token only this machine is served"), 403)
    return None


def _foreign(headers: Headers) -> str | None:
    host, origin = headers.get("host", ""), headers.get("origin")
    if not is_loopback(_name(f"//{host}")):
        return f"host {host!r} is not of this machine"
    if origin is not None and origin != "null" and not is_loopback(_name(origin)):
        return f"asked by a page of {origin!r}"
    return "asked by a page of another site" if headers.get("sec-fetch-site") == "cross-site" else None


def _name(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""

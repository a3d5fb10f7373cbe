"""What both servers look at before any request is answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Refuse = Callable[[Any], Any]
"""Takes an ASGI scope of HTTP; gives the application that refuses the request, or None to let it pass."""


class Guard:
    """An ASGI application before another one: refuses requests, and adds headers to every answer."""

    def __init__(self, app: Any, refuse: Refuse, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self._app, self._refuse, self._headers = app, refuse, headers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request with its refusal if there is one, else hand it on; every answer gets the headers."""

        async def marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *self._headers]}
            await send(message)

        refusal = self._refuse(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, marked if self._headers else send)

"""``dawn serve``: from settings to a service that listens until it is told to stop."""

from __future__ import annotations

import ctypes
import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from dawn.apps.serving.settings import ServeSettings, read_token
from dawn.errors import ConfigError, missing_extra

log = logging.getLogger(__name__)

BACKLOG = 128
CLOSING_S = 5
"""How long connections may take to end when the service stops."""
M_ARENA_MAX, ARENAS = -8, 2
"""glibc's ``mallopt``: threads that come and go otherwise spread what they free over eight arenas a core, and a service that
never ends keeps them all (50 jobs: 445 → 514 MiB, and 388 → 425 with two arenas)."""


def serve(settings: ServeSettings, say: Callable[[str], None] = log.info) -> int:
    """Listen until Ctrl-C or SIGTERM; returns 0, or 1 if it could not begin. ``say`` gets one line when requests are answered.

    Raises ConfigError: settings, token, data folder or address cannot be used, packages are missing; CheckpointError: the
    preset's weights.
    """
    try:
        import uvicorn

        from dawn.apps.serving.app import create_app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "dawn":
            raise
        raise missing_extra(error.name or "", "serve") from error
    from dawn.pipeline import Dawn

    token = read_token(settings)
    _limit_arenas()
    with _listening(settings) as listener:
        app = create_app(settings, Dawn.from_pretrained(settings.preset, settings.device))
        service = app.state.service

        class Server(uvicorn.Server):
            """Stops without raising the signal again, and breaks films off that are being followed."""

            @contextmanager
            def capture_signals(self) -> Iterator[None]:
                with _signals(self._stop):
                    yield

            def _stop(self, number: int, frame: Any) -> None:
                service.stopping = True
                self.handle_exit(number, frame)

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                if self.started:
                    say(_greeting(settings, listener, token is not None))

        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            backlog=BACKLOG,
            server_header=False,
            timeout_graceful_shutdown=CLOSING_S,
            lifespan="on",
        )
        server = Server(config)
        try:
            server.run(sockets=[listener])
        finally:
            service.stop()
    return 0 if server.started else 1


def _limit_arenas() -> None:
    """Where the C library is glibc; others have no arenas."""
    with suppress(OSError, AttributeError, TypeError):  # TypeError: Windows, where there is no library of the process
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)


@contextmanager
def _listening(settings: ServeSettings) -> Iterator[socket.socket]:
    """A socket that listens on the address; before the model is loaded, so that a taken port is known at once."""
    where = f"{settings.host} port {settings.port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: "in use; stop what listens there, or choose another `port`",
            errno.EACCES: "not allowed; choose a `port` of 1024 or above",
        }
        reason = reasons.get(error.errno or 0) or f"cannot be listened on ({error.strerror or error}); check `host`"
        raise ConfigError(f"{where}: {reason}") from error
    try:
        yield listener
    finally:
        listener.close()


@contextmanager
def _signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to ``handler``; nothing changes outside the main thread, which alone gets them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _greeting(settings: ServeSettings, listener: socket.socket, needs_token: bool) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    token = "a token is needed" if needs_token else "no token is needed"
    return (
        f"dawn serve: http://{host}:{listener.getsockname()[1]} (preset {settings.preset}, {token}; /docs tells more)"
    )

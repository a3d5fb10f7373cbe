"""``dawn studio``: serve the page until somebody ends it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from dawn.apps.guard import Guard
from dawn.apps.studio.loading import Loader
from dawn.apps.studio.sessions import Sessions
from dawn.apps.studio.settings import StudioSettings, accounts
from dawn.errors import ConfigError, missing_extra

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-ancestors 'self'; base-uri 'self'; form-action 'self'"
)
"""Gradio's pages evaluate scripts of their own; nothing may be asked of any other address."""
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)
"""Of every answer."""


def studio(settings: StudioSettings, say: Callable[[str], None] = lambda line: None) -> int:
    """Serve the page until Ctrl-C, and remove every file at the end. Returns the exit code.

    say: is given the page's address when it can be opened. Raises ConfigError: gradio is missing, an open address without
    users, an unreadable users' file, a port or an address that cannot be had, an unknown preset; CheckpointError.
    """
    users = accounts(settings)
    port = free_port(settings.host, settings.port)
    loader = Loader(settings.preset, settings.device)
    try:
        with _sessions(settings, loader) as sessions, _our_gradio(sessions.root):
            blocks = _launch(settings, loader, sessions, users, port)
            try:
                loader.start(lambda: import_module("dawn.apps.studio.session"))  # what the page calls first
                say(f"dawn studio: {blocks.local_url} (Ctrl-C ends it)")
                loader.get()
                while True:
                    time.sleep(3600)
            finally:
                with contextlib.suppress(Exception):
                    blocks.close(verbose=False)
    except KeyboardInterrupt:
        return 0


def free_port(host: str, port: int) -> int:
    """``port``, if a server may listen there; for 0 one that is free. Raises ConfigError."""
    bare = host.strip("[]")
    try:
        family, *_, address = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        other = f"`port={port + 1}`" if port and port < 65535 else "another"
        raise ConfigError(
            f"port {port} of {host!r} cannot be had ({error.strerror}): give {other}, or end what uses it"
        ) from error


@contextlib.contextmanager
def _sessions(settings: StudioSettings, loader: Loader) -> Iterator[Sessions]:
    def make(folder: Path) -> Any:
        from dawn.apps.studio.session import Session

        return Session(folder, loader, settings)

    sessions = Sessions(make, settings.keep_hours * 3600)
    try:
        yield sessions
    finally:
        sessions.close()


@contextlib.contextmanager
def _our_gradio(root: Path) -> Iterator[None]:
    """Gradio as these settings say and not as its own environment variables do: its files in our folder, no analytics."""
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("GRADIO_")}
    ours = {"GRADIO_TEMP_DIR": str(root), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ |= ours
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        os.environ |= before


def _launch(
    settings: StudioSettings, loader: Loader, sessions: Sessions, users: list[tuple[str, str]], port: int
) -> Any:
    """The running server's Blocks. Raises ConfigError."""
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise missing_extra("gradio", "serve") from error
    from starlette.middleware import Middleware

    from dawn.apps.studio.layout import asset, text_of, theme
    from dawn.apps.studio.page import Page

    blocks = Page(settings, loader, sessions).blocks.queue(max_size=settings.max_queue, api_open=False)
    try:
        blocks.launch(
            server_name=settings.host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            show_error=False,
            auth=users or None,
            auth_message="dawn studio",
            max_file_size=settings.max_upload_bytes,
            root_path=settings.root_path,
            allowed_paths=None,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            inbrowser=settings.open_browser,
            theme=theme(),
            favicon_path=asset("icon.svg"),
            head=f"<style>{text_of('page.css')}</style>",
            app_kwargs={
                "middleware": [Middleware(Guard, refuse=refusal, headers=HEADERS)],
                "docs_url": None,
                "redoc_url": None,
            },
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the studio cannot listen on {settings.host} port {port} ({error}): give another port"
        ) from error
    return blocks


def refusal(scope: Any) -> Any:
    """Refuses what would make the server fetch addresses of others."""
    from starlette.responses import Response

    return Response(status_code=403) if "file=http" in scope["path"] or "/proxy=" in scope["path"] else None

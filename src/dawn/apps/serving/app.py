"""The HTTP interface: which request does what."""

from __future__ import annotations

import asyncio
import hmac
import logging
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from dawn import __version__
from dawn.apps.guard import Guard
from dawn.apps.serving import answers, uploads
from dawn.apps.serving.answers import ErrorAnswer, Refusal
from dawn.apps.serving.description import docs_page
from dawn.apps.serving.follow import FollowResponse, finished
from dawn.apps.serving.guard import refusal
from dawn.apps.serving.records import ENDED, ID_PATTERN, Job
from dawn.apps.serving.service import MOTION, Service
from dawn.apps.serving.settings import ServeSettings, read_token
from dawn.errors import DawnError

log = logging.getLogger(__name__)

SWEEP_S = 60.0
BEARER = HTTPBearer(auto_error=False, description="The token of the service")
Number = Annotated[str, Path(alias="id", pattern=ID_PATTERN, description="The job's id")]
Streamed = Annotated[bool, Query(description="1: answer with the film itself, as fragmented MP4, while it is made")]
FILM: dict[str, Any] = {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The film, with ?stream=1",
        "content": FILM,
        "headers": {"X-Dawn-Job": {"description": "The job's id", "schema": {"type": "string"}}},
    },
}
VIDEO: dict[int | str, dict[str, Any]] = {
    200: {"description": "The video", "content": FILM},
    206: {"description": "A part of it", "content": FILM},
    416: {"description": "A range that it does not have", "content": {"text/plain": {}}},
}
WORDS = {
    400: "A file, or the form, that cannot be used",
    401: "No token, or a wrong one",
    403: "Asked by another web site",
    404: "There is no such job",
    405: "Not with this method",
    408: "The upload took too long",
    409: "There is no video yet, or there will be none",
    413: "The upload is too large",
    415: "Not multipart/form-data",
    422: "An option or field that cannot be used",
    429: "The queue is full; see Retry-After",
    500: "A fault of the service",
    503: "The service is being stopped",
    507: "The disk is full",
}


def _may_refuse(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": ErrorAnswer, "description": WORDS[code]} for code in (*codes, 401, 403, 422, 500, 503)}


def create_app(settings: ServeSettings, model: Any = None) -> FastAPI:
    """The application. model: a loaded ``Dawn``; None loads ``settings.preset`` when the application starts.

    ``app.state.service`` is the ``Service`` behind it. Raises ConfigError: token or data folder cannot be used.
    """
    token = read_token(settings)
    service = Service(settings, model)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.start)
        sweeper = asyncio.create_task(_sweep(service))
        try:
            yield
        finally:
            sweeper.cancel()
            await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="dawn",
        version=__version__,
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        description="Talking-head video from one portrait and one speech recording.",
    )
    app.state.service = service

    def authorised(given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)] = None) -> None:
        shown = given.credentials if given else ""
        if token is not None and not hmac.compare_digest(shown.encode(), token.encode()):
            raise Refusal(
                401,
                "Unauthorized",
                "no token, or a wrong one: send the header Authorization: Bearer TOKEN",
                WWW_Authenticate="Bearer",
            )

    guarded = [Depends(authorised)] if token is not None else []
    for router in (_jobs(service), _results(service)):
        app.include_router(router, dependencies=guarded)
    app.include_router(_about(app, service, guarded))
    _answer_errors(app)
    app.add_middleware(Guard, refuse=partial(refusal, service, token is None))
    return app


async def _sweep(service: Service) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        try:
            await asyncio.to_thread(service.sweep)
        except Exception:  # tried again in a minute
            log.exception("old jobs cannot be removed")


def _jobs(service: Service) -> APIRouter:
    """Making, watching and ending jobs."""
    router = APIRouter(prefix="/v1", tags=["jobs"])
    form = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": uploads.form_schema()}}}}

    @router.post(
        "/generate",
        status_code=202,
        response_model=answers.JobAnswer,
        response_description="The queued job",
        openapi_extra=form,
        responses={**STREAMED, **_may_refuse(400, 404, 408, 409, 413, 415, 429, 507)},
    )
    async def generate(request: Request, stream: Streamed = False) -> Any:
        """Portrait and speech in, a queued job out; or, with ?stream=1, the film itself while it is made."""
        job = await _accepted(request, service)
        if stream:
            return FollowResponse(service, job.id, owner=True)
        return JSONResponse(
            answers.job_answer(service, job).model_dump(mode="json"), 202, {"Location": f"/v1/jobs/{job.id}"}
        )

    @router.get("/jobs", response_model=answers.JobList, response_description="The jobs", responses=_may_refuse())
    def jobs(limit: Annotated[int, Query(ge=1, le=100)] = 20) -> answers.JobList:
        """The newest jobs, newest first."""
        newest = service.store.all()[: -limit - 1 : -1]
        return answers.JobList(jobs=[answers.job_answer(service, job) for job in newest])

    @router.get(
        "/jobs/{id}", response_model=answers.JobAnswer, response_description="The job", responses=_may_refuse(404)
    )
    def job(number: Number) -> answers.JobAnswer:
        """How far a job is."""
        return answers.job_answer(service, _found(service, number))

    @router.delete(
        "/jobs/{id}",
        response_model=answers.JobAnswer,
        response_description="The cancelled job",
        responses={204: {"description": "An ended job and its files are removed"}, **_may_refuse(404)},
    )
    def delete(number: Number) -> Any:
        """Cancel a job that waits or is at work; remove one that has ended, with its files."""
        _found(service, number)
        if (cancelled := service.cancel(number)) is not None:
            return answers.job_answer(service, cancelled)
        service.remove(number)
        return Response(status_code=204)

    return router


def _found(service: Service, number: str) -> Job:
    job = service.store.get(number)
    if job is None:
        raise Refusal(404, "NotFound", f"there is no job {number}; it may have been removed")
    return job


def _results(service: Service) -> APIRouter:
    """What jobs have made."""
    router = APIRouter(prefix="/v1", tags=["jobs"])

    @router.get(
        "/jobs/{id}/result", response_class=FileResponse, responses={**VIDEO, **_may_refuse(400, 404, 409, 507)}
    )
    def result(number: Number, stream: Streamed = False) -> Response:
        """The video, in ranges if asked so; with ?stream=1 that of an unfinished job while it is made."""
        asked = _found(service, number)
        if asked.state == "done":
            return finished(service, asked)
        if stream and asked.state not in ENDED:
            return FollowResponse(service, number)
        raise _unfinished(asked)

    @router.get(
        "/jobs/{id}/motion",
        response_class=FileResponse,
        responses={200: {"description": "The motion", "content": {"application/json": {}}}, **_may_refuse(404, 409)},
    )
    def motion(number: Number) -> Response:
        """The motion that was generated, as JSON that "dawn generate" renders again."""
        asked = _found(service, number)
        if asked.state != "done":
            raise _unfinished(asked)
        path = service.folder(number) / MOTION
        if not path.is_file():
            raise Refusal(404, "NotFound", "the motion is not there any more; send the job again")
        return FileResponse(path, media_type="application/json")

    return router


async def _accepted(request: Request, service: Service) -> Job:
    """The queued job of an upload. Raises Refusal and DawnError; then nothing of it is left."""
    retry_s = await asyncio.to_thread(service.reserve)
    if retry_s:
        raise Refusal(
            429,
            "QueueFull",
            f"{service.settings.max_queue} jobs wait already; try again in {retry_s} s",
            Retry_After=str(retry_s),
        )
    try:
        folder = await asyncio.to_thread(service.incoming)
        try:
            options = await uploads.receive(request, service.settings, folder)
            received = time.time()
            await uploads.probe(service, folder, options)
            return await asyncio.to_thread(service.submit, folder, options, received)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, True))
    finally:
        service.release()


def _unfinished(job: Job) -> Refusal:
    if job.error is not None:
        return Refusal(409, job.error.type, job.error.message)
    return Refusal(
        409,
        "NotFinished",
        f"the job is {job.state}; there is no video" + ("" if job.state in ENDED else " yet, ?stream=1 follows it"),
    )


def _about(app: FastAPI, service: Service, guarded: list[Any]) -> APIRouter:
    """What watches the service, and its description."""
    router = APIRouter(tags=["service"])

    @router.get(
        "/health",
        response_model=answers.Health,
        response_description="It lives",
        responses={503: {"model": answers.Health, "description": "It stops, or cannot work"}},
    )
    def health() -> Any:
        """Whether the service lives; needs no token."""
        answer = answers.Health(
            status="ok" if service.works else "stopping" if service.stopping else "broken",
            version=__version__,
            preset=service.settings.preset,
            model_loaded=service.model is not None,
            queue_length=len(service.store.queued()),
            max_queue=service.settings.max_queue,
        )
        return JSONResponse(answer.model_dump(), 200 if service.works else 503)

    shown: dict[int | str, dict[str, Any]] = {
        200: {"description": "Prometheus' text format", "content": {"text/plain": {}}}
    }

    @router.get("/metrics", response_class=Response, responses={**shown, **_may_refuse()}, dependencies=guarded)
    def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        return HTMLResponse(docs_page(app.openapi()), headers={"Content-Security-Policy": policy})

    return router


def _answer_errors(app: FastAPI) -> None:
    """One shape for all errors."""

    @app.exception_handler(DawnError)
    async def known(request: Request, error: DawnError) -> JSONResponse:
        status, body, headers = answers.error_answer(error)
        return JSONResponse(body, status, headers)

    @app.exception_handler(RequestValidationError)
    async def unfit(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse(
            answers.error_body("RequestError", f"{where} = {first.get('input')!r}: {first['msg']}"), 422
        )

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        kind = {404: "NotFound", 405: "MethodNotAllowed"}.get(error.status_code, "HTTPError")
        words = {404: "there is nothing here; see /docs", 405: f"not with {request.method}; see /docs"}
        message = words.get(error.status_code, str(error.detail))
        return JSONResponse(answers.error_body(kind, message), error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return JSONResponse(answers.error_body("Disconnected", "the upload broke off"), 400)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        with suppress(Exception):
            log.error("%s %s", request.method, request.url.path, exc_info=error)
        message = f"unexpected {type(error).__name__}; see the service's log"
        return JSONResponse(answers.error_body("ServiceError", message), 500)

"""A film that is sent while it is made."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from dawn.apps.serving.answers import error_body
from dawn.apps.serving.records import Job
from dawn.apps.serving.service import RESULT, STREAM, Service

POLL_S = 0.03
CHUNK_BYTES = 1 << 18


class FollowResponse(Response):
    """The growing ``stream.mp4`` of a job, from its first byte; of a finished job the finished file.

    The answer begins with the film's first byte, so that whatever fails before is answered with its own status; what fails
    later breaks the connection off. The client that asked with the very request that made the job owns it: if it goes away,
    and no other follows the job, the job is cancelled.
    """

    def __init__(self, service: Service, number: str, owner: bool = False) -> None:
        super().__init__(media_type="video/mp4")
        self._service, self._number, self._owner = service, number, owner
        self.headers["X-Dawn-Job"] = number
        self.headers["Cache-Control"] = "no-store"
        self.headers["X-Accel-Buffering"] = "no"
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the film as it grows; cancel the job if its owner goes away and nobody else reads."""
        service, number = self._service, self._number
        service.readers[number] = service.readers.get(number, 0) + 1
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await self._follow(scope, receive, send, gone)
        finally:
            gone.cancel()
            service.readers[number] -= 1
            alone = not service.readers[number]
            if alone:
                del service.readers[number]
            if self._owner and alone and not service.stopping:
                # Of an ended job nothing changes.
                await asyncio.shield(asyncio.to_thread(service.cancel, number))

    async def _follow(self, scope: Scope, receive: Receive, send: Send, gone: asyncio.Future[None]) -> None:
        service, film, sent = self._service, None, 0
        try:
            while not gone.done():
                job = service.store.get(self._number)
                if job is None or job.state in ("failed", "cancelled") or service.stopping:
                    if film is None:
                        await _refusal(job, service.stopping)(scope, receive, send)
                    return
                if job.state == "done" and film is None:
                    await finished(service, job)(scope, receive, send)
                    return
                live = service.live
                if film is None and live is not None and live.job.id == job.id and live.streamed:
                    with suppress(OSError):  # finished and removed just now
                        film = await asyncio.to_thread((service.folder(job.id) / STREAM).open, "rb")
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                while film and (data := await asyncio.to_thread(film.read, CHUNK_BYTES)):
                    sent += len(data)
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    if gone.done():
                        return
                if film and job.state == "done":  # type: ignore[comparison-overlap]  # it changes while we wait
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
                await asyncio.wait([gone], timeout=POLL_S)
        finally:
            if film:
                film.close()


def finished(service: Service, job: Job) -> Response:
    """The finished film, in ranges if asked so."""
    path = service.folder(job.id) / RESULT
    if not path.is_file():
        return JSONResponse(error_body("NotFound", "the video is not there any more; send the job again"), 404)
    return FileResponse(
        path,
        media_type="video/mp4",
        headers={"X-Dawn-Job": job.id},
        filename=f"dawn-{job.id}.mp4",
        content_disposition_type="inline",
    )


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _refusal(job: Job | None, stopping: bool) -> JSONResponse:
    if job is not None and job.error is not None:
        return JSONResponse(error_body(job.error.type, job.error.message), job.error.status)
    if stopping:
        return JSONResponse(
            error_body("Stopping", "the service is being stopped; try again soon"), 503, {"Retry-After": "10"}
        )
    if job is None:
        return JSONResponse(error_body("NotFound", "there is no such job any more"), 404)
    return JSONResponse(error_body("NotFinished", f"the job is {job.state}; there is no video"), 409)

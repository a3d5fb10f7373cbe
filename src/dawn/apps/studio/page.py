"""The page's actions: what each control calls, and what is shown afterwards. The work itself is in ``session``."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from dawn.apps.studio import words
from dawn.apps.studio.job import CANCELLED
from dawn.apps.studio.layout import CONTROLS, asked, asset, build, sizes
from dawn.apps.studio.loading import Loader
from dawn.apps.studio.sessions import Sessions
from dawn.apps.studio.settings import StudioSettings
from dawn.errors import DawnError
from dawn.structs import FPS

POLL_S = 0.25
"""A preview four times a second."""
QUEUE_FULL = "not begun, as many videos are waiting: try again in a moment"
MAX_SEED = 2**31 - 1
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
UNREAD: dict[str, Any] = AT_ONCE | {"preprocess": False}
"""Reading a file, and saying what is wrong with it, is ours; nor is Gradio to fetch it from an address."""
IN_TURN: dict[str, Any] = {
    "concurrency_id": "model",
    "concurrency_limit": 1,
    "show_progress": "hidden",
    "api_visibility": "private",
}
TELL_TIMELINE = "(a, b) => { window.dispatchEvent(new CustomEvent('dawn-region', {detail: [a, b]})); }"
Shown = dict[Any, Any]
"""Parts of the page and what they become."""
Given = Callable[[Path | None, gr.Request], Shown]
"""Takes a file, or None where it was taken away."""


class Page:
    """A page whose controls work. ``blocks`` is what Gradio serves."""

    def __init__(self, settings: StudioSettings, loader: Loader, sessions: Sessions) -> None:
        self._loader, self._sessions = loader, sessions
        self.blocks, self.parts = build(settings)
        p = self.parts
        self._buttons = (p.generate, p.redraw, p.reroll, p.apply, p.add_blink, p.remove_blinks, p.undo)
        self._during = [p.stage, p.cancel, *self._buttons]
        self._after = [*self._during, p.motion, p.timeline, p.edited, p.start, p.stop]
        with self.blocks:
            self._wire_inputs()
            self._wire_controls()
            self._wire_work()
            self._wire_edits()

    # ------------------------------------------------------------------------------------------------------- wiring

    def _wire_inputs(self) -> None:
        p = self.parts
        seen = [p.portrait, p.seen, p.face, p.stage]
        for event in (p.portrait.input, p.portrait.clear):
            event(self._upload(self._portrait_given), p.portrait, seen, **UNREAD)
        for button, file in p.portraits.items():
            button.click(self._example(self._portrait_given, file), None, seen, **AT_ONCE)
        p.face.input(self._face_chosen, p.face, seen, **AT_ONCE)
        heard = [p.speech, p.heard, p.stage]
        for event in (p.speech.input, p.speech.clear):
            event(self._upload(self._speech_given), p.speech, heard, **UNREAD)
        for button, file in p.speeches.items():
            button.click(self._example(self._speech_given, file), None, heard, **AT_ONCE)

    def _wire_controls(self) -> None:
        p = self.parts
        self.blocks.load(self._wait_for_model, None, [p.notice, p.generate], **AT_ONCE)
        self.blocks.unload(self._left)
        p.tick.tick(self._seen, None, None, **AT_ONCE)
        p.dice.click(lambda: random.randint(1, MAX_SEED), None, p.seed, **AT_ONCE)
        p.frame.input(lambda frame: gr.update(**sizes(frame)), p.frame, p.size, **AT_ONCE)
        p.still.input(lambda still: gr.update(interactive=not still), p.still, p.pose_scale, **AT_ONCE)

    def _wire_work(self) -> None:
        p = self.parts
        controls = [getattr(p, name) for name in CONTROLS]
        region = [p.start, p.stop]
        running = []
        for button, run, inputs in (
            (p.generate, self._generate, controls),
            (p.redraw, self._redraw, []),
            (p.reroll, self._reroll, [*region, p.other_seed]),
        ):
            began = button.click(self._begin, None, self._during, **AT_ONCE)
            ran = began.then(run, inputs, self._after, **IN_TURN)
            ran.failure(self._not_run, None, self._after, **AT_ONCE)
            running.append(ran)
        p.cancel.click(self._cancelled, None, self._after, cancels=running, **AT_ONCE)

    def _wire_edits(self) -> None:
        p = self.parts
        region = [p.start, p.stop]
        changed = [p.timeline, p.edited, p.undo, p.redraw]
        p.timeline.select(_dragged, None, region, **AT_ONCE)
        for field in region:
            field.change(None, region, None, js=TELL_TIMELINE, api_visibility="private")
        p.whole.click(self._whole, None, region, **AT_ONCE)
        strengths = [p.head, p.face_strength]
        p.apply.click(self._edit("strengths"), [*region, *strengths], [*changed, *strengths], **AT_ONCE)
        p.add_blink.click(self._edit("add_blink"), p.start, changed, **AT_ONCE)
        p.remove_blinks.click(self._edit("remove_blinks"), region, changed, **AT_ONCE)
        p.undo.click(self._edit("undo"), None, changed, **AT_ONCE)

    # ------------------------------------------------------------------------------------------------------- inputs

    def _session(self, request: gr.Request) -> Any:
        return self._sessions.of(str(request.session_hash))

    def _example(self, given: Given, file: str) -> Callable[[gr.Request], Shown]:
        def give(request: gr.Request) -> Shown:
            session = self._session(request)
            return given(asset(file), request) | (
                {self.parts.stage: self._stage(session)} if session.complained else {}
            )

        return give

    def _upload(self, given: Given) -> Callable[[Any, gr.Request], Shown]:
        """What the browser says of an uploaded file: {"path": ...}, or None where it was taken away."""

        def give(payload: Any, request: gr.Request) -> Shown:
            session = self._session(request)
            path = self._sessions.upload(str(payload.get("path"))) if payload else None
            return given(path, request) | ({self.parts.stage: self._stage(session)} if session.complained else {})

        return give

    def _portrait_given(self, path: Path | None, request: gr.Request) -> Shown:
        session, p = self._session(request), self.parts
        if path is None:
            session.drop_portrait()
            return {p.portrait: None, p.seen: "", p.face: gr.update(visible=False)}
        return self._look(session, lambda: session.take_portrait(path))

    def _face_chosen(self, number: int, request: gr.Request) -> Shown:
        session = self._session(request)
        return self._look(session, lambda: session.choose_face(number))

    def _look(self, session: Any, look: Callable[[], Any]) -> Shown:
        p = self.parts
        try:
            found = look()
        except DawnError as error:
            line = words.line(session.in_short(str(error)), "error")
            return {p.portrait: None, p.seen: line, p.face: gr.update(visible=False)}
        numbers = list(range(1, found.faces + 1))
        summary = (
            "A face was found and nothing speaks against it."
            if len(numbers) < 2
            else (f"{len(numbers)} faces were found; number {found.face} will speak.")
        )
        return {
            p.portrait: str(found.shown) if found.shown else None,
            p.seen: words.findings(found.findings, summary, session.in_short),
            p.face: gr.update(choices=numbers, value=found.face, visible=len(numbers) > 1),
        }

    def _speech_given(self, path: Path | None, request: gr.Request) -> Shown:
        session, p = self._session(request), self.parts
        if path is None:
            session.drop_speech()
            return {p.speech: None, p.heard: ""}
        try:
            found = session.take_speech(path)
        except DawnError as error:
            return {p.speech: None, p.heard: words.line(session.in_short(str(error)), "error")}
        summary = f"{found.speech.duration_s:.1f} seconds of clear speech." if found.speech else ""
        # Of a file that cannot be used, the player could not show anything either.
        return {
            p.speech: str(found.path) if found.speech else None,
            p.heard: words.findings(found.findings, summary, session.in_short),
        }

    # ----------------------------------------------------------------------------------------------------- controls

    def _wait_for_model(self) -> Shown:
        p = self.parts
        try:
            model = self._loader.get()
        except DawnError as error:
            return {p.notice: words.line(str(error), "error"), p.generate: gr.update(interactive=False)}
        ready = words.line(f"Ready: {model.config.name} on {model.device}.")
        return {p.notice: ready, p.generate: gr.update(interactive=True)}

    def _seen(self, request: gr.Request) -> None:
        self._sessions.seen(str(request.session_hash))

    def _left(self, request: gr.Request) -> None:
        self._sessions.left(str(request.session_hash))

    # -------------------------------------------------------------------------------------------------------- work

    def _begin(self, request: gr.Request) -> Shown:
        p = self.parts
        session = self._session(request)
        session.cancelled = session.complained = False
        return {p.stage: words.working(words.WAITING, None), p.cancel: gr.update(interactive=True)} | {
            button: gr.update(interactive=False) for button in self._buttons
        }

    def _generate(self, request: gr.Request, *values: Any) -> Iterator[Shown]:
        session = self._session(request)
        yield from self._watch(session, lambda: session.generate(**asked(*values)), new=True)

    def _redraw(self, request: gr.Request) -> Iterator[Shown]:
        session = self._session(request)
        yield from self._watch(session, session.redraw)

    def _reroll(self, start: float, stop: float, seed: int, request: gr.Request) -> Iterator[Shown]:
        session = self._session(request)
        yield from self._watch(session, lambda: session.reroll(start or 0, stop or 0, int(seed or 0)))

    def _watch(self, session: Any, begin: Callable[[], Any], new: bool = False) -> Iterator[Shown]:
        """Start a job and show how it goes until it ends. A page that is closed meanwhile cancels it."""
        try:
            job = begin()
        except DawnError as error:
            yield self._state(session, str(error))
            return
        last: Any = None
        picture = None
        try:
            while not job.wait(POLL_S):
                progress = job.progress
                if progress is last:
                    continue
                if progress.frame is not None and (last is None or progress.frame is not last.frame):
                    from dawn.apps.studio.drawing import jpeg_url

                    picture = jpeg_url(progress.frame)
                last = progress
                yield {self.parts.stage: words.working(progress, picture)}
        finally:
            job.cancel()
        yield self._state(session, job.error, new=new and job.error is None)

    def _cancelled(self, request: gr.Request) -> Shown:
        session = self._session(request)
        session.cancel()
        return self._state(session, CANCELLED)

    def _not_run(self, request: gr.Request) -> Shown:
        session = self._session(request)
        return self._state(session, CANCELLED if session.cancelled else QUEUE_FULL)

    def _state(self, session: Any, error: str | None = None, new: bool = False) -> Shown:
        """Everything as it is when nothing runs. new: a video that was not there before."""
        p, result = self.parts, session.result
        shown = {p.stage: self._stage(session, error), p.cancel: gr.update(interactive=False)}
        shown |= {button: gr.update(interactive=True) for button in self._buttons}
        if result is None:
            return shown
        shown |= self._motion(session) | {p.motion: gr.update(visible=True)}
        if new:
            times: dict[Any, Any] = {p.start: 0, p.stop: round(result.frames / FPS, 2)}
            shown |= times
        return shown

    def _stage(self, session: Any, error: str | None = None) -> str:
        """The last finished video, or where it will be; above it an error."""
        session.complained = error is not None
        result = session.result
        below = (
            words.empty_stage()
            if result is None
            else words.finished(
                _address(result.video), _address(result.motion), result.frames, result.width, result.height
            )
        )
        return words.failed(session.in_short(error), below) if error else below

    # -------------------------------------------------------------------------------------------------------- edits

    def _motion(self, session: Any, error: str | None = None) -> Shown:
        """The motion view as it is."""
        p, changed = self.parts, session.changed
        spans = changed.nonzero()[0]
        text = words.line(session.in_short(error), "error") if error else words.changes(spans.tolist(), len(changed))
        return {
            p.timeline: session.view(),
            p.edited: text,
            p.undo: gr.update(interactive=session.take.can_undo),
            p.redraw: gr.update(interactive=bool(len(spans))),
        }

    def _edit(self, name: str) -> Callable[..., Shown]:
        """Calls an action of the session and shows what changed. Applied strengths go back to 1."""
        p = self.parts

        def edit(request: gr.Request, *values: Any) -> Shown:
            session = self._session(request)
            error = None
            try:
                getattr(session, name)(*(value or 0 for value in values))
            except DawnError as refused:
                error = str(refused)
            if session.take is None:
                return {p.edited: words.line(error or "", "error")}
            shown = self._motion(session, error)
            return shown | {p.head: 1, p.face_strength: 1} if name == "strengths" and error is None else shown

        return edit

    def _whole(self, request: gr.Request) -> Shown:
        result = self._session(request).result
        return {self.parts.start: 0, self.parts.stop: round(result.frames / FPS, 2) if result else 0}


def _dragged(event: gr.EventData) -> tuple[float, float]:
    """From and To, of the part that was dragged over."""
    return round(float(event.start), 2), round(float(event.stop), 2)


def _address(path: Path) -> str:
    """Where the browser finds a file of a session, against the page's own address, whatever proxy stands before it."""
    return f"gradio_api/file={quote(str(path))}"

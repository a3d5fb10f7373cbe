"""What one open page holds and can do: portrait, speech, the video, and edits of its motion. Knows no browser.

Every action raises DawnError with the line that is to be shown; the long ones give a ``Job``.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dawn import media
from dawn.apps.studio.drawing import marked
from dawn.apps.studio.job import Job
from dawn.apps.studio.loading import Loader
from dawn.apps.studio.settings import StudioSettings
from dawn.apps.studio.timeline import Values, curves, view
from dawn.checkpoint import find_preset, load_mean_face, read_preset
from dawn.checks.findings import Finding
from dawn.checks.portrait import examine_portrait
from dawn.checks.speech import examine_speech
from dawn.editing import edits
from dawn.editing.edits import Region
from dawn.editing.take import Take
from dawn.errors import DawnError, FaceError, InputError
from dawn.media.motion_json import save_motion
from dawn.pipeline import Dawn
from dawn.preprocess.portrait import MAX_FACES, choose_face, find_faces
from dawn.preprocess.tracker import FaceTracker
from dawn.structs import Motion, Speech

LOOKING = threading.Semaphore(2)
"""So many photographs are opened at a time: a large one fills hundreds of megabytes."""
VIDEO_NAME, MOTION_NAME = "dawn-video.mp4", "dawn-motion.json"
PATIENCE_S = 60.0
"""A cancelled job ends with its batch of frames."""
NO_VIDEO = "there is no video yet: generate one first"


@dataclass(frozen=True)
class Portrait:
    """A photograph that was looked at. faces: how many were found; face: which is chosen, from the left, from 1."""

    path: Path
    shown: Path | None
    findings: tuple[Finding, ...]
    faces: int = 0
    face: int | None = None


@dataclass(frozen=True)
class Recording:
    """A recording that was listened to. speech: None if it cannot be used, for the reason found."""

    path: Path
    findings: tuple[Finding, ...]
    speech: Speech | None = None


@dataclass(frozen=True)
class Result:
    """Finished files."""

    video: Path
    motion: Path
    frames: int
    width: int
    height: int


class Session:
    """One page's portrait, speech and video, with all its files in ``folder``."""

    def __init__(self, folder: Path, loader: Loader, settings: StudioSettings) -> None:
        self.folder, self._loader, self._settings = folder, loader, settings
        self.portrait: Portrait | None = None
        self.recording: Recording | None = None
        self.take: Take | None = None
        self.result: Result | None = None
        self.job: Job | None = None
        self.cancelled = False
        """Whether the last thing asked for was to stop."""
        self.complained = False
        """Whether an error stands where the video is shown."""
        self._drawn: Motion | None = None
        """The motion that ``result`` shows."""
        self._count = 0

    @property
    def busy(self) -> bool:
        """Tell whether a job is under way."""
        return self.job is not None and not self.job.ended

    def close(self) -> None:
        """Cancel what runs and remove all files."""
        self.cancel()
        if self.take is not None:
            self.take.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def cancel(self) -> None:
        """End what runs; returns when it has ended."""
        self.cancelled = True
        if self.job is not None:
            self.job.cancel()
            self.job.wait(PATIENCE_S)

    def in_short(self, message: str) -> str:
        """A message without the server's folders in it: the user knows the file's name only."""
        for path in [item.path for item in (self.portrait, self.recording) if item]:
            message = message.replace(f"{path.parent}/", "")
        return message.replace(f"{self.folder}/", "")

    # ------------------------------------------------------------------------------------------------------ input

    def take_portrait(self, upload: Path) -> Portrait:
        """Look at a photograph: find the faces, draw them, judge the largest.

        A file that cannot be used has a finding of level "error".
        """
        path = self._own(upload)
        self.portrait = None
        self._tidy(path)
        return self._look(path)

    def drop_portrait(self) -> None:
        """Forget the portrait, and delete files that nothing needs any more."""
        self.portrait = None
        self._tidy()

    def choose_face(self, number: int) -> Portrait:
        """Another face of the same photograph, counted from left to right from 1."""
        if self.portrait is None:
            raise InputError("there is no portrait yet: choose a photograph with a face")
        return self._look(self.portrait.path, number)

    def _look(self, path: Path, number: int | None = None) -> Portrait:
        self.portrait = Portrait(path, None, ())
        size_px = read_preset(find_preset(self._settings.preset)).lfg.image_size_px
        shown = path.with_name(f"shown-{number or 0}.jpg")
        try:
            with LOOKING, FaceTracker(max_faces=MAX_FACES) as tracker:
                image = media.read_image(path, self._settings.max_pixels)
                faces = find_faces(image, tracker)
                if not faces:
                    marked(image, (), None).save(shown, quality=88)
                chosen = choose_face(faces, number or "largest")
                marked(image, faces, chosen).save(shown, quality=88)
                place = 1 + sum(face.box.center[0] < chosen.box.center[0] for face in faces)
                findings = tuple(examine_portrait(image, size_px, tracker, load_mean_face(), place, faces))
            self.portrait = Portrait(path, shown, findings, len(faces), place)
        except FaceError as error:
            self.portrait = Portrait(path, shown, (_refused("faces", error),))
        except InputError as error:
            self.portrait = Portrait(path, None, (_refused("file", error),))
        return self.portrait

    def take_speech(self, upload: Path) -> Recording:
        """Listen to a recording and judge it. A file that cannot be used has a finding of level "error"."""
        path = self._own(upload)
        self.recording = None
        self._tidy(path)
        try:
            speech = media.read_speech(path, self._settings.max_seconds)
            self.recording = Recording(path, tuple(examine_speech(speech)), speech)
        except InputError as error:
            self.recording = Recording(path, (_refused("file", error),))
        return self.recording

    def drop_speech(self) -> None:
        """Forget the speech, and delete files that nothing needs any more."""
        self.recording = None
        self._tidy()

    def _tidy(self, *keep: Path) -> None:
        """Remove inputs that nothing needs any more; the sound of the video is needed to write it again."""
        if self.busy:
            return
        used = {path.parent for path in keep} | {item.path.parent for item in (self.portrait, self.recording) if item}
        speech = self.take.video.speech if self.take is not None else None
        if speech is not None and speech.path is not None:
            used.add(Path(speech.path).parent)
        for folder in self.folder.glob("input-*"):
            if folder not in used:
                shutil.rmtree(folder, ignore_errors=True)

    def _own(self, upload: Path) -> Path:
        """Give the file a place in a new folder of this session.

        An upload is moved there, so that no second copy stays; others, such as the examples, are copied.
        """
        folder = self._new_folder("input")
        target = folder / upload.name
        try:
            if self.folder.parent.parent in upload.parents:
                shutil.move(upload, target)
            else:
                shutil.copyfile(upload, target)
        except OSError as error:
            raise InputError(f"{upload.name} has not arrived ({error.strerror}): choose it again") from error
        return target

    def _new_folder(self, name: str) -> Path:
        self._count += 1
        folder = self.folder / f"{name}-{self._count}"
        folder.mkdir()
        return folder

    # -------------------------------------------------------------------------------------------------- long work

    def generate(self, **options: Any) -> Job:
        """Make a video of the portrait and the speech.

        options: as ``Dawn.__call__`` takes them; what is not given is left to the preset. The last video stays until the
        new one is finished.
        """
        portrait, recording = self.portrait, self.recording
        if portrait is None:
            raise InputError("there is no portrait yet: choose a photograph with a face")
        if recording is None:
            raise InputError("there is no speech yet: choose or record one")
        for finding in portrait.findings + recording.findings:
            if finding.level == "error":
                raise InputError(finding.advice)
        speech = recording.speech
        assert speech is not None, "a recording without any error was read"

        def make(model: Dawn, job: Job) -> None:
            image = media.read_image(portrait.path, self._settings.max_pixels)
            job.report("prepare", 0, 0)
            video = model(image, speech, face=portrait.face, progress=self._report, **options)
            take = Take(video, self._new_folder("take"))
            try:
                self._draw(take, job)
                result = self._save(take)
            except BaseException:
                take.close()
                raise
            old, self.take, self.result, self._drawn = self.take, take, result, take.motion
            if old is not None:
                old.close()

        return self._start(make)

    def redraw(self) -> Job:
        """Draw the frames that edits have changed; the others stay as they are, bit by bit."""
        take = self._edited()

        def make(model: Dawn, job: Job) -> None:
            self._draw(take, job)
            self.result, self._drawn = self._save(take), take.motion

        return self._start(make)

    def reroll(self, start_s: float, stop_s: float, seed: int) -> Job:
        """Another seed's motion in a part of the video, blended in."""
        take, region = self._edited(), Region(start_s, stop_s)

        def make(model: Dawn, job: Job) -> None:
            job.report("motion", 0, 0)
            take.reroll(region, seed)

        return self._start(make)

    def _start(self, make: Callable[[Dawn, Job], None]) -> Job:
        """Run in a thread, when the model is loaded and free."""
        self._refuse_if_busy()
        self.cancelled = False

        def work(job: Job) -> None:
            model = self._loader.get()
            while not self._loader.turn.acquire(timeout=0.2):
                job.report("wait", 0, 0)
            try:
                job.report("wait", 0, 0)
                make(model, job)
            finally:
                self._loader.turn.release()

        self.job = Job(work)
        self.job.start()
        return self.job

    def _report(self, stage: str, done: int, total: int) -> None:
        """A video outlives the job that made it; it reports to the present one."""
        if self.job is not None:
            self.job.report(stage, done, total)

    def _draw(self, take: Take, job: Job) -> None:
        total = take.missing
        for done, (_, frame) in enumerate(take.draw(), 1):
            job.report("decode", done, total, frame)

    def _save(self, take: Take) -> Result:
        """The finished files, in a folder of their own: a browser must not be shown an old file of the same name."""
        self._report("video", 0, 0)
        folder = self._new_folder("result")
        result = Result(folder / VIDEO_NAME, folder / MOTION_NAME, len(take), take.video.width, take.video.height)
        take.save(result.video)
        save_motion(take.motion, result.motion)
        if self.result is not None:
            shutil.rmtree(self.result.video.parent, ignore_errors=True)
        return result

    def _refuse_if_busy(self) -> None:
        if self.busy:
            raise InputError("a video is being made: wait for it, or cancel it first")

    # ---------------------------------------------------------------------------------------------------- editing

    def strengths(self, start_s: float, stop_s: float, head: float, expression: float) -> None:
        """Scale head motion and facial motion of a part."""
        region = Region(start_s, stop_s)

        def change(motion: Motion) -> Motion:
            motion = edits.scale_head(motion, region, head) if head != 1 else motion
            return edits.scale_expression(motion, region, expression) if expression != 1 else motion

        self._change(change)

    def add_blink(self, at_s: float) -> None:
        """Both eyes are shut at a moment."""
        video = self._edited().video
        self._change(partial(edits.add_blink, at_s=at_s, face=video.face, space=video.space))

    def remove_blinks(self, start_s: float, stop_s: float) -> None:
        """No blinks in a part."""
        space = self._edited().video.space
        self._change(partial(edits.remove_blinks, region=Region(start_s, stop_s), space=space))

    def undo(self) -> None:
        """Take the last edit back."""
        self._edited().undo()

    def _change(self, change: Callable[[Motion], Motion]) -> None:
        take = self._edited()
        take.change(change(take.motion))

    def _edited(self) -> Take:
        self._refuse_if_busy()
        if self.take is None:
            raise InputError(NO_VIDEO)
        return self.take

    @property
    def changed(self) -> NDArray[np.bool_]:
        """(T,) frames that do not look like the motion any more. Raises InputError if there is no video."""
        if self.take is None or self._drawn is None:
            raise InputError(NO_VIDEO)
        return edits.changed_frames(self._drawn, self.take.motion)

    def view(self) -> Values:
        """What the motion view draws. Raises InputError if there is no video."""
        changed = self.changed
        assert self.take is not None
        assert self._drawn is not None
        preset, motion = self._settings.preset, self.take.motion
        drawn = curves(self._drawn, preset) if changed.any() else None
        return view(motion, self.take.video.speech, changed, preset, drawn)


def _refused(name: str, error: DawnError) -> Finding:
    return Finding(name, None, "", "error", str(error))

"""One report on a portrait and a recording, before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable

from dawn import DEFAULT_PRESET, media
from dawn.checkpoint import find_preset, load_mean_face, read_preset
from dawn.checks.findings import Finding, Section
from dawn.checks.portrait import examine_portrait
from dawn.checks.speech import examine_speech
from dawn.errors import InputError
from dawn.media.files import FilePath
from dawn.preprocess.portrait import MAX_FACES
from dawn.preprocess.tracker import FaceTracker


def check_inputs(
    portrait: FilePath,
    speech: FilePath | None = None,
    preset: FilePath = DEFAULT_PRESET,
    face: int | str | None = None,
    allow_silence: bool = False,
) -> list[Section]:
    """Examine a portrait and, if given, a recording, for a preset's size of picture.

    A file that cannot be used is a finding of level "error" with the message that generation would give.

    Args:
        portrait: picture file.
        speech: sound file.
        preset: name or folder.
        face: which of several, see ``preprocess.portrait.choose_face``.
        allow_silence: accept a silent recording.

    Raises:
        ConfigError: There is no such preset, or its configuration is not allowed.
        CheckpointError: The preset's configuration cannot be read.
    """
    size_px = read_preset(find_preset(str(preset))).lfg.image_size_px

    def examine() -> list[Finding]:
        image = media.read_image(portrait)
        with FaceTracker(max_faces=MAX_FACES) as tracker:
            return examine_portrait(image, size_px, tracker, load_mean_face(), face)

    sections = [Section("portrait", str(portrait), _collect_findings(examine))]
    if speech is not None:
        found = _collect_findings(lambda: examine_speech(media.read_speech(speech, allow_silence=allow_silence)))
        sections.append(Section("speech", str(speech), found))
    return sections


def _collect_findings(examine: Callable[[], list[Finding]]) -> tuple[Finding, ...]:
    """Run an examination; an input that it refuses becomes its only finding."""
    try:
        return tuple(examine())
    except InputError as error:
        return (Finding("file", None, "", "error", str(error)),)

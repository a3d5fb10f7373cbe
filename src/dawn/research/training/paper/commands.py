"""``dawn train paper-…``: the published model's recipes behind the same command as the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dawn.checkpoint import load_into, load_mean_face, read_weights
from dawn.config import AudioConfig, PaperLFGConfig, PaperPresetConfig, PublishedPBNetConfig, UNetConfig, parse
from dawn.engines.hubert import load_hubert
from dawn.errors import CheckpointError, ConfigError, InputError
from dawn.models.audio.features import AudioEncoder
from dawn.models.audio.hubert import HubertAudioEncoder
from dawn.models.audio.whisper import WhisperAudioEncoder
from dawn.research.training.data import ClipStore
from dawn.research.training.loop import Recipe, TrainConfig
from dawn.research.training.motion_data import MotionStore, has_sound
from dawn.research.training.paper.a2v import PaperA2VRecipe, PaperA2VTrainConfig
from dawn.research.training.paper.lfg import PaperLFGRecipe, PaperLFGTrainConfig
from dawn.research.training.paper.pbnet import PublishedPBNetRecipe, PublishedPBNetTrainConfig, head_tracks

PAPER_TRAINABLE: dict[str, tuple[type[TrainConfig], type[BaseModel]]] = {
    "paper-lfg": (PaperLFGTrainConfig, PaperLFGConfig),
    "paper-a2v": (PaperA2VTrainConfig, UNetConfig),
    "paper-pose": (PublishedPBNetTrainConfig, PublishedPBNetConfig),
    "paper-blink": (PublishedPBNetTrainConfig, PublishedPBNetConfig),
}
_PRESET = PaperPresetConfig(name="published")
PUBLISHED = {"paper-pose": _PRESET.pose, "paper-blink": _PRESET.blink}
"""Two networks of one kind and of different sizes."""


def load_audio_encoder(audio: Path) -> AudioEncoder:
    """Whisper from a file (``audio.safetensors`` of a preset), HuBERT from a folder or a hub name, frozen.

    Raises CheckpointError, ConfigError.
    """
    if audio.suffix != ".safetensors":
        return HubertAudioEncoder(load_hubert(audio.as_posix()))
    encoder = WhisperAudioEncoder(AudioConfig())
    load_into(encoder, read_weights(audio), str(audio))
    return encoder.eval().requires_grad_(False)


def paper_recipe(
    part: str, config: Any, model: Any, data: Path, out: Path, validation: Path | None, audio: Path | None
) -> Recipe:
    """The recipe of one part of the published model. Raises ConfigError, InputError, CheckpointError."""
    for name in ("start", "lfg"):  # before all the sound is encoded
        file = getattr(config, name, "")
        if file and not Path(file).is_file():
            raise CheckpointError(f"{name}={file}: there is no such file; give the .safetensors in the folder of a run")
    if part == "paper-lfg":
        return PaperLFGRecipe(config, model, data, validation)
    if audio is None:
        raise ConfigError(
            f"training {part} needs a speech encoder: give `audio`, a HuBERT folder or PRESET/audio.safetensors"
        )
    if part in PUBLISHED:
        model = pbnet_config(part, model)
    encoder, mean_face = load_audio_encoder(audio), load_mean_face()

    def heard(clips: Path, kind: str) -> MotionStore:
        """The parts share what was heard; another encoder hears for itself."""
        store = ClipStore(clips)
        if not any(map(has_sound, store.clips)):
            raise InputError(f"{clips}: no clip has sound from beginning to end; prepare videos that have")
        cache = out.parent / "audio_cache" / f"paper_{kind}{clips.name}_{audio.resolve().parent.name}_{audio.name}"
        return MotionStore(store, mean_face, encoder, cache, 0)

    material, judge = heard(data, ""), heard(validation, "validation_") if validation else None
    if part == "paper-a2v":
        return PaperA2VRecipe(config, model, material, judge)
    checks = head_tracks(judge, mean_face, model.outputs) if judge else []
    return PublishedPBNetRecipe(config, model, head_tracks(material, mean_face, model.outputs), checks)


def pbnet_config(part: str, given: PublishedPBNetConfig) -> PublishedPBNetConfig:
    """The published network of this part, changed as far as given. Raises ConfigError for another number of outputs."""
    published = PUBLISHED[part]
    changed = parse(
        PublishedPBNetConfig, published.model_dump() | given.model_dump(exclude_unset=True), "network options"
    )
    if changed.outputs != published.outputs:
        raise ConfigError(f"model.outputs {changed.outputs}: {part} has {published.outputs}; leave it out")
    return changed

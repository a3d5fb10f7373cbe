"""``dawn train paper-…``: the published model's recipes behind the same command as the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dawn.checkpoint import load_into, load_mean_face, read_weights
from dawn.config import AudioConfig, PaperLFGConfig, PublishedPBNetConfig, UNetConfig
from dawn.errors import ConfigError
from dawn.models.audio_encoder import AudioEncoder, HubertAudioEncoder, WhisperAudioEncoder, load_hubert
from dawn.training.data import ClipStore
from dawn.training.loop import Recipe, TrainConfig
from dawn.training.motion_data import MotionStore
from dawn.training.paper_a2v_recipe import PaperA2VRecipe, PaperA2VTrainConfig
from dawn.training.paper_lfg_recipe import PaperLFGRecipe, PaperLFGTrainConfig
from dawn.training.published_pbnet_recipe import PublishedPBNetRecipe, PublishedPBNetTrainConfig, head_tracks

PAPER_TRAINABLE: dict[str, tuple[type[TrainConfig], type[BaseModel]]] = {
    "paper-lfg": (PaperLFGTrainConfig, PaperLFGConfig),
    "paper-a2v": (PaperA2VTrainConfig, UNetConfig),
    "paper-pose": (PublishedPBNetTrainConfig, PublishedPBNetConfig),
    "paper-blink": (PublishedPBNetTrainConfig, PublishedPBNetConfig),
}
OUTPUTS = {"paper-pose": 6, "paper-blink": 2}


def load_audio_encoder(audio: Path) -> AudioEncoder:
    """Whisper from a file (``audio.safetensors`` of a preset), HuBERT from a folder or a hub name, frozen.

    Raises CheckpointError, ConfigError.
    """
    if audio.suffix != ".safetensors":
        return HubertAudioEncoder(load_hubert(str(audio)))
    encoder = WhisperAudioEncoder(AudioConfig())
    load_into(encoder, read_weights(audio), str(audio))
    return encoder.eval().requires_grad_(False)


def paper_recipe(part: str, config: Any, model: Any, data: Path, out: Path, validation: Path | None,
                 audio: Path | None) -> Recipe:  # fmt: skip
    """The recipe of one part of the published model. Raises ConfigError, InputError, CheckpointError."""
    if part == "paper-lfg":
        return PaperLFGRecipe(config, model, data, validation)
    if audio is None:
        raise ConfigError(f"training {part} needs a speech encoder: give --audio, a HuBERT folder or PRESET/audio.safetensors")
    encoder = load_audio_encoder(audio)
    cache = out.parent / "audio_cache"
    material = MotionStore(ClipStore(data), load_mean_face(), encoder, cache / f"{part}_{data.name}", 0)
    judge = None
    if validation is not None:
        folder = cache / f"{part}_validation_{validation.name}"
        judge = MotionStore(ClipStore(validation), load_mean_face(), encoder, folder, 0)
    if part == "paper-a2v":
        return PaperA2VRecipe(config, model, material, judge)
    if "outputs" not in model.model_fields_set:
        model = model.model_copy(update={"outputs": OUTPUTS[part]})
    tracks = head_tracks(material, load_mean_face(), model.outputs)
    checks = head_tracks(judge, load_mean_face(), model.outputs) if judge else []
    return PublishedPBNetRecipe(config, model, tracks, checks)

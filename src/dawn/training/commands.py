"""``dawn train PART``: from folders and ``--set key=value`` to a running recipe."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from dawn.checkpoint import PARTS, assemble, load_mean_face, load_part, read_config, save_part
from dawn.config import A2VConfig, LFGConfig, MotionSpaceConfig, PBNetConfig, PresetConfig, parse
from dawn.errors import ConfigError, OutputError
from dawn.models.bundle import Bundle
from dawn.models.face_geometry import pose_change
from dawn.models.motion_space import MotionSpace
from dawn.training.a2v_recipe import A2VRecipe, A2VTrainConfig
from dawn.training.data import ClipStore
from dawn.training.detail_recipe import DetailRecipe, DetailTrainConfig
from dawn.training.lfg_recipe import LFGRecipe, LFGTrainConfig
from dawn.training.loop import TrainConfig, train
from dawn.training.motion_data import MotionStore, sequence_of
from dawn.training.paper_commands import PAPER_TRAINABLE, load_audio_encoder, paper_recipe
from dawn.training.pbnet_recipe import PBNetRecipe, PBNetTrainConfig

log = logging.getLogger(__name__)

TRAINABLE: dict[str, tuple[type[TrainConfig], type[BaseModel]]] = {
    "lfg": (LFGTrainConfig, LFGConfig),
    "detail": (DetailTrainConfig, LFGConfig),
    "a2v": (A2VTrainConfig, A2VConfig),
    "pbnet": (PBNetTrainConfig, PBNetConfig),
    **PAPER_TRAINABLE,
}
Report = Callable[[int, dict[str, float]], None]


def split_overrides(part: str, overrides: dict[str, str]) -> tuple[TrainConfig, Any]:
    """``key=value`` pairs → (training configuration, network configuration); ``model.key`` addresses the network.

    Raises ConfigError for a key that neither has, or a value that does not fit.
    """
    train_kind, model_kind = TRAINABLE[part]
    values = {key: _value(text) for key, text in overrides.items()}
    for_model = {key.removeprefix("model."): value for key, value in values.items() if key.startswith("model.")}
    for_train = {key: value for key, value in values.items() if not key.startswith("model.")}
    return parse(train_kind, for_train, "--set"), parse(model_kind, for_model, "--set model")


def _value(text: str) -> Any:
    """Lists, objects and null are read as JSON; all else stays text, which the configuration's types then read."""
    if text == "null" or text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text
    return text


def run_training(part: str, data: Path, out: Path, validation: Path | None = None, audio: Path | None = None,
                 overrides: dict[str, str] | None = None, report: Report | None = None) -> int:  # fmt: skip
    """Train one part (one of ``TRAINABLE``) on prepared clips; returns the step reached. Run again to resume.

    audio: weights of the audio encoder (``audio.safetensors`` of a preset), needed for a2v and pbnet.
    Raises ConfigError, InputError (no clips), CheckpointError.
    """
    if part not in TRAINABLE:
        raise ConfigError(f"unknown part {part!r}: train one of {', '.join(TRAINABLE)}")
    config, model = split_overrides(part, overrides or {})
    if part in ("lfg", "detail"):
        recipe = LFGRecipe if part == "lfg" else DetailRecipe
        return train(recipe(config, model, data, validation), config, out, report)  # type: ignore[arg-type]
    if part in PAPER_TRAINABLE:
        paper = paper_recipe(part, config, model, data, out, validation, audio)
        return train(paper, config, out, report)
    if audio is None:
        raise ConfigError(f"training {part} needs the audio encoder: give --audio PRESET/audio.safetensors")
    encoder = load_audio_encoder(audio)
    clips = ClipStore(data)
    motion = fit_motion_space(clips, out)
    variants = int(getattr(config, "variants", 4))
    material = MotionStore(clips, load_mean_face(), encoder, out.parent / "audio_cache" / data.name, variants,
                           need_sound=part == "a2v")  # fmt: skip
    judge = None
    if validation is not None and part == "a2v":
        cache = out.parent / "audio_cache" / f"validation_{validation.name}"
        judge = MotionStore(ClipStore(validation), load_mean_face(), encoder, cache, 0)
    kind = A2VRecipe if part == "a2v" else PBNetRecipe
    return train(kind(config, model, motion, material, judge), config, out, report)  # type: ignore[arg-type]


def fit_motion_space(clips: ClipStore, out: Path) -> MotionSpace:
    """The motion space of this run: read from ``out`` if it is there (resume, or copied from A2V's run), else fitted."""
    motion = MotionSpace(MotionSpaceConfig())
    if (out / "motion.safetensors").is_file():
        load_part(out, "motion", motion)
        return motion
    mean_face = load_mean_face()
    shapes, changes = [], []
    for clip in clips.clips:
        s = sequence_of(clip, mean_face)
        shapes.append(s.shape)
        changes.append(pose_change(s.pose, s.pose[:1]))
    held = motion.fit(mean_face, shapes, torch.cat(changes))
    log.info("motion space holds %s of the variance", {key: round(value, 4) for key, value in held.items()})
    save_part(out, "motion", motion, motion.config)
    return motion


def pack(name: str, parts: dict[str, Path], out: Path, sampler: dict[str, Any] | None = None) -> None:
    """Make a preset of trained parts: fp16 weights, configuration, checksums.

    parts: folder of each of lfg, a2v, pbnet, motion (with ``<part>.json``), and of ``audio`` (weights only).
    """
    if out.exists() and not (out / "config.json").is_file():
        raise OutputError(f"{out}: exists and is no preset, so it is not replaced; choose another folder")
    configs = {
        "lfg": read_config(parts["lfg"] / "lfg.json", LFGConfig),
        "a2v": read_config(parts["a2v"] / "a2v.json", A2VConfig),
        "pbnet": read_config(parts["pbnet"] / "pbnet.json", PBNetConfig),
        "motion": read_config(parts["motion"] / "motion.json", MotionSpaceConfig),
    }
    preset = parse(PresetConfig, {"name": name, **configs, "sampler": sampler or {}}, "preset")
    bundle = Bundle(preset)
    networks = {part: getattr(bundle, part) for part in PARTS}
    for part, network in networks.items():
        load_part(parts[part], part, network)
    if out.exists():
        shutil.rmtree(out)
    assemble(preset, networks, out)


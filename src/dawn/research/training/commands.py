"""``dawn train PART``: from folders and ``--set key=value`` to a running recipe."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from dawn.checkpoint import assemble, file_sha256, load_mean_face, load_part, read_config, save_part
from dawn.config import (
    A2VConfig,
    LFGConfig,
    LitePresetConfig,
    MotionSpaceConfig,
    OrganPainterConfig,
    PBNetConfig,
    SyncJudgeConfig,
    parse,
)
from dawn.errors import CheckpointError, ConfigError, OutputError
from dawn.face.geometry import subtract_pose
from dawn.models.lite.bundle import LiteBundle
from dawn.models.lite.motion_space import MotionSpace
from dawn.research.training.data import ClipStore
from dawn.research.training.lite.a2v import A2VRecipe, A2VTrainConfig
from dawn.research.training.lite.detail import DetailRecipe, DetailTrainConfig
from dawn.research.training.lite.lfg import LFGRecipe, LFGTrainConfig
from dawn.research.training.lite.organs import OrganRecipe, OrganTrainConfig
from dawn.research.training.lite.pbnet import PBNetRecipe, PBNetTrainConfig
from dawn.research.training.loop import TrainConfig, train
from dawn.research.training.motion_data import MotionStore, sequence_of
from dawn.research.training.paper.commands import PAPER_TRAINABLE, load_audio_encoder, paper_recipe
from dawn.research.training.sync import SyncRecipe, SyncTrainConfig

log = logging.getLogger(__name__)

TRAINABLE: dict[str, tuple[type[TrainConfig], type[BaseModel]]] = {
    "lfg": (LFGTrainConfig, LFGConfig),
    "detail": (DetailTrainConfig, LFGConfig),
    "fine": (DetailTrainConfig, LFGConfig),
    "organs": (OrganTrainConfig, OrganPainterConfig),
    "a2v": (A2VTrainConfig, A2VConfig),
    "pbnet": (PBNetTrainConfig, PBNetConfig),
    "sync": (SyncTrainConfig, SyncJudgeConfig),
    **PAPER_TRAINABLE,
}
PICTURE_RECIPES: dict[str, Any] = {
    "lfg": LFGRecipe,
    "detail": DetailRecipe,
    "fine": partial(DetailRecipe, stage="fine"),
    "organs": OrganRecipe,
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
    return parse(train_kind, for_train, "training options"), parse(model_kind, for_model, "network options")


def _value(text: str) -> Any:
    """Lists, objects and null are read as JSON; all else stays text, which the configuration's types then read."""
    if text == "null" or text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text
    return text


def run_training(
    part: str,
    data: Path,
    out: Path,
    validation: Path | None = None,
    audio: Path | None = None,
    overrides: dict[str, str] | None = None,
    report: Report | None = None,
) -> int:
    """Train one part (one of ``TRAINABLE``) on prepared clips; returns the step reached. Run again to resume.

    audio: weights of the audio encoder (``audio.safetensors`` of a preset), needed for a2v and pbnet.
    Raises ConfigError, InputError (no clips), CheckpointError.
    """
    if part not in TRAINABLE:
        raise ConfigError(f"unknown part {part!r}: train one of {', '.join(TRAINABLE)}")
    config, model = split_overrides(part, overrides or {})
    if part in PICTURE_RECIPES:
        return train(PICTURE_RECIPES[part](config, model, data, validation), config, out, report)
    if part == "sync":
        judge_recipe = SyncRecipe(config, model, data, validation, out.parent / "mouth_cache")  # type: ignore[arg-type]
        return train(judge_recipe, config, out, report)
    if part in PAPER_TRAINABLE:
        paper = paper_recipe(part, config, model, data, out, validation, audio)
        return train(paper, config, out, report)
    if audio is None:
        raise ConfigError(f"training {part} needs the audio encoder: give `audio=PRESET/audio.safetensors`")
    encoder = load_audio_encoder(audio)
    clips = ClipStore(data)
    motion = fit_motion_space(clips, out)
    variants = int(getattr(config, "variants", 4))
    material = MotionStore(
        clips, load_mean_face(), encoder, out.parent / "audio_cache" / data.name, variants, need_sound=part == "a2v"
    )
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
        changes.append(subtract_pose(s.pose, s.pose[:1]))
    held = motion.fit(mean_face, shapes, torch.cat(changes))
    log.info("motion space holds %s of the variance", {key: round(value, 4) for key, value in held.items()})
    save_part(out, "motion", motion, motion.config)
    return motion


def pack(
    name: str,
    parts: Mapping[str, Path | Sequence[Path]],
    out: Path,
    sampler: dict[str, Any] | None = None,
    shares: str | None = None,
    shown_size_px: int | None = None,
) -> None:
    """Make a preset of trained parts: fp16 weights, configuration, checksums.

    parts: folder of each of lfg, a2v, pbnet, motion (with ``<part>.json``), and of ``audio`` (weights only). Of several
    folders, runs that went on from the same weights, the mean is taken (Wortsman et al. 2022, "Model soups"). Parts that are
    missing are shared with the preset ``shares`` beside ``out``. shown_size_px: see ``LitePresetConfig``.
    Raises ConfigError, OutputError, CheckpointError.
    """
    if out.exists() and not (out / "config.json").is_file():
        raise OutputError(f"{out}: exists and is no preset, so it is not replaced; choose another folder")
    missing = sorted(set(LitePresetConfig.PARTS) - parts.keys())
    other = _partner(out, shares, missing)
    values = other.model_dump() if other else {}
    kinds: dict[str, type[BaseModel]] = {
        "lfg": LFGConfig,
        "a2v": A2VConfig,
        "pbnet": PBNetConfig,
        "motion": MotionSpaceConfig,
    }
    folders = {part: [given] if isinstance(given, Path) else list(given) for part, given in parts.items()}
    values |= {part: _common_config(folders[part], part, kind) for part, kind in kinds.items() if part in parts}
    values |= {"name": name, "shares": shares, "shown_size_px": shown_size_px, "sha256": {}}
    if sampler is not None:
        values["sampler"] = sampler
    preset = parse(LitePresetConfig, values, "preset")
    bundle = LiteBundle(preset)
    networks = {part: getattr(bundle, part) for part in preset.PARTS if part in parts}
    for part, network in networks.items():
        _load_mean(folders[part], part, network)
    if out.exists():
        shutil.rmtree(out)
    assemble(preset, networks, out, shared={part: other.sha256[part] for part in missing} if other else None)


def _common_config(folders: Sequence[Path], part: str, kind: type[BaseModel]) -> BaseModel:
    """The configuration that all folders have of a part. Raises ConfigError if they differ."""
    first, *others = (read_config(folder / f"{part}.json", kind) for folder in folders)
    for folder, other in zip(folders[1:], others, strict=True):
        if other != first:
            raise ConfigError(
                f"{folder}/{part}.json differs from that in {folders[0]}: only runs of one network have a mean"
            )
    return first


def _load_mean(folders: Sequence[Path], part: str, network: nn.Module) -> None:
    """Load the mean of a part's weights; counters are those of the first folder."""
    states = []
    for folder in folders:
        load_part(folder, part, network)
        states.append({key: value.clone() for key, value in network.state_dict().items()})
    if len(states) > 1:
        network.load_state_dict(
            {
                key: torch.stack([state[key] for state in states]).mean(0) if value.is_floating_point() else value
                for key, value in states[0].items()
            }
        )


def _partner(out: Path, shares: str | None, missing: list[str]) -> LitePresetConfig | None:
    """The preset beside ``out`` that has the missing parts."""
    if shares is None:
        if missing:
            raise ConfigError(f"no folder for {', '.join(missing)}: give `{missing[0]}=DIR`, or `shares=PRESET`")
        return None
    folder = out.resolve().parent / shares
    if folder == out.resolve() or not (folder / "config.json").is_file():
        raise ConfigError(f"`shares={shares}`: {folder} is no other preset; name one that lies beside {out}")
    other = read_config(folder / "config.json", LitePresetConfig)
    for part in missing:
        path = folder / f"{part}.safetensors"
        if not path.is_file() or file_sha256(path) != other.sha256.get(part):
            raise CheckpointError(f"{path}: missing or damaged; share with a preset that has this part itself")
    return other

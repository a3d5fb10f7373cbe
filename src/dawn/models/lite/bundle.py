"""All networks of a ``lite`` preset together."""

from __future__ import annotations

from torch import nn

from dawn.config import LitePresetConfig
from dawn.models.audio.registry import build_audio_encoder
from dawn.models.lite.a2v import A2VTransformer
from dawn.models.lite.lfg import LatentFlowGenerator
from dawn.models.lite.motion_space import MotionSpace
from dawn.models.lite.pbnet import PBNet


class LiteBundle(nn.Module):
    """The networks of a ``lite`` preset, named as their weight files are."""

    def __init__(self, config: LitePresetConfig) -> None:
        super().__init__()
        self.config = config
        self.audio = build_audio_encoder(config.audio)
        self.a2v = A2VTransformer(config.a2v)
        self.lfg = LatentFlowGenerator(config.lfg)
        self.motion = MotionSpace(config.motion)
        self.pbnet = PBNet(config.pbnet)

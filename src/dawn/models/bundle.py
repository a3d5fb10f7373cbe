"""All networks of a preset together."""

from __future__ import annotations

from torch import nn

from dawn.config import PaperPresetConfig, PresetConfig
from dawn.models.a2v_transformer import A2VTransformer
from dawn.models.a2v_unet import A2VUNet
from dawn.models.audio_encoder import WhisperAudioEncoder
from dawn.models.face_mask import MaskEncoder
from dawn.models.lfg import LatentFlowGenerator
from dawn.models.motion_space import MotionSpace
from dawn.models.paper_lfg import PaperLFG
from dawn.models.pbnet import PBNet
from dawn.models.published_pbnet import PublishedPBNet


class Bundle(nn.Module):
    """The parts of a ``lite`` preset, named as their weight files are."""

    def __init__(self, config: PresetConfig) -> None:
        super().__init__()
        self.config = config
        self.audio = WhisperAudioEncoder(config.audio)
        self.a2v = A2VTransformer(config.a2v)
        self.lfg = LatentFlowGenerator(config.lfg)
        self.motion = MotionSpace(config.motion)
        self.pbnet = PBNet(config.pbnet)


class PaperBundle(nn.Module):
    """The parts of a preset of the published model, named as their weight files are; the speech encoder is not among them."""

    def __init__(self, config: PaperPresetConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = A2VUNet(config.unet)
        self.mask = MaskEncoder(out=config.unet.mask_size)
        self.lfg = PaperLFG(config.lfg)
        self.pose = PublishedPBNet(config.pose)
        self.blink = PublishedPBNet(config.blink)

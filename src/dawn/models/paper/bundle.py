"""All networks of a published preset together."""

from __future__ import annotations

from torch import nn

from dawn.config import PaperPresetConfig
from dawn.models.paper.a2v import A2VUNet
from dawn.models.paper.face_mask import MaskEncoder
from dawn.models.paper.lfg import PaperLFG
from dawn.models.paper.pbnet import PBNet


class PaperBundle(nn.Module):
    """The networks of a preset of the published model, named as their weight files are; without the speech encoder."""

    def __init__(self, config: PaperPresetConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = A2VUNet(config.unet)
        self.mask = MaskEncoder(out=config.unet.mask_size)
        self.lfg = PaperLFG(config.lfg)
        self.pose = PBNet(config.pose)
        self.blink = PBNet(config.blink)

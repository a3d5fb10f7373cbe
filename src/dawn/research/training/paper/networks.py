"""The networks of the published A2V-FDM as its recipe holds them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from dawn.checkpoint import load_into, read_config, read_weights
from dawn.config import PaperLFGConfig, PaperPresetConfig, UNetConfig
from dawn.errors import CheckpointError, ConfigError
from dawn.models.paper.a2v import A2VUNet
from dawn.models.paper.face_mask import MaskEncoder
from dawn.models.paper.lfg import PaperLFG


class MaskedUNet(nn.Module):
    """The U-Net and the encoder of the face box: what one training pass runs through, and what an EMA is taken of."""

    def __init__(self, unet: A2VUNet, mask: MaskEncoder) -> None:
        super().__init__()
        self.unet, self.mask = unet, mask

    def forward(self, x: Tensor, time: Tensor, source: Tensor, face: Tensor, condition: Tensor) -> Tensor:
        """Noise in x (B, 3, T, S, S). source (B, C, S, S) features; face (B, 1, R, R); condition (B, T, D + 8)."""
        return self.unet(x, time, self.unet.prepare(source, self.mask(face), condition))


def load_generator(path: Path, model: UNetConfig) -> PaperLFG:
    """The frozen generator whose motion the network learns, in evaluation mode.

    Its configuration is ``<name>.json`` beside the file, or the preset's ``config.json``. Raises CheckpointError if it cannot
    be read, is no published generator, or makes other motion or features than the network takes.
    """
    own, preset = path.with_suffix(".json"), path.with_name("config.json")
    try:
        if not own.is_file() and preset.is_file():
            config = read_config(preset, PaperPresetConfig).lfg
        else:
            config = read_config(own, PaperLFGConfig)
        generator = PaperLFG(config)
    except ConfigError as error:
        raise CheckpointError(
            f"{path}: not a published generator ({error}); train one with the paper's LFG recipe"
        ) from error
    load_into(generator, read_weights(path), str(path))
    made = (config.latent_size, min(config.max_width, 4 * config.width))
    if made != (model.latent_size, model.source_size):
        raise CheckpointError(
            f"{path}: makes motion of side {made[0]} and {made[1]} source features, the network takes {model.latent_size} and"
            f" {model.source_size}; set latent_size and source_size, or give another generator"
        )
    return generator.eval().requires_grad_(False)

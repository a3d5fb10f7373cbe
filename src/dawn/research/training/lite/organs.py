"""Training the fine stage's organ painter on windows that were rendered before (``windows``)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dawn.checkpoint import load_into, read_config, read_weights, save_part
from dawn.config import FineConfig, LFGConfig, OrganPainterConfig
from dawn.errors import ConfigError, InputError
from dawn.models.lite.detail import ORGANS, Organ, feather
from dawn.models.lite.lfg import LatentFlowGenerator
from dawn.models.lite.organs import OrganPainter
from dawn.research.training.data import contact_sheet, random_colour, random_look
from dawn.research.training.lite.detail import Critics, weigh_contours
from dawn.research.training.loop import Recipe, TrainConfig
from dawn.research.training.losses import (
    WindowDiscriminator,
    crispness_error,
    discriminator_hinge,
    feature_matching,
    generator_hinge,
    weighted_l1_pyramid,
)

HERE, MOVED, TRUE, SEEN = range(4)
"""Pictures of a window: the frame before painting, the moved portrait, the truth, the portrait's own window."""
SCALES = 2
SHEET_COLUMNS = 24
TOOTH_LEVEL, TOOTH_SATURATION = 0.55, 0.35
"""A pixel is tooth-coloured if it is brighter and less saturated than this."""
MIN_OPENING_PX = 40


class OrganTrainConfig(TrainConfig):
    """Weights of the losses, and the mixture of windows."""

    steps: int = Field(60_000, ge=1)
    batch: int = Field(24, ge=2)
    lr: float = 4e-4
    grad_clip: float = 5.0
    weight_decay: float = 0.001
    base: str = ""
    """``lfg.safetensors`` of the generator that the windows were made with, ``lfg.json`` beside it."""
    still_share: float = Field(0.5, ge=0, le=1)
    """Of mouth windows."""
    eye_share: float = Field(0.5, gt=0, le=4)
    """Eye windows in a batch, per mouth window."""
    opening_weight: float = 5.0
    pixel_weight: float = 1.0
    matching_weight: float = 0.5
    crispness_weight: float = 0.1
    adversarial_weight: float = 0.1
    adversarial_from: int = 300
    discriminator_lr: float = 2.0


@dataclass
class Windows:
    """pictures (N, 4, 3, h, w), see ``HERE``; contours (N, 2, G, h, w): wanted, shown; place (N, 3): corner and step."""

    pictures: Tensor
    contours: Tensor
    place: Tensor

    def take(self, index: Tensor) -> Windows:
        """Pick windows as floats in [0, 1]."""
        return Windows(
            self.pictures[index].float() / 255, self.contours[index].float() / 255, self.place[index].float()
        )

    def known(self) -> Tensor:
        """Stack what the painter is told, (N, C, h, w)."""
        height, width = self.pictures.shape[-2:]
        step = self.place[:, 2, None]
        x, y = (self.place[:, k, None] + s * torch.arange(n) for k, s, n in ((0, step, width), (1, step.abs(), height)))
        shape = (-1, height, width)
        relative = torch.stack((x[:, None, :].expand(shape), y[:, :, None].expand(shape)), 1)
        shown = (self.pictures[:, HERE], self.pictures[:, MOVED], self.contours[:, 0])
        return torch.cat((*shown, relative, self.seen()), 1)

    def seen(self) -> Tensor:
        """Stack what the portrait shows, (N, 3 + G, h, w)."""
        return torch.cat((self.pictures[:, SEEN], self.contours[:, 1]), 1)

    def mirror(self, turn: Tensor) -> Windows:
        """Mirror the windows that ``turn`` (N,) names."""
        where = turn[:, None, None, None, None]
        place = self.place.clone()
        far = -(self.place[:, 0] + self.place[:, 2] * (self.pictures.shape[-1] - 1))
        place[:, 0] = torch.where(turn, far, self.place[:, 0])
        pictures, contours = (torch.where(where, x.flip(-1), x) for x in (self.pictures, self.contours))
        return Windows(pictures, contours, place)


def join_windows(parts: list[Windows]) -> Windows:
    """Put windows of one size behind each other."""
    return Windows(*(torch.cat([getattr(part, key) for part in parts]) for key in ("pictures", "contours", "place")))


class WindowStore:
    """All shards of a folder, in memory as bytes."""

    def __init__(self, folder: Path) -> None:
        """Read the shards. Raises InputError if there are none or one cannot be read."""
        parts: dict[str, list[Windows]] = {organ.name: [] for organ in ORGANS}
        kinds: list[str] = []
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    for organ in ORGANS:
                        fields = (file.get_tensor(f"{organ.name}.{key}") for key in ("pictures", "contours", "place"))
                        parts[organ.name].append(Windows(*fields))
                    kinds += [kind for _, kind in json.loads(file.metadata()["names"])]
            except (SafetensorError, OSError, KeyError, TypeError) as error:
                raise InputError(f"{path}: not a shard of windows ({error}); make it again") from error
        if not kinds:
            raise InputError(f"{folder}: no windows; make them with: python tools/make_windows.py")
        self.windows = {name: join_windows(found) for name, found in parts.items()}
        self.count = len(kinds)
        self.of_kind = {
            kind: torch.tensor([i for i, k in enumerate(kinds) if k.startswith(kind)]) for kind in ("still", "clip")
        }

    def draw(self, kind: str, count: int, generator: torch.Generator) -> Tensor:
        """Draw the numbers of windows of a kind, of any kind if there are none."""
        pool = self.of_kind[kind] if len(self.of_kind[kind]) else torch.arange(self.count)
        return pool[torch.randint(len(pool), (count,), generator=generator)]


class OrganRecipe(Recipe):
    """Window pixels, feature matching and an adversary at two scales for each organ."""

    part = "lfg"
    betas = (0.5, 0.99)

    def __init__(
        self, config: OrganTrainConfig, model: OrganPainterConfig, data: Path, validation: Path | None = None
    ) -> None:
        """Read the windows. Raises ConfigError without a generator, InputError without windows."""
        if not config.base:
            raise ConfigError("training organs needs the generator of the windows: set base=RUN/lfg.safetensors")
        self.config, self.model_config, self.base = config, model, Path(config.base)
        self.base_config = read_config(self.base.with_name("lfg.json"), LFGConfig)
        self.store = WindowStore(data)
        self.validation = WindowStore(validation) if validation else None
        torch.manual_seed(config.seed)
        painter = OrganPainter(model, self.base_config.image_size_px)
        critics = {
            f"{kind}_{scale}": WindowDiscriminator(3 + guides + 3 + guides, width)
            for kind, guides, width in (("mouth", 2, 64), ("eye", 1, 40))
            for scale in range(SCALES)
        }
        self.networks = {"main": painter, "discriminator": Critics(critics)}
        self.learning_rates = {"main": 1.0, "discriminator": config.discriminator_lr}

    def batch(self, generator: torch.Generator) -> dict[str, Windows]:
        """Draw mouth windows of stills and clips, and eye windows of clips, colours changed alike."""
        store, count = self.store, self.config.batch
        stills = round(count * self.config.still_share)
        index = torch.cat((store.draw("still", stills, generator), store.draw("clip", count - stills, generator)))
        mouths = store.windows["mouth"].take(index)
        mouths = mouths.mirror(torch.rand(count, generator=generator) < 0.5)
        right, left = store.draw("clip", max(2, int(count * self.config.eye_share)), generator).chunk(2)
        eyes = join_windows([store.windows["right_eye"].take(right), store.windows["left_eye"].take(left)])
        for windows in (mouths, eyes):
            windows.pictures = random_look(random_colour(windows.pictures, generator), generator)
        return {"mouth": mouths, "eye": eyes}

    def losses(
        self, networks: dict[str, nn.Module], batch: dict[str, Windows], step: int
    ) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
        """See ``Recipe``."""
        config, painter, critics = self.config, networks["main"], networks["discriminator"]
        loss, critic = torch.zeros(()), torch.zeros(())
        parts: dict[str, Tensor] = {}
        for kind, windows in batch.items():
            fake, real = paint(painter, kind, windows), windows.pictures[:, TRUE]
            weight = weigh_contours(windows.contours[:, 0], config.opening_weight)
            pixel, crisp = weighted_l1_pyramid(fake, real, weight, 2), crispness_error(fake, real)
            loss = loss + config.pixel_weight * pixel + config.crispness_weight * crisp
            parts |= {f"{kind}_pixel": pixel.detach(), f"{kind}_crispness": crisp.detach()}
            if step < config.adversarial_from:
                continue
            context = torch.cat((windows.contours[:, 0], windows.seen()), 1)
            for scale in range(SCALES):
                pictures = [F.avg_pool2d(x, 2**scale) if scale else x for x in (fake, real, context, weight)]
                own, hinge = self._judge(critics, f"{kind}_{scale}", *pictures)
                loss, critic = loss + own, critic + hinge
                parts[f"{kind}_{scale}_critic"] = hinge.detach()
        if step < config.adversarial_from:
            return [("main", loss, parts)]
        return [("main", loss, parts), ("discriminator", critic, {})]

    def _judge(
        self, critics: nn.Module, name: str, fake: Tensor, real: Tensor, context: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses of the painter and of one discriminator."""
        critics.requires_grad_(False)
        answers = critics(name, torch.cat((fake, context), 1))
        with torch.no_grad():
            truth = critics(name, torch.cat((real, context), 1))
        critics.requires_grad_(True)
        patches = F.adaptive_avg_pool2d(weight, answers[-1].shape[-2:])
        adversary, matching = generator_hinge(answers[-1], patches), feature_matching(answers, truth)
        both = torch.cat((torch.cat((real, context), 1), torch.cat((fake.detach(), context), 1)))
        real_verdict, fake_verdict = critics(name, both)[-1].chunk(2)
        hinge = discriminator_hinge(real_verdict, fake_verdict, patches)
        return self.config.adversarial_weight * adversary + self.config.matching_weight * matching, hinge

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Figures inside mouths of stills and clips, and inside the eyes of clips."""
        figures: dict[str, float] = {}
        for kind, index in self.validation.of_kind.items() if self.validation else ():
            for organ in ORGANS[: 2 if kind == "clip" else 1] if len(index) else ():
                assert self.validation is not None
                windows = self.validation.windows[organ.name].take(index)
                found = measure_inside(paint_all(network, organ, windows), windows)
                figures |= {f"{kind}_{organ.name}_{key}": value for key, value in found.items()}
        return figures

    def sheet(self, network: nn.Module) -> np.ndarray | None:
        """Mouths of stills and clips: portrait, before painting, painted, true."""
        rows: list[Tensor] = []
        for index in self.validation.of_kind.values() if self.validation else ():
            if len(index):
                assert self.validation is not None
                chosen = index[:: max(1, len(index) // SHEET_COLUMNS)][:SHEET_COLUMNS]
                windows = self.validation.windows["mouth"].take(chosen)
                painted = paint_all(network, ORGANS[0], windows)
                rows += [windows.pictures[:, SEEN], windows.pictures[:, HERE], painted, windows.pictures[:, TRUE]]
        width = min((len(row) for row in rows), default=0)
        return contact_sheet([row[:width] for row in rows]) if width else None

    def export(self, network: nn.Module, folder: Path) -> None:
        """Write the whole generator: the base's decoder with this painter instead of its own."""
        fine = (self.base_config.fine or FineConfig()).model_copy(update={"painter": self.model_config})
        model = self.base_config.model_copy(update={"detail": None, "fine": fine})
        generator = LatentFlowGenerator(model)
        tensors = {k: v for k, v in read_weights(self.base).items() if not k.startswith(("detail.", "fine."))}
        tensors |= {f"fine.painter.{key}": value for key, value in network.state_dict().items()}
        load_into(generator, tensors, str(self.base))
        save_part(folder, self.part, generator, model, half=True)


def paint(painter: nn.Module, kind: str, windows: Windows) -> Tensor:
    """Paint windows (N, 3, h, w) of a kind of organ; eyes are all turned to the same side already."""
    network = getattr(painter, "module", painter)  # several processes wrap it
    assert isinstance(network, OrganPainter)
    organ, here = ORGANS[0] if kind == "mouth" else ORGANS[1], windows.pictures[:, HERE]
    change = network.paint(organ, windows.known(), network.encode(organ, windows.seen()))
    return here + change.float() * feather(here)


@torch.no_grad()
def paint_all(network: nn.Module, organ: Organ, windows: Windows) -> Tensor:
    """Paint any number of windows, a few at a time, clamped."""
    columns = (x.split(32) for x in (windows.pictures, windows.contours, windows.place))
    return torch.cat([paint(network, organ.painter, Windows(*part)) for part in zip(*columns, strict=True)]).clamp(0, 1)


def measure_inside(made: Tensor, windows: Windows) -> dict[str, float]:
    """Compare painted openings with true ones: PSNR, gradient energy, tooth-coloured share; PSNR of the window."""
    inner = windows.contours[:, 0, :1] > 0.5
    wide = inner.sum((1, 2, 3)) > MIN_OPENING_PX
    made, true, inner = made[wide], windows.pictures[wide, TRUE], inner[wide]
    if not len(made):
        return {}
    error = ((made - true).square() * inner).sum((1, 2, 3)) / inner.sum((1, 2, 3)) / 3

    def energy(x: Tensor) -> Tensor:
        across, down = x.diff(dim=-1).square() * inner[..., 1:], x.diff(dim=-2).square() * inner[..., 1:, :]
        return across.sum() + down.sum()

    def tooth_share(x: Tensor) -> float:
        high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
        tooth = (high > TOOTH_LEVEL) & ((high - low) / (high + 1e-3) < TOOTH_SATURATION)
        return float((tooth & inner).sum() / inner.sum())

    whole = (made - true).square().mean((1, 2, 3))
    return {
        "inside_psnr": float((-10 * error.clamp_min(1e-6).log10()).mean()),
        "energy": float(energy(made) / energy(true)),
        "teeth_made": tooth_share(made),
        "teeth_true": tooth_share(true),
        "psnr": float(-10 * whole.clamp_min(1e-6).log10().mean()),
    }

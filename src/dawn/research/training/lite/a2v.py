"""Training A2V in the ``lite`` motion space: rectified flow on expression coefficients (paper section 3.3, 3.5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from dawn.checkpoint import save_part
from dawn.config import A2VConfig
from dawn.diffusion.rectified import data_estimate, draw_times, rectified_path
from dawn.engines.lite import FlowSampling, sample_expression
from dawn.face import mesh as lm
from dawn.face.geometry import lip_aperture, smoothstep, subtract_pose
from dawn.models.lite.a2v import A2VTransformer, Conditions
from dawn.models.lite.motion_space import MotionSpace
from dawn.models.lite.pbnet import EAR_UNIT
from dawn.research.training.loop import Recipe, TrainConfig
from dawn.research.training.motion_data import MotionStore, Sequence, closed_shapes


class A2VTrainConfig(TrainConfig):
    """Losses and sampling of A2V."""

    steps: int = Field(1900, ge=1)
    batch: int = Field(48, ge=1)
    lr: float = 5e-4
    weight_decay: float = 0.05
    ema_decay: float = Field(0.998, ge=0, lt=1)
    window_frames: int = 30
    drop_audio: float = 0.12
    lip_weight: float = 1.0
    """Weight of the lip positions that the velocity leads to, beside the coefficients' own loss."""
    silence_share: float = 0.15
    odd_source_share: float = 0.5
    """Share of samples whose source face wears an expression that the clip does not have (people smile on portraits)."""
    variants: int = 4


@dataclass
class A2VBatch:
    """Stretches of expression with all that the network is told.

    expression (B, T, K); audio (B, T, D); head (B, T, 8) normalised pose and blink changes; source (B, K + 2);
    time (B,); noise (B, T, K); drop (B,) bool; valid (B, T) bool.
    """

    expression: Tensor
    audio: Tensor
    head: Tensor
    source: Tensor
    time: Tensor
    noise: Tensor
    drop: Tensor
    valid: Tensor

    def to(self, device: torch.device) -> A2VBatch:
        """Move all tensors to a device."""
        return A2VBatch(**{key: value.to(device) for key, value in vars(self).items()})


def head_condition(motion: MotionSpace, pose: Tensor, ear: Tensor, source_pose: Tensor, source_ear: Tensor) -> Tensor:
    """Pose and blink of frames (T, 6), (T, 2) against the source's, in network units (T, 8)."""
    return torch.cat((subtract_pose(pose, source_pose) / motion.pose_scale, (ear - source_ear) / EAR_UNIT), -1)


def lip_rows(motion: MotionSpace) -> Tensor:
    """Maps coefficients to the inner and outer lips' positions in mean-face units, (K, 3 * points)."""
    columns = torch.tensor(sorted({*lm.INNER_LIPS, *lm.OUTER_LIPS}))[:, None].mul(3).add(torch.arange(3)).flatten()
    return motion.scale[:, None] * motion.basis[:, columns]


class A2VRecipe(Recipe):
    """Random source frame of the clip, as in the paper's second stage; silences are spliced in."""

    part = "a2v"

    def __init__(
        self,
        config: A2VTrainConfig,
        model: A2VConfig,
        motion: MotionSpace,
        data: MotionStore,
        validation: MotionStore | None,
    ) -> None:
        self.config, self.model_config, self.motion = config, model, motion
        self.data, self.validation = data, validation
        torch.manual_seed(config.seed)
        self.networks = {"main": A2VTransformer(model)}
        self.learning_rates = {"main": 1.0}
        self.closed = closed_shapes(data.sequences)
        self.lips = lip_rows(motion)
        strength = motion.scale * motion.basis.norm(dim=1)
        self.coefficient_weight = (strength / strength[motion.lower].max()).clamp(0.15, 1)

    def batch(self, generator: torch.Generator) -> A2VBatch:
        """Draw clips by weight, with times, noise and dropped conditions."""
        config = self.config
        chosen = torch.multinomial(self.data.weight, config.batch, True, generator=generator).tolist()
        rows = [self._sample(index, generator) for index in chosen]
        expression, audio, head, source, valid = (torch.stack(column) for column in zip(*rows, strict=True))
        return A2VBatch(
            expression,
            audio,
            head,
            source,
            draw_times(config.batch, generator),
            torch.randn(expression.shape, generator=generator),
            torch.rand(config.batch, generator=generator) < config.drop_audio,
            valid,
        )

    def _sample(self, index: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        window = self.config.window_frames
        s = self.data.sequences[index]
        start = int(torch.randint(max(1, len(s) - window + 1), (1,), generator=generator))
        frames = torch.arange(start, start + window).clamp_max(len(s) - 1)
        valid = torch.arange(start, start + window) < len(s)
        reference = int(torch.randint(len(s), (1,), generator=generator))
        source = self._odd_source(s.shape[reference], generator)
        expression = self.motion.encode(s.shape[frames], source)
        audio = self.data.audio(index, generator)[frames]
        if float(torch.rand(1, generator=generator)) < self.config.silence_share and s.clip.path.stem in self.closed:
            expression, audio = self._with_silence(s, source, expression, audio, generator)
        head = head_condition(self.motion, s.pose[frames], s.ear[frames], s.pose[reference], s.ear[reference])
        return expression, audio, head, self.motion.describe_source(source), valid

    def _odd_source(self, shape: Tensor, generator: torch.Generator) -> Tensor:
        """A source shape (478, 3), sometimes with the change between two frames of some other clip added below the nose."""
        if float(torch.rand(1, generator=generator)) >= self.config.odd_source_share:
            return shape
        other = self.data.sequences[int(torch.randint(len(self.data), (1,), generator=generator))]
        i, j = torch.randint(len(other), (2,), generator=generator).tolist()
        gain = 0.5 + 1.5 * float(torch.rand(1, generator=generator))
        code = torch.zeros(self.motion.config.size)
        code[self.motion.lower] = gain * self.motion.encode(other.shape[j][None], other.shape[i])[0, self.motion.lower]
        return self.motion.shapes(code[None], shape)[0]

    def _with_silence(
        self, s: Sequence, source: Tensor, expression: Tensor, audio: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Silence all through, up to a moment, or from a moment on; the mouth is shut, and eased in and out."""
        window = len(audio)
        moment = int(torch.randint(0, window, (1,), generator=generator))
        kind = int(torch.randint(0, 3, (1,), generator=generator))
        time = torch.arange(window)
        silent = (time >= 0) if kind == 0 else (time >= moment if kind == 1 else time < moment)
        offset = int(torch.randint(0, len(self.data.silence) - window, (1,), generator=generator))
        audio = torch.where(silent[:, None], self.data.silence[offset : offset + window].float(), audio)
        rest = self.motion.lower_at_rest(source, self.closed[s.clip.path.stem])
        # Lips close over a quarter of a second after the sound and open a little before it.
        distance = (time - moment + 1) / 6 if kind == 1 else (moment + 2 - time) / 4
        share = (torch.ones(window) if kind == 0 else smoothstep(distance))[:, None]
        mixed = expression.clone()
        mixed[:, self.motion.lower] = torch.lerp(expression[:, self.motion.lower], rest.expand(window, -1), share)
        return mixed, audio

    def losses(
        self, networks: dict[str, nn.Module], batch: A2VBatch, step: int
    ) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
        """Compute the errors of the flow and of the lips in a batch."""
        network = networks["main"]
        batch = batch.to(next(network.parameters()).device)
        plain: A2VTransformer = getattr(network, "module", network)  # type: ignore[arg-type]
        point, velocity = rectified_path(batch.expression, batch.noise, batch.time)
        conditions = Conditions(plain.embed_audio(batch.audio), batch.head, batch.source)
        out = network(point, batch.time, conditions, batch.drop, batch.valid)
        mask = batch.valid[..., None].float()
        weight = self.coefficient_weight.to(out.device)
        flow = ((out - velocity).square() * weight * mask).sum() / (mask.sum() * weight.sum())
        landed = data_estimate(point, out, batch.time)
        error = (landed - batch.expression) @ self.lips.to(out.device)
        lips = (error.square() * mask).sum() / mask.sum() / self.lips.square().sum()
        loss = flow + self.config.lip_weight * lips
        return [("main", loss, {"flow": flow.detach(), "lips": lips.detach()})]

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Lip aperture generated from sound against the truth, pooled over clips; the same with the sound exchanged."""
        if self.validation is None:
            return {}
        result = {}
        for name, shift in (("aperture_r", 0), ("aperture_r_shuffled", 17)):
            made, true = zip(
                *(
                    self._apertures(network, i, shift)  # type: ignore[arg-type]
                    for i in range(len(self.validation))
                ),
                strict=True,
            )
            result[name] = _pooled_correlation(list(made), list(true))
            if shift == 0:
                result["amplitude"] = float(
                    torch.cat([m - m.mean() for m in made]).std() / torch.cat([t - t.mean() for t in true]).std()
                )
        return result

    @torch.no_grad()
    def _apertures(self, network: A2VTransformer, index: int, shift: int) -> tuple[Tensor, Tensor]:
        assert self.validation is not None
        store, device = self.validation, next(network.parameters()).device
        s = store.sequences[index]
        audio = store.audio((index + shift) % len(store))
        audio = audio[torch.arange(len(s)).clamp_max(len(audio) - 1)]
        head = head_condition(self.motion, s.pose, s.ear, s.pose[0], s.ear[0])[None].to(device)
        source = self.motion.describe_source(s.shape[0])[None].to(device)
        generator = torch.Generator().manual_seed(index)
        made = sample_expression(
            network, audio.to(device), head[0], source[0], FlowSampling(6, 1.0, 0.5), generator
        ).cpu()
        return lip_aperture(self.motion.shapes(made, s.shape[0])), s.aperture

    def export(self, network: nn.Module, folder: Path) -> None:
        """Save the network, and the motion space that it was trained in."""
        save_part(folder, self.part, network, self.model_config)
        save_part(folder, "motion", self.motion, self.motion.config)


def _pooled_correlation(made: list[Tensor], true: list[Tensor]) -> float:
    a = torch.cat([m - m.mean() for m in made])
    b = torch.cat([t - t.mean() for t in true])
    return float((a @ b) / (a.norm() * b.norm()).clamp_min(1e-9))

"""The ``lite`` motion space: expression coefficients, and the way from them to driving landmarks.

Expression is facial motion without pose: the change of the pose-free shape against the source face, in principal
components. Lower and upper face have components of their own, so that lips and lids do not move each other.

Shapes: T frames, K coefficients.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dawn.config import MotionSpaceConfig
from dawn.face import mesh as lm
from dawn.face.geometry import add_pose, apply_pose, eye_aspect_ratio, lip_aperture, part_lips

LIP_EMPHASIS = 4.0
"""Weight of lip landmarks in the fit of the components, so that few components hold them to a fraction of a pixel."""
EYE_EMPHASIS = 4.0


def split_landmarks(mean_face: Float[Tensor, "478 3"]) -> tuple[list[int], list[int]]:
    """Divide the landmarks just above the nostrils into (lower, upper)."""
    line = float(mean_face[2, 1]) - 0.05
    lower = [i for i in range(len(mean_face)) if mean_face[i, 1] > line]
    return lower, [i for i in range(len(mean_face)) if i not in set(lower)]


class MotionSpace(nn.Module):
    """Linear code of pose-free shape changes. All numbers are buffers, fitted once by ``fit``, saved with the model."""

    mean_face: Tensor
    basis: Tensor
    encoder: Tensor
    scale: Tensor
    identity_scale: Tensor
    pose_scale: Tensor

    def __init__(self, config: MotionSpaceConfig) -> None:
        super().__init__()
        self.config = config
        size = config.size
        self.register_buffer("mean_face", torch.zeros(478, 3))
        self.register_buffer("basis", torch.zeros(size, 478 * 3))
        self.register_buffer("encoder", torch.zeros(478 * 3, size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("identity_scale", torch.ones(size))
        self.register_buffer("pose_scale", torch.ones(6))

    @property
    def lower(self) -> slice:
        """Coefficients of the lower face."""
        return slice(0, self.config.lower)

    @property
    def upper(self) -> slice:
        """Coefficients of the upper face."""
        return slice(self.config.lower, self.config.size)

    def fit(
        self,
        mean_face: Float[Tensor, "478 3"],
        shapes: list[Float[Tensor, "_ 478 3"]],
        pose_changes: Float[Tensor, "M 6"],
    ) -> dict[str, float]:
        """Fit the components to clips.

        Args:
            mean_face: The mean face.
            shapes: Pose-free shapes of each clip.
            pose_changes: Changes of pose within clips; their spread is the unit in which the networks see pose.

        Returns:
            The share of variance that the components hold, for the lower and the upper face.
        """
        self.mean_face.copy_(mean_face)
        changes = torch.cat([s - s.mean(0) for s in shapes]).flatten(1)
        weight = torch.ones(478)
        weight[list(lm.LIPS)] = LIP_EMPHASIS
        weight[list(lm.RIGHT_EYE + lm.LEFT_EYE)] = EYE_EMPHASIS
        weight = weight.sqrt().repeat_interleave(3)
        held = {}
        self.basis.zero_()
        self.encoder.zero_()
        for name, part, points in zip(
            ("lower", "upper"), (self.lower, self.upper), split_landmarks(mean_face), strict=True
        ):
            columns = torch.tensor(points)[:, None].mul(3).add(torch.arange(3)).flatten()
            data = changes[:, columns] * weight[columns]
            _, values, vectors = torch.linalg.svd(data.T @ data)
            count = part.stop - part.start
            self.basis[part, columns] = vectors[:count] / weight[columns]
            self.encoder[columns, part] = (vectors[:count] * weight[columns]).T
            held[name] = float(values[:count].sum() / values.sum())
        codes = [s.flatten(1) @ self.encoder for s in shapes]
        # The coding is of differences of two frames of one clip; its spread is sqrt(2) times that around the mean.
        self.scale.copy_(torch.cat([c - c.mean(0) for c in codes]).std(0) * 2**0.5)
        self.identity_scale.copy_(torch.stack([c.mean(0) for c in codes]).std(0))
        self.pose_scale.copy_(pose_changes.std(0))
        return held

    def encode(
        self, shape: Float[Tensor, "*batch T 478 3"], source_shape: Float[Tensor, "*batch 478 3"]
    ) -> Float[Tensor, "*batch T K"]:
        """Turn pose-free shapes into normalised coefficients against a source face."""
        return (shape - source_shape.unsqueeze(-3)).flatten(-2) @ self.encoder / self.scale

    def describe_source(self, source_shape: Float[Tensor, "*batch 478 3"]) -> Float[Tensor, "*batch S"]:
        """Describe the source face for the networks by S = K + 2 numbers: coefficients, mouth, eyes."""
        code = (source_shape - self.mean_face).flatten(-2) @ self.encoder / self.identity_scale
        mouth = lip_aperture(source_shape)[..., None] / 0.1
        eyes = eye_aspect_ratio(source_shape).mean(-1, keepdim=True) / 0.3
        return torch.cat((code, mouth, eyes), -1)

    def shapes(
        self, expression: Float[Tensor, "T K"], source_shape: Float[Tensor, "478 3"], apart: bool = True
    ) -> Float[Tensor, "T 478 3"]:
        """Turn coefficients into pose-free shapes of a source face. apart: lips are kept from crossing."""
        change = (expression * self.scale) @ self.basis
        shapes = source_shape + change.unflatten(-1, (478, 3))
        return part_lips(shapes) if apart else shapes

    def opening_direction(self) -> Float[Tensor, " K"]:
        """Find the likeliest change of the coefficients that opens the lips by one eye distance: lower face only.

        Coefficients are of unit variance, so the likeliest change is the shortest one.
        """
        upper, lower = (torch.tensor([pair[k] for pair in lm.INNER_LIP_PAIRS]) * 3 + 1 for k in range(2))
        row = self.scale * (self.basis[:, lower] - self.basis[:, upper]).mean(1)
        row = row * (torch.arange(len(row), device=row.device) < self.config.lower)
        return row / row.square().sum().clamp_min(1e-12)

    def landmarks(
        self,
        pose_change: Float[Tensor, "T 6"],
        expression: Float[Tensor, "T K"],
        source_shape: Float[Tensor, "478 3"],
        source_pose: Float[Tensor, " 6"],
        apart: bool = True,
    ) -> Float[Tensor, "T 478 3"]:
        """Make driving landmarks in crop units: pose(source shape + expression). apart: see ``shapes``."""
        return apply_pose(self.shapes(expression, source_shape, apart), add_pose(source_pose, pose_change))

    def lower_at_rest(self, shape: Float[Tensor, "478 3"], closed: Float[Tensor, "478 3"]) -> Float[Tensor, " K_lower"]:
        """Find the lower-face coefficients that bring ``shape`` to another shape, such as the closed mouth."""
        return self.encode(closed[None], shape)[0, self.lower]

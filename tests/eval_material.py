"""Small material for tests of the evaluation: clips of a moving face, a tracker and measuring networks that are quick."""

from __future__ import annotations

import numpy as np
import torch

from dawn.checkpoint import load_mean_face
from dawn.config import SyncJudgeConfig
from dawn.models.judges.sface import SFace
from dawn.models.judges.sync import SyncJudge
from dawn.preprocess.clips import PreparedClip
from dawn.research.evaluation.bench import EvalClip, make_clip
from dawn.research.evaluation.figures import Tools
from dawn.structs import FloatArray, ImageArray, TrackedFace

FRAMES = 16


def talking(frames: int, seed: int) -> FloatArray:
    """Landmarks (T, 478, 3) of a face that opens its mouth, turns and trembles a little."""
    rng = np.random.default_rng(seed)
    points = np.repeat(0.6 * load_mean_face().numpy()[None], frames, 0)
    opening = 0.05 * (1 + np.sin(np.arange(frames) * 0.9 + seed))
    below = points[0, :, 1] > points[0, 13, 1] + 1e-4
    points[:, below, 1] += opening[:, None]
    points[..., 0] += 0.02 * np.sin(np.arange(frames) * 0.5)[:, None]
    return (points + rng.normal(0, 0.002, points.shape)).astype(np.float32)


def prepared(seed: int, frames: int = FRAMES, size: int = 64, sound: bool = True) -> PreparedClip:
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (frames, size, size, 3), dtype=np.uint8)
    samples = rng.normal(0, 0.2, frames * 640).clip(-1, 1).astype(np.float32) if sound else np.zeros(0, np.float32)
    return PreparedClip(pictures, talking(frames, seed), np.zeros((frames, 52), np.float32), samples)


def clip(name: str, person: str, seed: int = 0) -> EvalClip:
    made = prepared(seed)
    return make_clip(name, person, made.frames, made.landmarks, made.samples, 64, load_mean_face())


class BrightnessTracker:
    """Sees the mouth open as far as the picture is bright below, and the head tilt to its brighter side: different pictures
    have different lips and poses."""

    def __enter__(self) -> BrightnessTracker:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def detect(self, image: ImageArray) -> list[TrackedFace]:
        points = 0.6 * load_mean_face().numpy()
        points[points[:, 1] > points[13, 1] + 1e-4, 1] += image[128:].mean() / 1280
        tilt = (image[:, :128].mean() - image[:, 128:].mean()) / 20
        turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
        points[:, :2] = points[:, :2] @ turn
        points = (points + 1) * 128
        return [TrackedFace(points.astype(np.float32), np.zeros(52, np.float32))]


class PixelsAsIdentity(SFace):
    """128 coarse pixels of an aligned face, quicker than the network."""

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(faces[:, :2] - 127.5, 14).flatten(1)


def random_tools() -> Tools:
    torch.manual_seed(0)
    judge = SyncJudge(SyncJudgeConfig()).eval().requires_grad_(False)
    return Tools(PixelsAsIdentity(), judge, load_mean_face())

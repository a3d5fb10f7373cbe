"""Motion → pictures: batches of frames drawn by the engine, put in the portrait's tone, placed in their photograph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dawn.engines.engine import Engine
from dawn.rendering.composite import FullFrame
from dawn.rendering.parallel import count_workers, map_in_order
from dawn.rendering.tone import apply_tone, fit_tone
from dawn.structs import Face, ImageArray, Motion

DECODE_BATCH = 8
"""Frames decoded together: enough to fill two cores, few enough to stay in their cache."""
Finish = Callable[[Tensor, Tensor, list[int]], list[ImageArray]]
"""Frames (N, 3, R, R) and the flow (N, h, w, 2) that moved the portrait → pictures of the rows that are wanted."""


def draw_frames(
    engine: Engine[Any],
    face: Face,
    motion: Motion,
    size_px: int,
    full: FullFrame | None = None,
    wanted: NDArray[np.bool_] | None = None,
) -> Iterator[ImageArray]:
    """Draw frames as they are asked for, in order.

    Batches begin at multiples of ``DECODE_BATCH`` and are whole whatever is wanted: arithmetic, and with it a frame's last
    bit, may depend on the size of a batch. On the CPU several are drawn at once.

    Args:
        engine: the networks.
        face: the portrait.
        motion: of T frames.
        size_px: side of the pictures, where ``full`` is None.
        full: puts frames back into their photograph.
        wanted: (T,) leaves other frames out.

    Yields:
        Pictures (H, W, 3) uint8.

    Raises:
        MotionError: motion of another space.
    """
    engine.check(motion)
    source = engine.source(face)

    def decode(start: int, stop: int) -> tuple[Tensor, Tensor]:
        return engine.decode(source, face, motion, start, stop)

    return _draw_batches(
        engine, face, decode, _finish(size_px, full), np.ones(len(motion), np.bool_) if wanted is None else wanted
    )


def draw_landmarks(
    engine: Engine[Any], face: Face, landmarks: Tensor, size_px: int, full: FullFrame | None = None
) -> Iterator[ImageArray]:
    """Draw driving landmarks (T, 478, 3) as ``draw_frames`` draws motion. Raises ConfigError where an engine takes none."""
    source = engine.source(face)

    def decode(start: int, stop: int) -> tuple[Tensor, Tensor]:
        return engine.draw_landmarks(source, landmarks[start:stop].to(engine.device))

    return _draw_batches(engine, face, decode, _finish(size_px, full), np.ones(len(landmarks), np.bool_))


def _draw_batches(
    engine: Engine[Any],
    face: Face,
    decode: Callable[[int, int], tuple[Tensor, Tensor]],
    finish: Finish,
    shown: NDArray[np.bool_],
) -> Iterator[ImageArray]:
    tone = fit_tone(face.crop, engine.config.rules.tone)
    batches = (start for start in range(0, len(shown), DECODE_BATCH) if shown[start : start + DECODE_BATCH].any())

    @torch.inference_mode()
    def draw(start: int) -> list[ImageArray]:
        stop = min(start + DECODE_BATCH, len(shown))
        frames, flow = decode(start, stop)
        return finish(apply_tone(frames, tone), flow, np.flatnonzero(shown[start:stop]).tolist())

    for pictures in map_in_order(draw, batches, count_workers() if engine.side_by_side else 1):
        yield from pictures


def _finish(size_px: int, full: FullFrame | None) -> Finish:
    return _square(size_px) if full is None else _composite(full)


def _square(size_px: int) -> Finish:
    """The networks' own pictures, scaled if need be."""

    def finish(frames: Tensor, flow: Tensor, rows: list[int]) -> list[ImageArray]:
        if size_px != frames.shape[-1]:
            frames = torch.nn.functional.interpolate(frames, size_px, mode="bicubic", antialias=True)
        pictures = (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return [pictures[row] for row in rows]

    return finish


def _composite(full: FullFrame) -> Finish:
    return lambda frames, flow, rows: [full(frames[row], flow[row]) for row in rows]

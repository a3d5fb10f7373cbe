"""FID, FVD, LSE-C and LSE-D of what is shown, as rows of the table.

FID (Heusel et al. 2017): Fréchet distance of Inception features of all generated and all true frames, the first ones, which
are the source, among them. FVD (Unterthiner et al. 2018): the same of I3D's 400 outputs for windows of 16 or 32 frames, taken
one after another from each clip's first frame; what is left over at the end, and clips shorter than a window, are not used.
LSE: see ``syncnet``; the mean over clips.

Both distances are biased upwards where there are few frames or windows, and strongly where there are fewer than features
(2048 and 400): papers take thousands of clips. Compare columns of one table, and take figures of published tables as
neighbours at best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dawn.measures.identity import frechet_distance, moment_sums
from dawn.measures.intervals import Float64Array
from dawn.research.evaluation.bench import EvalClip, Shown
from dawn.research.evaluation.community.files import Community
from dawn.research.evaluation.community.syncnet import MIN_FRAMES, lip_sync_error
from dawn.research.evaluation.records import Columns, Measure, Record, Rows, make_cell, put_cell
from dawn.structs import ImageArray

GROUP = "community"
FVD_FRAMES = {"FVD16": 16, "FVD32": 32}
DISTANCES = ("FID", *FVD_FRAMES)
ERRORS = (Measure(GROUP, "LSE-C", "LSE-C"), Measure(GROUP, "LSE-D", "LSE-D", better="lower"))
_TRUE = " of the truth"
_BATCH = 16


@torch.inference_mode()
def embed(networks: Community, frames: ImageArray) -> Record:
    """Embed one clip, (T, S, S, 3) uint8, with those picture networks that are there.

    Returns "FID" (T, 2048), "FVD16" and "FVD32" (windows, 400).
    """
    out: Record = {}
    if networks.inception is not None:
        out["FID"] = _inception_features(networks.inception, frames)
    if networks.i3d is not None:
        for name, length in FVD_FRAMES.items():
            out[name] = _i3d_features(networks.i3d, frames, length)
    return out


def _inception_features(inception: Callable[[Tensor], Tensor], frames: ImageArray) -> Float64Array:
    """Every frame's; a frame that repeats the one before is computed once."""
    fresh = np.append(True, (frames[1:] != frames[:-1]).any((1, 2, 3)))
    different = torch.from_numpy(frames[fresh]).permute(0, 3, 1, 2)
    features = torch.cat([inception(part.float() / 255) for part in different.split(_BATCH)])
    return features.double().numpy()[np.cumsum(fresh) - 1]


def _i3d_features(i3d: Callable[..., Tensor], frames: ImageArray, length: int) -> Float64Array:
    """Windows one by one, since one already is a second's work. The file itself scales to 224 px and to [-1, 1]."""
    out = []
    for start in range(0, len(frames) - length + 1, length):
        window = torch.from_numpy(frames[start : start + length]).permute(3, 0, 1, 2)[None].float()
        out.append(i3d(window, rescale=True, resize=True, return_features=True).double().numpy())
    return np.concatenate(out) if out else np.zeros((0, 0))


def clip_record(networks: Community, shown: Shown, clip: EvalClip, true: Record) -> Record:
    """The record of one clip in one column, with all that ``community_figures`` needs. true: ``embed`` of the clip's frames.

    Sync is judged with the clip's own sound. The true frames themselves get no distance, which would be 0 by definition.
    """
    out: Record = {}
    if shown.frames is not clip.frames:
        made = embed(networks, shown.frames)
        # Windows that the clip is too short for are left out.
        out |= {key: value for key, value in made.items() if len(value)}
        out |= {key + _TRUE: true[key] for key, value in made.items() if len(value)}
    if networks.syncnet is not None:
        score = lip_sync_error(networks.syncnet, shown.frames, shown.landmarks, clip.samples)
        if score is not None:
            out |= {"LSE-C": np.array([score.confidence, 1.0]), "LSE-D": np.array([score.distance, 1.0])}
    return out


def community_figures(networks: Community, columns: Columns) -> tuple[Rows, list[str]]:
    """Rows of the group "community" as ``table`` makes them, and notes: which files, which are missing, how much was seen.

    columns: as ``table`` takes them, their records with those of ``clip_record``. Errors have intervals; distances, which
    would have to be computed anew for every draw, have none. What there is no file or no clip for is absent.
    """
    rows: Rows = {}
    notes = list(networks.notes)
    for name in DISTANCES:
        for column, records in columns.items():
            put_cell(rows, GROUP, name, column, _distance(name, records), better="lower")
        if name in rows.get(GROUP, {}):
            what = "frames" if name == "FID" else f"windows of {FVD_FRAMES[name]} frames"
            seen = [sum(len(record[name]) for record in records if name in record) for records in columns.values()]
            notes.append(f"{name}: of {_span(seen)} {what}; the fewer, the more it is biased upwards")
        elif networks.i3d is not None and name in FVD_FRAMES:
            notes.append(f"no {name}: under 2 windows of {FVD_FRAMES[name]} frames")
    for measure in ERRORS:
        for column, records in columns.items():
            found = make_cell(measure, records)
            if found is not None:
                put_cell(
                    rows, GROUP, measure.name, column, found["value"], found.get("interval"), better=measure.better
                )
    if networks.syncnet is not None:
        judged = [sum("LSE-C" in record for record in records) for records in columns.values()]
        notes.append(
            f"LSE-C, LSE-D: means of {_span(judged)} clips with sound and {MIN_FRAMES} or more frames; the crop "
            "follows the face mesh instead of SyncNet's face detector"
        )
    return rows, notes


def _distance(name: str, records: Sequence[Record]) -> float | None:
    pairs = [(record[name], record[name + _TRUE]) for record in records if name in record]
    if not pairs:
        return None
    made, real = (np.concatenate(side) for side in zip(*pairs, strict=True))
    if len(made) + len(real) < made.shape[1]:
        # A turn into the few directions that the features span changes no distance, and takes seconds off.
        basis, _ = np.linalg.qr(np.concatenate((made, real)).T)
        made, real = made @ basis, real @ basis
    value = frechet_distance(moment_sums(made, real), made.shape[1])
    return value if math.isfinite(value) else None


def _span(counts: Sequence[int]) -> str:
    """Write "12", or "10 to 12" where columns differ; those without any are not counted."""
    some = [count for count in counts if count] or [0]
    return str(some[0]) if min(some) == max(some) else f"{min(some)} to {max(some)}"

"""One photograph → one ``Face``: find, choose, check, crop, measure."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch

from dawn.errors import ExtremePoseError, FaceTooSmallError, NoFaceError, SeveralFacesError
from dawn.face.geometry import eye_aspect_ratio, remove_pose
from dawn.preprocess.crop import Fit, crop_box, cut, to_crop_units
from dawn.preprocess.tracker import FaceTracker
from dawn.structs import Box, Face, ImageArray, TrackedFace

MAX_FACES = 8
MIN_FACE_HEIGHT_PX = 48
MAX_YAW_DEG = 40.0
MAX_PITCH_DEG = 35.0
RIVAL_HEIGHT_SHARE = 0.5
"""Other faces smaller than this share of the largest are bystanders and need no choice."""
TRACK_SIZE_PX = 256
"""Landmarks are measured on the crop at this size, as on the training clips."""
TILE_SHARE = 0.6
"""Side of the tiles of one search over that of the search before.

The detector needs a face of about a seventh of what it is shown.
"""
MIN_TILE_PX = 120
MAX_TILES = 250
MAX_ROLL_DEG = 60.0


def find_faces(image: ImageArray, tracker: FaceTracker) -> list[TrackedFace]:
    """Find all faces in a picture (H, W, 3), largest first.

    Where the whole picture shows none, overlapping tiles are searched, smaller and smaller ones.
    """
    faces = tracker.detect(image)
    side, searched = float(max(image.shape[:2])), 0
    while not faces and (side := side * TILE_SHARE) >= MIN_TILE_PX:
        rows, columns = (_tile_starts(limit, int(side)) for limit in image.shape[:2])
        searched += len(rows) * len(columns)
        if searched > MAX_TILES:
            break
        for y, x in product(rows, columns):
            for face in tracker.detect(np.ascontiguousarray(image[y : y + int(side), x : x + int(side)])):
                whole = TrackedFace(face.landmarks + np.array([x, y, 0], np.float32), face.blendshapes)
                if all(_are_apart(whole.box, other.box) for other in faces) and _is_confirmed(image, whole, tracker):
                    faces.append(whole)
    return sorted(faces, key=lambda face: -face.box.height)


def _is_confirmed(image: ImageArray, face: TrackedFace, tracker: FaceTracker) -> bool:
    """Look at a face again on its own: tiles now and then show a face where there is none."""
    height, width = image.shape[:2]
    return bool(tracker.detect(cut(image, crop_box(face, width, height), TRACK_SIZE_PX)))


def _tile_starts(limit: int, side: int) -> list[int]:
    """Return where tiles of ``side`` begin that cover 0 to ``limit`` and overlap by half."""
    count = max(0, -(-2 * (limit - side) // side))
    return [round(i * (limit - side) / count) for i in range(count + 1)] if count else [0]


def _are_apart(a: Box, b: Box) -> bool:
    dx, dy = a.center[0] - b.center[0], a.center[1] - b.center[1]
    return bool(np.hypot(dx, dy) > 0.5 * max(a.height, b.height))


def choose_face(faces: list[TrackedFace], choice: int | str | None) -> TrackedFace:
    """Choose the face to animate.

    Args:
        faces: from ``find_faces``.
        choice: "largest", or a number from 1, counted from left to right. None demands one face, bystanders aside.

    Raises:
        NoFaceError: There is no face, or none of that number.
        SeveralFacesError: There are rivals and no choice.
    """
    if not faces:
        raise NoFaceError(
            "no face was found in the portrait: use a photograph with one clearly visible face that looks at the "
            "camera; if it is small in the picture, cut the picture to head and shoulders"
        )
    if choice == "largest":
        return faces[0]
    ordered = sorted(faces, key=lambda face: face.box.center[0])
    if isinstance(choice, int):
        if not 1 <= choice <= len(ordered):
            raise NoFaceError(
                f"face {choice} was asked for, but the portrait has {len(ordered)}: use 1 to {len(ordered)}"
            )
        return ordered[choice - 1]
    rivals = [face for face in faces if face.box.height >= RIVAL_HEIGHT_SHARE * faces[0].box.height]
    if len(rivals) > 1:
        places = "; ".join(
            f"{i}: x {face.box.center[0]:.0f} y {face.box.center[1]:.0f}" for i, face in enumerate(ordered, 1)
        )
        raise SeveralFacesError(
            f"{len(ordered)} faces were found ({places}): choose one with `face=N` (from left to right) or `face='largest'`"
        )
    return faces[0]


def prepare_portrait(
    image: ImageArray,
    size_px: int,
    tracker: FaceTracker,
    mean_face: torch.Tensor,
    choice: int | str | None = None,
    fit: Fit = Fit.SHIFTED,
) -> Face:
    """Find, choose and prepare the face of a photograph (H, W, 3); its crop is (size_px, size_px, 3).

    Args:
        image: RGB photograph.
        size_px: side of the crop.
        tracker: finds and measures the face.
        mean_face: (478, 3), against which pose is measured.
        choice: see ``choose_face``.
        fit: see ``crop_box``.

    Raises:
        NoFaceError: As ``choose_face``.
        SeveralFacesError: As ``choose_face``.
        FaceTooSmallError: As ``prepare_face``.
        ExtremePoseError: As ``prepare_face``.
    """
    return prepare_face(image, choose_face(find_faces(image, tracker), choice), size_px, tracker, mean_face, fit)


def prepare_face(
    image: ImageArray,
    found: TrackedFace,
    size_px: int,
    tracker: FaceTracker,
    mean_face: torch.Tensor,
    fit: Fit = Fit.SHIFTED,
) -> Face:
    """Crop and measure a face that is chosen already. Arguments as ``prepare_portrait``.

    Raises:
        FaceTooSmallError: The face is under 48 px high.
        ExtremePoseError: The head is turned or tilted too far.
    """
    if found.box.height < MIN_FACE_HEIGHT_PX:
        raise FaceTooSmallError(
            f"the face is {found.box.height:.1f} px high: at least {MIN_FACE_HEIGHT_PX} px are needed; "
            "use a larger picture"
        )
    height, width = image.shape[:2]
    box = crop_box(found, width, height, fit)
    large = cut(image, box, TRACK_SIZE_PX)
    again = tracker.detect(large)
    if again:
        landmarks = to_crop_units(again[0].landmarks, Box(0, 0, TRACK_SIZE_PX, TRACK_SIZE_PX))
    else:
        landmarks = to_crop_units(found.landmarks, box)
    shape, pose = remove_pose(torch.from_numpy(landmarks), mean_face)
    yaw, pitch = float(pose[0]), float(pose[1])
    if abs(yaw) > MAX_YAW_DEG or abs(pitch) > MAX_PITCH_DEG:
        raise ExtremePoseError(
            f"the head is turned too far (yaw {yaw:.0f}°, pitch {pitch:.0f}°; at most {MAX_YAW_DEG:.0f}° and "
            f"{MAX_PITCH_DEG:.0f}°): use a portrait that looks towards the camera"
        )
    if abs(float(pose[2])) > MAX_ROLL_DEG:
        raise ExtremePoseError(f"the head lies on its side ({float(pose[2]):.0f}°): turn the picture upright")
    return Face(
        crop=large if size_px == TRACK_SIZE_PX else cut(image, box, size_px),
        landmarks=landmarks,
        shape=shape.numpy(),
        pose=pose.numpy(),
        blink=eye_aspect_ratio(shape).numpy(),
        box=box,
    )

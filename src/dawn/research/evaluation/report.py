"""One command, all figures: presets measured on prepared clips of people they never saw, or finished videos on true ones."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dawn.checkpoint import load_mean_face
from dawn.engines.engine import Engine
from dawn.engines.lite import LiteEngine
from dawn.engines.load import build_engine, load_bundle, pick_device
from dawn.errors import ConfigError, InputError
from dawn.measures import lips
from dawn.measures.sface import load_sface
from dawn.options import FULL_SIZE_PX
from dawn.preprocess.tracker import FaceTracker
from dawn.progress import Progress, ignore_progress, peak_memory_mib
from dawn.research.evaluation.bench import Bench, EvalClip, Shown, read_clips, track
from dawn.research.evaluation.community.figures import community_figures
from dawn.research.evaluation.community.files import load_community
from dawn.research.evaluation.figures import PARTS, Tools, Truth, measure_clip
from dawn.research.evaluation.folders import pair_files, read_pair
from dawn.research.evaluation.minute import long_figures
from dawn.research.evaluation.records import Columns, Record, Rows, put_cell
from dawn.research.evaluation.spoken import (
    exchange_sounds,
    life_figures,
    move_in_true_pose,
    silence_figures,
    speak,
)
from dawn.research.evaluation.table import make_table

TRUE_POSE, SHUFFLED, LANDMARKS, STILL, REAL, GENERATED = (
    "true pose",
    "shuffled",
    "landmarks",
    "first frame",
    "real",
    "generated",
)
LEGEND = {
    TRUE_POSE: "lips and face from sound, head pose and blinks of the true clip: comparable with the truth point by point",
    SHUFFLED: "the preset with another clip's sound; lips and sync are compared with the clip's own",
    LANDMARKS: "the preset driven by the true landmarks: the ceiling of its decoder",
    STILL: "the true clip's first frame, repeated",
    REAL: "the true frames at the same size, tracked again: the floor of the measuring",
    GENERATED: "the videos under test",
}
OWN_POSE_PARTS = tuple(part for part in PARTS if part != "place")


def evaluate_preset(  # noqa: PLR0913
    preset: str | Path,
    clips: Path,
    sface: Path | None = None,
    progress: Progress | None = None,
    *,
    also: Sequence[str | Path] = (),
    limit: int | None = None,
    size_px: int | None = None,
    takes: int = 1,
    judge: Path | None = None,
    community: Path | None = None,
    device: str = "cpu",
    rules: str = "preset",
) -> dict[str, Any]:
    """Measure a preset on a folder of prepared clips (``dawn prepare``), with its controls, and further presets beside it.

    sface, judge: weights of the identity measures and of the sync judge, by default where ``tools/fetch_models.py`` puts
    them and the shipped one. progress: called with (stage, done, total). also: more presets, each at its own size. limit:
    only the first so many clips of each person. takes: of the minute that is looked through for decline, on each of its
    portraits. size_px: show every preset at this size, as ``dawn generate --size`` does, instead of each at its own.
    community: folder with the networks of FID, FVD and LSE. device: of the presets' networks. rules: "none" measures the
    networks without the hand rules.

    Returns plain numbers that can be written as JSON: {"preset", "clips", "people", "frames", "seconds", "size_px",
    "clip_px", "columns": {column: what it is}, "notes": [...], "rows": {group: {measure: {"unit", "better", "values":
    {column: {"value", "interval"}}}}}, "long": see ``long_figures``}. Cells that make no sense are absent; intervals are
    95 %, bootstrap over clips. Raises ConfigError, CheckpointError, InputError.
    """
    start = time.perf_counter()
    if limit is not None and limit < 1:
        raise ConfigError(f"limit {limit}: give at least 1 clip a person")
    if takes < 1:
        raise ConfigError(f"takes {takes}: give at least 1")
    tools, notes = _tools(sface, judge, community)
    engines = _load_presets([preset, *also], device, rules)
    report = progress or ignore_progress
    with FaceTracker() as tracker, torch.inference_mode():
        first, *others = _benches(engines, tracker, clips, limit, size_px, report)
        truths = _truths(first, tools)
        columns = _main_columns(first, truths)
        for bench in others:
            own = truths if bench.clips is first.clips else _truths(bench, tools)
            columns |= _speech_columns(bench, own, f"{bench.name}, {TRUE_POSE}")
        columns = {name: records for name, records in columns.items() if records}
        rows = make_table(columns)
        _add_community(rows, notes, tools, columns)
        for bench in (first, *others):
            _add_life(rows, bench, [record["aperture signal"] for record in columns[bench.name]])
        long = long_figures(first, tools, takes)
    put_cell(rows, "cost", "peak memory of this whole run", first.name, peak_memory_mib(), unit="MiB", better="lower")
    people = [first.clips[index].person for index in first.voiced]
    within = np.mean([people[i] == people[j] for i, j in enumerate(exchange_sounds(people))])
    notes.append(f"{SHUFFLED}: {within:.0%} of the clips got another sound of the same person")
    head = _head(first.name, first.clips, start)
    return {**head, "columns": _described(columns), "notes": notes, "rows": rows, "long": long}


def evaluate_folders(
    made: Path,
    real: Path,
    sface: Path | None = None,
    progress: Progress | None = None,
    *,
    limit: int | None = None,
    judge: Path | None = None,
    community: Path | None = None,
) -> dict[str, Any]:
    """Measure finished videos or prepared clips against true ones of the same names.

    limit: only the first so many pairs. Returns as ``evaluate_preset``, without cost and long. Raises ConfigError,
    CheckpointError, InputError.
    """
    start = time.perf_counter()
    if limit is not None and limit < 1:
        raise ConfigError(f"limit {limit}: give at least 1 pair")
    tools, notes = _tools(sface, judge, community)
    files = pair_files(made, real)[:limit]
    report = progress or ignore_progress
    pairs: list[tuple[EvalClip, EvalClip]] = []
    with FaceTracker() as tracker:
        for index, (name, made_file, real_file) in enumerate(files):
            size = pairs[0][0].frames.shape[1] if pairs else None
            pairs.append(read_pair(name, made_file, real_file, size, tracker, tools.mean_face))
            report("read", index + 1, len(files))
    clips = [true for _, true in pairs]
    thresholds = closed_thresholds(clips)
    columns: Columns = {GENERATED: [], STILL: [], REAL: []}
    for index, (ours, true) in enumerate(pairs):
        truth = Truth(true, _as_shown(true), thresholds[true.person], tools)
        columns[GENERATED].append(measure_clip(_as_shown(ours), truth, _heard(PARTS, true)))
        columns[STILL].append(_still_record(truth))
        columns[REAL].append(_real_record(truth))
        report("measure", index + 1, len(pairs))
    notes.append(
        "videos are cropped each by its own face: compare pictures point by point only if both were cropped alike"
    )
    head = _head(str(made), clips, start)
    described = _described(columns) | {REAL: "the true frames themselves"}
    rows = make_table(columns)
    _add_community(rows, notes, tools, columns)
    return {**head, "columns": described, "notes": notes, "rows": rows, "long": None}


def _add_community(rows: Rows, notes: list[str], tools: Tools, columns: Columns) -> None:
    if tools.community is not None:
        found, more = community_figures(tools.community, columns)
        rows |= found
        notes += more


def _tools(sface: Path | None, judge: Path | None, community: Path | None) -> tuple[Tools, list[str]]:
    """The measuring networks, and a note where the sync judge is not there to be loaded."""
    from dawn.measures import sync

    shipped, notes = Path(str(files("dawn").joinpath(sync.SHIPPED_JUDGE))), []
    network = None
    if judge is None and not shipped.is_file():
        notes.append("no sync figures: this copy of dawn has no sync judge")
    else:
        network = sync.load_judge(judge)
    return Tools(load_sface(sface), network, load_mean_face(), load_community(community) if community else None), notes


def _head(name: str, clips: Sequence[EvalClip], start: float) -> dict[str, Any]:
    return {
        "preset": name,
        "clips": len(clips),
        "people": len({clip.person for clip in clips}),
        "frames": sum(map(len, clips)),
        "seconds": round(time.perf_counter() - start, 1),
        "size_px": clips[0].frames.shape[1],
        "clip_px": clips[0].stored_px,
    }


def _described(columns: Columns) -> dict[str, str]:
    speech = "from the clip's own sound: lips, head motion and blinks generated"
    out = {}
    for column in columns:
        kind = TRUE_POSE if column.endswith(f", {TRUE_POSE}") else column
        out[column] = LEGEND.get(kind, speech)
    return out


# ----------------------------------------------------------------------------------------------------------- material


def _load_presets(presets: Sequence[str | Path], device: str, rules: str) -> dict[str, Engine[Any]]:
    """{column name: engine}. Raises ConfigError for a name used twice."""
    engines: dict[str, Engine[Any]] = {}
    for preset in presets:
        engine = build_engine(load_bundle(preset, rules), pick_device(device))
        name = engine.name
        if name in engines:
            name = f"{name} ({Path(preset).name})"
        if name in engines or name in LEGEND:
            raise ConfigError(f"{preset}: there is a column {name!r} already; give each preset once")
        engines[name] = engine
    return engines


def _benches(
    engines: dict[str, Engine[Any]],
    tracker: FaceTracker,
    clips: Path,
    limit: int | None,
    size_px: int | None,
    progress: Progress,
) -> Iterator[Bench]:
    """One bench a preset; presets of one size and mean face share their clips."""
    read: list[tuple[int, Tensor, list[EvalClip]]] = []
    for name, engine in engines.items():
        native, mean_face = engine.native_px, engine.mean_face()
        size = size_px or native
        if not native <= size <= FULL_SIZE_PX:
            raise ConfigError(f"size {size}: {name} draws {native} px; give {native} to {FULL_SIZE_PX}")
        material = next((m for s, face, m in read if s == size and torch.equal(face, mean_face)), None)
        if material is None:
            material = read_clips(clips, size, mean_face, limit)
            read.append((size, mean_face, material))
        bench = Bench(name, engine, tracker, material, progress)
        if len(bench.voiced) < 2:
            raise InputError(f"{clips}: {len(bench.voiced)} clips have sound; prepare at least 2 with sound")
        yield bench


def closed_thresholds(clips: Sequence[EvalClip]) -> dict[str, float]:
    """{person: ``lips.closed_threshold``}."""
    apertures: dict[str, list[np.ndarray]] = {}
    for clip in clips:
        apertures.setdefault(clip.person, []).append(lips.lip_distance(clip.landmarks))
    return {person: lips.closed_threshold(signals) for person, signals in apertures.items()}


def _truths(bench: Bench, tools: Tools) -> list[Truth]:
    """The true frames at the preset's size, tracked as generated ones are: what the measuring itself costs."""
    thresholds = closed_thresholds(bench.clips)
    out = []
    for index, clip in enumerate(bench.clips):
        again = Shown(clip.frames, *track(bench.tracker, clip.frames, clip.landmarks[0]))
        out.append(Truth(clip, again, thresholds[clip.person], tools))
        bench.progress("track the true frames", index + 1, len(bench.clips))
    return out


def _as_shown(clip: EvalClip) -> Shown:
    return Shown(clip.frames, clip.landmarks, np.ones(len(clip), bool))


# ------------------------------------------------------------------------------------------------------------ columns


def _heard(parts: Sequence[str], clip: EvalClip) -> tuple[str, ...]:
    """Clips without sound have no sync."""
    return tuple(part for part in parts if part != "sync" or len(clip.samples))


def _still_record(truth: Truth) -> Record:
    frames, again = truth.clip.frames, truth.again
    shown = Shown(
        np.repeat(frames[:1], len(frames), 0),
        np.repeat(again.landmarks[:1], len(frames), 0),
        np.repeat(again.found[:1], len(frames)),
    )
    record = measure_clip(
        shown, truth, _heard(("likeness", "identity", "lips", "place", "sync", "community"), truth.clip)
    )
    # A signal that never moves has no lag.
    return {key: value for key, value in record.items() if not key.endswith("lags")}


def _real_record(truth: Truth) -> Record:
    return measure_clip(
        truth.again, truth, _heard(("identity", "lips", "place", "sync", "motion", "community"), truth.clip)
    )


def _speech_columns(bench: Bench, truths: Sequence[Truth], true_pose: str) -> Columns:
    columns: Columns = {bench.name: [], true_pose: []}
    for position, index in enumerate(bench.voiced):
        clip, truth = bench.clips[index], truths[index]
        spoken = speak(bench, clip, clip.samples, len(clip), seed=position)
        seconds = {**spoken.seconds, "all three": sum(spoken.seconds.values())}
        cost = {stage: np.array([value, len(clip)]) for stage, value in seconds.items()}
        signal = {"aperture signal": lips.lip_distance(spoken.shown.landmarks)}
        columns[bench.name].append(measure_clip(spoken.shown, truth, OWN_POSE_PARTS) | cost | signal)
        if isinstance(bench.engine, LiteEngine):
            shown = bench.show(clip, move_in_true_pose(bench.engine, clip, seed=position).made)
            columns[true_pose].append(measure_clip(shown, truth, PARTS))
        bench.progress(f"{bench.name}: from sound", position + 1, len(bench.voiced))
    return columns


def _main_columns(bench: Bench, truths: Sequence[Truth]) -> Columns:
    columns = _speech_columns(bench, truths, TRUE_POSE) | {SHUFFLED: [], LANDMARKS: [], STILL: [], REAL: []}
    others = exchange_sounds([bench.clips[index].person for index in bench.voiced])
    for position, index in enumerate(bench.voiced):
        clip = bench.clips[index]
        sound = bench.clips[bench.voiced[others[position]]].samples
        shown = speak(bench, clip, sound, len(clip), seed=position).shown
        columns[SHUFFLED].append(
            measure_clip(shown, truths[index], ("lips", "sync", "motion", "against real", "community"))
        )
        bench.progress("another clip's sound", position + 1, len(bench.voiced))
    for index, (clip, truth) in enumerate(zip(bench.clips, truths, strict=True)):
        if isinstance(bench.engine, LiteEngine):
            shown = bench.show_landmarks(clip, torch.from_numpy(clip.landmarks))
            columns[LANDMARKS].append(measure_clip(shown, truth, _heard(PARTS, clip)))
        columns[STILL].append(_still_record(truth))
        columns[REAL].append(_real_record(truth))
        bench.progress("driven by the true landmarks", index + 1, len(bench.clips))
    return columns


def _add_life(rows: Rows, bench: Bench, speech: Sequence[np.ndarray]) -> None:
    """Rows of silence and of a minute of motion."""
    silence = silence_figures(bench, speech)
    movement, opening = "mouth movement in silence", "mean aperture in silence"
    put_cell(rows, "motion", movement, bench.name, silence["movement"], unit="of speech", better="lower")
    put_cell(rows, "motion", opening, bench.name, silence["aperture"], unit="eye distances", better="lower")
    put_cell(rows, "motion", opening, STILL, silence["portrait"])
    if bench.engine.motion_space is None:
        return
    life = life_figures(bench)
    for key, name, unit in (
        ("shown", "blinks, a minute of motion", "per second"),
        ("meant", "blinks meant by PBNet, a minute", "per second"),
        ("yaw", "yaw, std over a minute", "deg"),
        ("pitch", "pitch, std over a minute", "deg"),
        ("roll", "roll, std over a minute", "deg"),
    ):
        put_cell(rows, "motion", name, bench.name, *life[key], unit=unit, better="near real")

"""The command line, and the only place that prints. Heavy modules are imported by the command that needs them.

Exit codes: 0 done, 2 a request that cannot be met (one line that names the value and the remedy), 130 interrupted,
1 anything unforeseen (one line; ``--debug`` shows the traceback) or a failed ``dawn doctor``.
"""

from __future__ import annotations

import argparse
import json
import logging
import logging.handlers
import os
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from dawn import __version__
from dawn import cli_arguments as given
from dawn.errors import ConfigError, DawnError, InputError, OutputError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov")
STRENGTHS = ("seed", "steps", "guidance", "pose_scale", "blink", "expression", "sampler", "precision")
"""Options handed to ``GenerateOptions`` if given; its defaults live there."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as done:
        return int(done.code or 0)
    notes = _start_logging(args)
    try:
        with _terminated_like_ctrl_c(), warnings.catch_warnings():
            if not args.debug:
                warnings.simplefilter("ignore")
            code: int = args.run(args)
        notes.flush()
        return code
    except DawnError as error:
        _complain(args, str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _complain(args, "interrupted; nothing unfinished was kept", "")
        return 130
    except Exception as error:
        _complain(args, f"unexpected {type(error).__name__}: {error}; rerun with --debug for the traceback")
        return 1
    finally:
        notes.buffer.clear()
        logging.getLogger().removeHandler(notes)
        notes.close()


def _complain(args: argparse.Namespace, message: str, prefix: str = "error: ") -> None:
    """One line on stderr; with --debug the traceback before it."""
    if args.debug:
        traceback.print_exc()
    print(prefix + " ".join(message.split()), file=sys.stderr)


def _start_logging(args: argparse.Namespace) -> logging.handlers.MemoryHandler:
    """Warnings are held until the command has succeeded, so that a failure is one line; progress notes are not."""
    at_once = args.debug or args.command in ("train", "pack", "convert")
    held = logging.handlers.MemoryHandler(1 if at_once else 1000, logging.CRITICAL, logging.StreamHandler())
    held.setLevel(logging.DEBUG if args.debug else logging.INFO if at_once else logging.WARNING)
    held.addFilter(logging.Filter("dawn"))
    logging.getLogger().addHandler(held)
    logging.getLogger("dawn").setLevel(held.level)
    return held


@contextmanager
def _terminated_like_ctrl_c() -> Iterator[None]:
    """A polite ``kill`` unwinds as Ctrl-C does, so that temporary files go."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = given.Parser(prog="dawn", description="Talking-head video from one portrait and one speech recording.")
    parser.add_argument("--version", action="version", version=f"dawn {__version__}")
    parser.set_defaults(debug=False, quiet=False)
    common = given.Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--debug", action="store_true", help="show tracebacks and all log messages")
    common.add_argument("--quiet", action="store_true", help="print nothing but errors")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, run, add, text in (
        ("generate", _generate, given.add_generate, "portrait + speech -> talking video"),
        ("drive", _drive, given.add_drive, "the facial motion of another video on a portrait"),
        ("batch", _batch, given.add_batch, "a table of portraits and recordings -> a folder of videos; again resumes"),
        ("prepare", _prepare, given.add_prepare, "videos -> training clips"),
        ("train", _train, given.add_train, "train one part on prepared clips; the same command resumes"),
        ("pack", _pack, given.add_pack, "trained parts -> a preset"),
        ("convert", _convert, given.add_convert, "the authors' published files -> a preset"),
        ("evaluate", _evaluate, given.add_evaluate, "measure a preset on prepared clips"),
        ("check", _check, given.add_check, "what portrait and speech are fit for, before time is spent"),
        ("plot", _plot, given.add_plot, "a video or motion file -> one picture of its course in time"),
        ("doctor", _doctor, lambda p: None, "versions, device, presets, and whether each part works"),
    ):
        command = commands.add_parser(name, parents=[common], help=text, description=text)
        command.set_defaults(run=run)
        add(command)
    return parser


# ---------------------------------------------------------------------------------------------------------- commands


def _generate(args: argparse.Namespace) -> int:
    options: dict[str, Any] = {name: value for name in STRENGTHS if (value := getattr(args, name)) is not None}
    from dawn.motion_file import load_motion

    if args.retry > 1 and args.motion_in:
        raise ConfigError(f"--retry {args.retry}: --motion-in {args.motion_in} leaves nothing to try; leave one of them out")
    if args.strict:
        from dawn.preflight.check import check
        from dawn.preflight.findings import refuse_warnings

        refuse_warnings(check(args.portrait, args.speech, args.preset, args.face, args.allow_silence))

    def make(model: Any, progress: Any) -> Any:
        motion = load_motion(args.motion_in) if args.motion_in else None
        once = partial(model, args.portrait, args.speech, size=args.size, frame=args.frame, face=args.face, motion=motion,
                       still=args.still, allow_silence=args.allow_silence, progress=progress, **options)  # fmt: skip
        if args.retry == 1:
            return once()
        from dawn.preflight.seeds import best_seed

        video, args.seeds = best_seed(model, once, options.get("seed", 0), args.retry, progress)
        return video

    return _render(args, make, args.portrait, args.speech)


def _drive(args: argparse.Namespace) -> int:
    def make(model: Any, progress: Any) -> Any:
        return model.drive(args.portrait, args.video, size=args.size, frame=args.frame, face=args.face, progress=progress)

    return _render(args, make, args.portrait, args.video)


def _render(args: argparse.Namespace, make: Callable[[Any, Any], Any], *inputs: Path) -> int:
    """Check the outputs, load the model, make the video, write it, say what it took."""
    _check_output(args.output, VIDEO_SUFFIXES, *inputs)
    for path in filter(None, (args.motion_out, args.report)):
        _check_output(path, (".json",), *inputs)
    if args.report and args.motion_out and args.report.resolve() == args.motion_out.resolve():
        raise OutputError(f"cannot write '{args.report}' twice: give --report and --motion-out different names")
    start = time.perf_counter()
    from dawn.motion_file import save_motion
    from dawn.pipeline import Dawn

    model = Dawn.from_pretrained(args.preset, args.device)
    loaded = time.perf_counter()
    with _progress_bar(args) as progress:
        video = make(model, progress)
        video.save(args.output)
    if args.motion_out:
        save_motion(video.motion, args.motion_out)
    if not args.quiet:
        _report(args.output, video, loaded - start, time.perf_counter() - loaded)
    if args.report or args.seeds:
        from dawn.preflight.seeds import account

        with _progress_bar(args) as progress:
            lines = account(video, args.output, args.report, args.seeds, progress)
        for line in () if args.quiet else lines:
            print(line)
    return 0


def _report(path: Path, video: Any, loading_s: float, working_s: float) -> None:
    """What was made and what it took. The rates leave the loading of the model out."""
    from dawn.pipeline import peak_memory_mib
    from dawn.structs import FPS

    frames, peak = len(video), peak_memory_mib()
    memory = "" if peak is None else f", peak memory {peak:.0f} MiB"
    full = video.full
    size = f"{video.size_px} px" if full is None else f"{full.width} x {full.height} px"
    if full is not None and full.reduced:
        size += f" (photograph reduced from {full.original}; --size sets the longest side)"
    print(f"{path}: {frames} frames, {frames / FPS:.2f} s, {size}")
    for stage, seconds in {"load model": loading_s, **video.watch.seconds}.items():
        print(f"  {stage:<15} {seconds:8.2f} s")
    print(f"  {'total':<15} {working_s:8.2f} s without loading: {frames / working_s:.1f} frames/s, "
          f"{frames / FPS / working_s:.2f} x real time{memory}")  # fmt: skip


def _batch(args: argparse.Namespace) -> int:
    from dawn.batch.journal import as_json, as_table
    from dawn.batch.run import run_batch

    with _progress_bar(args) as progress:
        results = run_batch(args.jobs, args.output, args.preset, args.device, args.retry_failed, args.ray, progress)
    failed = [result for result in results if result.state == "failed"]
    if args.json or failed or not args.quiet:
        print(as_json(results) if args.json else as_table(failed if args.quiet else results))
    return 2 if failed else 0


def _prepare(args: argparse.Namespace) -> int:
    if not 64 <= args.size <= 1024 or args.workers < 1:
        raise ConfigError(f"--size {args.size} --workers {args.workers}: give 64 to 1024 px and at least one worker")
    from dawn.preprocess.clips import find_videos, prepare, read_people

    videos, people = find_videos(args.videos), read_people(args.people)
    reports = []
    with _progress_bar(args) as progress:
        for report in prepare(videos, args.videos, args.out, args.size, people, args.workers):
            reports.append(report)
            progress("prepare", len(reports), len(videos))
    dropped = [report for report in reports if report.status == "dropped"]
    if not args.quiet:
        for report in dropped:
            print(f"dropped  {report.video}  {report.reason}")
        counts = Counter(report.status for report in reports)
        print(", ".join(f"{count} {status}" for status, count in counts.items()), f"-> {args.out}")
    if len(dropped) == len(videos):
        raise InputError(f"{args.videos}: none of {len(videos)} videos can be used; the first: {dropped[0].reason}")
    return 0


def _train(args: argparse.Namespace) -> int:
    overrides = {}
    for pair in args.set:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise ConfigError(f"--set {pair!r}: write KEY=VALUE")
        overrides[key] = value
    commands = _training_commands()

    def show(step: int, figures: dict[str, float]) -> None:
        if not args.quiet and os.environ.get("RANK", "0") == "0":
            print(f"step {step}  " + "  ".join(f"{key} {value:.4g}" for key, value in figures.items()), flush=True)

    step = commands.run_training(args.part, args.data, args.out, args.validation, args.audio, overrides, show)
    if not args.quiet:
        print(f"{args.part}: step {step}, in {args.out}")
    return 0


def _training_commands() -> Any:
    """``dawn.training.commands``; training has needs of its own."""
    try:
        from dawn.training import commands
    except ModuleNotFoundError as error:
        if error.name != "accelerate":
            raise
        raise ConfigError('the accelerate package is missing: pip install "dawn[train]"') from error
    return commands


def _pack(args: argparse.Namespace) -> int:
    parts = {part: folder for part in given.PACKED_PARTS if (folder := getattr(args, part)) is not None}
    _training_commands().pack(args.name, parts, args.output, shares=args.shares)
    if not args.quiet:
        size_mb = sum(path.stat().st_size for path in args.output.iterdir()) / 1e6
        print(f"{args.output}: preset {args.name}, {size_mb:.1f} MB")
    return 0


def _convert(args: argparse.Namespace) -> int:
    from dawn.convert.official import convert

    config = convert(args.folder, args.output, args.size, args.name)
    if not args.quiet:
        size_mb = sum(path.stat().st_size for path in args.output.iterdir()) / 1e6
        print(f"{args.output}: preset {config.name}, {size_mb:.1f} MB")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    clips = [path for path in (args.clips, args.clips_too) if path]
    if args.generated and (clips or args.preset or args.also):
        raise ConfigError(f"--generated {args.generated[0]}: measures finished videos; leave clips, --preset and --also out")
    if not args.generated and len(clips) != 1:
        raise ConfigError(f"{len(clips)} folders of prepared clips: give one, or --generated MADE REAL")
    if args.json:
        _check_output(args.json, (".json",))
    from dawn.evaluation.report import evaluate_folders, evaluate_preset
    from dawn.evaluation.table import format_report
    from dawn.media.files import replacing

    with _progress_bar(args) as progress:
        if args.generated:
            made, real = args.generated
            result = evaluate_folders(made, real, args.sface, progress, limit=args.limit, judge=args.judge,
                                      community=args.community)  # fmt: skip
        else:
            preset = args.preset or given.DEFAULT_PRESET
            result = evaluate_preset(preset, clips[0], args.sface, progress, also=args.also, limit=args.limit,
                                     judge=args.judge, community=args.community)  # fmt: skip
    if args.json:
        with replacing(args.json, (".json",)) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if not args.quiet:
        print(format_report(result))
    return 0


def _check(args: argparse.Namespace) -> int:
    from dawn.media.files import replacing
    from dawn.preflight.check import check
    from dawn.preflight.findings import LEVELS, as_json, as_words, verdict

    piped = str(args.json) == "-"
    if args.json and not piped:
        _check_output(args.json, (".json",), args.portrait, *([args.speech] if args.speech else []))
    sections = check(args.portrait, args.speech, args.preset, args.face, args.allow_silence)
    refused = LEVELS[1:] if args.strict else LEVELS[2:]
    report = json.dumps(as_json(sections), indent=1)
    if args.json and not piped:
        with replacing(args.json, (".json",)) as temporary:
            temporary.write_text(report + "\n", encoding="utf-8")
    for line in [report] if piped else as_words(sections, refused[0] if args.quiet else "ok"):
        print(line)
    return 2 if verdict(sections) in refused else 0


def _plot(args: argparse.Namespace) -> int:
    from dawn.plot import plot

    out = args.output or Path(f"{args.source}.png")
    _check_output(out, (".png",), args.source)
    with _progress_bar(args) as progress:
        plot(args.source, out, args.preset, progress)
    if not args.quiet:
        print(out)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from dawn.doctor import examine

    failed = 0
    for check in examine():
        failed += check.ok is False
        if not args.quiet or check.ok is False:
            mark = {True: "OK  ", False: "FAIL", None: "    "}[check.ok]
            print(f"{mark}  {check.name:<22} {check.detail}", flush=True)
    return 1 if failed else 0


# ----------------------------------------------------------------------------------------------------------- helpers


def _check_output(path: Path, suffixes: tuple[str, ...], *inputs: Path) -> None:
    """Refuse an output that could not be written before the long work begins, by really creating a file beside it."""
    from dawn.media.files import create_beside

    _, temporary = create_beside(path, suffixes)
    temporary.unlink(missing_ok=True)
    for source in inputs:
        with suppress(OSError, ValueError):  # what is wrong with an input is said where it is read
            if path.samefile(source):
                raise OutputError(f"cannot write '{path}': it is the input itself; choose another name")


def _progress_bar(args: argparse.Namespace) -> AbstractContextManager[Any]:
    """A callback (stage, done, total) that draws bars on a terminal, and nothing elsewhere."""
    from dawn.progress import progress_bar

    return progress_bar(hidden=args.quiet or not sys.stderr.isatty())


if __name__ == "__main__":
    sys.exit(main())

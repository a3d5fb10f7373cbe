"""The command line; the files of this folder are the only ones that print. A command imports what is heavy when it is called.

Exit codes: 0 done, 2 a request that cannot be met (one line that names the value and the remedy), 130 interrupted,
1 anything unforeseen (one line; ``--debug`` shows the traceback) or a failed ``dawn doctor``.
"""

from __future__ import annotations

import argparse
import json
import logging
import logging.handlers
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dawn import __version__
from dawn.apps.cli import arguments, research
from dawn.apps.cli.arguments import JSON, bar, check_output, given, video_options
from dawn.apps.surfaces import command_line
from dawn.errors import ConfigError, DawnError, OutputError
from dawn.options import option

if TYPE_CHECKING:
    from dawn.checks.retry import SeedScore
    from dawn.pipeline import Dawn
    from dawn.progress import Progress
    from dawn.video import Video


class Made(NamedTuple):
    """A video that a command has made, not drawn yet, and the seeds that were compared for it."""

    video: Video
    seeds: tuple[SeedScore, ...] = ()


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as done:
        return int(done.code or 0)
    except DawnError as error:  # a command whose packages are not installed has no arguments either
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    notes = _start_logging(args)
    try:
        with _terminated_like_ctrl_c(), warnings.catch_warnings():
            if not args.debug:
                warnings.simplefilter("ignore")
            code: int = args.run(args)
        notes.flush()
        return code
    except DawnError as error:
        _complain(args, _in_flags(args, str(error)))
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


def _in_flags(args: argparse.Namespace, message: str) -> str:
    """A message whose options are written as flags."""
    return command_line(vars(args)).reworded(message)


def _start_logging(args: argparse.Namespace) -> logging.handlers.MemoryHandler:
    """Warnings are held until the command has succeeded, so that a failure is one line; progress notes are not."""
    at_once = args.debug or args.command in ("train", "pack", "convert", "studio", "serve")
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
    parser = arguments.Parser(prog="dawn", description="Talking-head video from one portrait and one speech recording.")
    parser.add_argument("--version", action="version", version=f"dawn {__version__}")
    parser.set_defaults(debug=False, quiet=False)
    common = arguments.Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--debug", action="store_true", help="show tracebacks and all log messages")
    common.add_argument("--quiet", action="store_true", help="print nothing but errors")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, run, add, text in (
        ("generate", _generate, arguments.add_generate, "portrait + speech -> talking video"),
        ("drive", _drive, arguments.add_drive, "the facial motion of another video on a portrait"),
        (
            "batch",
            _batch,
            arguments.add_batch,
            "a table of portraits and recordings -> a folder of videos; again resumes",
        ),
        ("prepare", research.prepare, arguments.add_prepare, "videos -> training clips"),
        ("train", research.train, arguments.add_train, "train one part on prepared clips; the same command resumes"),
        ("pack", research.pack, arguments.add_pack, "trained parts -> a preset"),
        ("convert", research.convert, arguments.add_convert, "the authors' published files -> a preset"),
        ("evaluate", research.evaluate, arguments.add_evaluate, "measure a preset on prepared clips"),
        ("check", _check, arguments.add_check, "what portrait and speech are fit for, before time is spent"),
        ("studio", _studio, arguments.add_studio, "a page in the browser: make videos, see and edit their motion"),
        ("serve", _serve, arguments.add_serve, "an HTTP service: jobs, progress, streamed video"),
        ("plot", _plot, arguments.add_plot, "a video or motion file -> one picture of its course in time"),
        ("doctor", _doctor, lambda p: None, "versions, device, presets, and whether each part works"),
    ):
        command = commands.add_parser(name, parents=[common], help=text, description=text, fill=add)
        command.set_defaults(run=run)
    return parser


# ---------------------------------------------------------------------------------------------------------- commands


def _generate(args: argparse.Namespace) -> int:
    from dawn.media.motion_json import load_motion

    options = video_options(args)
    if args.retry > 1 and args.motion_in:
        raise ConfigError(
            f"--retry {args.retry}: --motion-in {args.motion_in} leaves nothing to try; leave one of them out"
        )
    if args.strict:
        from dawn.checks.findings import refuse_warnings
        from dawn.checks.inputs import check_inputs

        refuse_warnings(check_inputs(args.portrait, args.speech, args.preset, args.face, args.allow_silence))

    def make(model: Dawn, progress: Progress) -> Made:
        motion = load_motion(args.motion_in) if args.motion_in else None
        once = partial(model, args.portrait, args.speech, motion=motion, progress=progress, **options)
        if args.retry == 1:
            return Made(once())
        from dawn.checks.retry import pick_seed

        return Made(*pick_seed(model, once, options.get("seed", option("seed").default), args.retry, progress))

    return _render(args, make, args.portrait, args.speech)


def _drive(args: argparse.Namespace) -> int:
    def make(model: Dawn, progress: Progress) -> Made:
        return Made(model.drive(args.portrait, args.video, progress=progress, **video_options(args)))

    return _render(args, make, args.portrait, args.video)


def _render(args: argparse.Namespace, make: Callable[[Dawn, Progress], Made], *inputs: Path) -> int:
    """Check the outputs, load the model, make the video, write it, say what it took."""
    from dawn.media.writer import SUFFIXES

    check_output(args.output, SUFFIXES, *inputs)
    for path in filter(None, (args.motion_out, args.report)):
        check_output(path, JSON, *inputs)
    if args.report and args.motion_out and args.report.resolve() == args.motion_out.resolve():
        raise OutputError(f"cannot write '{args.report}' twice: give --report and --motion-out different names")
    start = time.perf_counter()
    from dawn.media.motion_json import save_motion
    from dawn.pipeline import Dawn

    model = Dawn.from_pretrained(args.preset, args.device, args.rules)
    loaded = time.perf_counter()
    with bar(args) as progress:
        video, seeds = make(model, progress)
        video.save(args.output)
    if args.motion_out:
        save_motion(video.motion, args.motion_out)
    if not args.quiet:
        _report(args.output, video, loaded - start, time.perf_counter() - loaded)
    if args.report or seeds:
        from dawn.checks.retry import report_result

        with bar(args) as progress:
            lines = report_result(video, args.output, args.report, seeds, progress)
        for line in () if args.quiet else lines:
            print(_in_flags(args, line))
    return 0


def _report(path: Path, video: Any, loading_s: float, working_s: float) -> None:
    """What was made and what it took. The rates leave the loading of the model out."""
    from dawn.progress import peak_memory_mib
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
    print(
        f"  {'total':<15} {working_s:8.2f} s without loading: {frames / working_s:.1f} frames/s, "
        f"{frames / FPS / working_s:.2f} x real time{memory}"
    )


def _batch(args: argparse.Namespace) -> int:
    from dawn.apps.batch.batch import run_batch
    from dawn.apps.batch.journal import as_json, as_table

    with bar(args) as progress:
        results = run_batch(args.jobs, args.output, args.preset, args.device, args.retry_failed, args.ray, progress)
    failed = [result for result in results if result.state == "failed"]
    if args.json or failed or not args.quiet:
        words = as_json(results) if args.json else _in_flags(args, as_table(failed if args.quiet else results))
        print(words)
    return 2 if failed else 0


def _check(args: argparse.Namespace) -> int:
    from dawn.checks.findings import LEVELS, as_json, format_findings, verdict
    from dawn.checks.inputs import check_inputs
    from dawn.media.files import write_json

    piped = str(args.json) == "-"
    if args.json and not piped:
        check_output(args.json, JSON, args.portrait, *([args.speech] if args.speech else []))
    sections = check_inputs(args.portrait, args.speech, args.preset, args.face, args.allow_silence)
    refused = LEVELS[1:] if args.strict else LEVELS[2:]
    report = as_json(sections)
    if args.json and not piped:
        write_json(args.json, report)
    if piped:
        print(json.dumps(report, indent=1))
    else:
        for line in format_findings(sections, refused[0] if args.quiet else "ok"):
            print(_in_flags(args, line))
    return 2 if verdict(sections) in refused else 0


def _plot(args: argparse.Namespace) -> int:
    from dawn.apps.plot import plot

    out = args.output or Path(f"{args.source}.png")
    check_output(out, (".png",), args.source)
    with bar(args) as progress:
        plot(args.source, out, args.preset, progress)
    if not args.quiet:
        print(out)
    return 0


def _studio(args: argparse.Namespace) -> int:
    from dawn.apps.studio.settings import StudioSettings
    from dawn.apps.studio.studio import studio

    return studio(_settings(StudioSettings, args), partial(print, flush=True))


def _serve(args: argparse.Namespace) -> int:
    from dawn.apps.serving.server import serve
    from dawn.apps.serving.settings import ServeSettings

    return serve(_settings(ServeSettings, args), partial(print, flush=True))


def _settings(kind: Any, args: argparse.Namespace) -> Any:
    """A server's settings from what was given. Raises ConfigError."""
    from dawn.config import parse

    return parse(kind, given(args, kind), f"{args.command} options")


def _doctor(args: argparse.Namespace) -> int:
    from dawn.apps.doctor import examine

    failed = 0
    for check in examine():
        failed += check.ok is False
        if not args.quiet or check.ok is False:
            mark = {True: "OK  ", False: "FAIL", None: "    "}[check.ok]
            print(f"{mark}  {check.name:<22} {check.detail}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

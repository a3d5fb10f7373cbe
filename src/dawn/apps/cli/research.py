"""Commands of research: prepare, train, pack, convert, evaluate. A part of the command line that prints as it does."""

from __future__ import annotations

import argparse
import os
from collections import Counter

from dawn import DEFAULT_PRESET
from dawn.apps.cli.arguments import JSON, bar, check_output, training_commands
from dawn.errors import ConfigError, InputError


def prepare(args: argparse.Namespace) -> int:
    """Run ``dawn prepare``: cut videos into clips, and say which were dropped and why."""
    if not 64 <= args.size <= 1024 or args.workers < 1:
        raise ConfigError(f"--size {args.size} --workers {args.workers}: give 64 to 1024 px and at least one worker")
    from dawn.preprocess import clips

    videos, people = clips.find_videos(args.videos), clips.read_people(args.people)
    reports = []
    with bar(args) as progress:
        for report in clips.prepare_clips(videos, args.videos, args.out, args.size, people, args.workers):
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


def train(args: argparse.Namespace) -> int:
    """Run ``dawn train``: train one part, and show its figures as it goes."""
    overrides = {}
    for pair in args.set:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise ConfigError(f"--set {pair!r}: write KEY=VALUE")
        overrides[key] = value
    commands = training_commands()

    def show(step: int, figures: dict[str, float]) -> None:
        if not args.quiet and os.environ.get("RANK", "0") == "0":
            print(f"step {step}  " + "  ".join(f"{key} {value:.4g}" for key, value in figures.items()), flush=True)

    step = commands.run_training(args.part, args.data, args.out, args.validation, args.audio, overrides, show)
    if not args.quiet:
        print(f"{args.part}: step {step}, in {args.out}")
    return 0


def pack(args: argparse.Namespace) -> int:
    """Run ``dawn pack``: make a preset of trained parts."""
    from dawn.config import LitePresetConfig

    parts = {part: folder for part in LitePresetConfig.PARTS if (folder := getattr(args, part)) is not None}
    training_commands().pack(args.name, parts, args.output, shares=args.shares, shown_size_px=args.size)
    if not args.quiet:
        size_mb = sum(path.stat().st_size for path in args.output.iterdir()) / 1e6
        print(f"{args.output}: preset {args.name}, {size_mb:.1f} MB")
    return 0


def convert(args: argparse.Namespace) -> int:
    """Run ``dawn convert``: make a preset of the authors' published files."""
    from dawn.research.convert import official

    config = official.convert(args.folder, args.output, args.size, args.name)
    if not args.quiet:
        size_mb = sum(path.stat().st_size for path in args.output.iterdir()) / 1e6
        print(f"{args.output}: preset {config.name}, {size_mb:.1f} MB")
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """Run ``dawn evaluate``: measure presets or finished videos, and print the report."""
    clips = [path for path in (args.clips, args.clips_too) if path]
    if args.generated and (clips or args.preset or args.also or args.takes != 1 or args.size):
        what = "clips, --preset, --also, --size and --takes"
        raise ConfigError(f"--generated {args.generated[0]}: measures finished videos; leave {what} out")
    if not args.generated and len(clips) != 1:
        raise ConfigError(f"{len(clips)} folders of prepared clips: give one, or --generated MADE REAL")
    if args.json:
        check_output(args.json, JSON)
    from dawn.media.files import write_json
    from dawn.research.evaluation.report import evaluate_folders, evaluate_preset
    from dawn.research.evaluation.table import format_report

    with bar(args) as progress:
        if args.generated:
            made, real = args.generated
            result = evaluate_folders(
                made, real, args.sface, progress, limit=args.limit, judge=args.judge, community=args.community
            )
        else:
            preset = args.preset or DEFAULT_PRESET
            result = evaluate_preset(
                preset,
                clips[0],
                args.sface,
                progress,
                also=args.also,
                limit=args.limit,
                size_px=args.size,
                takes=args.takes,
                judge=args.judge,
                community=args.community,
                device=args.device,
                rules=args.rules,
            )
    if args.json:
        write_json(args.json, result)
    if not args.quiet:
        print(format_report(result))
    return 0

"""A finding, and reports of them as JSON and as words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from dawn.errors import InputError

Level = Literal["ok", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "error")
FORMAT = "dawn-check-1"


@dataclass(frozen=True)
class Finding:
    """One thing that was measured.

    value: None where it could not be measured. unit: "" for pure numbers.
    level: "error" where generation would refuse, "warning" where the result suffers. advice: what to do, "" for ok.
    """

    name: str
    value: float | None
    unit: str
    level: Level = "ok"
    advice: str = ""


def judge_value(name: str, value: float, unit: str, bad: bool, advice: str) -> Finding:
    """Make a finding that warns, with the advice, if ``bad``."""
    return Finding(name, round(float(value), 4), unit, "warning" if bad else "ok", advice if bad else "")


@dataclass(frozen=True)
class Section:
    """All findings on one file. subject: "portrait", "speech" or "video"."""

    subject: str
    path: str
    findings: tuple[Finding, ...]

    def of(self, level: Level) -> list[Finding]:
        """List the findings of one level."""
        return [finding for finding in self.findings if finding.level == level]


def verdict(sections: Sequence[Section]) -> Level:
    """Return the worst level of all findings."""
    return max((finding.level for section in sections for finding in section.findings), key=LEVELS.index, default="ok")


def as_json(sections: Sequence[Section]) -> dict[str, object]:
    """Convert a report to plain values; a subject that was not given is None."""
    report: dict[str, object] = {"format": FORMAT, "verdict": verdict(sections), "portrait": None, "speech": None}
    for section in sections:
        report[section.subject] = {"path": section.path, "findings": [asdict(finding) for finding in section.findings]}
    return report


def format_findings(sections: Sequence[Section], least: Level = "ok") -> list[str]:
    """Write one line per finding of level ``least`` or worse, under the name of its file."""
    lines = []
    for section in sections:
        shown = [finding for finding in section.findings if LEVELS.index(finding.level) >= LEVELS.index(least)]
        if shown:
            lines.append(f"{section.subject} {section.path}")
        for finding in shown:
            value = "" if finding.value is None else f"{finding.value:.4g} {finding.unit}".rstrip()
            lines.append(f"  {finding.level:<8} {finding.name:<16} {value:<16} {finding.advice}".rstrip())
    return lines


def refuse_warnings(sections: Sequence[Section]) -> None:
    """Refuse findings that are worse than ok.

    Raises:
        InputError: There are some; the message lists them in one line.
    """
    found = [
        f"{section.subject} {finding.name}: {finding.advice}"
        for section in sections
        for finding in section.findings
        if finding.level != "ok"
    ]
    if found:
        raise InputError(f"refused for {len(found)} warning{'s' * (len(found) > 1)}: {'; '.join(found)}")

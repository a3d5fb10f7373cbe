"""Messages in the language of whoever reads them: an option is a flag, a field, a column or a labelled control.

Messages name options as Python's keyword arguments in backticks, as ``dawn.errors`` says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dawn.errors import NAMED_OPTION
from dawn.options import VideoOptions, options_of

Write = Callable[[str, str | None], str]
OPTIONS = {option.name: option for option in options_of(VideoOptions)}


@dataclass(frozen=True)
class Surface:
    """has: names of the options that can be given here. write: how a name, and its value if there is one, are written."""

    has: frozenset[str]
    write: Write

    def reworded(self, message: str) -> str:
        """The message in this surface's language.

        A remedy after a semicolon that turns an option of videos which this surface does not have is left out. Backticks
        around anything else stay as they are.
        """
        first, *others = message.split("; ")
        return "; ".join(self._written(part) for part in (first, *filter(self._serves, others)))

    def _serves(self, part: str) -> bool:
        return all(name in self.has or name not in OPTIONS for name, _ in NAMED_OPTION.findall(part))

    def _written(self, part: str) -> str:
        def write(named: re.Match[str]) -> str:
            return self.write(named[1], named[2]) if named[1] in self.has or named[1] in OPTIONS else named[0]

        return NAMED_OPTION.sub(write, part)


def command_line(flags: Iterable[str]) -> Surface:
    """flags: names of the running command's own arguments, beside the options of videos."""
    return Surface(frozenset(flags) | frozenset(OPTIONS), _flag)


def _flag(name: str, value: str | None) -> str:
    flag = f"--{name.replace('_', '-')}"
    return flag if value in (None, "True") else f"{flag} {_bare(value)}"


def _field(name: str, value: str | None) -> str:
    return name if value is None else f"{name}={value.lower() if value in ('True', 'False') else _bare(value)}"


def _label(name: str, value: str | None) -> str:
    return f"“{OPTIONS[name].control.label or name}”"


def _bare(value: str | None) -> str:
    """Python's quotes off a single word; what has blanks keeps them."""
    return re.sub(r"""^(['"])(\S*)\1$""", r"\2", value or "")


FORM = Surface(frozenset(OPTIONS), _field)
"""Fields of an HTTP form."""
TABLE = Surface(frozenset(OPTIONS) | {"preset", "motion_in"}, _field)
"""Columns of a batch's CSV."""
PAGE = Surface(frozenset(name for name, option in OPTIONS.items() if option.control.label), _label)
"""Controls of the studio."""

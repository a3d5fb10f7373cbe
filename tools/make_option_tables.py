"""Write the tables of options into the documentation, from their declarations in ``dawn.options``.

python tools/make_option_tables.py    rewrites what stands between the markers; a test checks that this changes nothing
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from dawn.apps.cli.arguments import add_generate
from dawn.apps.server_settings import ServerSettings
from dawn.apps.serving.settings import ServeSettings
from dawn.apps.serving.uploads import form_schema
from dawn.apps.studio.settings import StudioSettings
from dawn.options import Option, VideoOptions, options_of

ROOT = Path(__file__).resolve().parent.parent
BETWEEN = re.compile(r"(<!-- (options|settings) -->\n).*?(?=<!-- /\2 -->)", re.DOTALL)
OPTIONS = {option.name: option for option in options_of(VideoOptions)}
Rows = list[tuple[str, ...]]


def flags() -> Rows:
    """Of ``dawn generate``: those of the declarations, and its own."""
    parser = argparse.ArgumentParser(add_help=False)
    add_generate(parser)
    rows: Rows = [("option", "default", "range", "")]
    for action in parser._actions:
        if not action.option_strings:
            continue
        words = " ".join(action.help.split()) if action.help else ""
        flag, default, limits = max(action.option_strings, key=len), "", ""
        if told := OPTIONS.get(action.dest):
            words, default, limits, value = told.words, told.default_words, _range(told), _value(told)
        else:
            value = "" if action.nargs == 0 else str(action.metavar or action.dest[:1].upper())
            if action.default not in (None, False, argparse.SUPPRESS):
                default, words = f"`{action.default}`", words.removesuffix(" (%(default)s)")
        rows.append((f"`{flag} {value}`".replace(" `", "`"), default, limits, words))
    return rows


def arguments() -> Rows:
    """Of ``Dawn.__call__``."""
    rows: Rows = [("option", "default", "range", "")]
    for told in OPTIONS.values():
        default = told.default_words or f"`{told.default}`"
        default = f'`"{told.default}"`' if isinstance(told.default, str) else default
        limits = " or ".join(f'`"{choice}"`' for choice in told.choices)
        numbers = ["a number"] if told.number and told.choices else []
        rows.append(
            (f"`{told.name}`", default, " or ".join(filter(None, [*numbers, limits])) or told.limits, told.words)
        )
    return rows


def fields() -> Rows:
    """Of the form of the HTTP service; its files are required."""
    schema = form_schema()
    rows: Rows = [("field", "type", "default", "")]
    for name, declared in schema["properties"].items():
        told = OPTIONS.get(name)
        kind = ", ".join(filter(None, (told.kind, told.limits))) if told else "file"
        default = told.default_words or ("false" if told.truth else "") if told else "required"
        rows.append((f"`{name}`", kind, default, declared["description"]))
    return rows


def settings(kind: type[ServerSettings]) -> Rows:
    """Of a server."""
    rows: Rows = [("option", "default", "range", "")]
    for told in options_of(kind):
        value = "" if told.truth else f" {told.control.value or told.name[:1].upper()}"
        rows.append((f"`{told.flag}{value}`", told.default_words, told.limits, told.words))
    return rows


PAGES: dict[str, dict[str, Callable[[], Rows]]] = {
    "README.md": {"options": flags},
    "docs/cli.md": {"options": flags},
    "docs/api.md": {"options": arguments},
    "docs/http.md": {"options": fields, "settings": partial(settings, ServeSettings)},
    "docs/studio.md": {"settings": partial(settings, StudioSettings)},
}
"""Pages that may have tables, by the word in their markers; the flags stand where the commands are described."""


def renewed() -> Iterator[tuple[Path, str]]:
    """The pages that have markers, and their text with new tables."""
    for name, tables in PAGES.items():
        path = ROOT / name
        if path.is_file() and BETWEEN.search(text := path.read_text(encoding="utf-8")):
            yield path, BETWEEN.sub(lambda found, tables=tables: found[1] + _table(tables[found[2]]()), text)


def _table(rows: Rows) -> str:
    head, *body = rows
    lines = [head, ("---",) * len(head), *body]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _range(told: Option) -> str:
    choices = [f"`{choice}`" for choice in told.choices]
    return " or ".join(["N"] * bool(told.number and choices) + choices) or told.limits


def _value(told: Option) -> str:
    if told.truth:
        return ""
    return "N" if told.number is int else "X" if told.number else "NAME"


def main() -> None:
    for path, text in renewed():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()

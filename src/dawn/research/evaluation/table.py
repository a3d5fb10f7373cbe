"""Records → one table: as plain numbers for JSON, and as text for people."""

from __future__ import annotations

from typing import Any

from dawn.research.evaluation.figures import MEASURES
from dawn.research.evaluation.records import Columns, Rows, make_cell

NOTE = """±: half of the 95 % interval, bootstrap over clips (bounds in the JSON); in rows of a minute, over the takes.
"of real": against the true frames, tracked again. After the unit: what is wanted."""


def make_table(columns: Columns) -> Rows:
    """All measures of all columns: {group: {measure: {"unit", "better", "values": {column: cell}}}}."""
    rows: Rows = {}
    for measure in MEASURES:
        cells = {column: make_cell(measure, records) for column, records in columns.items()}
        values = {column: found for column, found in cells.items() if found is not None}
        if values:
            line = {"unit": measure.unit, "better": measure.better, "values": values}
            rows.setdefault(measure.group, {})[measure.name] = line
    return rows


def format_report(result: dict[str, Any]) -> str:
    """The result of ``report.evaluate_preset`` or ``evaluate_folders`` as a table for people."""
    stored = f", clips stored at {result['clip_px']} px" if result["clip_px"] != result["size_px"] else ""
    lines = [
        f"{result['preset']}: {result['clips']} clips, {result['frames']} frames, {result['people']} people; "
        f"{result['size_px']} px{stored}; {result['seconds']:.0f} s"
    ]
    columns = list(result["columns"])
    names = max((len(name) for group in result["rows"].values() for name in group), default=0)
    widths = {column: max(len(column), 15) for column in columns}
    for group, measures in result["rows"].items():
        lines += ["", "  ".join([f"{group:{names}}", *(f"{column:>{widths[column]}}" for column in columns)]).rstrip()]
        for name, line in measures.items():
            cells = [f"{_cell(line['values'].get(column)):>{widths[column]}}" for column in columns]
            tail = ", ".join(word for word in (line["unit"], line["better"]) if word)
            lines.append("  ".join([f"{name:{names}}", *cells, tail]).rstrip())
    lines += _long_lines(result["long"], names)
    width = max(map(len, columns))
    lines += ["", *(f"{column:{width}}  {text}" for column, text in result["columns"].items())]
    return "\n".join([*lines, "", NOTE, *result["notes"]])


def _long_lines(long: dict[str, Any] | None, names: int) -> list[str]:
    if long is None:
        return []
    title = f"{long['seconds']} s, last {long['window_seconds']} s against first {long['window_seconds']} s"
    heads = (f"{'first':>9}", f"{'last':>9}", f"{'ratio':>13}")
    lines = ["", title, f"{'':{names}}  {'  '.join(heads)}   ({long['portraits']} portraits, {long['takes']} takes)"]
    for name, line in long["rows"].items():
        ratio = None if line["ratio"] is None else {"value": line["ratio"], "interval": line["interval"]}
        cells = (f"{_number(line['first']):>9}", f"{_number(line['last']):>9}", f"{_cell(ratio):>13}")
        lines.append(f"{name:{names}}  {'  '.join(cells)}  {line['unit']}".rstrip())
    return lines


def _cell(found: dict[str, Any] | None) -> str:
    """Value and half of the interval."""
    if found is None:
        return ""
    value = _number(found["value"])
    if found.get("interval") is None:
        return value
    low, high = found["interval"]
    digits = len(value.partition(".")[2])
    return f"{value} ±{(high - low) / 2:.{digits}f}"


def _number(value: float | None) -> str:
    """Three figures and more: two to four digits behind the point, exponents for the very small."""
    if value is None:
        return ""
    size = abs(value)
    if 0 < size < 1e-3:
        return f"{value:.2e}"
    digits = 2 if size >= 10 else 3 if size >= 0.1 else 4
    return f"{value:.{digits}f}"

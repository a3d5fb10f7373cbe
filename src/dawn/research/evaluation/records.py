"""Records of measures, and the cells of a report that are made from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dawn.measures.intervals import Finish, Float64Array, bootstrap_interval, share


class Measure(NamedTuple):
    """One row of the table: ``finish`` applied to the total of the records' ``key``."""

    group: str
    name: str
    key: str
    finish: Finish = share
    unit: str = ""
    better: str = "higher"
    rounds: int = 1000


def make_cell(measure: Measure, records: Sequence[Record]) -> dict[str, Any] | None:
    """{"value", "interval"} of a measure over a column's clips; None if no clip has it or there is nothing to go by.

    No interval for a single clip.
    """
    rows = [record[measure.key] for record in records if measure.key in record]
    if not rows:
        return None
    sums = np.stack(rows)
    value = measure.finish(sums.sum(0))
    if not math.isfinite(value):
        return None
    out: dict[str, Any] = {"value": value}
    if len(rows) > 1:
        low, high = bootstrap_interval(sums, measure.finish, np.random.default_rng(0), rounds=measure.rounds)
        if math.isfinite(low):
            out["interval"] = [low, high]
    return out


Record = dict[str, Float64Array]

Columns = dict[str, list[Record]]


Rows = dict[str, dict[str, dict[str, Any]]]


def put_cell(
    rows: Rows,
    group: str,
    name: str,
    column: str,
    value: float | None,
    interval: Sequence[float] | None = None,
    unit: str = "",
    better: str = "",
) -> None:
    """Add one cell to a row, which is made if it is not there. None adds nothing."""
    if value is None:
        return
    line = rows.setdefault(group, {}).setdefault(name, {"unit": unit, "better": better, "values": {}})
    line["values"][column] = {"value": float(value)} | ({} if interval is None else {"interval": list(interval)})

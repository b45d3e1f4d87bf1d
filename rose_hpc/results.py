"""What tasks give back: a check's number, values that a record can hold, columns in the words of a record."""

from __future__ import annotations

import json
import math
from typing import Any

from rose_hpc.execution.attempt import VALUE_BYTES


def json_like(value: Any) -> bool:
    """Whether a record can hold ``value`` and give it back equal."""
    if type(value) is float:  # what most tasks give
        return math.isfinite(value)
    try:
        text = json.dumps(value, allow_nan=False)
        return len(text.encode()) <= VALUE_BYTES and bool(json.loads(text) == value)
    except (TypeError, ValueError, RecursionError):
        return False


def number(value: Any) -> float:
    """A check function's reward: its number, or the ``metric_value`` of its dict (as in ROSE)."""
    try:
        number = float(value["metric_value"] if isinstance(value, dict) else value)
    except (TypeError, ValueError, KeyError):
        raise ValueError(f"returned {value!r}, which is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"returned {number}, which is not finite")
    return number


def last_number(stdout: str) -> float:
    """A check command's reward: the last line of its output."""
    last = next((line.strip() for line in reversed(stdout.splitlines()) if line.strip()), "")
    if not last:
        raise ValueError("printed nothing, and its last line must be its number")
    try:
        number = float(last)
    except ValueError:
        raise ValueError(f"printed {last[:80]!r} as its last line, which is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"printed {last[:80]!r} as its last line, which is not finite")
    return number


def signature(columns: Any) -> dict[str, str]:
    """Columns as a record holds them: ``{"observations": "float32[4]"}``."""
    return {
        name: f"{column['dtype']}[{','.join(map(str, column['shape']))}]" if column["shape"] else str(column["dtype"])
        for name, column in sorted(columns.items())
    }


def difference(columns: dict[str, str], known: dict[str, str]) -> str:
    """Where two signatures differ first, as what the first one has."""
    for name in sorted(columns.keys() | known.keys()):
        if name not in columns:
            return f"no column {name}, unlike the {known[name]}"
        if name not in known:
            return f"a column {name} that is not among those"
        if columns[name] != known[name]:
            return f"column {name} as {columns[name]}, unlike the {known[name]}"
    return "other columns than those"


def flat(value: Any) -> list[float]:
    """The numbers in nested lists."""
    return [item for part in value for item in flat(part)] if isinstance(value, list) else [value]

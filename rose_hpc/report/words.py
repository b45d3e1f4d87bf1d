"""Numbers, times and text as a report shows them, and tolerant readers of what records hold."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

#: what no page should carry: control characters, halves of surrogate pairs, marks that turn the text's direction round
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
#: no run's figures are as large, and arithmetic stays finite
_MOST = 1e18


def clean(text: str) -> str:
    """``text`` without what is invisible or cannot be encoded; newlines and tabs stay."""
    return _UNFIT.sub("\N{REPLACEMENT CHARACTER}", text)


def real(record: Mapping[str, Any], key: str) -> float | None:
    """A number of a record; None when it is not there, not a number, or not finite."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _MOST:
        return None
    return float(value)


def at_least(record: Mapping[str, Any], key: str, least: float = 0.0) -> float:
    """The same where nothing less than ``least`` makes sense, which also stands for what is not there."""
    return max(real(record, key) or least, least)


def word(record: Mapping[str, Any], key: str) -> str:
    """The text of a field; "" when there is none."""
    value = record.get(key)
    return "" if value is None else str(value)


def number(value: float | None) -> str:
    """Four digits, or all of a whole number: ``252.8``, ``50,000``."""
    if value is None:
        return "–"  # noqa: RUF001 - the dash of an empty cell
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """``340 ms``, ``17.2 s``, ``5 min 20 s``, ``3 h 05 min``, ``2 d 3 h``."""
    if seconds is None:
        return "–"  # noqa: RUF001 - the dash of an empty cell
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def elapsed(seconds: float) -> str:
    """Round times in few letters: ``0.5 s``, ``10 min``, ``3 d 18 h``."""
    if seconds < 60:
        return f"{seconds:g} s"
    whole = round(seconds)
    parts = ((whole // 86400, "d"), (whole % 86400 // 3600, "h"), (whole % 3600 // 60, "min"), (whole % 60, "s"))
    return " ".join(f"{size} {unit}" for size, unit in parts if size)


def roughly(seconds: float) -> str:
    """A length of time in its largest unit: ``20 min``, ``3 d``."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def moment(time: float | None) -> str:
    """A Unix time, local, with its offset: ``2026-11-23 10:44:23 +0000``."""
    if time is None:
        return "–"  # noqa: RUF001 - the dash of an empty cell
    try:
        return datetime.fromtimestamp(time).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    except (OverflowError, ValueError, OSError):
        return f"{time:g} (not a time)"


def count(quantity: int, thing: str, things: str = "") -> str:
    """``1 node``, ``2 nodes``."""
    return f"{quantity:,} {thing if quantity == 1 else things or thing + 's'}"


def parameters(values: Mapping[str, Any]) -> str:
    """An environment's parameters in one line: ``epsilon=0.05, size=3``."""
    return ", ".join(f"{key}={value}" for key, value in values.items())


def mean(values: list[float]) -> float | None:
    """Their mean; None of none."""
    return math.fsum(values) / len(values) if values else None

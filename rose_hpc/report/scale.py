"""From figures to places on paper: ticks, scales, and fewer points that still tell the truth. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

#: steps between ticks of a clock, seconds
_CLOCK = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """A straight one: ``low`` is at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where ``value`` is."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class Piece:
    """A part of a broken scale; ``idle``: time in which nobody worked, shorter on paper than it was."""

    low: float
    high: float
    start: float
    end: float
    idle: bool


@dataclass(frozen=True)
class BrokenScale:
    """Straight pieces, one after the other; values outside are at its ends."""

    pieces: tuple[Piece, ...]

    def __call__(self, value: float) -> float:
        """Where ``value`` is."""
        for piece in self.pieces:
            if value <= piece.high:
                part = (value - piece.low) / (piece.high - piece.low) if piece.high > piece.low else 0.0
                return piece.start + max(0.0, part) * (piece.end - piece.start)
        return self.pieces[-1].end


def padded(low: float, high: float, part: float = 0.06) -> tuple[float, float]:
    """A range with some air, and never empty."""
    air = (high - low) * part or abs(high) * 0.1 or 1.0
    return low - air, high + air


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values in a range: 1, 2 or 5 times a power of ten apart, at most ``most``."""
    rough = (high - low) / most
    if not rough > 0 or low + rough == low:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((factor * power for factor in (1, 2, 5) if factor * power >= rough), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12 - math.floor(math.log10(step))) for k in range(first, last + 1)]


def whole_ticks(low: int, high: int, most: int = 10) -> list[int]:
    """The same for what is counted."""
    return sorted(
        {round(tick) for tick in ticks(low, max(high, low + 1), most) if tick == int(tick)} & {*range(low, high + 1)}
    )


def clock_step(rough: float) -> float:
    """The round number of seconds that is not less."""
    return next((step for step in _CLOCK if step >= rough), 86400 * math.ceil(rough / 86400))


def clock_ticks(low: float, high: float, step: float) -> list[float]:
    """The multiples of ``step`` in a range of seconds."""
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def broken(spans: Sequence[Point], stops: Sequence[float], start: float, end: float, gap: float = 40.0) -> BrokenScale:
    """A scale on which time between ``spans`` takes ``gap`` where it is longer than a quarter of them together.

    Args:
        spans: when somebody worked, in order.
        stops: further moments: the first and last of all there is, and where time between spans is divided.
        start, end: where the paper begins and ends.
        gap: the place of a break.
    """
    parts = _parts(spans, stops)
    worked = sum(high - low for low, high, busy in parts if busy)
    breaks = [not busy and high - low > worked / 4 for low, high, busy in parts]
    gap = min(gap, (end - start) / 3 / max(1, sum(breaks)))
    straight = sum(high - low for (low, high, _), is_break in zip(parts, breaks, strict=True) if not is_break)
    unit = (end - start - gap * sum(breaks)) / (straight or 1.0)
    pieces, place = [], start
    for (low, high, _), is_break in zip(parts, breaks, strict=True):
        width = gap if is_break else (high - low) * unit
        pieces.append(Piece(low, high, place, place + width, is_break))
        place += width
    return BrokenScale(tuple(pieces))


def _parts(spans: Sequence[Point], stops: Sequence[float]) -> list[tuple[float, float, bool]]:
    """Time from the first moment to the last in parts: (begin, end, whether somebody worked)."""
    first, last = min((*stops, *(low for low, _ in spans))), max((*stops, *(high for _, high in spans)))
    parts: list[tuple[float, float, bool]] = []
    now = first
    for low, high in (*spans, (last, last)):
        edges = [now, *sorted(stop for stop in set(stops) if now < stop < low), max(now, low)]
        parts += [(a, b, False) for a, b in pairwise(edges)]
        parts.append((edges[-1], max(edges[-1], high), True))
        now = parts[-1][1]
    return [part for part in parts if part[1] > part[0]] or [(first, first + 1.0, True)]


def thinned(points: Sequence[Point], bins: int) -> list[Point]:
    """At most ``2 * bins + 2`` of the points: first, last, and of each bin the least and the greatest, in order."""
    if len(points) <= 2 * bins + 2:
        return list(points)
    kept = {0, len(points) - 1}
    for k in range(bins):
        part = range(k * len(points) // bins, (k + 1) * len(points) // bins)
        kept |= {min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])}
    return [points[k] for k in sorted(kept)]


def binned(count: int, most: int) -> list[range]:
    """``range(count)`` in at most ``most`` parts, equal but for one."""
    bins = min(count, most)
    return [range(k * count // bins, (k + 1) * count // bins) for k in range(bins)]


def occupancy(spans: Sequence[Point], low: float, high: float, bins: int) -> list[float]:
    """How many of ``spans`` there are at once, the mean over each of ``bins`` equal parts of a range."""
    width = (high - low) / bins
    total = [0.0] * bins
    if width <= 0:
        return total
    for start, end in spans:
        first, last = (min(bins - 1, max(0, int((moment - low) / width))) for moment in (start, end))
        for k in range(first, last + 1):
            left = low + k * width
            total[k] += max(0.0, min(end, left + width) - max(start, left))
    return [seconds / width for seconds in total]

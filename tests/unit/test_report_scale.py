"""From figures to places on paper: nothing is lost, moved or made up."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rose_hpc.report import words
from rose_hpc.report.scale import Scale, binned, broken, clock_step, clock_ticks, occupancy, thinned, ticks, whole_ticks

values = st.floats(-1e12, 1e12)


@given(low=values, size=st.floats(1e-6, 1e12), most=st.integers(3, 12))
def test_ticks_are_round_and_few(low, size, most):
    """Ticks are in the range, in order, evenly spaced, and at most one more than asked for."""
    high = low + size
    found = ticks(low, high, most)
    assert 1 <= len(found) <= most + 1
    air = 1e-6 * max(abs(low), abs(high), size)
    assert all(low - air <= tick <= high + air for tick in found)
    steps = [b - a for a, b in pairwise(found)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-3, abs_tol=air) for step in steps)


def test_ticks_as_people_write_them():
    """The steps are 1, 2 or 5 times a power of ten; iterations are whole."""
    assert ticks(0, 260) == [0, 50, 100, 150, 200, 250]
    assert ticks(-0.3, 0.31) == [-0.2, 0, 0.2]
    assert whole_ticks(0, 1) == [0, 1]
    assert whole_ticks(0, 9) == list(range(10))
    assert whole_ticks(3, 1999)[-1] == 1800


def test_ticks_of_nothing():
    """A range without size, or too small to be told apart, has one tick."""
    assert ticks(3, 3) == [3]
    assert ticks(1e15, 1e15 + 0.1) == [1e15]


def test_clock_ticks_are_round_times():
    """Steps of a clock are what a clock shows: 5 s, 30 s, 15 min, 6 h, days."""
    assert [clock_step(rough) for rough in (0.3, 4, 16, 700, 20000, 90000)] == [0.5, 5, 30, 900, 21600, 172800]
    assert clock_ticks(31, 100, 30) == [60, 90]


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(0.01, 1e5)), min_size=1, max_size=8), st.data())
def test_a_broken_scale_keeps_the_order(lengths, data):
    """Later is never further left, work is to one scale, and all of it is on the paper."""
    spans, now = [], 0.0
    for gap, length in lengths:
        spans.append((now + gap, now + gap + length))
        now += gap + length
    stops = data.draw(st.lists(st.floats(0, max(now, 1.0)), max_size=4))
    scale = broken(spans, [0.0, *stops], 100.0, 900.0)
    assert [scale.pieces[0].start, round(scale.pieces[-1].end, 6)] == [100.0, 900.0]
    moments = sorted([0.0, *stops, *(moment for span in spans for moment in span)])
    places = [scale(moment) for moment in moments]
    assert all(a <= b + 1e-6 for a, b in pairwise(places))
    units = [(scale(high) - scale(low)) / (high - low) for low, high in spans if high - low > now / 1000]
    assert all(math.isclose(unit, units[0], rel_tol=1e-3) for unit in units)


def test_a_long_gap_is_short_on_paper():
    """Three days between two hours of work take the place of a break, in two parts where a job was submitted."""
    hour, day = 3600.0, 86400.0
    spans = [(0.0, hour), (3 * day, 3 * day + hour)]
    scale = broken(spans, [0.0, 2 * day], 0.0, 900.0)
    assert [piece.idle for piece in scale.pieces] == [False, True, True, False]
    assert [round(piece.end - piece.start) for piece in scale.pieces] == [410, 40, 40, 410]
    assert scale(2 * day) == pytest.approx(450)


def test_a_scale_of_no_time_at_all():
    """A run with one moment has a place for it."""
    assert broken([(5.0, 5.0)], [5.0], 10.0, 20.0)(5.0) == 10.0
    assert Scale(0, 10, 100, 0)(2.5) == 75


@given(st.lists(values, min_size=1, max_size=3000), st.integers(1, 400))
def test_thinning_keeps_what_stands_out(heights, bins):
    """Fewer points have the same first, last, least and greatest, in their order, and none that was not there."""
    points = [(float(k), height) for k, height in enumerate(heights)]
    kept = thinned(points, bins)
    assert len(kept) <= 2 * bins + 2
    assert kept == sorted(set(kept) & set(points))
    assert {kept[0], kept[-1]} == {points[0], points[-1]}
    assert {min(y for _, y in kept), max(y for _, y in kept)} == {min(heights), max(heights)}


@given(st.integers(1, 5000), st.integers(1, 300))
def test_bins_hold_each_once(count, most):
    """Bins cover every iteration exactly once, in order, none empty."""
    bins = binned(count, most)
    assert len(bins) == min(count, most)
    assert [k for part in bins for k in part] == list(range(count))
    assert max(map(len, bins)) - min(map(len, bins)) <= 1


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50)), max_size=30), st.integers(1, 60))
def test_occupancy_is_time_spent(spans, bins):
    """What a curve of occupancy encloses is the time that was spent inside the range."""
    spans = [(start, start + length) for start, length in spans]
    curve = occupancy(spans, 10.0, 90.0, bins)
    inside = sum(max(0.0, min(end, 90) - max(start, 10)) for start, end in spans)
    assert sum(curve) * 80 / bins == pytest.approx(inside, abs=1e-6)
    assert all(-1e-9 <= value <= len(spans) + 1e-9 for value in curve)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "\u2013"),
        (0.0004, "0 ms"),
        (0.34, "340 ms"),
        (0.9999, "1.0 s"),
        (17.23, "17.2 s"),
        (59.96, "1 min 00 s"),
        (3599.7, "1 h 00 min"),
        (11100, "3 h 05 min"),
        (183600, "2 d 3 h"),
    ],
)
def test_durations_in_words(seconds, text):
    """A duration has two units at most, and is never rounded to 60 of one."""
    assert words.duration(seconds) == text


def test_numbers_and_times_in_words():
    """Numbers have four digits or are whole; a time that is none says so instead of raising."""
    assert [words.number(value) for value in (252.75, 50000, 0.000123456, -1e15, 123456.7)] == [
        *("252.8", "50,000", "0.0001235", "-1e+15", "123,457"),
    ]
    assert words.moment(1e17) == "1e+17 (not a time)"
    assert [words.elapsed(value) for value in (0.5, 600, 86400 * 3 + 64800)] == ["0.5 s", "10 min", "3 d 18 h"]
    assert [words.roughly(value) for value in (12.2, 1190, 8000, 260000)] == ["12 s", "20 min", "2 h", "3 d"]


@pytest.mark.parametrize("value", [None, "7", True, [1], float("inf"), 10**400, {}])
def test_what_is_no_number_is_none(value):
    """A field that should hold a number and does not is taken as missing."""
    assert words.real({"rows": value}, "rows") is None
    assert words.at_least({"rows": value}, "rows") == 0.0

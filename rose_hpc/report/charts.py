"""The charts of a report: reward, returns, parameters, where the time goes, rows and speed. History in, picture out."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from rose_hpc.report.history import LATELY, EnvironmentFacts, Iteration
from rose_hpc.report.scale import Point, binned, padded, thinned, ticks, whole_ticks
from rose_hpc.report.svg import WIDTH, Plot, add, hint, line, picture, plot, steps
from rose_hpc.report.words import clean, count, duration, mean, number

STAGES = ("collect", "merge", "update", "check", "other")
#: columns of paper, and the most marks that are drawn one by one
_COLUMNS, _MARKS, _BARS = 850, 1000, 120
#: the most lines that can be told apart
MOST_LINES = 8
_LEVELS = 7


@dataclass(frozen=True)
class Subject:
    """What a chart of several lines is about: its id, whose lines they are, and what they show."""

    name: str
    thing: str
    what: str
    axis: str
    latest: str
    value: Callable[[EnvironmentFacts], float | None]


RETURNS = Subject(
    "returns", "environment", "return", "mean return of an episode", f"return (last {LATELY})", lambda each: each.lately
)


def reward_chart(iterations: Sequence[Iteration], metric: str, operator: str, resumed: Sequence[int]) -> Element:
    """Reward against iteration, the best so far, and the threshold as it was when each was compared with it."""
    points = [(float(each.number), each.reward) for each in iterations if each.reward is not None]
    limits = [(float(each.number), each.threshold) for each in iterations if each.threshold is not None]
    values = [value for _, value in (*points, *limits)]
    about = f"{count(len(points), 'reward')} from {number(min(values))} to {number(max(values))}"
    svg = picture("reward-chart", f"{metric} against iteration", about, 340)
    last = max(1.0, points[-1][0])
    chart = plot(svg, (0.0, last), padded(min(values), max(values)), (64, 34, WIDTH - 120, 290))
    _axes(chart, int(points[0][0] if len(points) == 1 else 0), int(last), metric)
    for number_ in resumed:
        place = chart.x(number_)
        mark = add(svg, "line", class_="resumed", x1=place, x2=place, y1=chart.y.end, y2=chart.y.start)
        hint(mark, f"another driver went on here, at iteration {number_}")
    _threshold(chart, limits, operator)
    best = steps([(chart.x(x), chart.y(y)) for x, y in _best(points, operator)], chart.x.end)
    hint(add(svg, "path", class_="best", d=best), "best so far")
    shown = thinned(points, _COLUMNS)
    add(svg, "path", class_="reward", d=line([(chart.x(x), chart.y(y)) for x, y in shown]))
    for x, y in points if len(points) <= _MARKS else []:
        radius = 3.5 if len(points) <= 150 else 1.6
        mark = add(svg, "circle", class_="mark", cx=chart.x(x), cy=chart.y(y), r=radius, data_value=f"{y!r}")
        hint(mark, f"iteration {x:.0f}: {number(y)}")
    _end_label(chart, points[-1][1], number(points[-1][1]), "reward-label")
    return svg


def _threshold(chart: Plot, limits: Sequence[Point], operator: str) -> None:
    changes = [entry for k, entry in enumerate(limits) if k == 0 or entry[1] != limits[k - 1][1]]
    if not changes:
        return
    places = [(chart.x(x if k else chart.x.low), chart.y(y)) for k, (x, y) in enumerate(changes)]
    said = ", then ".join(number(y) for _, y in changes[-5:])
    mark = add(chart.svg, "path", class_="threshold", d=steps(places, chart.x.end), data_value=f"{changes[-1][1]!r}")
    hint(mark, f"threshold: {operator} {said}")
    for (x, y), (_, limit) in list(zip(places, changes, strict=True))[-5:]:
        text = f"threshold {operator} {number(limit)}"
        add(chart.svg, "text", text, class_="threshold-label", x=min(x + 6, chart.x.end - 120), y=y - 6)


def _best(points: Sequence[Point], operator: str) -> list[Point]:
    sign = -1 if operator.startswith("<") else 1
    found: list[Point] = []
    for x, y in points:
        if not found or sign * y > sign * found[-1][1]:
            found.append((x, y))
    return found


def returns_chart(environments: Sequence[EnvironmentFacts], last: int, subject: Subject = RETURNS) -> Element:
    """Mean return of each environment's episodes: a line for each where there are few, else a map."""
    with_any = [each for each in environments if each.returns]
    name, title = f"{subject.name}-chart", f"{subject.what.capitalize()} by {subject.thing}"
    if len(with_any) > MOST_LINES:
        rows = [(_label(each), each.returns) for each in with_any]
        return heat_map(name, f"{title} and iteration", rows, last, number)
    values = [value for each in with_any for value in each.returns.values()]
    about = (
        f"{count(len(with_any), subject.thing)}, {subject.what}s from {number(min(values))} to {number(max(values))}"
    )
    svg = picture(name, title, about, 320)
    chart = plot(svg, (0.0, float(max(1, last))), padded(min(values), max(values)), (64, 34, WIDTH - 200, 270))
    _axes(chart, 0, max(1, last), subject.axis)
    ends = []
    for index, each in enumerate(with_any):
        points = [(float(key), each.returns[key]) for key in sorted(each.returns)]
        path = line([(chart.x(x), chart.y(y)) for x, y in thinned(points, _COLUMNS)])
        hint(add(svg, "path", class_=f"series s{index}", d=path), f"{_label(each)}: lately {number(each.lately)}")
        for x, y in points if len(points) <= 60 else []:
            mark = add(svg, "circle", class_=f"dot s{index}", cx=chart.x(x), cy=chart.y(y), r=2.5)
            hint(mark, f"{_label(each)}, iteration {x:.0f}: {number(y)}")
        ends.append((chart.y(points[-1][1]), index, _label(each)))
    for place, index, label in _apart(ends, 15.0):
        add(svg, "text", label[:26], class_=f"series-label s{index}", x=chart.x.end + 8, y=place + 4)
    return svg


def _apart(labels: Iterable[tuple[float, int, str]], least: float) -> list[tuple[float, int, str]]:
    """Labels moved down until none covers another."""
    placed: list[tuple[float, int, str]] = []
    for place, index, label in sorted(labels):
        placed.append((max(place, placed[-1][0] + least) if placed else place, index, label))
    return placed


def parameter_chart(
    environments: Sequence[EnvironmentFacts], key: str, index: int, subject: Subject = RETURNS
) -> Element:
    """What environments returned lately against one parameter: a dot for each, and a line through the means."""
    found = [(each.parameters[key], subject.value(each), each) for each in environments if key in each.parameters]
    known = [(value, lately, each) for value, lately, each in found if lately is not None]
    order = _in_order(value for value, _, _ in known)
    values = [lately for _, lately, _ in known]
    between = f"{subject.what}s from {number(min(values))} to {number(max(values))}"
    about, title = f"{count(len(order), 'value')} of {key}, {between}", f"{subject.what.capitalize()} against {key}"
    svg = picture(f"parameter-chart-{index}", title, about, 260, WIDTH / 2 - 10)
    chart = plot(svg, (-0.5, len(order) - 0.5), padded(min(values), max(values)), (64, 34, WIDTH / 2 - 26, 210))
    every = -(-len(order) // 8)
    across = [(float(k), value[:12]) for k, value in enumerate(order) if k % every == 0]
    chart.axes(across, _up(chart), (clean(key), subject.latest))
    means = []
    for k, value in enumerate(order):
        here = [(lately, each) for other, lately, each in known if _word(other) == value]
        means.append((chart.x(k), chart.y(mean([lately for lately, _ in here]) or 0.0)))
        for lately, each in here:
            mark = add(svg, "circle", class_="mark", cx=chart.x(k), cy=chart.y(lately), r=4)
            hint(mark, f"{_label(each)}: {number(lately)}")
    add(svg, "path", class_="best", d=line(means))
    return svg


def _in_order(values: Iterable[object]) -> list[str]:
    """Numbers by size, other values as they come."""
    distinct = list({_word(value): value for value in values}.items())
    if all(isinstance(value, int | float) for _, value in distinct):
        distinct.sort(key=lambda entry: float(str(entry[1])) if not isinstance(entry[1], bool) else float(entry[1]))
    return [text for text, _ in distinct]


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _label(environment: EnvironmentFacts) -> str:
    given = ", ".join(f"{key}={value}" for key, value in environment.parameters.items())
    return f"{environment.name} ({given})" if given else environment.name


def heat_map(
    name: str, title: str, rows: Sequence[tuple[str, Mapping[int, float]]], last: int, say: Callable[[float], str]
) -> Element:
    """A row for each environment, a column for each iteration (or the mean of some), a colour for how much."""
    bins = binned(last + 1, 160)
    cells = [[mean([own[k] for k in part if k in own]) for part in bins] for _, own in rows]
    known = sorted(value for row in cells for value in row if value is not None)
    low, high = known[len(known) // 50], known[-1 - len(known) // 50]  # one odd value must not hide the others
    height = max(4.0, min(16.0, 480 / len(rows)))
    bottom = 30 + height * len(rows)
    svg = picture(name, title, f"from {say(known[0])} to {say(known[-1])}", bottom + 62)
    chart = plot(svg, (0.0, float(last + 1)), (0.0, float(len(rows))), (190, 30, WIDTH - 16, bottom))
    paths: list[list[str]] = [[] for _ in range(_LEVELS)]
    for index, row in enumerate(cells):
        for level, first, end in _runs(row, low, high):
            x, right = chart.x(bins[first].start), chart.x(bins[end].stop)
            paths[level].append(f"M{x:.1f} {30 + index * height:.1f}h{right - x:.1f}v{height:.1f}h{x - right:.1f}z")
    for level, path in enumerate(paths):
        bounds = (low + (high - low) * level / _LEVELS, low + (high - low) * (level + 1) / _LEVELS)
        if path:
            mark = add(svg, "path", class_=f"heat h{level}", d="".join(path))
            hint(mark, f"{say(bounds[0])} to {say(bounds[1])}")
    every = -(-14 // int(height)) if height < 14 else 1
    for index, (label, _) in enumerate(rows):
        if index % every == 0:
            place = 30 + (index + 0.5) * height + 4
            hint(add(svg, "text", label[:30], class_="end small", x=182, y=place), label)
    for tick in whole_ticks(0, last):
        add(svg, "text", str(tick), class_="middle", x=chart.x(tick + 0.5), y=bottom + 18)
    add(svg, "text", "iteration", class_="middle label", x=(chart.x.start + chart.x.end) / 2, y=bottom + 36)
    _heat_key(svg, say(low), say(high), bottom + 46)
    return svg


def _runs(row: Sequence[float | None], low: float, high: float) -> list[tuple[int, int, int]]:
    """Neighbours of one level: (level, first, last); values that are not there are in none."""
    found: list[tuple[int, int, int]] = []
    for k, value in enumerate(row):
        if value is None:
            continue
        part = (value - low) / (high - low) if high > low else 0.5
        level = min(_LEVELS - 1, max(0, int(part * _LEVELS)))
        if found and found[-1][0] == level and found[-1][2] == k - 1:
            found[-1] = (level, found[-1][1], k)
        else:
            found.append((level, k, k))
    return found


def _heat_key(svg: Element, low: str, high: str, top: float) -> None:
    add(svg, "text", low, class_="end small", x=182, y=top + 9)
    for level in range(_LEVELS):
        add(svg, "path", class_=f"heat h{level}", d=f"M{190 + level * 18} {top:.1f}h18v10h-18z")
    add(svg, "text", f"{high} and more", class_="small", x=198 + _LEVELS * 18, y=top + 9)


def time_chart(iterations: Sequence[Iteration]) -> Element:
    """Seconds of each iteration by stage, one on the other; the mean of some where there are many."""
    bins = binned(len(iterations), _BARS)
    bars = [_mean_seconds([iterations[k] for k in part]) for part in bins]
    highest = max(sum(bar.values()) for bar in bars)
    svg = picture("time-chart", "Where the time goes", f"up to {duration(highest)} an iteration", 290)
    chart = plot(svg, (0.0, float(len(iterations))), (0.0, highest * 1.05 or 1.0), (64, 34, WIDTH - 16, 240))
    shift = iterations[0].number
    across = [(tick - shift + 0.5, str(tick)) for tick in whole_ticks(shift, iterations[-1].number)]
    chart.axes(across, _up(chart), ("iteration", "seconds"))
    for part, bar in zip(bins, bars, strict=True):
        base, left, right = 0.0, chart.x(part.start), chart.x(part.stop)
        air = min(3.0, (right - left) / 5)
        for stage in STAGES:
            if seconds := bar.get(stage, 0.0):
                top, foot = chart.y(base + seconds), chart.y(base)
                box = add(
                    svg, "rect", class_=stage, x=left + air / 2, y=top, width=right - left - air, height=foot - top
                )
                hint(box, f"{_which(iterations, part)}: {stage} {duration(seconds)}")
                base += seconds
    return svg


def _mean_seconds(some: Sequence[Iteration]) -> dict[str, float]:
    return {stage: sum(each.seconds.get(stage, 0.0) for each in some) / len(some) for stage in STAGES}


def _which(iterations: Sequence[Iteration], part: range) -> str:
    first, last = iterations[part.start].number, iterations[part.stop - 1].number
    return f"iteration {first}" if first == last else f"iterations {first} to {last}, mean"


def amount_chart(name: str, title: str, label: str, amounts: Sequence[tuple[int, float]]) -> Element:
    """A figure of each iteration as a line of dots, with its median; of many, extremes are kept."""
    points = [(float(key), value) for key, value in amounts]
    middle, greatest = statistics.median(value for _, value in points), max(value for _, value in points)
    svg = picture(name, title, f"median {number(middle)}, up to {number(greatest)}", 250, WIDTH / 2 - 10)
    last = max(1.0, points[-1][0])
    chart = plot(svg, (0.0, last), (0.0, greatest * 1.1 or 1.0), (70, 34, WIDTH / 2 - 26, 200))
    _axes(chart, 0, int(last), label)
    add(svg, "line", class_="median", x1=chart.x.start, x2=chart.x.end, y1=chart.y(middle), y2=chart.y(middle))
    shown = thinned(points, _COLUMNS // 2)
    add(svg, "path", class_="amount", d=line([(chart.x(x), chart.y(y)) for x, y in shown]))
    for x, y in shown if len(shown) <= 120 else []:
        mark = add(svg, "circle", class_="mark", cx=chart.x(x), cy=chart.y(y), r=2.5)
        hint(mark, f"iteration {x:.0f}: {number(y)}")
    return svg


def _axes(chart: Plot, first: int, last: int, label: str) -> None:
    across = [(float(tick), str(tick)) for tick in whole_ticks(first, last)]
    chart.axes(across, _up(chart), ("iteration", label))


def _up(chart: Plot) -> list[tuple[float, str]]:
    return [(tick, number(tick)) for tick in ticks(chart.y.low, chart.y.high)]


def _end_label(chart: Plot, value: float, text: str, class_: str) -> None:
    add(chart.svg, "text", text, class_=class_, x=chart.x.end + 10, y=chart.y(value) + 4)

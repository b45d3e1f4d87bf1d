"""The timeline as pictures: jobs, stages and ranks over time; of a long run, its shape and some iterations in full."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.etree.ElementTree import Element

from rose_hpc.report.scale import BrokenScale, Piece, broken, clock_step, clock_ticks, occupancy
from rose_hpc.report.svg import WIDTH, add, hint, picture
from rose_hpc.report.timeline import Bar, Driver, Timeline, slots
from rose_hpc.report.words import count, duration, elapsed, number, roughly

#: a run with more ranks than this is drawn as its shape, and some of its iterations in full
MOST_RANKS = 1500
#: lanes of jobs, nodes and ranks in one picture
_JOBS, _NODES, _LANES = 24, 40, 160
_BINS = 400
#: of the paper, between two labels of the clock
_CLOCK_ROOM = 84.0

_PARTS = re.compile(r"([^0-9]*)([0-9]{0,18})")
Place = Callable[[float], float]


@dataclass
class _Paper:
    """A picture that grows downwards, lane by lane; its lanes go from ``left`` to ``right``."""

    svg: Element
    x: Place
    left: float
    right: float
    y: float = 34.0

    def lane(self, label: str, height: float) -> float:
        """A new lane with its label; its top."""
        top = self.y
        add(self.svg, "text", label[:22], class_="end small", x=self.left - 8, y=top + min(height, 14.0) - 2)
        self.y += height
        return top

    def heading(self, text: str) -> None:
        """A line of words above lanes."""
        self.y += 8
        add(self.svg, "text", text, class_="lane-heading", x=8, y=self.y + 10)
        self.y += 16

    def bar(self, bar: Bar, top: float, height: float, text: str) -> None:
        """A bar on a lane, at least a hair wide."""
        left, right = self.x(bar.start), self.x(bar.end)
        right -= 0.7 if right - left > 3 else 0.0  # so that neighbours can be told apart
        box = add(self.svg, "rect", class_=bar.kind, x=left, y=top, width=max(0.8, right - left), height=height)
        hint(box, text)


def overview(timeline: Timeline) -> Element:
    """Jobs, stages and nodes over the whole run; every rank where they are few enough."""
    spans = [(driver.began, driver.ended) for driver in timeline.drivers]
    left, right = 150.0, WIDTH - 14
    scale = broken(spans, [timeline.start, timeline.end, *(bar.start for bar in timeline.queue)], left, right)
    about = f"{count(len(timeline.ranks), 'rank')} over {duration(timeline.end - timeline.start)}"
    paper = _Paper(picture("timeline-chart", "Timeline of jobs, stages and ranks", about, 100), scale, left, right)
    _jobs(paper, timeline)
    if timeline.stages:
        _stages(paper, timeline, spans)
    if len(timeline.ranks) <= MOST_RANKS:
        _ranks(paper, timeline.ranks, with_iteration=True)
    else:
        _nodes(paper, timeline, scale)
    _clock(paper, scale.pieces, timeline.start)
    return _finished(paper)


def iteration_chart(timeline: Timeline, number_: int, why: str) -> Element:
    """The ranks and stages of one iteration."""
    part = timeline.of(number_)
    bars = [*part.ranks, *part.stages]
    low, high = min(bar.start for bar in bars), max(bar.end for bar in bars)
    left, right, width = 80.0, WIDTH / 2 - 24, WIDTH / 2 - 10
    piece = Piece(low, max(high, low + 1e-3), left, right, False)
    about = f"iteration {number_}, {why}: {count(len(part.ranks), 'rank')} in {duration(high - low)}"
    svg = picture(f"iteration-chart-{number_}", f"Ranks and stages of iteration {number_}", about, 100, width)
    add(svg, "text", about, x=8, y=12)
    paper = _Paper(svg, BrokenScale((piece,)), left, right)
    _stages(paper, part, [])
    _ranks(paper, part.ranks, with_iteration=False)
    _clock(paper, (piece,), low)
    return _finished(paper)


def _jobs(paper: _Paper, timeline: Timeline) -> None:
    paper.heading("jobs and drivers")
    waiting = {bar.who: bar for bar in timeline.queue}
    lanes = [(driver, waiting.pop(driver.job, None)) for driver in timeline.drivers[:_JOBS]]
    for driver, queued in lanes:
        top = paper.lane(f"job {driver.job}" if driver.job else str(driver.record.get("host", "driver")), 18)
        if queued is not None:
            paper.bar(queued, top, 13, f"job {driver.job} waited {duration(queued.seconds)}")
        what = _driver_words(driver)
        paper.bar(Bar(driver.began, driver.ended, "driver", driver.job), top, 13, what)
    for bar in list(waiting.values())[: _JOBS - len(lanes)]:
        top = paper.lane(f"job {bar.who}", 18)
        paper.bar(bar, top, 13, f"job {bar.who} was submitted; no driver has begun in it")
    hidden = len(timeline.drivers) - len(lanes) + max(0, len(waiting) - _JOBS + len(lanes))
    if hidden:
        paper.heading(f"... and {hidden} more, in the table below")


def _driver_words(driver: Driver) -> str:
    where = f"job {driver.job}, {count(driver.nodes, 'node')}" if driver.job else f"on {driver.record.get('host')}"
    return f"driver {where}: {duration(driver.ended - driver.began)}" + (f", {driver.end}" if driver.end else "")


def _stages(paper: _Paper, timeline: Timeline, spans: Sequence[tuple[float, float]]) -> None:
    paper.heading("stages")
    top = paper.lane("", 18)
    bars = [bar for bar in timeline.stages if bar.kind != "between"]
    if len(bars) > MOST_RANKS:
        bars = list(_shares(bars, paper.x, spans))
    for bar in bars:
        node = f" on {bar.node}" if bar.node else ""
        said = f"{bar.kind}, iteration {bar.iteration}{node}: {duration(bar.seconds)}"
        paper.bar(bar, top, 14, bar.who if bar.iteration < 0 else said)


def _shares(bars: Sequence[Bar], x: Place, spans: Sequence[tuple[float, float]]) -> Iterable[Bar]:
    """The stages of a long run: in each short span of time, one after the other, each as wide as its share."""
    for low, high in spans:
        bins = max(1, int((x(high) - x(low)) / 12))
        inside = [bar for bar in bars if bar.start < high and bar.end > low]
        kinds = sorted({bar.kind for bar in inside}, key=_ORDER.index)
        parts = {k: occupancy([(b.start, b.end) for b in inside if b.kind == k], low, high, bins) for k in kinds}
        width = (high - low) / bins
        for index in range(bins):
            start = low + index * width
            for kind in kinds:
                if share := min(1.0, parts[kind][index]):
                    yield Bar(start, start + share * width, kind, f"{kind}: {share:.0%} of this time")
                    start += share * width


_ORDER = ("starting", "collect", "merge", "update", "check", "failed", "between")


def _by_node(bars: Iterable[Bar]) -> list[tuple[str, list[Bar]]]:
    found: dict[str, list[Bar]] = {}
    for bar in bars:
        found.setdefault(bar.node or "node not known", []).append(bar)
    return [(node, found[node]) for node in sorted(found, key=_natural)]


def _natural(name: str) -> list[tuple[str, int]]:
    """So that n2 comes before n10."""
    return [(letters, int(digits or 0)) for letters, digits in _PARTS.findall(name)]


def _ranks(paper: _Paper, ranks: Sequence[Bar], *, with_iteration: bool) -> None:
    """A lane for each rank a node ran at once, as far as there is room."""
    placed = [(node, slot, bar) for node, own in _by_node(ranks) for slot, bar in slots(own)]
    lanes = sorted({(node, slot) for node, slot, _ in placed}, key=lambda lane: (_natural(lane[0]), lane[1]))
    height = 15.0 if len(lanes) <= 24 else 6.0
    tops: dict[tuple[str, int], float] = {}
    for node, group in groupby(lanes[:_LANES], key=lambda lane: lane[0]):
        own = list(group)
        if height > 8:
            paper.heading(f"{node}: {count(sum(lane[0] == node for lane in lanes), 'rank')} at once")
        else:
            paper.y += 4
        for lane in own:
            label = f"slot {lane[1] + 1}" if height > 8 else node if lane == own[0] else ""
            tops[lane] = paper.lane(label, height)
        paper.y = max(paper.y, tops[own[0]] + 12)
    for node, slot, bar in placed:
        if (top := tops.get((node, slot))) is not None:
            it = f", iteration {bar.iteration}" if with_iteration else ""
            rows = "failed" if bar.kind == "failed" else f"{number(bar.rows)} rows"
            slow = " (straggler)" if bar.kind == "straggler" else ""
            paper.bar(bar, top, height - 2, f"{bar.who}{it}: {duration(bar.seconds)}, {rows}{slow}")
    if len(lanes) > _LANES:
        paper.heading(f"... and {len(lanes) - _LANES} more lanes that are not drawn")


def _nodes(paper: _Paper, timeline: Timeline, scale: BrokenScale) -> None:
    """How many ranks ran at once, node by node."""
    groups = _by_node(timeline.ranks)
    paper.heading("ranks at once on each node, mean over time")
    for node, own in groups[:_NODES]:
        curves = [(piece, _curve(own, piece)) for piece in scale.pieces if not piece.idle]
        most = max((max(curve) for _, curve in curves), default=0.0)
        top = paper.lane(node, 24)
        for piece, curve in curves:
            step = (piece.end - piece.start) / len(curve)
            heights = [top + 20 - 19 * value / (most or 1.0) for value in curve]
            path = "".join(f"V{y:.1f}h{step:.2f}" for y in heights)
            area = add(paper.svg, "path", class_="area", d=f"M{piece.start:.1f} {top + 20:.1f}{path}V{top + 20:.1f}z")
            span = duration((piece.high - piece.low) / len(curve))
            hint(area, f"{node}: up to {number(round(most, 1))} ranks at once (means over {span})")
    if len(groups) > _NODES:
        paper.heading(f"... and {len(groups) - _NODES} more nodes that are not drawn")


def _curve(ranks: Sequence[Bar], piece: Piece) -> list[float]:
    spans = [(bar.start, bar.end) for bar in ranks if bar.start < piece.high and bar.end > piece.low]
    return occupancy(spans, piece.low, piece.high, _bins(piece))


def _bins(piece: Piece) -> int:
    return max(1, round(_BINS * (piece.end - piece.start) / WIDTH))


def _clock(paper: _Paper, pieces: Sequence[Piece], zero: float) -> None:
    """The axis of time since ``zero``, with what was left out between its pieces."""
    bottom = paper.y + 4
    grid = add(paper.svg, "g", class_="grid")
    straight = [piece for piece in pieces if not piece.idle]
    seconds, room = sum(p.high - p.low for p in straight), sum(p.end - p.start for p in straight)
    step = clock_step(seconds / max(1.0, room / _CLOCK_ROOM)) if straight else 1.0
    taken = 0.0
    for piece in pieces:
        if piece.idle:
            _break(grid, piece, bottom)
            continue
        for tick in clock_ticks(piece.low - zero, piece.high - zero, step):
            place = paper.x(zero + tick)
            add(grid, "line", x1=place, x2=place, y1=20, y2=bottom)
            if place >= taken:
                add(grid, "text", elapsed(tick), class_="middle", x=place, y=bottom + 16)
                taken = place + _CLOCK_ROOM * 0.8
    middle = (paper.left + paper.right) / 2
    add(grid, "text", "time since the beginning", class_="middle label", x=middle, y=bottom + 34)
    paper.svg.remove(grid)
    paper.svg.insert(2, grid)  # behind the bars
    paper.y = bottom + 42


def _break(grid: Element, piece: Piece, bottom: float) -> None:
    """A stretch in which no driver worked, drawn shorter than it was."""
    long = piece.high - piece.low
    box = add(grid, "rect", class_="gap", x=piece.start, y=20, width=piece.end - piece.start, height=bottom - 20)
    hint(box, f"no driver worked for {duration(long)}; drawn shorter than it was")
    if piece.end - piece.start >= 34:
        add(grid, "text", roughly(long), class_="middle small gap-label", x=(piece.start + piece.end) / 2, y=14)


def _finished(paper: _Paper) -> Element:
    paper.svg.set("viewBox", f"0 0 {paper.right + 14:g} {paper.y:g}")
    return paper.svg

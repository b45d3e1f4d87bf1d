"""Which pictures a report has, and what stands under each: what is drawn, and what was left out or averaged."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from markupsafe import Markup

from rose_hpc.progress import badness
from rose_hpc.report import charts, gantt
from rose_hpc.report.history import LATELY, EnvironmentFacts, History, Iteration
from rose_hpc.report.svg import to_text
from rose_hpc.report.timeline import STRAGGLES, Timeline
from rose_hpc.report.words import count, duration, number
from rose_hpc.standing import Sight

#: the most parameters with a picture of their own
_MOST_PARAMETERS = 6


@dataclass(frozen=True)
class Page:
    """All that a report is made from; ``learners``: where there are several, their rewards in place of returns."""

    sight: Sight
    timeline: Timeline
    history: History
    learners: tuple[EnvironmentFacts, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A picture (or several), the words over and under it, and the classes its colours stand for."""

    title: str
    pictures: tuple[Markup, ...]
    caption: str
    legend: tuple[tuple[str, str], ...] = ()


def figures(page: Page) -> dict[str, list[Figure]]:
    """The figures of each section; a section without data has none."""
    return {
        "learners": _learners(page),
        "reward": _reward(page),
        "environments": [*_returns(page), *_rank_times(page)],
        "timeline": _timeline(page),
        "speed": [*_time(page), *_amounts(page)],
    }


def _figure(title: str, pictures: Sequence[Element], caption: str, legend: Sequence[tuple[str, str]] = ()) -> Figure:
    # a tree's text is escaped wherever it is made into one
    return Figure(title, tuple(Markup(to_text(svg)) for svg in pictures), caption, tuple(legend))  # noqa: S704 - see above


def _reward(page: Page) -> list[Figure]:
    checked = [each for each in page.history.iterations if each.reward is not None]
    if not checked:
        return []
    run = page.sight.progress.run
    resumed = _resumed(page.timeline)
    svg = charts.reward_chart(checked, str(run.get("metric")), str(run.get("operator") or ">"), resumed)
    caption = f"The reward of each check ({count(len(checked), 'value')}), and the best so far."
    if len({each.threshold for each in checked}) > 1:
        caption += " The threshold was changed during the run; it is drawn as each reward was compared with it."
    if resumed:
        caption += " Dotted uprights: where another driver went on."
    if len(checked) > 1000:
        caption += " Single values are not marked; the line keeps the least and greatest of each column of the paper."
    legend = [("reward", "reward"), ("best", "best so far"), ("threshold", "threshold")]
    return [
        _figure("Reward of each iteration", [svg], caption, legend if checked[-1].threshold is not None else legend[:2])
    ]


def _resumed(timeline: Timeline) -> list[int]:
    starts = sorted({bar.iteration for bar in timeline.stages if bar.kind == "starting"})
    return starts[1:] if len(starts) <= 40 else []


def _returns(page: Page) -> list[Figure]:
    environments = [each for each in page.history.environments if each.returns]
    if not environments:
        return []
    last = page.history.iterations[-1].number
    episode = "The mean return of the episodes that ended in each environment's shard."
    if len(environments) > charts.MOST_LINES:
        episode += _bins(last + 1, 160)
    found = [_figure("Return by environment", [charts.returns_chart(environments, last)], episode)]
    caption = f"Each environment's mean over its last {LATELY} iterations (dots), "
    return [*found, *_against(environments, "Return against parameter", caption, charts.RETURNS)]


def _learners(page: Page) -> list[Figure]:
    learners = [each for each in page.learners if each.returns]
    if not learners:
        return []
    run = page.sight.progress.run
    metric, operator, threshold = str(run.get("metric")), str(run.get("operator") or ">"), page.sight.progress.threshold

    def best(each: EnvironmentFacts) -> float | None:
        return min(each.returns.values(), key=lambda reward: badness(reward, operator, threshold), default=None)

    subject = charts.Subject("rewards", "learner", "reward", metric, f"best {metric}", best)
    last = max(max(each.returns) for each in learners)
    caption = f"{metric} of each learner's checks; the run has converged once all are {operator} {number(threshold)}."
    if len(learners) > charts.MOST_LINES:
        caption += _bins(last + 1, 160)
    chart = charts.returns_chart(learners, last, subject)
    against = _against(learners, "Best reward against parameter", "Each learner's best reward (dots), ", subject)
    return [_figure("Reward by learner", [chart], caption), *against]


def _against(each_of: Sequence[EnvironmentFacts], title: str, caption: str, subject: charts.Subject) -> list[Figure]:
    """A picture for every parameter that is not the same everywhere."""
    keys = list(dict.fromkeys(key for each in each_of for key in each.parameters))
    given = {key: {str(each.parameters[key]) for each in each_of if key in each.parameters} for key in keys}
    varied = [key for key in keys if len(given[key]) > 1]
    if not varied:
        return []
    shown = varied[:_MOST_PARAMETERS]
    pictures = [charts.parameter_chart(each_of, key, k, subject) for k, key in enumerate(shown)]
    caption += "and the mean of those that share a value (line). Values are evenly spaced, in order."
    if len(varied) > _MOST_PARAMETERS:
        caption += f" The first {_MOST_PARAMETERS} of {len(varied)} parameters."
    return [_figure(title, pictures, caption)]


def _bins(columns: int, most: int) -> str:
    return "" if columns <= most else f" {columns:,} iterations in {most} columns, each the mean of its iterations."


def _rank_times(page: Page) -> list[Figure]:
    environments = [each for each in page.history.environments if each.seconds]
    if not environments:
        return []
    last = max(max(each.seconds) for each in environments)
    shown = environments[:200]
    rows = [(each.name, each.seconds) for each in shown]
    svg = charts.heat_map("rank-chart", "Seconds of each rank", rows, last, duration)
    caption = "How long each environment's rank took, by iteration; the scale is under the map." + _bins(last + 1, 160)
    if len(shown) < len(environments):
        caption += f" The first {len(shown)} of {len(environments):,} environments."
    return [_figure("Time of each rank", [svg], caption)]


def _timeline(page: Page) -> list[Figure]:
    timeline = page.timeline
    if not timeline.drivers and not timeline.queue:
        return []
    legend = [(kind, kind) for kind in ("collect", "straggler", "merge", "update", "check", "failed")]
    legend = [("queue", "waiting in the queue"), ("starting", "driver and pilot start"), ("driver", "driver"), *legend]
    kinds = {bar.kind for bar in (*timeline.ranks, *timeline.stages, *timeline.queue)} | {"driver"}
    caption = (
        "Dashed stretches, if any, are drawn shorter than they were: no driver worked. A bar ends when its record was "
    )
    caption += "written. Slots are lines of this picture, not cores. "
    caption += f"A straggler took more than {STRAGGLES:g} times its iteration's median."
    detail: list[Figure] = []
    if len(timeline.ranks) > gantt.MOST_RANKS:
        caption += f" With {len(timeline.ranks):,} ranks, nodes are drawn as how many ran at once (mean over time)"
        caption += ", and stages as their share of each stretch of time"
        caption += "; some iterations follow in full." if page.history.complete else "."
        chosen = _telling(page.history.complete)
        pictures = [gantt.iteration_chart(timeline, each.number, why) for each, why in chosen]
        names = "; ".join(f"iteration {each.number} ({why})" for each, why in chosen)
        detail = [_figure("Iterations in full", pictures, f"Every rank of {names}.")] if chosen else []
    used = [entry for entry in legend if entry[0] in kinds]
    return [_figure("The whole run", [gantt.overview(timeline)], caption, used), *detail]


def _telling(iterations: Sequence[Iteration]) -> list[tuple[Iteration, str]]:
    """The first, the typical, the slowest and the last iteration; each once."""
    if not iterations:
        return []
    by_time = sorted(iterations, key=lambda each: sum(each.seconds.values()) - each.seconds.get("other", 0.0))
    named = [(iterations[0], "the first"), (by_time[len(by_time) // 2], "of median length")]
    named += [(by_time[-1], "the slowest"), (iterations[-1], "the last")]
    return [entry for k, entry in enumerate(named) if entry[0] not in [other for other, _ in named[:k]]]


def _time(page: Page) -> list[Figure]:
    done = [each for each in page.history.iterations if any(each.seconds.values())]
    if not done:
        return []
    caption = "From record to record, so publishing counts too. Other: starting, and the time between."
    if len(done) > 120:
        caption += f" {len(done):,} iterations in 120 bars, each the mean of its iterations."
    return [
        _figure("Where the time goes", [charts.time_chart(done)], caption, [(stage, stage) for stage in charts.STAGES])
    ]


def _amounts(page: Page) -> list[Figure]:
    rows = [(each.number, float(each.rows)) for each in page.history.complete if each.rows]
    if not rows:
        return []
    pictures = [charts.amount_chart("rows-chart", "Rows of each bank", "rows", rows)]
    speeds = [(each.number, speed) for each in page.history.complete if (speed := each.mb_s) is not None]
    collecting = sum(each.seconds.get("collect", 0.0) for each in page.history.complete)
    total = sum(value for _, value in rows)
    caption = f"{number(total)} rows in all"
    caption += f", {number(round(total / collecting))} rows/s while collecting" if collecting else ""
    if speeds:
        pictures.append(charts.amount_chart("merge-chart", "Speed of each merge", "MB/s", speeds))
        caption += f"; merged at {number(statistics.median(speed for _, speed in speeds))} MB/s (median)"
    return [_figure("Rows and speed", pictures, caption + ". Dashed: medians.")]

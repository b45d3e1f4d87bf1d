"""What a report says of a run with several learners: each as one line, and what they did side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rose_hpc.report.figures import Page
from rose_hpc.report.history import EnvironmentFacts, History, read_history
from rose_hpc.report.lines import learner_label
from rose_hpc.report.timeline import Timeline, read_timeline
from rose_hpc.report.words import count, number, parameters
from rose_hpc.standing import Sight


def read_population(sight: Sight) -> Page:
    """The page of the whole: the learners' rewards, ranks and failures; iterations are on their own pages."""
    named = sight.progress.run["learners"]
    whole = read_timeline(sight.everything, sight.jobs)
    ranks, failures, learners = [], list(read_history(sight.records, whole, {}).failures), []
    for each in sight.learners:
        label = learner_label(sight.progress.run, each.run.number)
        timeline = read_timeline(each.records)
        ranks += [replace(bar, who=f"{each.run.number}: {bar.who}") for bar in timeline.ranks]
        failures += [
            replace(
                failure, who=f"learner {label}: {failure.who}", log=failure.log and f"{each.run.name}/{failure.log}"
            )
            for failure in read_history(each.records, timeline, {}).failures
            if not failure.who.startswith("driver")  # which is the run's
        ]
        rewards = dict(each.progress.rewards)
        given = named[each.run.number].get("parameters") or {}
        name = str(named[each.run.number]["name"])
        learners.append(EnvironmentFacts(f"learner {name}", given, rows=each.progress.rows, returns=rewards))
    history = History((), (), tuple(sorted(failures, key=lambda failure: failure.time)))
    return Page(sight, Timeline(whole.drivers, tuple(ranks), (), whole.queue), history, tuple(learners))


def tiles(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The figures at the top of the page that are of several learners."""
    learners, best = facts["learners"], facts["best_learner"]
    ended = sum(each["state"] in ("converged", "max_iterations") for each in learners)
    found = [("learners", number(len(learners)), f"{ended} have ended well")]
    if facts["metric"] and best is not None:
        whose = f"of learner {learners[best]['name']} in {count(learners[best]['iteration'], 'iteration')}"
        found.append((f"best {facts['metric']}", number(facts["best_reward"]), whose))
    return found


def rows(facts: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row of the table for each learner."""
    return [
        (
            str(each["name"]) + (" (best)" if each["learner"] == facts["best_learner"] else ""),
            parameters(each["parameters"]),
            each["state"] + (f": {each['reason']}" if each["reason"] else ""),
            number(each["iteration"]),
            number(each["reward"]),
            number(each["best_reward"]),
            f"{each['rows']:,}",
        )
        for each in facts["learners"]
    ]

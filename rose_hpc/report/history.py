"""What a run did, iteration by iteration and environment by environment: journal and configuration as tables. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rose_hpc.report.timeline import Record, Timeline
from rose_hpc.report.words import at_least, mean, real, word

#: records of what went wrong, or was done again, in words; "": their own
_WHAT = {"attempt": "", "damaged": "damaged shard", "redo": "done again", "discarded": "discarded shard"}
#: what an environment returned lately is the mean over so many of its last iterations
LATELY = 10


@dataclass
class Iteration:
    """One iteration; of what was done twice, the figures are of the last time.

    Attributes:
        seconds: by stage, and ``other``: starting and between; both tries count where one was done twice.
        rows, size: of its bank (rows, bytes).
        merge_s: what the merge itself took.
        threshold: as it was then.
        returns: what the merge found of each environment's episodes: ``mean``, ``episodes``, ``parameters``.
    """

    number: int
    seconds: dict[str, float] = field(default_factory=dict)
    rows: int = 0
    size: int = 0
    merge_s: float = 0.0
    reward: float | None = None
    threshold: float | None = None
    returns: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def mb_s(self) -> float | None:
        """How fast its shards were merged."""
        return self.size / self.merge_s / 1e6 if self.size and self.merge_s else None


@dataclass
class EnvironmentFacts:
    """What one environment did in the whole run.

    Attributes:
        seconds: of each of its ranks, by iteration.
        returns: its mean return, by iteration.
        memory_mb: the most a rank of it took; None if nobody measured.
        missed: how many iterations went on without it; late: how many of its shards came into a later one.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    rows: int = 0
    episodes: int = 0
    seconds: dict[int, float] = field(default_factory=dict)
    returns: dict[int, float] = field(default_factory=dict)
    memory_mb: float | None = None
    straggled: int = 0
    failed: int = 0
    missed: int = 0
    late: int = 0
    nodes: set[str] = field(default_factory=set)

    @property
    def median_s(self) -> float | None:
        """Of its ranks' seconds."""
        return statistics.median(self.seconds.values()) if self.seconds else None

    @property
    def lately(self) -> float | None:
        """Its return, the mean over the last iterations."""
        return mean([self.returns[key] for key in sorted(self.returns)[-LATELY:]])


@dataclass(frozen=True)
class Failure:
    """Something that went wrong, or was done again."""

    time: float
    iteration: int | None
    who: str
    what: str
    message: str
    attempt: str = ""
    node: str = ""
    log: str = ""


@dataclass(frozen=True)
class History:
    """A run as tables."""

    iterations: tuple[Iteration, ...]
    environments: tuple[EnvironmentFacts, ...]
    failures: tuple[Failure, ...]

    @property
    def complete(self) -> list[Iteration]:
        """Those that have a bank, or were found to need none."""
        return [each for each in self.iterations if "merge" in each.seconds]


def read_history(records: Sequence[Record], timeline: Timeline, parameters: Mapping[str, Mapping[str, Any]]) -> History:
    """The tables of a journal.

    Args:
        records: the journal.
        timeline: its bars.
        parameters: of the environments, by name, where the configuration says them.
    """
    iterations: dict[int, Iteration] = {}
    for bar in timeline.stages:
        seconds = iterations.setdefault(bar.iteration, Iteration(bar.iteration)).seconds
        kind = bar.kind if bar.kind in ("collect", "merge", "update", "check") else "other"
        seconds[kind] = seconds.get(kind, 0.0) + bar.seconds
    threshold = None
    for record in records:
        if record["kind"] in ("run", "extend") and "threshold" in record:
            threshold = real(record, "threshold")
        elif record["kind"] == "stage":
            _take(iterations[int(at_least(record, "iteration"))], record, threshold)  # it has a bar
    ordered = tuple(iterations[number] for number in sorted(iterations))
    environments = _environments(records, timeline, parameters)
    for iteration in ordered:
        for name, found in iteration.returns.items():
            _take_returns(environments.setdefault(name, EnvironmentFacts(name)), iteration.number, found)
    return History(ordered, tuple(environments.values()), tuple(_failures(records, timeline)))


def _take(iteration: Iteration, record: Record, threshold: float | None) -> None:
    if record.get("stage") == "check":
        iteration.reward, iteration.threshold = real(record, "reward"), threshold
    elif record.get("stage") == "merge":
        iteration.rows, iteration.size = int(at_least(record, "rows")), int(at_least(record, "bytes"))
        iteration.merge_s = at_least(record, "seconds")
        returns = record.get("returns")
        found = returns.items() if isinstance(returns, Mapping) else ()
        iteration.returns = {name: facts for name, facts in found if isinstance(facts, Mapping)}


def _take_returns(environment: EnvironmentFacts, iteration: int, found: Mapping[str, Any]) -> None:
    environment.episodes += int(at_least(found, "episodes"))
    if (value := real(found, "mean")) is not None:  # there is none where no episode ended
        environment.returns[iteration] = value
    if not environment.parameters and isinstance(found.get("parameters"), Mapping):  # as a program's run has them
        environment.parameters = found["parameters"]


def _environments(
    records: Sequence[Record], timeline: Timeline, parameters: Mapping[str, Mapping[str, Any]]
) -> dict[str, EnvironmentFacts]:
    named = next((r["environments"] for r in records if r["kind"] == "run" and "environments" in r), ())
    found = {str(name): EnvironmentFacts(str(name), parameters.get(str(name), {})) for name in named}
    for bar in timeline.ranks:
        facts = found.setdefault(bar.who, EnvironmentFacts(bar.who))
        facts.nodes.update([bar.node] if bar.node else ())
        if bar.kind == "failed":
            facts.failed += 1
            continue
        facts.rows += bar.rows
        facts.seconds[bar.iteration] = bar.seconds
        facts.straggled += bar.kind == "straggler"
    for record in records:
        missing = record.get("missing")
        for name in missing if isinstance(missing, Mapping) else ():
            found.setdefault(str(name), EnvironmentFacts(str(name))).missed += 1
        if record["kind"] == "rank":
            found[word(record, "environment") or word(record, "stage")].late += "lag" in record
        if record["kind"] == "rank" and (memory := real(record, "max_rss_mb")) is not None:
            facts = found[word(record, "environment") or word(record, "stage")]
            facts.memory_mb = max(memory, facts.memory_mb or 0.0)
    return found


def _failures(records: Iterable[Record], timeline: Timeline) -> list[Failure]:
    found = [_failure(record) for record in records if record["kind"] in _WHAT]
    for number, driver in enumerate(timeline.drivers):
        who = f"driver {number}" + (f", job {driver.job}" if driver.job else "")
        if driver.end in ("failed", "stopped"):
            found.append(Failure(driver.ended, None, who, driver.end, driver.reason))
        elif not driver.end and number < len(timeline.drivers) - 1:
            message = "it ended without a record: killed, or its node was lost"
            found.append(Failure(driver.ended, None, who, "lost", message))
    return sorted(found, key=lambda failure: failure.time)


def _failure(record: Record) -> Failure:
    iteration, stage, environment = (
        int(at_least(record, "iteration")),
        word(record, "stage"),
        word(record, "environment"),
    )
    who = environment or stage or "all environments"
    message, code = word(record, "message") or word(record, "reason"), record.get("exit_code")
    what = _WHAT[record["kind"]] or word(record, "reason") or "failed"
    if code is not None and str(code) not in message:
        message += f" (exit code {code})"
    parts = (f"iter-{iteration:04d}", stage or "collect", environment)
    log = "logs/" + "-".join(part for part in parts if part) + ".log" if record["kind"] == "attempt" else ""
    attempt, node = word(record, "attempt"), word(record, "node")
    return Failure(at_least(record, "time"), iteration, who, what, message, attempt, node, log)

"""Where a run stands: a pure fold over its journal. The loop, ``status`` and ``resume`` all read it from here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Record = Mapping[str, Any]

STAGES = ("collect", "merge", "update", "check")
#: of so many last times is known how long something took
_REMEMBERED = 3
#: of a stage's record, fields that are large and that nothing is decided by: a run may have ten thousand iterations
_LEFT_OUT = ("returns", "value")


def _kept(record: Record) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in _LEFT_OUT}


@dataclass
class Progress:
    """What the records say so far.

    Attributes:
        run: the run record.
        iteration: the current iteration; as many are complete.
        ranks: the current iteration's rank records, by environment.
        stages: the current iteration's stage records, by stage.
        rewards: one (iteration, reward) for each check.
        merges, updates: every iteration's merge and update records, without what only reports want (:data:`_LEFT_OUT`).
        config: what ``set_next_config`` set last for the current iteration, or None.
        next_config: a record of what it set since, for the next one.
        end: the last end record, if no driver came after it.
        scripts: the digest of every script, as last seen.
        jobs: one record for each driver.
        lasts: when each of them wrote last.
        started, updated: when the first and the last record were written.
        failure: the last failed attempt.
        failures: how many attempts failed, in all.
        nan_rewards: how many rewards were NaN, in all.
        extended: whether the run was changed after its last complete iteration.
        missing: whom the last collecting went on without, and why: ``failed``, ``late`` or ``waiting``.
        misses: the iterations in a row, up to the last, that went on without an environment because it failed.
        late: environments still under way for an iteration that went on without them, and which that is.
        admitted, discarded: how many late shards were taken into a later iteration, and how many were not.
        seconds: how long each stage, and each environment, took the last times, newest last.
    """

    run: Record = field(default_factory=dict)
    iteration: int = 0
    ranks: dict[str, Record] = field(default_factory=dict)
    stages: dict[str, Record] = field(default_factory=dict)
    rewards: list[tuple[int, float]] = field(default_factory=list)
    merges: dict[int, Record] = field(default_factory=dict)
    updates: dict[int, Record] = field(default_factory=dict)
    config: Any = None
    next_config: Record | None = None
    end: Record | None = None
    scripts: dict[str, str] = field(default_factory=dict)
    jobs: list[Record] = field(default_factory=list)
    lasts: list[float] = field(default_factory=list)
    started: float | None = None
    updated: float | None = None
    failure: Record | None = None
    failures: int = 0
    nan_rewards: int = 0
    extended: bool = False
    missing: dict[str, str] = field(default_factory=dict)
    misses: dict[str, list[int]] = field(default_factory=dict)
    late: dict[str, int] = field(default_factory=dict)
    admitted: int = 0
    discarded: int = 0
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    _leaders: list[tuple[int, float]] = field(default_factory=list)  # rewards that were better than all before them

    def __post_init__(self) -> None:
        self._lead()

    @classmethod
    def of(cls, records: Iterable[Record]) -> Progress:
        """The progress after ``records``."""
        progress = cls()
        for record in records:
            progress.apply(record)
        return progress

    def apply(self, record: Record) -> None:
        """Take one more record. Kinds not known here do not change where the run stands."""
        self._tell_time(record)
        match record["kind"]:
            case "run" | "extend":
                self.run = {**self.run, **record}
                self.end = None
                self.extended = record["kind"] == "extend"
                self._lead()
            case "job":
                self.jobs.append(record)
                self.end = None
            case "scripts":
                self.scripts.update(record["digests"])
            case "rank":
                self._rank(record)
            case "attempt":
                self.failure = record
                self.failures += 1
            case "discarded":
                self.late.pop(record["environment"], None)
                self.discarded += 1
            case "stage":
                self._stage(record)
            case "damaged":
                self._forget(record["environment"])
                self.stages.pop("collect", None)
            case "redo":
                for environment in [record["environment"]] if "environment" in record else list(self.ranks):
                    self._forget(environment)
                self.stages = {}
            case "checkpoint":
                self.iteration = record["iteration"] + 1
                self.ranks, self.stages = {}, {}
                self.extended = False
                self.config = self.config if self.next_config is None else self.next_config["config"]
                self.next_config = None
            case "config":
                self.next_config = record
            case "end":
                self.end = record

    def _rank(self, record: Record) -> None:
        name = record["environment"]
        self._forget(name)
        self.ranks[name] = record
        self.nan_rewards += record.get("nan_rewards", 0)
        self.admitted += "lag" in record
        self.misses.pop(name, None)
        self.late.pop(name, None)
        self._took("collect", name, record)

    def _tell_time(self, record: Record) -> None:
        if (time := record.get("time")) is None:
            return
        self.started, self.updated = time if self.started is None else self.started, time
        if record["kind"] == "job":
            self.lasts.append(time)
        elif self.lasts and record["kind"] != "extend":  # which the next driver writes, before its own record
            self.lasts[-1] = time

    def _forget(self, environment: str) -> None:
        """What this environment did in the current iteration is (or will be) done again."""
        before = self.ranks.pop(environment, {})
        self.nan_rewards -= before.get("nan_rewards", 0)
        self.admitted -= "lag" in before

    def _took(self, stage: str, environment: str, record: Record) -> None:
        seconds = self.seconds.setdefault((stage, environment), [])
        seconds.append(float(record.get("seconds") or 0.0))
        del seconds[:-_REMEMBERED]

    def expected_s(self, stage: str, environment: str = "") -> float | None:
        """How long it may take: the longest of the last times; None when nobody knows."""
        return max(self.seconds.get((stage, environment), ()), default=None)

    def _stage(self, record: Record) -> None:
        stage, iteration = record["stage"], record["iteration"]
        self.stages[stage] = record
        self._took(stage, "", record)
        if stage == "collect":
            self._collected(record)
        elif stage == "merge":
            last = next(reversed(self.merges.values()), {}).get("columns")
            self.merges[iteration] = kept = _kept(record)
            if last is not None and last == kept.get("columns"):
                kept["columns"] = last  # the same for ten thousand iterations
        elif stage == "update":
            self.updates[iteration] = _kept(record)
        elif stage == "check":
            again = bool(self.rewards) and self.rewards[-1][0] == iteration
            self.rewards[len(self.rewards) - again :] = [(iteration, record["reward"])]
            if again:
                self._lead()
            else:
                self._follow(self.rewards[-1])

    def _collected(self, record: Record) -> None:
        self.missing = dict(record.get("missing", {}))
        for name, why in self.missing.items():
            if why == "failed" and record["iteration"] not in self.misses.setdefault(name, []):
                self.misses[name].append(record["iteration"])
            elif why == "late":
                self.late.setdefault(name, record["iteration"])

    @property
    def stage(self) -> str | None:
        """The first stage of the current iteration without a record; None when all have one."""
        return next((stage for stage in STAGES if stage not in self.stages), None)

    def has_bank(self, iteration: int) -> bool:
        """Whether that iteration's shards were merged (there may have been none)."""
        return iteration in self.merges and "skipped" not in self.merges[iteration]

    @property
    def rows(self) -> int:
        """Rows of all banks."""
        merges = list(self.merges.values())  # at once: the live view looks from a thread of its own
        return sum(record.get("rows", 0) for record in merges)

    @property
    def reward(self) -> float | None:
        """The last one."""
        return self.rewards[-1][1] if self.rewards else None

    def best(self, before: int | None = None) -> tuple[int, float] | None:
        """Iteration and value of the best reward, the first of equals.

        It is the greatest; where less is asked for, the least; where equality is, the nearest to the threshold.

        Args:
            before: only iterations before this one.
        """
        leaders = reversed(self._leaders)  # few, where all rewards of ten thousand iterations would be looked at
        return next((leader for leader in leaders if before is None or leader[0] < before), None)

    def _lead(self) -> None:
        """Find the leaders anew: what is better, or a reward, has changed."""
        self._leaders = []
        for entry in self.rewards:
            self._follow(entry)

    def _follow(self, entry: tuple[int, float]) -> None:
        operator = self.run.get("operator") or ">"
        last = self._leaders[-1][1] if self._leaders else None
        if last is None or badness(entry[1], operator, self.threshold) < badness(last, operator, self.threshold):
            self._leaders.append(entry)

    @property
    def threshold(self) -> float:
        """The criterion's; 0 without one."""
        return float(self.run.get("threshold") or 0.0)


def badness(reward: float, operator: str, threshold: float) -> float:
    """Less for a better reward: a greater one; where less is asked for, a lesser; where equality is, a nearer."""
    if operator.startswith("="):
        return abs(reward - threshold)
    return reward if operator.startswith("<") else -reward

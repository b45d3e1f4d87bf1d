"""A run in lines: what is worth one, and how figures are said in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rose_hpc.progress import Progress
from rose_hpc.report.words import count, parameters

_MB = 1e6


def criterion_text(run: Mapping[str, Any]) -> str:
    """``MODEL_REWARD > 200``, or how many iterations there are to be."""
    if run.get("metric"):
        return f"{run['metric']} {run['operator']} {run['threshold']:g}"
    return f"{run.get('max_iterations')} iterations"


def rate_text(record: Mapping[str, Any]) -> str:
    """Rows, size and speed of a merge: ``5,000 rows, 300 kB at 12 MB/s``."""
    if record.get("skipped"):
        return str(record["skipped"])
    speed = record["bytes"] / _MB / max(record["seconds"], 1e-6)
    shown = f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"
    return f"{record['rows']:,} rows, {size_text(record['bytes'])} at {shown} MB/s"


def size_text(size: float) -> str:
    """A number of bytes for people, in units of a thousand: ``14 kB``, ``1.3 GB``."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} GB"


class Lines:
    """What is worth a line: the start, whatever goes wrong, every iteration, the end.

    Args:
        where: the run directory, as people should read it where a driver begins.
        failures: whether a failed end gets a line; not where an error says it anyway.
    """

    prefix = ""

    def __init__(self, where: str = "", *, failures: bool = True) -> None:
        self._where = f" in {where}" if where else ""
        self._failures = failures
        self._began: float | None = None  # by the records' own clock: what is read later took as long as it did

    def line(self, record: Mapping[str, Any], progress: Progress) -> str | None:
        """The line for a record; None for those that would drown the others."""
        match record["kind"]:
            case "job":
                self._began = record.get("time")
                run = progress.run
                verb = f"goes on at iteration {progress.iteration}" if len(progress.jobs) > 1 else "begins"
                if learners := run.get("learners"):
                    verb = f"{verb.partition(' at ')[0]} with {len(learners)} learners"
                return f"{run['name']} (seed {run['seed']}) {verb}{self._where}, until {criterion_text(run)}"
            case "learner":
                return (
                    f"learner {learner_label(progress.run, record['learner'])}: {record['state']}: {record['reason']}"
                )
            case "attempt":
                again = f"; again in {record['again_s']:g} s" if "again_s" in record else ""
                who = record["environment"] or record["stage"]
                return f"iteration {record['iteration']}: {who} {record['message']}{again}"
            case "stage" if record.get("missing"):
                missing = ", ".join(f"{name} ({why})" for name, why in record["missing"].items())
                return f"iteration {record['iteration']}: goes on without {missing}"
            case "rank" if "lag" in record:
                late = count(record["lag"], "iteration")
                return f"iteration {record['iteration']}: {record['environment']} is here, {late} late"
            case "discarded":
                text = f"iteration {record['iteration']}: {record['environment']} is discarded"
                return f"{text}: {record['reason']}"
            case "checkpoint":
                now, began = record.get("time", 0.0), self._began
                self._began = now
                return self._iteration(record["iteration"], progress, now - (now if began is None else began))
            case "end" if self._failures or record["state"] != "failed":
                return f"{record['state']}: {record['reason']}"
        return None

    def _iteration(self, iteration: int, progress: Progress, seconds: float) -> str:
        reward = ""
        if progress.rewards and progress.rewards[-1][0] == iteration:
            reward = f"{progress.run['metric']} {progress.rewards[-1][1]:g}  "
        return f"iteration {iteration}: {reward}({rate_text(progress.merges[iteration])}; {seconds:.1f} s)"


class LearnerLines(Lines):
    """The same for one of several learners: its beginning and end are told by the run itself."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.prefix = f"learner {label}: "

    def line(self, record: Mapping[str, Any], progress: Progress) -> str | None:
        """The line for a record, with the learner whose it is."""
        line = super().line(record, progress)
        return None if line is None or record["kind"] in ("job", "end") else self.prefix + line


def learner_label(run: Mapping[str, Any], number: int) -> str:
    """What people call a learner: its name, or its number with its parameters."""
    known = run.get("learners") or ()
    facts = known[number] if number < len(known) else {}
    values = parameters(facts.get("parameters") or {})
    return str(facts.get("name", number)) + (f" ({values})" if values else "")

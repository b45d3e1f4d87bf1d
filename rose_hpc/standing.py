"""What ``status`` says of a run: read from its files alone, without numpy, h5py or radical.*."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rose_hpc import ownership
from rose_hpc.disk import disk_use, in_words
from rose_hpc.journal import read_journal
from rose_hpc.progress import Progress
from rose_hpc.rundir import RunDir
from rose_hpc.slurm import view
from rose_hpc.slurm.queue import NOT_ASKED, Queue, ask
from rose_hpc.slurm.records import JobRecord, read_records


@dataclass(frozen=True)
class Sight:
    """A run's files, read once.

    Raises (:meth:`of`):
        RunError: when it is not a run, or its journal is damaged.
    """

    run: RunDir
    records: list[dict[str, Any]]
    progress: Progress
    jobs: list[JobRecord]

    @classmethod
    def of(cls, run: RunDir) -> Sight:
        """Read them."""
        records = read_journal(run.journal)
        return cls(run, records, Progress.of(records), read_records(run))


def ask_for(sights: Iterable[Sight]) -> Queue:
    """What Slurm says of the jobs of these runs: at most one call, and none when their files say all."""
    return ask(job for sight in sights if view.is_open(sight.progress, sight.jobs) for job in sight.jobs)


def standing(run: RunDir) -> dict[str, Any]:
    """The facts of ``status RUN --json`` (contract); plain data, from the files alone.

    Raises:
        RunError: when it is not a run, or its journal is damaged.
    """
    return standing_of(Sight.of(run), NOT_ASKED)


def standing_of(sight: Sight, queue: Queue, *, disk: bool = False) -> dict[str, Any]:
    """The same, with what Slurm said; and how much of the disk the run takes, if that is asked for."""
    run, records, progress = sight.run, sight.records, sight.progress
    facts = progress.run
    verdict = view.decide(progress, progress.end is None and ownership.owner_lives(run), sight.jobs, queue)
    state = verdict.state
    jobs = view.job_facts(sight.jobs, queue)
    best = progress.best(facts.get("operator") or ">")
    newest = max(progress.updates, default=None)
    return {
        "run": str(run.path),
        "name": facts.get("name", run.name),
        "state": state,
        "reason": (progress.end or {}).get("reason") if state not in ("pending", "running") else None,
        "note": verdict.note,
        "iteration": progress.iteration,
        "max_iterations": facts.get("max_iterations"),
        "stage": progress.stage if state == "running" and records else None,
        "metric": facts.get("metric"),
        "operator": facts.get("operator"),
        "reward": progress.reward,
        "threshold": facts.get("threshold"),
        "best_reward": best[1] if best else None,
        "policy": _policy(run, newest),
        "best_policy": _policy(run, best[0] if best else newest),
        "rows": progress.rows,
        "nan_rewards": progress.nan_rewards,
        "seed": facts.get("seed"),
        "environments": len(facts.get("environments", ())),
        "failures": progress.failures,
        "missing": progress.missing,
        "late": progress.late,
        "late_shards": {"admitted": progress.admitted, "discarded": progress.discarded},
        "disk": asdict(disk_use(run.path)) if disk else None,
        "ranks": view.ranks(run, progress) if state == "running" else None,
        "jobs": list(dict.fromkeys(job for job in (*_driven(progress), *(each["job"] for each in jobs)) if job)),
        "slurm": jobs,
        "node_hours": view.node_hours(records, sight.jobs, queue),
        "drivers": len(progress.jobs),
        "owner": ownership.read_owner(run) if state == "running" else None,
        "started": records[0]["time"] if records else None,
        "updated": records[-1]["time"] if records else None,
    }


def _driven(progress: Progress) -> list[str]:
    return [str(record["job"]) for record in progress.jobs if record.get("job")]


def _policy(run: RunDir, iteration: int | None) -> str | None:
    path = None if iteration is None else run.policy(iteration)
    return str(path) if path is not None and path.is_dir() else None


def describe(facts: dict[str, Any]) -> str:
    """The same for people."""
    reward = "none yet" if facts["reward"] is None else f"{facts['reward']:g}"
    if facts["metric"]:
        reward += f" (until {facts['metric']} {facts['operator']} {facts['threshold']:g})"
    if facts["best_reward"] is not None:
        reward += f", best {facts['best_reward']:g}"
    limit = f" of at most {facts['max_iterations']}" if facts["max_iterations"] else ""
    lines = {
        "run": facts["run"],
        "state": facts["state"] + (f": {facts['reason']}" if facts["reason"] else ""),
        "iterations": f"{facts['iteration']} complete{limit}"
        + (f", now in {facts['stage']}" if facts["stage"] else ""),
        "reward": reward,
        "experience": f"{facts['rows']:,} rows from {facts['environments']} environments"
        + (f", {facts['nan_rewards']:,} rewards are NaN" if facts["nan_rewards"] else ""),
        "policy": facts["policy"] or "none yet",
        "best policy": facts["best_policy"] or "none yet",
        "updated": _ago(facts["updated"]),
    }
    if facts["disk"]:
        least = "" if facts["disk"]["complete"] else "at least "
        lines["disk"] = f"{least}{in_words(facts['disk']['bytes'])} in {facts['disk']['files']:,} files"
    if facts["ranks"] and facts["stage"] == "collect":
        lines["ranks"] = "{running} running, {done} done, of {all}".format(**facts["ranks"])
    if trouble := _trouble(facts):
        lines["trouble"] = trouble
    if facts["jobs"]:
        lines["jobs"] = "; ".join(map(view.describe_job, facts["slurm"])) or ", ".join(facts["jobs"])
    if facts["node_hours"] is not None:
        lines["node-hours"] = f"{facts['node_hours']:.2f}"
    if facts["note"]:
        lines["note"] = facts["note"]
    if facts["state"] in ("stopped", "failed"):
        lines["next"] = RunDir(Path(facts["run"])).command("resume")
    return "\n".join(f"{key + ':':<13}{value}" for key, value in lines.items())


def _trouble(facts: dict[str, Any]) -> str:
    """Failed tries, whom the last iteration went on without, and what became of late shards; mostly empty."""
    failures, late = facts["failures"], facts["late_shards"]
    missing = ", ".join(f"{name} ({why})" for name, why in facts["missing"].items())
    texts = [
        f"{failures} failed {'try' if failures == 1 else 'tries'}" if failures else "",
        f"the last iteration went on without {missing}" if missing else "",
        "late shards: {admitted} taken, {discarded} discarded".format(**late) if any(late.values()) else "",
    ]
    return "; ".join(filter(None, texts))


def table(rows: list[dict[str, Any]]) -> str:
    """Many runs, a line each."""
    cells = [("RUN", "STATE", "ITERATION", "REWARD", "THRESHOLD", "UPDATED")]
    for facts in rows:
        reward = "-" if facts["reward"] is None else f"{facts['reward']:g}"
        threshold = f"{facts['operator']} {facts['threshold']:g}" if facts["metric"] else "-"
        why = next((f" ({job['reason']})" for job in facts["slurm"] if job["state"] == "PENDING" and job["reason"]), "")
        state = facts["state"] + (why if facts["state"] == "pending" else "")
        cells.append((facts["run"], state, str(facts["iteration"]), reward, threshold, _ago(facts["updated"])))
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def _ago(then: float | None) -> str:
    if then is None:
        return "never"
    seconds = max(0.0, time.time() - then)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"

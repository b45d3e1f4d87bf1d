"""What ``status`` says of a run: read from its files alone, without numpy, h5py or radical.*."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rose_hpc import rundir
from rose_hpc.journal import read_journal
from rose_hpc.progress import Progress
from rose_hpc.rundir import RunDir


def state_of(run: RunDir, progress: Progress) -> str:
    """``running``, ``stopped``, or how it ended: ``failed``, ``converged``, ``max_iterations``."""
    if progress.end is not None:
        return str(progress.end["state"])
    return "running" if rundir.owner_lives(run) else "stopped"


def standing(run: RunDir) -> dict[str, Any]:
    """The facts of ``status RUN --json`` (contract); plain data.

    Raises:
        RunError: when it is not a run, or its journal is damaged.
    """
    records = read_journal(run.journal)
    progress = Progress.of(records)
    facts = progress.run
    state = state_of(run, progress)
    best = progress.best(facts.get("operator") or ">")
    newest = max(progress.updates, default=None)
    return {
        "run": str(run.path),
        "name": facts.get("name", run.name),
        "state": state,
        "reason": (progress.end or {}).get("reason"),
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
        "jobs": [record["job"] for record in progress.jobs if record.get("job")],
        "drivers": len(progress.jobs),
        "owner": rundir.read_owner(run) if state == "running" else None,
        "started": records[0]["time"] if records else None,
        "updated": records[-1]["time"] if records else None,
    }


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
    if facts["jobs"]:
        lines["jobs"] = ", ".join(map(str, facts["jobs"]))
    if facts["state"] in ("stopped", "failed"):
        lines["next"] = RunDir(Path(facts["run"])).command("resume")
    return "\n".join(f"{key + ':':<13}{value}" for key, value in lines.items())


def table(rows: list[dict[str, Any]]) -> str:
    """Many runs, a line each."""
    cells = [("RUN", "STATE", "ITERATION", "REWARD", "THRESHOLD", "UPDATED")]
    for facts in rows:
        reward = "-" if facts["reward"] is None else f"{facts['reward']:g}"
        threshold = f"{facts['operator']} {facts['threshold']:g}" if facts["metric"] else "-"
        cells.append((facts["run"], facts["state"], str(facts["iteration"]), reward, threshold, _ago(facts["updated"])))
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

"""What ``status`` says of a run: read from its files alone, without numpy, h5py or radical.*."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rose_hpc import ownership
from rose_hpc.checkpoint import check_known
from rose_hpc.disk import disk_use, in_words
from rose_hpc.journal import Bookmark, scan_journal
from rose_hpc.progress import Progress, badness
from rose_hpc.report.words import count, parameters
from rose_hpc.rundir import RunDir
from rose_hpc.slurm import view
from rose_hpc.slurm.queue import NOT_ASKED, Queue, ask
from rose_hpc.slurm.records import JobRecord, read_records

#: of these kinds, a learner's records say what the run's own do
_ONCE = ("run", "extend", "job", "end")
#: what is said of environments, whose names each learner has
_OF_ONE = ("missing", "late")


@dataclass(frozen=True)
class Sight:
    """A run's files, read once.

    Attributes:
        run: the run.
        records: all of its journal, where they were asked for: those of a long run take a gigabyte.
        progress: the fold of them.
        jobs: what was submitted.
        learners, mark: likewise; how far the journal was read.

    Raises (:meth:`of`):
        RunError: when it is not a run, or its journal is damaged.
    """

    run: RunDir
    records: list[dict[str, Any]]
    progress: Progress
    jobs: list[JobRecord]
    learners: tuple[Sight, ...] = ()
    mark: Bookmark = field(default_factory=Bookmark)

    @classmethod
    def of(cls, run: RunDir, *, keep: bool = False) -> Sight:
        """Read them, those of its learners too; keep the records, as well."""
        mark = Bookmark()
        read = scan_journal(run.journal, mark)
        records = list(read) if keep else []
        progress = Progress.of(records if keep else read)
        check_known(run, progress)
        several = len(progress.run.get("learners", ()))
        learners = tuple(cls.of(each, keep=keep) for each in run.learners if each.number < several)
        return cls(run, records, progress, read_records(run), learners, mark)

    @property
    def everything(self) -> list[dict[str, Any]]:
        """The records of the run and of its learners, by time; a driver's beginning is in it once."""
        if not self.learners:
            return self.records
        theirs = (record for each in self.learners for record in each.records if record["kind"] not in _ONCE)
        return sorted([*theirs, *self.records], key=lambda record: float(record.get("time") or 0.0))


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
    """The same, with what Slurm said; and how much of the disk the run takes, if that is asked for.

    Of several learners, the reward and policy are the best one's.
    """
    progress = sight.progress
    lives = progress.end is None and ownership.owner_lives(sight.run)
    verdict = view.decide(progress, lives, sight.jobs, queue)
    jobs = view.job_facts(sight.jobs, queue)
    facts = progress.run
    whole = {
        "run": str(sight.run.path),
        "name": facts.get("name", sight.run.name),
        "note": verdict.note,
        "max_iterations": facts.get("max_iterations"),
        "metric": facts.get("metric"),
        "operator": facts.get("operator"),
        "threshold": facts.get("threshold"),
        "seed": facts.get("seed"),
        "environments": len(facts.get("environments", ())),
        "jobs": list(dict.fromkeys(job for job in (*_driven(progress), *(each["job"] for each in jobs)) if job)),
        "slurm": jobs,
        "node_hours": view.node_hours(progress, sight.jobs, queue, [each.progress for each in sight.learners]),
        "drivers": len(progress.jobs),
        "owner": ownership.read_owner(sight.run) if verdict.state == "running" else None,
        "started": progress.started,
        "disk": asdict(disk_use(sight.run.path)) if disk else None,
        **_reached(sight, verdict.state),
    }
    return whole if "learners" not in facts else whole | _of_all(whole, _learners(sight, verdict.state))


def _reached(sight: Sight, state: str) -> dict[str, Any]:
    """How far a run, or one of its learners, has come."""
    run, progress = sight.run, sight.progress
    best = progress.best()
    newest = max(progress.updates, default=None)
    return {
        "state": state,
        "reason": (progress.end or {}).get("reason") if state not in ("pending", "running") else None,
        "iteration": progress.iteration,
        "stage": progress.stage if state == "running" and progress.started is not None else None,
        "reward": progress.reward,
        "best_reward": best[1] if best else None,
        "policy": _policy(run, newest),
        "best_policy": _policy(run, best[0] if best else newest),
        "rows": progress.rows,
        "nan_rewards": progress.nan_rewards,
        "failures": progress.failures,
        "missing": progress.missing,
        "late": progress.late,
        "late_shards": {"admitted": progress.admitted, "discarded": progress.discarded},
        "ranks": view.ranks(run, progress) if state == "running" else None,
        "updated": progress.updated,
    }


def _learners(sight: Sight, state: str) -> list[dict[str, Any]]:
    """Where each learner stands, by number."""
    begun = {each.run.number: each for each in sight.learners}
    since = float(sight.progress.jobs[-1]["time"]) if sight.progress.jobs else 0.0
    found = []
    for number, named in enumerate(sight.progress.run["learners"]):
        learner = begun.get(number) or Sight(sight.run.learner(number), [], Progress(run=sight.progress.run), [])
        who = {"learner": number, "name": named["name"], "parameters": named.get("parameters", {})}
        reached = _reached(learner, _state(learner.progress, state, since))
        found.append({**who, "run": str(learner.run.path), **reached})
    return found


def _state(progress: Progress, state: str, since: float) -> str:
    """The state of a learner of a run that is in ``state``, and whose last driver began at ``since``."""
    alive = state in ("running", "pending")
    if progress.end is None:
        return state if alive and progress.jobs else "pending" if alive else "stopped"
    ended = str(progress.end["state"])
    again = alive and ended in ("failed", "stopped") and float(progress.end["time"]) < since
    return "pending" if again else ended


def _of_all(whole: dict[str, Any], learners: list[dict[str, Any]]) -> dict[str, Any]:
    """What is said of a run with several learners: sums, the furthest iteration, and the best learner's reward."""
    operator, threshold = whole["operator"] or ">", float(whole["threshold"] or 0.0)
    rewarded = [each for each in learners if each["best_reward"] is not None]
    best = min(rewarded, key=lambda each: badness(each["best_reward"], operator, threshold), default=None)
    ranks = [each["ranks"] for each in learners if each["ranks"]]
    return {
        **{key: (best or {}).get(key) for key in ("reward", "best_reward", "policy", "best_policy")},
        **{key: sum(each[key] for each in learners) for key in ("rows", "nan_rewards", "failures")},
        **{key: {f"{e['name']}: {who}": why for e in learners for who, why in e[key].items()} for key in _OF_ONE},
        "late_shards": {key: sum(e["late_shards"][key] for e in learners) for key in ("admitted", "discarded")},
        "iteration": max(each["iteration"] for each in learners),
        "stage": None,
        "ranks": {key: sum(each[key] for each in ranks) for key in ("running", "done", "all")} if ranks else None,
        "updated": max(filter(None, (whole["updated"], *(each["updated"] for each in learners))), default=None),
        "best_learner": best and best["learner"],
        "learners": learners,
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
    learners, best = facts.get("learners"), facts.get("best_learner")
    lines = {
        "run": facts["run"],
        "state": facts["state"] + (f": {facts['reason']}" if facts["reason"] else ""),
        **({"learners": _counted(learners)} if learners else {}),
        "iterations": f"{facts['iteration']} complete{limit}"
        + (" (the furthest learner)" if learners else "")
        + (f", now in {facts['stage']}" if facts["stage"] else ""),
        **({"best learner": _called(learners[best])} if learners and best is not None else {}),
        "reward": reward,
        "experience": f"{facts['rows']:,} rows from {count(facts['environments'], 'environment')}"
        + (" of each learner" if learners else "")
        + (f", {facts['nan_rewards']:,} rewards are NaN" if facts["nan_rewards"] else ""),
        "policy": facts["policy"] or "none yet",
        "best policy": facts["best_policy"] or "none yet",
        "updated": _ago(facts["updated"]),
    }
    if facts["disk"]:
        least = "" if facts["disk"]["complete"] else "at least "
        lines["disk"] = f"{least}{in_words(facts['disk']['bytes'])} in {facts['disk']['files']:,} files"
    if facts["ranks"] and (facts["stage"] == "collect" or learners):
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
    width = max(len(key) for key in lines) + 2
    text = "\n".join(f"{f'{key}:':<{max(13, width)}}{value}" for key, value in lines.items())
    return f"{text}\n\n{_learner_table(facts)}" if learners else text


def _counted(learners: list[dict[str, Any]]) -> str:
    states = Counter(each["state"] for each in learners)
    return f"{len(learners)}: " + ", ".join(f"{number} {state}" for state, number in states.items())


def _called(learner: dict[str, Any]) -> str:
    values = parameters(learner["parameters"])
    return str(learner["name"]) + (f" ({values})" if values else "")


def _learner_table(facts: dict[str, Any]) -> str:
    """A line for each learner; the best one is marked."""
    cells = [("", "LEARNER", "PARAMETERS", "STATE", "ITERATION", "REWARD", "BEST", "UPDATED")]
    for each in facts["learners"]:
        rewards = ("-" if value is None else f"{value:g}" for value in (each["reward"], each["best_reward"]))
        state = each["state"] + (f" in {each['stage']}" if each["stage"] else "")
        mark = "*" if each["learner"] == facts["best_learner"] else ""
        reached = (str(each["iteration"]), *rewards, _ago(each["updated"]))
        cells.append((mark, str(each["name"]), parameters(each["parameters"]) or "-", state, *reached))
    return _aligned(cells)


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
    return _aligned(cells)


def _aligned(cells: Sequence[tuple[str, ...]]) -> str:
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

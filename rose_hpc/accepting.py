"""Accepting what an environment left: its shard is published, and it has its record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rose_hpc import failpoints, publishing
from rose_hpc.attempts import Place
from rose_hpc.execution.attempt import Outcome
from rose_hpc.progress import Progress
from rose_hpc.results import difference, flat, signature
from rose_hpc.tries import Tries


@dataclass(frozen=True)
class Collected:
    """What an environment left, not yet accepted."""

    place: Place
    outcome: Outcome
    value: Any


async def accept(tries: Tries, iteration: int, collected: Collected) -> None:
    """Accept it for ``iteration``, which may be a later one than it was collected for.

    Raises:
        TaskError: its columns are not those of the others; which of them is right, nobody knows.
    """
    failpoints.hit("rank-answered")
    session, place, outcome = tries.session, collected.place, collected.outcome
    name, lag = place.environment, iteration - place.iteration
    info = outcome.info or {"rows": 0, "bytes": 0, "digest": None, "columns": {}}
    columns = signature(info["columns"])
    if (other := _other_columns(session.progress, columns)) is not None:
        if (first := other[0].removeprefix("environment ")) in session.progress.ranks:
            # who came first need not be right: both run again
            session.record("redo", iteration=iteration, environment=first, reason=f"unlike {name}")
        await tries.fail(place, outcome, f"wrote {difference(columns, other[1])} of {other[0]}", "shard")
    if outcome.info is not None:
        target = session.run.shard(iteration, name)
        session.check_owned()
        target.parent.mkdir(parents=True, exist_ok=True)
        publishing.publish(place.shard, target)
        failpoints.hit("shard-published")
    nans = int(sum(flat(info["columns"].get("rewards", {}).get("stats", {}).get("nans", 0))))
    work = next(e.work for e in tries.workflow.environments if e.name == name)
    session.record(
        "rank",
        iteration=iteration,
        stage="collect",
        environment=name,
        attempt=place.number,
        node=outcome.node,
        rows=info["rows"],
        bytes=info["bytes"],
        digest=info["digest"],
        seconds=outcome.seconds,
        max_rss_mb=outcome.max_rss_mb,
        **({"columns": columns} if columns else {}),
        **({"nan_rewards": nans} if nans else {}),
        **({"lag": lag} if lag else {}),
        **tries.keep(name, work, outcome, collected.value),
    )
    failpoints.hit("rank-recorded")
    tries.walltime.worked = True


def _other_columns(progress: Progress, columns: dict[str, str]) -> tuple[str, dict[str, str]] | None:
    """Who wrote other columns before, and which; None where these fit."""
    merges = [(f"the bank of iteration {k}", r.get("columns")) for k, r in list(progress.merges.items())[-1:]]
    ranks = [(f"environment {name}", record.get("columns")) for name, record in progress.ranks.items()]
    for who, known in (*merges, *ranks):
        if known and columns and known != columns:
            return who, known
    return None

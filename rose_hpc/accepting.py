"""Accepting what environments left: their shards are published, and they have their records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from rose_hpc import failpoints, publishing
from rose_hpc.attempts import Place
from rose_hpc.errors import RoseHpcError
from rose_hpc.execution.attempt import Outcome
from rose_hpc.progress import Progress
from rose_hpc.results import difference, flat, signature
from rose_hpc.tries import Tries
from rose_hpc.workflow import Work

_NOTHING: Mapping[str, Any] = {"rows": 0, "bytes": 0, "digest": None, "columns": {}}
#: who wrote columns, and which
_Known = tuple[str, dict[str, str]]


@dataclass(frozen=True)
class Collected:
    """What an environment left, not yet accepted."""

    place: Place
    work: Work
    outcome: Outcome
    value: Any

    @cached_property
    def columns(self) -> dict[str, str]:
        """Those of its shard; none without one."""
        return signature(self.outcome.info["columns"]) if self.outcome.info else {}


async def accept(tries: Tries, iteration: int, landed: Sequence[Collected]) -> list[RoseHpcError]:
    """Accept what came at once, for ``iteration``, which may be a later one than it was collected for.

    All shards get their names before the first record is written, so that a thousand of them wait for one fsync.

    Returns:
        what is wrong with those whose columns are not those of the others; which of them is right, nobody knows.
    """
    known = _known_columns(tries.session.progress) if any(c.outcome.info for c in landed) else None
    errors: list[RoseHpcError] = []
    fit: list[Collected] = []
    for collected in landed:
        failpoints.hit("rank-answered")
        columns = collected.columns
        if columns and known and columns != known[1]:
            await _commit(tries, iteration, fit)
            fit = []
            errors.append(await _unlike(tries, iteration, collected, columns, known))
            known = _known_columns(tries.session.progress)
        else:
            known = known or ((f"environment {collected.place.environment}", columns) if columns else None)
            fit.append(collected)
    await _commit(tries, iteration, fit)
    return errors


def _known_columns(progress: Progress) -> _Known | None:
    """The columns of the last bank, or of whoever has a record in this iteration; they are all alike."""
    for k in reversed(progress.merges):
        if columns := progress.merges[k].get("columns"):
            return f"the bank of iteration {k}", columns
        break
    ranks = ((f"environment {name}", record.get("columns")) for name, record in progress.ranks.items())
    return next(((who, columns) for who, columns in ranks if columns), None)


async def _unlike(
    tries: Tries, iteration: int, collected: Collected, columns: dict[str, str], known: _Known
) -> RoseHpcError:
    who, others = known
    name = collected.place.environment
    if (first := who.removeprefix("environment ")) in tries.session.progress.ranks:
        # who came first need not be right: both run again
        tries.session.record("redo", iteration=iteration, environment=first, reason=f"unlike {name}")
    try:
        message = f"wrote {difference(columns, others)} of {who}"
        await tries.fail(collected.place, collected.outcome, message, "shard")
    except RoseHpcError as error:
        return error
    raise AssertionError("unreachable")


async def _commit(tries: Tries, iteration: int, fit: Sequence[Collected]) -> None:
    session = tries.session
    shards = {c.place.shard: session.run.shard(iteration, c.place.environment) for c in fit if c.outcome.info}
    if shards:
        session.check_owned()
        folders = await tries.quick.run(publishing.name_all, shards)
        session.first(partial(publishing.sync_all, folders))
        failpoints.hit("shard-published")
    if fit:
        session.record_all("rank", [_record(tries, iteration, collected) for collected in fit])
        failpoints.hit("rank-recorded")
        tries.walltime.worked = True


def _record(tries: Tries, iteration: int, collected: Collected) -> dict[str, Any]:
    """What the journal says of it."""
    place, outcome = collected.place, collected.outcome
    info, lag = outcome.info or _NOTHING, iteration - place.iteration
    nans = int(sum(flat(info["columns"].get("rewards", {}).get("stats", {}).get("nans", 0))))
    return {
        "iteration": iteration,
        "stage": "collect",
        "environment": place.environment,
        "attempt": place.number,
        "node": outcome.node,
        "rows": info["rows"],
        "bytes": info["bytes"],
        "digest": info["digest"],
        "seconds": outcome.seconds,
        "max_rss_mb": outcome.max_rss_mb,
        **({"columns": collected.columns} if collected.columns else {}),
        **({"nan_rewards": nans} if nans else {}),
        **({"lag": lag} if lag else {}),
        **tries.keep(place.environment, collected.work, outcome, collected.value),
    }

"""The first stage: every environment runs, and leaves a shard."""

from __future__ import annotations

import asyncio
from functools import partial

from rose_hpc import attempts, failpoints, publishing
from rose_hpc.errors import EngineError
from rose_hpc.results import difference, flat, signature
from rose_hpc.tries import Tries
from rose_hpc.workflow import Environment


class Collect:
    """One driver's collecting."""

    def __init__(self, tries: Tries) -> None:
        self.tries = tries
        self.session = tries.session
        self.workflow = tries.workflow

    async def run(self, iteration: int) -> None:
        """Run every environment that has no record in this iteration."""
        begun: set[str] = set()
        todo = [e for e in self.workflow.environments if e.name not in self.session.progress.ranks]
        tasks = {
            e.name: asyncio.create_task(self.tries.survive_losses(partial(self._rank, iteration, e, begun)))
            for e in todo
        }
        try:
            pending = set(tasks.values())
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
                if any(task.exception() for task in done if not task.cancelled()):
                    # what runs may end, so that its work is kept; what has not begun does not begin
                    for name in tasks.keys() - begun:
                        tasks[name].cancel()
        except asyncio.CancelledError:
            for task in tasks.values():
                task.cancel()
            await asyncio.wait(tasks.values())
            raise
        failures = [error for task in tasks.values() if not task.cancelled() and (error := task.exception())]
        if failures:
            raise failures[0]
        if any(task.cancelled() for task in tasks.values()):  # not by us, for nothing has failed
            raise EngineError(
                "the engine was shut down while environments ran", hint=self.session.run.command("resume")
            )
        ranks = self.session.progress.ranks.values()
        rows, size = sum(record["rows"] for record in ranks), sum(record["bytes"] for record in ranks)
        self.session.record("stage", iteration=iteration, stage="collect", rows=rows, bytes=size)
        failpoints.hit("collect-recorded")

    async def _rank(self, iteration: int, environment: Environment, begun: set[str]) -> None:
        name, work = environment.name, environment.work

        def on_start() -> None:
            begun.add(name)
            self.session.started(iteration, "collect", name)

        async with self.tries.limit:
            place = self.tries.place(iteration, "collect", name)
            argv, call = await self.tries.prepare(place, work, ())
            failpoints.hit("rank-prepared")
            attempt = attempts.collect(place, environment, self.workflow.cwd, argv)
            outcome, value = await self.tries.carry_out(place, attempt, call, on_start)
        failpoints.hit("rank-answered")
        info = outcome.info or {"rows": 0, "bytes": 0, "digest": None, "columns": {}}
        columns = signature(info["columns"])
        if (other := self._other_columns(columns)) is not None:
            if (first := other[0].removeprefix("environment ")) in self.session.progress.ranks:
                # who came first need not be right: both run again
                self.session.record("redo", iteration=iteration, environment=first, reason=f"unlike {name}")
            await self.tries.fail(place, outcome, f"wrote {difference(columns, other[1])} of {other[0]}", "shard")
        if outcome.info is not None:
            target = self.session.run.shard(iteration, name)
            self.session.check_owned()
            target.parent.mkdir(parents=True, exist_ok=True)
            publishing.publish(place.shard, target)
            failpoints.hit("shard-published")
        nans = int(sum(flat(info["columns"].get("rewards", {}).get("stats", {}).get("nans", 0))))
        self.session.record(
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
            **self.tries.keep(name, work, outcome, value),
        )
        failpoints.hit("rank-recorded")

    def _other_columns(self, columns: dict[str, str]) -> tuple[str, dict[str, str]] | None:
        """Who wrote other columns before, and which; None where these fit."""
        progress = self.session.progress
        merges = [(f"the bank of iteration {k}", r.get("columns")) for k, r in list(progress.merges.items())[-1:]]
        ranks = [(f"environment {name}", record.get("columns")) for name, record in progress.ranks.items()]
        for who, known in (*merges, *ranks):
            if known and columns and known != columns:
                return who, known
        return None

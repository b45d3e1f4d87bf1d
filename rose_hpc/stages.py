"""The four stages, each from its attempts to its record; :mod:`rose_hpc.loop` decides which is next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rose_hpc import attempts, failpoints, publishing
from rose_hpc.attempts import Place
from rose_hpc.collect import Collect
from rose_hpc.errors import RunError
from rose_hpc.execution import merging
from rose_hpc.refusals import named
from rose_hpc.results import last_number, number, signature
from rose_hpc.streaming import Reduced, Streaming
from rose_hpc.tries import Tries
from rose_hpc.workflow import Work


class Stages:
    """One driver's stages."""

    def __init__(self, tries: Tries) -> None:
        self.tries = tries
        self.session = tries.session
        self.workflow = tries.workflow
        self.engine = tries.engine
        self._is_first = True
        self._streaming = Streaming(tries)
        self._collect = Collect(tries, self._streaming.look)

    @property
    def values(self) -> dict[str, Any]:
        """This iteration's values, by environment or stage."""
        return self.tries.values

    def recall(self, iteration: int) -> None:
        """The values of what is done already; where one could not be kept, the iteration is done again."""
        progress = self.session.progress
        records = [*progress.ranks.values(), *progress.stages.values()]
        if any(record.get("opaque") for record in records):
            self.session.record(
                "redo", iteration=iteration, reason="a task's value was not JSON, so no record holds it"
            )
        elif records and not self.tries.values:
            done = {**progress.ranks, **{k: r for k, r in progress.stages.items() if k in ("update", "check")}}
            self.tries.values = {name: record.get("value") for name, record in done.items()}

    async def collect(self, iteration: int) -> None:
        """Run the environments; meanwhile there is time to make the iteration's folders."""
        self.session.first(partial(self._make_folder, iteration))
        await self._collect.run(iteration)

    def hand_over(self, why: str) -> None:
        """Begin nothing more."""
        self.tries.walltime.told = self.tries.walltime.told or why
        self._collect.look()

    async def abandon(self, why: str, patience_s: float | None = None) -> None:
        """End whatever still runs for the run; it is over for this driver.

        Args:
            why: in words, for records.
            patience_s: how long the disk is waited for; what it has not taken by then has not happened. None: as long
                as it takes.
        """
        await self._settle(patience_s)  # first: a failure that nobody has been told of would meet who records next
        await self._collect.abandon(why)
        await self._streaming.abandon()
        await self._settle(patience_s)

    async def _settle(self, patience_s: float | None) -> None:
        try:
            async with asyncio.timeout(patience_s):
                await self.session.settle()
        except Exception as error:  # noqa: BLE001 - whatever it was, the run's end is to be recorded
            problem = str(error) or f"the disk has not taken it within {patience_s} s"
            self.session.warn(f"what was done last has no record, and is done again by whoever goes on: {problem}")
            self.session.forget_unwritten()

    async def merge(self, iteration: int) -> bool:
        """Merge the shards; False when some were damaged: they are set aside, and their environments run again."""
        return await self.tries.persist(partial(self._merge, iteration))

    async def update(self, iteration: int) -> None:
        """Update the policy."""
        await self.tries.persist(partial(self._update, iteration))

    async def check(self, iteration: int, work: Work) -> None:
        """Measure the policy."""
        await self.tries.persist(partial(self._check, iteration, work))

    def _make_folder(self, iteration: int) -> None:
        run, had_shards = self.session.run, self.session.progress.has_bank(iteration - 1)
        shards = had_shards or any(environment.shard for environment in self.workflow.environments)
        folder = run.shard(iteration, "").parent if shards else run.iteration(iteration)
        with named(RunError, f"cannot make {folder}"):
            publishing.make_folder(folder)
            if self._is_first:  # a driver that was killed may have made some of it, and not brought it to the disk
                for path in (run.path, run.iteration(iteration)):
                    publishing.fsync_path(path)
        self._is_first = False

    async def _merge(self, iteration: int) -> bool:
        run, progress = self.session.run, self.session.progress
        names = [e.name for e in self.workflow.environments if progress.ranks.get(e.name, {}).get("digest")]
        if not names:
            self.session.record("stage", iteration=iteration, stage="merge", skipped="no shards", rows=0, bytes=0)
            return True
        self.session.started(iteration, "merge")
        failpoints.hit("merge-planned")
        reduced = await self._streaming.end(iteration, names) or await self._reduce(iteration, names)
        place, outcome = reduced.place, reduced.outcome
        failpoints.hit("merge-answered")
        if outcome.reason == "damaged":
            for name in names:
                if str(path := run.shard(iteration, name)) in outcome.paths:
                    self._set_aside(iteration, name, path, outcome.message)
            return False
        if not outcome.ok or outcome.info is None:
            await self.tries.fail(place, outcome, outcome.message, outcome.reason)
            raise AssertionError("unreachable")
        self.session.check_owned()
        bank = run.bank(iteration)
        folders = publishing.name_all({place.shard: bank})
        self.session.first(partial(publishing.sync_all, folders if reduced.synced else [bank, *folders]))
        failpoints.hit("bank-published")
        facts = {key: outcome.info[key] for key in ("rows", "bytes", "digest")} | reduced.facts
        columns = signature(outcome.info["columns"])
        if returns := outcome.info.get("returns"):
            known = {e.name: dict(e.parameters) for e in self.workflow.environments}
            facts["returns"] = {name: {"parameters": known.get(name, {}), **of} for name, of in returns.items()}
        self.session.record(
            "stage", iteration=iteration, stage="merge", **facts, seconds=outcome.seconds, columns=columns
        )
        failpoints.hit("merge-recorded")
        self._streaming.note(names)
        return True

    async def _reduce(self, iteration: int, names: Sequence[str]) -> Reduced:
        """The reduction of these environments' shards, all at once."""
        run, ranks, place = self.session.run, self.session.progress.ranks, self.tries.place(iteration, "merge")
        size = sum(ranks[name]["bytes"] for name in names)
        file_system = merging.file_system_of(run.path)
        way = merging.choose_way(size, self.engine.free_cores, self.workflow.way, self.workflow.workers, file_system)
        shards = {run.shard(iteration, name): ranks[name]["digest"] for name in names}
        later = self.engine.is_local and way.name == "threads"  # what another node wrote, only that one can sync
        attempt = attempts.merge(place, self.workflow, shards, way, fsync=not later)
        outcome = await merging.merge(self.engine, attempt, way)
        facts = {"way": way.name} | ({"parts": way.parts} if way.parts > 1 else {})
        return Reduced(place, outcome, facts, synced=not later)

    def _set_aside(self, iteration: int, name: str, path: Path, message: str) -> None:
        aside = path.with_name(f"{path.name}.damaged-{len(list(path.parent.glob(path.name + '.damaged-*')))}")
        try:
            path.rename(aside)
            failpoints.hit("damaged-set-aside")
            where, what = self.session.run.relative(aside), f"is damaged and was set aside as {aside}"
        except FileNotFoundError:
            where, what = None, "is gone"
        self.session.record("damaged", iteration=iteration, environment=name, path=where, reason=message)
        self.session.warn(f"the shard of {name} {what}: the environment runs again")

    async def _update(self, iteration: int) -> None:
        run = self.session.run
        place, work = self.tries.place(iteration, "update"), self.workflow.update
        argv, call = await self.tries.prepare(
            place, work, tuple(self.values.get(e.name) for e in self.workflow.environments)
        )
        await self.tries.quick.run(self._copy_committed, iteration - 1, place)
        failpoints.hit("update-prepared")
        attempt = attempts.update(place, self.workflow, self.session.progress, argv)
        outcome, value = await self.tries.carry_out(place, work, attempt, call)
        failpoints.hit("update-answered")
        self.session.check_owned()
        trees = {place.state: run.state(iteration), place.policy: run.policy(iteration)}
        (state, policy), sync = await self.tries.quick.run(publishing.name_trees, trees)
        self.session.first(sync)
        failpoints.hit("policy-published")
        self.session.record(
            "stage",
            iteration=iteration,
            stage="update",
            seconds=outcome.seconds,
            node=outcome.node,
            max_rss_mb=outcome.max_rss_mb,
            policy=policy,
            state=state,
            **self.tries.keep("update", work, outcome, value),
        )
        failpoints.hit("update-recorded")

    async def _check(self, iteration: int, work: Work) -> None:
        place = self.tries.place(iteration, "check")
        argv, call = await self.tries.prepare(place, work, (self.values.get("update"),))
        attempt = attempts.check(place, self.workflow, work, self.session.progress, argv)
        outcome, value = await self.tries.carry_out(place, work, attempt, call)
        failpoints.hit("check-answered")
        try:
            reward = number(value) if work.is_function else last_number(outcome.stdout)
        except ValueError as error:
            await self.tries.fail(place, outcome, str(error), "value", work)
            raise AssertionError("unreachable") from error
        kept = self.tries.keep("check", work, outcome, value) if work.is_function else {}
        self.session.record("stage", iteration=iteration, stage="check", seconds=outcome.seconds, reward=reward, **kept)
        failpoints.hit("check-recorded")

    def _copy_committed(self, iteration: int, place: Place) -> None:
        """Copies of an iteration's policy and state (empty ones before the first) that an update may change.

        Raises:
            RunError: they are not what was committed: nothing else would tell, where everybody is root.
        """
        run, committed = self.session.run, self.session.progress.updates[iteration] if iteration >= 0 else None
        for name, source, copy in (
            ("policy", run.policy(iteration), place.policy),
            ("state", run.state(iteration), place.state),
        ):
            copied = publishing.copy_tree(source if committed else None, copy)
            if committed and copied["digest"] != committed[name]["digest"]:
                raise RunError(
                    f"{source} is not what the update of iteration {iteration} left: an environment or a check has "
                    "changed it",
                    hint="bring it back from a copy, and let only the update write to task.policy and task.state",
                )

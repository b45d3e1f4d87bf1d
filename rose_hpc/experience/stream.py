"""A merge that goes on while its shards come: each is checked and copied as soon as it is there, in whatever order.

Where a column lies in a bank follows from the rows of all shards, so a stream is begun with how many rows each will
have, known beforehand or guessed. A wrong guess is found before anything else is copied; then there is no bank, and the
shards are merged when all are there. Nothing but the caller's knowledge that a shard has been accepted makes it part of
the bank: at the end all of them are given once more, and must be those that were copied.

What processes tell each other lies beside the bank, as for :mod:`rose_hpc.experience.parts`: each may be another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rose_hpc import failpoints
from rose_hpc.errors import ExperienceError
from rose_hpc.experience.copying import Copier, in_threads
from rose_hpc.experience.files import fsync_path
from rose_hpc.experience.merge import Draft, digest_rest, finish, span_writer
from rose_hpc.experience.parts import Parts
from rose_hpc.experience.plan import plan_rows, plan_spans, shares_of_shards, with_shards
from rose_hpc.experience.schema import ShardInfo, renamed
from rose_hpc.experience.tally import Tally


class Stream:
    """The merge of one bank; one process at a time works on it.

    Args:
        bank: a path that nobody else uses: the bank is incomplete until :meth:`finish` has ended.
        verify: whether shards are compared with their digests.
        fsync: whether what was copied is to be on the disk afterwards.
    """

    def __init__(self, bank: Path, *, verify: bool, fsync: bool) -> None:
        self._parts = Parts(bank)
        self._verify = verify
        self._fsync = fsync

    def copy(self, rows: Sequence[int], shards: Mapping[int, ShardInfo], workers: int = 1) -> None:
        """Copy shards, by their numbers in the bank; none a second time. The first that come make the bank.

        Args:
            rows: that each shard of the bank will have.
            shards: those that are there; one of the first must have rows.
            workers: threads that copy.

        Raises:
            DamagedError: naming all of these that are not what was written.
            SchemaError: one has other columns, or another number of rows than was expected.
            ExperienceError: the bank cannot be written, or there is no space for it.
        """
        with self._parts.named():
            if not self._parts.folder.exists():
                model = next(shard for shard in shards.values() if shard.rows)
                self._parts.make(plan_rows(rows, model))
                failpoints.hit("stream-begun")
            draft = self._parts.draft()
            draft = replace(draft, plan=with_shards(draft.plan, shards))
            tally = Tally(draft.plan, self._verify)
            self._fill(draft, tally, shards, workers)
            tally.digests()  # raises what is damaged
            if self._fsync:
                fsync_path(self._parts.bank)
            failpoints.hit("stream-copied")
            digests = {str(number): shard.digest for number, shard in shards.items()}
            self._parts.write(f"shards-{min(shards)}", {"shards": digests, "tally": tally.to_json()})

    def finish(self, shards: Sequence[ShardInfo], attributes: Mapping[str, Any], workers: int = 1) -> ShardInfo:
        """Copy what is left, and have the bank say what it is.

        Args:
            shards: all of them, in the bank's order.
            attributes: of the bank.
            workers: threads that copy.

        Raises:
            DamagedError: naming all shards that are not what was written.
            SchemaError, ExperienceError: they are not those that were expected or copied; the bank cannot be written.
        """
        with self._parts.named():
            draft = self._parts.draft()
            expected = with_shards(draft.plan, dict(enumerate(shards)))  # or it raises
            if len(shards) != len(expected.sources):
                raise ExperienceError(f"{len(shards)} shards have come, and {len(expected.sources)} were expected")
            plan = plan_spans(shards, late="iteration" in attributes)
            offsets = {name: column.offset for name, column in draft.columns.items()}
            draft = Draft(draft.path, plan, renamed(plan.columns, offset=offsets))
            tally = Tally(plan, self._verify)
            copied = self._add(tally, shards)
            failpoints.hit("stream-ending")
            self._fill(draft, tally, [number for number in range(len(shards)) if number not in copied], workers)
            if not tally.damage:
                digest_rest(draft, tally, workers)
            info = finish(draft, tally, attributes, workers)
            if self._fsync:
                fsync_path(self._parts.bank)
        return info

    def clear(self) -> None:
        """Remove what was told beside the bank."""
        self._parts.clear()

    def _fill(self, draft: Draft, tally: Tally, numbers: Iterable[int], workers: int) -> None:
        with span_writer(draft, sync=self._fsync) as writer:
            copier = Copier(draft.plan.sources, writer, tally)
            in_threads(workers, copier.share, shares_of_shards(draft.plan, numbers, workers))

    def _add(self, tally: Tally, shards: Sequence[ShardInfo]) -> set[int]:
        """Take what was found of those that are copied already; which these are."""
        copied: dict[int, str | None] = {}
        for name in self._parts.names("shards-"):
            known = self._parts.read(name)
            tally.add(known["tally"])
            copied |= {int(number): digest for number, digest in known["shards"].items()}
        for number, digest in copied.items():
            if digest is None or digest != shards[number].digest:
                raise ExperienceError(f"{shards[number].path} is not the shard that was copied")
        return set(copied)

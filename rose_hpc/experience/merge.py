"""The reducer: fills a preallocated bank by copying spans of shards, digesting both on the way.

A merge is begun, carried out and finished; what lies between is a :class:`Draft`. Here a process does all three, with
threads in the middle; :mod:`rose_hpc.experience.parts` has several processes carry it out, on several nodes if need be,
and :mod:`rose_hpc.experience.mpio` the ranks of an MPI program. The bank is the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rose_hpc import failpoints
from rose_hpc.errors import DamagedError, ExperienceError, FormatError, UsageError
from rose_hpc.experience.ahead import read_each
from rose_hpc.experience.copying import Copier, SpanWriter, Writer, complete, in_threads
from rose_hpc.experience.episodes import MAX_KEPT, find_episodes
from rose_hpc.experience.files import UnreadableError, opened, publishing, reserve
from rose_hpc.experience.format import create, write_info
from rose_hpc.experience.plan import MergePlan, count_shares, pieces_of_share
from rose_hpc.experience.plan import plan_spans as plan_spans
from rose_hpc.experience.schema import Column, ShardInfo, plain_attributes, renamed
from rose_hpc.experience.tally import Tally, raise_damaged
from rose_hpc.experience.workers import default_workers
from rose_hpc.refusals import named


def merge_shards(
    paths: Sequence[str | Path | ShardInfo],
    bank_path: str | Path,
    *,
    verify: bool = True,
    workers: int | None = None,
    fsync: bool = False,
    attributes: Mapping[str, Any] | None = None,
) -> ShardInfo:
    """Merge shards into one bank, in the given order. The shards are never changed or removed.

    Args:
        paths: of the shards; a :class:`ShardInfo` stands for its path, and saves opening the file as HDF5.
        bank_path: the bank; it appears when it is whole, replacing an older one of that name.
        verify: compare every shard with its digests, and digest the bank. Without it, bytes are copied unseen (by the
            file server, where it can), and the bank has no digests.
        workers: threads that copy; the default follows from cores and bytes.
        fsync: bring the bank to the disk before it appears.
        attributes: of the bank, as for :class:`rose_hpc.ShardWriter`; ``run`` and ``iteration`` come from the shards.
            Where an ``iteration`` is given, shards may be of different ones, as those are that a run takes late.

    Raises:
        DamagedError: naming all shards that are cut short or altered, or no shards at all; no bank appears.
        SchemaError: shards with other columns, dtypes or shapes.
        ExperienceError: duplicates, shards of different runs, no access, disk full.
    """
    bank, extra = Path(bank_path), plain_attributes(attributes)
    plan = plan_spans(refuse_itself(bank, read_shards(paths)), late="iteration" in extra)
    with publishing(bank, fsync=fsync) as scratch:
        draft = begin(scratch, plan)
        tally = Tally(plan, verify)
        threads = workers or default_workers(plan.bytes, len(os.sched_getaffinity(0)), len(plan.spans))
        copy(draft, tally, threads, writer=partial(span_writer, sync=fsync))
        failpoints.hit("bank-copied")
        return replace(finish(draft, tally, extra, threads), path=bank)


@dataclass(frozen=True)
class Draft:
    """A bank that has its columns, but not all of its rows, and does not say what it is yet.

    Attributes:
        path: of the bank.
        plan: what is to be copied.
        columns: of the bank, with their offsets in it.
    """

    path: Path
    plan: MergePlan
    columns: Mapping[str, Column]


def begin(path: Path, plan: MergePlan) -> Draft:
    """Make the file, and have the file system set aside its space.

    Raises:
        OSError, ExperienceError: it cannot be made, or there is no such space.
    """
    columns = create(path, plan.columns, plan.rows)
    with opened(path, os.O_RDWR) as fd:
        reserve(fd, os.fstat(fd).st_size)
    failpoints.hit("bank-reserved")
    return Draft(path, plan, columns)


@contextmanager
def span_writer(draft: Draft, *, sync: bool = False) -> Iterator[Writer]:
    """What puts bytes into the bank by their offsets; see :class:`rose_hpc.experience.copying.SpanWriter`."""
    # not to be read: what NFS has read it writes back by the page, over what others have written to that page
    with opened(draft.path, os.O_WRONLY) as fd:
        yield SpanWriter(fd, draft.columns, sync=sync)


def copy(
    draft: Draft,
    tally: Tally,
    workers: int,
    part: int = 0,
    parts: int = 1,
    writer: Callable[[Draft], AbstractContextManager[Writer]] = span_writer,
) -> None:
    """Fill the bank, or one part of so many, from so many threads; the tally is told what was found.

    Raises:
        OSError: the bank cannot be written (disk full).
        ExperienceError: nor read back.
    """
    shares = parts * count_shares(draft.plan.bytes // parts, workers)
    numbers = range(shares * part // parts, shares * (part + 1) // parts)
    with writer(draft) as bank:
        copier = Copier(draft.plan.sources, bank, tally)
        in_threads(workers, copier.share, (pieces_of_share(draft.plan, number, shares) for number in numbers))
    if not tally.damage:
        digest_rest(draft, tally, workers)


def digest_rest(draft: Draft, tally: Tally, workers: int) -> None:
    """Digest the chunks that no worker saw whole from the bank itself.

    Raises:
        ExperienceError: it cannot be read.
    """
    try:
        with opened(draft.path) as fd:
            complete(tally, fd, draft.columns, workers)
    except UnreadableError as error:
        raise ExperienceError(f"what was written to {draft.path} cannot be read: {error}", hint=error.hint) from error


def finish(draft: Draft, tally: Tally, attributes: Mapping[str, Any], workers: int) -> ShardInfo:
    """Have the bank say what it is, once all of it is there; so many threads look for episodes.

    Raises:
        DamagedError: naming all shards that are not what was written.
        ExperienceError: the bank cannot be written.
    """
    plan, columns = draft.plan, renamed(draft.columns, digest=tally.digests())
    kept = find_episodes(draft.path, columns, plan.offsets, workers=workers, most=MAX_KEPT)
    digest = kept.digest if kept is not None else None
    known = plan.attributes | dict(attributes)
    info = ShardInfo(draft.path, "bank", plan.rows, 0, columns, known, plan.offsets, plan.names, digest)
    write_info(draft.path, info, kept)
    failpoints.hit("bank-described")
    return replace(info, bytes=draft.path.stat().st_size)


def refuse_itself(bank: Path, shards: list[ShardInfo]) -> list[ShardInfo]:
    """The shards, unless the bank is one of them.

    Raises:
        UsageError: it is.
    """
    with named(ExperienceError, f"cannot write {bank}"):
        place = os.path.realpath(bank)
        is_one = bank.exists() and any(os.path.realpath(shard.path) == place for shard in shards)
    if is_one:
        raise UsageError(f"{bank} is one of the shards", hint="choose another path for the bank")
    return shards


def read_shards(paths: Sequence[str | Path | ShardInfo]) -> list[ShardInfo]:
    """What the shards say of themselves.

    Raises:
        DamagedError: naming all that are damaged, or no shards.
    """
    known: list[ShardInfo | None] = [path if isinstance(path, ShardInfo) else None for path in paths]
    unknown = [(n, Path(path)) for n, path in enumerate(paths) if not isinstance(path, ShardInfo)]
    errors: dict[str, str] = {}
    hint = ""
    for (n, path), read in zip(unknown, read_each(path for _, path in unknown), strict=True):
        try:
            known[n] = read()
        except (DamagedError, FormatError) as error:
            errors[str(path)], hint = error.message, hint or error.hint
    raise_damaged(errors, hint)
    return [info for info in known if info is not None]

"""The reducer: fills a preallocated bank by copying spans of shards, digesting both on the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from rose_hpc import failpoints
from rose_hpc.errors import DamagedError, FormatError, UsageError
from rose_hpc.experience.digest import CHUNK, ChunkDigests, chunks_in, column_digest
from rose_hpc.experience.episodes import MAX_KEPT, find_episodes
from rose_hpc.experience.files import (
    BUFFER,
    UnreadableError,
    copy_range,
    new_buffer,
    opened,
    publishing,
    read_into,
    reserve,
    write_all,
)
from rose_hpc.experience.format import create, read_info, write_info
from rose_hpc.experience.plan import MergePlan, Piece, plan_pieces
from rose_hpc.experience.plan import plan_spans as plan_spans
from rose_hpc.experience.schema import Column, ShardInfo, plain_attributes, renamed

Item = TypeVar("Item")
Result = TypeVar("Result")

#: below this a second thread costs more than it saves
_WORTH_A_THREAD = 32 * 1024 * 1024
_MAX_WORKERS = 8


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

    Raises:
        DamagedError: naming all shards that are cut short or altered, or no shards at all; no bank appears.
        SchemaError: shards with other columns, dtypes or shapes.
        ExperienceError: duplicates, shards of different runs, no access, disk full.
    """
    bank, extra = Path(bank_path), plain_attributes(attributes)
    shards = _read_all(paths)
    if any(os.path.realpath(shard.path) == os.path.realpath(bank) for shard in shards):
        raise UsageError(f"{bank} is one of the shards", hint="choose another path for the bank")
    plan = plan_spans(shards)
    with publishing(bank, fsync=fsync) as scratch:
        columns = create(scratch, plan.columns, plan.rows)
        with opened(scratch, os.O_RDWR) as fd:
            reserve(fd, os.fstat(fd).st_size)
            failpoints.hit("bank-reserved")
            copying = _Copying(shards, columns, fd, verify)
            columns = renamed(columns, digest=_copy(copying, plan, workers or _default_workers(plan)))
        failpoints.hit("bank-copied")
        known = plan.attributes | extra
        found = find_episodes(scratch, columns, plan.offsets)
        kept = found if found is not None and len(found) <= MAX_KEPT else None
        digest = kept.digest if kept is not None else None
        info = ShardInfo(bank, "bank", plan.rows, 0, columns, known, plan.offsets, plan.names, digest)
        write_info(scratch, info, kept)
        failpoints.hit("bank-described")
        return replace(info, bytes=scratch.stat().st_size)


def _read_all(paths: Sequence[str | Path | ShardInfo]) -> list[ShardInfo]:
    shards: list[ShardInfo] = []
    errors: dict[str, str] = {}
    for path in paths:
        if isinstance(path, ShardInfo):
            shards.append(path)
            continue
        try:
            shards.append(read_info(path))
        except (DamagedError, FormatError) as error:
            errors[str(path)] = error.message
    _raise_damaged(errors)
    return shards


def _raise_damaged(errors: Mapping[str, str]) -> None:
    if errors:
        hint = "write them again; nothing was merged"
        raise DamagedError("; ".join(errors.values()), paths=list(errors), hint=hint)


def _default_workers(plan: MergePlan) -> int:
    size = plan.rows * sum(column.row_bytes for column in plan.columns.values())
    return max(1, min(_MAX_WORKERS, len(os.sched_getaffinity(0)), size // _WORTH_A_THREAD))


@dataclass(frozen=True)
class _Copied:
    """A piece that has been copied, and the leaves of both digests that lie in it."""

    piece: Piece
    shard_leaves: Mapping[int, bytes]
    bank_leaves: Mapping[int, bytes]


@dataclass(frozen=True)
class _Copying:
    """What the threads of one merge share; nothing of it changes."""

    shards: Sequence[ShardInfo]
    columns: Mapping[str, Column]
    bank: int
    verify: bool

    def portion(self, portion: tuple[int, list[Piece]]) -> tuple[list[_Copied], str]:
        """Copy some pieces of one shard; the text says why the shard could not be read, if it could not."""
        number, pieces = portion
        try:
            with opened(self.shards[number].path) as source:
                return [self._piece(source, piece) for piece in pieces], ""
        except UnreadableError as error:
            return [], str(error)

    def chunk(self, name: str, key: int, size: int) -> bytes:
        """The leaf of a chunk of the bank's column, of ``size`` bytes in all."""
        end = min(CHUNK, size - key * CHUNK)
        digest, buffer = xxhash.xxh3_128(), new_buffer(min(BUFFER, end))
        for done in range(0, end, len(buffer)):
            view = buffer[: end - done]
            read_into(self.bank, view, self.columns[name].offset + key * CHUNK + done)
            digest.update(view)
        return digest.digest()

    def _piece(self, source: int, piece: Piece) -> _Copied:
        base = self.shards[piece.shard].columns[piece.column].offset + piece.start
        target = self.columns[piece.column].offset + piece.target
        shard_tree, bank_tree = ChunkDigests(piece.start), ChunkDigests(piece.target)
        if not self.verify:
            copy_range(source, base, self.bank, target, piece.size)
            return _Copied(piece, {}, {})
        buffer = new_buffer(min(BUFFER, piece.size))
        for done in range(0, piece.size, len(buffer)):
            view = buffer[: piece.size - done]
            read_into(source, view, base + done)
            shard_tree.update(view)
            bank_tree.update(view)
            write_all(self.bank, view, target + done)
        shard_tree.finish()
        return _Copied(piece, shard_tree.digests, bank_tree.digests)


def _copy(copying: _Copying, plan: MergePlan, workers: int) -> dict[str, str | None]:
    """Copy everything; returns the digests of the bank's columns.

    Raises:
        DamagedError: naming every shard that is not what was written.
    """
    damage: dict[int, str] = {}
    shard_leaves: dict[tuple[int, str], dict[int, bytes]] = {}
    bank_leaves: dict[str, dict[int, bytes]] = {name: {} for name in plan.columns}
    portions = list(plan_pieces(plan))
    for (number, _), (copied, problem) in zip(portions, _map(workers, copying.portion, portions), strict=True):
        if problem:
            damage[number] = problem
        for done in copied:
            shard_leaves.setdefault((number, done.piece.column), {}).update(done.shard_leaves)
            bank_leaves[done.piece.column].update(done.bank_leaves)
    for (number, name), leaves in shard_leaves.items():
        expected = copying.shards[number].columns[name].digest
        if copying.verify and expected not in (None, column_digest(leaves[key] for key in sorted(leaves))):
            damage.setdefault(number, f"column '{name}' is not what was written")
    paths = {number: str(copying.shards[number].path) for number in sorted(damage)}
    _raise_damaged({path: f"{path} is damaged: {damage[number]}" for number, path in paths.items()})
    if not copying.verify:
        return dict.fromkeys(plan.columns)
    return _bank_digests(copying, plan, bank_leaves, workers)


def _bank_digests(
    copying: _Copying, plan: MergePlan, leaves: Mapping[str, dict[int, bytes]], workers: int
) -> dict[str, str | None]:
    """The digests of the bank's columns; chunks that no worker saw whole are read once more."""
    sizes = {name: plan.rows * column.row_bytes for name, column in plan.columns.items()}
    missing = [(n, k, size) for n, size in sizes.items() for k in range(chunks_in(size)) if k not in leaves[n]]
    for (name, key, _), digest in zip(
        missing, _map(workers, lambda chunk: copying.chunk(*chunk), missing), strict=True
    ):
        leaves[name][key] = digest
    return {name: column_digest(leaves[name][key] for key in range(chunks_in(size))) for name, size in sizes.items()}


def _map(workers: int, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """The function of every item, in order, from so many threads."""
    if workers == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(function, items)

"""Plans of a merge: pure data and pure functions; :mod:`rose_hpc.experience.merge` acts on them."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from rose_hpc.errors import ExperienceError, SchemaError
from rose_hpc.experience.digest import CHUNK
from rose_hpc.experience.schema import Column, ShardInfo, difference, renamed
from rose_hpc.experience.stats import Stats, combine
from rose_hpc.refusals import named

Layouts = dict[tuple[int, ...], dict[str, int]]

#: no worker's share is larger, so that none is left alone with the last one for long
_MOST = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Span:
    """Rows ``start`` to ``stop`` of shard number ``shard``, which become the bank's rows from ``target`` on."""

    shard: int
    start: int
    stop: int
    target: int


@dataclass(frozen=True, slots=True)
class Source:
    """What copying needs to know of a shard.

    Attributes:
        path: where it is.
        rows: that it has.
        offsets: where its columns lie.
        digests: of its columns, where they are known.
    """

    path: Path
    rows: int
    offsets: dict[str, int]
    digests: dict[str, str | None]


@dataclass(frozen=True)
class MergePlan:
    """What a merge will do.

    Attributes:
        sources: the shards.
        spans: every row of every shard exactly once, in the order of the shards.
        rows: of the bank.
        columns: of the bank: dtypes, shapes and combined statistics; without offsets and digests.
        offsets: where each shard's rows start in the bank, and the end of the last.
        names: of the shards.
        attributes: that all shards have in common, of ``run`` and ``iteration``.
    """

    sources: tuple[Source, ...]
    spans: tuple[Span, ...]
    rows: int
    columns: dict[str, Column]
    offsets: tuple[int, ...]
    names: tuple[str, ...]
    attributes: dict[str, Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of all columns."""
        return sum(column.row_bytes for column in self.columns.values())

    @property
    def bytes(self) -> int:
        """Of all rows."""
        return self.rows * self.row_bytes

    def to_json(self) -> dict[str, Any]:
        """Plain data, that another process can read."""
        return {
            "columns": {name: column.to_json() for name, column in self.columns.items()},
            "attributes": self.attributes,
            "sources": [
                [str(source.path), source.rows, list(source.offsets.values()), list(source.digests.values())]
                for source in self.sources
            ],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> MergePlan:
        """The inverse of :meth:`to_json`."""
        columns = {name: Column.from_json(column) for name, column in data["columns"].items()}
        layouts: Layouts = {}
        sources = [
            _source(Path(path), rows, columns, offsets, digests, layouts)
            for path, rows, offsets, digests in data["sources"]
        ]
        return _plan(sources, columns, data["attributes"])


class Piece(NamedTuple):
    """Bytes of one column: ``size`` of them, from ``start`` in the shard's column to ``target`` in the bank's."""

    shard: int
    column: str
    start: int
    size: int
    target: int


def plan_spans(shards: Sequence[ShardInfo], *, late: bool = False) -> MergePlan:
    """The plan of merging shards in the given order; shards without rows contribute nothing but their name.

    Args:
        shards: what is to be merged.
        late: shards may be of different iterations, as those are that a run takes late.

    Raises:
        SchemaError: other columns, dtypes or shapes; it names the shard and the difference.
        ExperienceError: no shards, one given twice, or shards of different runs or iterations.
    """
    if not shards:
        raise ExperienceError("there are no shards to merge")
    _check_unique(shards, ("run",) if late else ("run", "iteration"))
    model = next((shard for shard in shards if shard.rows), next((s for s in shards if s.columns), shards[0]))
    for shard in shards:
        if shard.rows and (text := difference(model.columns, shard.columns)):
            raise SchemaError(f"{shard.path} has {text}", hint=f"all shards of a bank need the columns of {model.path}")
    stats = {name: _combined(name, column, shards) for name, column in model.columns.items()}
    nothing = dict.fromkeys(model.columns)
    columns = renamed(model.columns, offset=dict.fromkeys(model.columns, 0), digest=nothing, stats=stats)
    layouts: Layouts = {}
    sources = [_source_of(shard, columns, layouts) for shard in shards]
    return _plan(sources, columns, _common(shards))


def plan_rows(rows: Sequence[int], model: ShardInfo) -> MergePlan:
    """The plan of merging shards that are not there yet: how many rows each will have, and columns like the model's."""
    nothing = dict.fromkeys(model.columns)
    columns = renamed(model.columns, offset=dict.fromkeys(model.columns, 0), digest=nothing, stats=nothing)
    return _plan([Source(Path(), count, {}, {}) for count in rows], columns, {})


def with_shards(plan: MergePlan, shards: Mapping[int, ShardInfo]) -> MergePlan:
    """The plan, now that some of its shards are there, by their numbers.

    Raises:
        SchemaError: one has other columns, or another number of rows, than was expected of it.
    """
    layouts: Layouts = {}
    sources = list(plan.sources)
    for number, shard in shards.items():
        if shard.rows != sources[number].rows:
            raise SchemaError(f"{shard.path} has {shard.rows} rows, and {sources[number].rows} were expected")
        if shard.rows and (text := difference(plan.columns, shard.columns)):
            raise SchemaError(f"{shard.path} has {text}")
        sources[number] = _source_of(shard, plan.columns, layouts)
    return replace(plan, sources=tuple(sources))


def _source_of(shard: ShardInfo, names: Iterable[str], layouts: Layouts) -> Source:
    names = tuple(names)
    known = [shard.columns[name] for name in names] if shard.rows else []
    offsets, digests = [column.offset for column in known], [column.digest for column in known]
    return _source(shard.path, shard.rows, names, offsets, digests, layouts)


def _source(
    path: Path,
    rows: int,
    names: Iterable[str],
    offsets: Sequence[int],
    digests: Sequence[str | None],
    layouts: Layouts,
) -> Source:
    """A shard without rows has neither offsets nor digests; shards of as many rows mostly share their offsets."""
    names = tuple(names)
    layout = layouts.setdefault(tuple(offsets), dict(zip(names, offsets, strict=False)))
    return Source(path, rows, layout, dict(zip(names, digests, strict=False)))


def _plan(sources: Sequence[Source], columns: dict[str, Column], attributes: dict[str, Any]) -> MergePlan:
    offsets = (0, *accumulate(source.rows for source in sources))
    return MergePlan(
        sources=tuple(sources),
        spans=tuple(Span(n, 0, source.rows, offsets[n]) for n, source in enumerate(sources) if source.rows),
        rows=offsets[-1],
        columns=columns,
        offsets=offsets,
        names=tuple(source.path.stem for source in sources),
        attributes=attributes,
    )


def count_shares(size: int, workers: int) -> int:
    """Into how many shares so many workers cut a bank of ``size`` bytes: some more, for they are not equally fast.

    Not many more: a chunk of the bank that two shares meet in has to be read once more to be digested.
    """
    return 1 if workers == 1 else max(2 * workers, -(-size // _MOST))


def pieces_of_share(plan: MergePlan, number: int, count: int) -> Iterator[Piece]:
    """Share ``number`` of ``count``: pieces in the order of the shards, and of the columns in each.

    The shares cover every byte once, and each leaf of a shard's digest lies in one of them. The pieces of a share that
    are of one column follow upon each other in the bank.
    """
    return _pieces_between(plan, *(plan.bytes * n // count for n in (number, number + 1)))


def shares_of_shards(plan: MergePlan, numbers: Iterable[int], workers: int) -> Iterator[Iterator[Piece]]:
    """The shares in which so many workers copy these shards alone; those that follow upon each other are as one."""
    row_bytes, ends = plan.row_bytes, plan.offsets
    runs: list[list[int]] = []  # first and last byte
    for number in sorted(numbers):
        first, last = (row * row_bytes for row in ends[number : number + 2])
        if runs and runs[-1][1] == first:
            runs[-1][1] = last
        else:
            runs.append([first, last])
    for first, last in runs:
        count = count_shares(last - first, workers)
        edges = [first + (last - first) * n // count for n in range(count + 1)]
        for edge, after in pairwise(edges):
            yield _pieces_between(plan, edge, after)


def _pieces_between(plan: MergePlan, first: int, last: int) -> Iterator[Piece]:
    """What lies between two of the plan's bytes, if all rows of a shard came after those of the shard before."""
    row_bytes, widths = plan.row_bytes, [(name, column.row_bytes) for name, column in plan.columns.items()]
    begin = bisect_right(plan.spans, first, key=lambda span: span.target * row_bytes)
    for span in plan.spans[max(0, begin - 1) :]:
        at = span.target * row_bytes  # where the span starts, counting the bytes of all spans before
        for name, width in widths:
            if at >= last:
                return
            size, shift = (span.stop - span.start) * width, span.start * width
            start = 0 if at >= first else min(size, _whole_chunks(first - at + shift) - shift)
            stop = size if at + size <= last else min(size, _whole_chunks(last - at + shift) - shift)
            if start < stop:
                yield Piece(span.shard, name, shift + start, stop - start, span.target * width + start)
            at += size


def _whole_chunks(size: int) -> int:
    return -(-size // CHUNK) * CHUNK


def _combined(name: str, column: Column, shards: Sequence[ShardInfo]) -> Stats | None:
    parts = [shard.columns[name].stats for shard in shards if shard.rows]
    known = [part for part in parts if part is not None]
    return combine(known, column.shape) if len(known) == len(parts) else None


def _real(path: Path, folders: dict[str, str]) -> str:
    """The real path of a file; each folder is resolved once."""
    folder, name = os.path.split(path)
    if name in ("", "..") or path.is_symlink():
        return os.path.realpath(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return f"{folders[folder]}/{name}"


def _check_unique(shards: Sequence[ShardInfo], alike: Sequence[str]) -> None:
    paths: set[str] = set()
    folders: dict[str, str] = {}
    sources: dict[tuple[Any, ...], ShardInfo] = {}
    for shard in shards:
        with named(ExperienceError, f"cannot read {shard.path}"):
            path = _real(shard.path, folders)
        if path in paths:
            raise ExperienceError(f"{shard.path} is given twice", hint="name every shard once")
        paths.add(path)
        source = tuple(shard.attributes.get(name) for name in ("run", "iteration", "environment"))
        if None not in source and (other := sources.setdefault(source, shard)) is not shard:
            raise ExperienceError(f"{shard.path} and {other.path} are both of environment '{source[2]}'")
    for name in alike:
        known = {shard.attributes[name]: shard.path for shard in shards if name in shard.attributes}
        if len(known) > 1:
            (a, path_a), (b, path_b), *_ = known.items()
            raise ExperienceError(
                f"{path_a} is of {name} {a!r}, {path_b} of {b!r}",
                hint="a bank is one iteration's; open several banks as one with ExperienceBank.open([...])",
            )


def _common(shards: Sequence[ShardInfo]) -> dict[str, Any]:
    first = shards[0].attributes
    names = [n for n in ("run", "iteration") if n in first and all(n in shard.attributes for shard in shards)]
    return {name: first[name] for name in names}

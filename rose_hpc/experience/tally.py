"""What is known of a merge while it goes on: leaves of the bank's digests, and what is wrong with shards."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rose_hpc.errors import DamagedError
from rose_hpc.experience.digest import CHUNK, ChunkDigests, Leaves, column_digest
from rose_hpc.experience.plan import MergePlan, Piece


class Tally:
    """Of a whole merge, or of the part of it that one process does; threads may share it.

    Args:
        plan: of the merge.
        verify: whether bytes are looked at at all.

    Attributes:
        damage: what is wrong with shards, by their numbers.
    """

    def __init__(self, plan: MergePlan, verify: bool) -> None:
        self.verify = verify
        self.damage: dict[int, str] = {}
        self._plan = plan
        self._row_bytes = {name: column.row_bytes for name, column in plan.columns.items()}
        self._sizes = {name: plan.rows * column.row_bytes for name, column in plan.columns.items()}
        self._bank = {name: Leaves(size if verify else 0) for name, size in self._sizes.items()}
        self._copied: dict[str, tuple[int, int]] = {}  # of each column of the bank, from where to where
        self._partly: dict[tuple[int, str], Leaves] = {}  # columns of shards that lie in several shares
        self._lock = threading.Lock()

    def damaged(self, number: int, what: str) -> None:
        """A shard is; what was said of it first counts."""
        with self._lock:
            self.damage.setdefault(number, what)

    def add_shard(self, piece: Piece, tree: ChunkDigests) -> None:
        """A piece was copied, and this is what was read from the shard."""
        size, end = self._size(piece.shard, piece.column), piece.start + piece.size
        if end == size:
            tree.finish()
        if piece.size == size:
            self._compare(piece.shard, piece.column, column_digest(tree.digests.values()))
            return
        with self._lock:
            leaves = self._partly.setdefault((piece.shard, piece.column), Leaves(size))
            leaves.add(tree.digests)
            self._compare(piece.shard, piece.column, leaves.digest)

    def add_columns(self, found: Iterable[tuple[Piece, str]]) -> None:
        """Whole columns of shards were copied, and these are their digests."""
        with self._lock:
            for piece, digest in found:
                self._compare(piece.shard, piece.column, digest)

    def add_bank(self, name: str, tree: ChunkDigests) -> None:
        """This is what a share put into a column."""
        if tree.at == self._sizes[name]:
            tree.finish()
        with self._lock:
            self._bank[name].add(tree.digests)
            self._add_copied(name, tree.start, tree.at)

    def add_leaf(self, name: str, number: int, digest: bytes) -> None:
        """This is what is in a chunk of a column."""
        with self._lock:
            self._bank[name].add({number: digest})

    def missing(self) -> Iterator[tuple[str, int, int]]:
        """Column, number and size of the chunks that were copied whole, but whose leaves are not known."""
        for name, (start, stop) in self._copied.items():
            for number in self._bank[name].missing(start, stop):
                yield name, number, min(CHUNK, self._sizes[name] - number * CHUNK)

    def digests(self) -> dict[str, str | None]:
        """Of the bank's columns; None where they were not looked at.

        Raises:
            DamagedError: naming every shard that is not what was written.
        """
        paths = {number: str(self._plan.sources[number].path) for number in sorted(self.damage)}
        raise_damaged({path: f"{path} is damaged: {self.damage[number]}" for number, path in paths.items()})
        return {name: leaves.digest if self.verify else None for name, leaves in self._bank.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain data that another tally of the same merge can :meth:`add`."""
        return {
            "damage": {str(number): what for number, what in self.damage.items()},
            "bank": {name: leaves.to_json() for name, leaves in self._bank.items()},
            "shards": [[*key, leaves.to_json()] for key, leaves in self._partly.items()],
            "copied": {name: list(span) for name, span in self._copied.items()},
        }

    def add(self, data: Mapping[str, Any]) -> None:
        """Take what :meth:`to_json` gave, in whatever order the parts come."""
        for number, what in data["damage"].items():
            self.damaged(int(number), str(what))
        for name, (low, high) in data["copied"].items():
            self._add_copied(name, low, high)
            self._bank[name].add_json(data["bank"][name])
        for number, name, leaves in data["shards"]:
            known = self._partly.setdefault((number, name), Leaves(self._size(number, name)))
            known.add_json(leaves)
            self._compare(number, name, known.digest)

    def _add_copied(self, name: str, low: int, high: int) -> None:
        before = self._copied.get(name, (low, high))
        self._copied[name] = (min(low, before[0]), max(high, before[1]))

    def _size(self, number: int, name: str) -> int:
        return self._plan.sources[number].rows * self._row_bytes[name]

    def _compare(self, number: int, name: str, found: str | None) -> None:
        """Hold a shard's column against its digest as soon as all of it is known."""
        if found is not None:
            self._partly.pop((number, name), None)
            if self._plan.sources[number].digests[name] not in (None, found):
                self.damage.setdefault(number, f"column '{name}' is not what was written")


def raise_damaged(errors: Mapping[str, str], hint: str = "") -> None:
    """Raise a DamagedError if there are any errors, by path."""
    if errors:
        hint = hint or "write them again; nothing was merged"
        raise DamagedError("; ".join(errors.values()), paths=list(errors), hint=hint)

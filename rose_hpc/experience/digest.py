"""Digests of column bytes: a two-level tree over chunks of fixed size, the same for any split of the work.

A column's digest is the xxh3-128 of the concatenated xxh3-128 digests of its consecutive 4 MiB chunks. It depends on
the column's bytes alone: not on the file around them, nor on the blocks they were written in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

import xxhash

#: bytes of a column under one leaf of its tree (part of the format)
CHUNK = 4 * 1024 * 1024
_DIGEST = re.compile("[0-9a-f]{32}")
#: bytes of a leaf
_LEAF = 16


class ChunkDigests:
    """The leaves of a column's tree that lie in one stretch of its bytes, fed in order.

    Args:
        start: where the stretch starts in the column, in bytes. A chunk that started before it is left out, and so is
            one that ends after it: whoever sees all of such a chunk has to digest it.

    Attributes:
        start: where it starts.
        at: where it ends so far.
    """

    def __init__(self, start: int = 0) -> None:
        self.digests: dict[int, bytes] = {}
        self.start = self.at = start
        self._leaf = xxhash.xxh3_128() if start % CHUNK == 0 else None

    def update(self, data: memoryview) -> None:
        """Take the next bytes (contiguous, format ``B``)."""
        while data:
            part = data[: CHUNK - self.at % CHUNK]
            if self._leaf is not None:
                self._leaf.update(part)
            self.at += len(part)
            data = data[len(part) :]
            if self.at % CHUNK == 0:
                self._close()
                self._leaf = xxhash.xxh3_128()

    def finish(self) -> None:
        """Say that the column ends here: its last chunk may be a short one."""
        if self.at % CHUNK:
            self._close()

    def _close(self) -> None:
        if self._leaf is not None:
            self.digests[(self.at - 1) // CHUNK] = self._leaf.digest()
        self._leaf = None


def is_digest(text: str) -> bool:
    """Whether it has the form of one."""
    return _DIGEST.fullmatch(text) is not None


class Leaves:
    """The leaves of one column's tree, as they become known in any order; 17 bytes each.

    Args:
        size: of the column, in bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._digests = bytearray(_LEAF * chunks_in(size))
        self._known = bytearray(chunks_in(size))

    def add(self, leaves: Mapping[int, bytes]) -> None:
        """Take some, by their numbers."""
        for number, digest in leaves.items():
            self._digests[_LEAF * number : _LEAF * (number + 1)] = digest
            self._known[number] = 1

    def missing(self, start: int, stop: int) -> Iterator[int]:
        """The numbers of those not known of the chunks that lie in bytes ``start`` to ``stop``, whole ones only."""
        end = len(self._known) if stop >= self._size else stop // CHUNK
        return (number for number in range(chunks_in(start), end) if not self._known[number])

    @property
    def digest(self) -> str | None:
        """Of the column; None as long as leaves are missing."""
        return xxhash.xxh3_128(self._digests).hexdigest() if all(self._known) else None

    def to_json(self) -> dict[str, str]:
        """Those that are known, as plain data: runs of consecutive ones by the number of the first."""
        runs: dict[str, str] = {}
        first = 0
        for known, group in groupby(self._known):
            count = sum(1 for _ in group)
            if known:
                runs[str(first)] = self._digests[_LEAF * first : _LEAF * (first + count)].hex()
            first += count
        return runs

    def add_json(self, runs: Mapping[str, str]) -> None:
        """Take what :meth:`to_json` gave."""
        for first, text in runs.items():
            data, number = bytes.fromhex(text), int(first)
            self._digests[_LEAF * number : _LEAF * number + len(data)] = data
            count = len(data) // _LEAF
            self._known[number : number + count] = b"\1" * count


def chunks_in(size: int) -> int:
    """How many leaves a column of ``size`` bytes has."""
    return -(-size // CHUNK)


def column_digest(leaves: Iterable[bytes]) -> str:
    """The digest of a column from those of its chunks, in order; 32 hex digits."""
    return xxhash.xxh3_128(b"".join(leaves)).hexdigest()


def digest_of_small(data: memoryview) -> str:
    """The digest of a column of no more than one chunk, all at once."""
    return xxhash.xxh3_128_hexdigest(xxhash.xxh3_128_digest(data))


def content_digest(rows: int, columns: Mapping[str, tuple[str, tuple[int, ...], str]]) -> str:
    """The digest of a file's content, from each column's ``(dtype, trailing shape, digest)``; 32 hex digits."""
    text = json.dumps([rows, sorted([name, *facts] for name, facts in columns.items())], separators=(",", ":"))
    return xxhash.xxh3_128(text.encode()).hexdigest()

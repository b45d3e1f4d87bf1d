"""Digests of column bytes: a two-level tree over chunks of fixed size, the same for any split of the work.

A column's digest is the xxh3-128 of the concatenated xxh3-128 digests of its consecutive 4 MiB chunks. It depends on
the column's bytes alone: not on the file around them, nor on the blocks they were written in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

import xxhash

#: bytes of a column under one leaf of its tree (part of the format)
CHUNK = 4 * 1024 * 1024
_DIGEST = re.compile("[0-9a-f]{32}")


class ChunkDigests:
    """The leaves of a column's tree that lie in one stretch of its bytes, fed in order.

    Args:
        start: where the stretch starts in the column, in bytes. A chunk that started before it is left out, and so is
            one that ends after it: whoever sees all of such a chunk has to digest it.
    """

    def __init__(self, start: int = 0) -> None:
        self.digests: dict[int, bytes] = {}
        self._at = start
        self._leaf = xxhash.xxh3_128() if start % CHUNK == 0 else None

    def update(self, data: memoryview) -> None:
        """Take the next bytes (contiguous, format ``B``)."""
        while data:
            part = data[: CHUNK - self._at % CHUNK]
            if self._leaf is not None:
                self._leaf.update(part)
            self._at += len(part)
            data = data[len(part) :]
            if self._at % CHUNK == 0:
                self._close()
                self._leaf = xxhash.xxh3_128()

    def finish(self) -> None:
        """Say that the column ends here: its last chunk may be a short one."""
        if self._at % CHUNK:
            self._close()

    def _close(self) -> None:
        if self._leaf is not None:
            self.digests[(self._at - 1) // CHUNK] = self._leaf.digest()
        self._leaf = None


def is_digest(text: str) -> bool:
    """Whether it has the form of one."""
    return _DIGEST.fullmatch(text) is not None


def chunks_in(size: int) -> int:
    """How many leaves a column of ``size`` bytes has."""
    return -(-size // CHUNK)


def column_digest(leaves: Iterable[bytes]) -> str:
    """The digest of a column from those of its chunks, in order; 32 hex digits."""
    return xxhash.xxh3_128(b"".join(leaves)).hexdigest()


def content_digest(rows: int, columns: Mapping[str, tuple[str, tuple[int, ...], str]]) -> str:
    """The digest of a file's content, from each column's ``(dtype, trailing shape, digest)``; 32 hex digits."""
    text = json.dumps([rows, sorted([name, *facts] for name, facts in columns.items())], separators=(",", ":"))
    return xxhash.xxh3_128(text.encode()).hexdigest()

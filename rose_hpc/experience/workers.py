"""How many threads copy: said here alone, for merges within and outside a run, without NumPy."""

from __future__ import annotations

#: below this a second thread costs more than it saves
_WORTH_A_THREAD = 32 * 1024 * 1024
#: with less of each shard, threads spend their time waiting for each other's turn at Python
_WORTH_SHARING = 512 * 1024
#: more have not filled any link or disk faster
_MOST = 8


def default_workers(size: int, cores: int, shards: int = 1) -> int:
    """Threads to copy ``size`` bytes of so many shards with, where there are so many cores."""
    if size < shards * _WORTH_SHARING:
        return 1
    return max(1, min(_MOST, cores, size // _WORTH_A_THREAD))

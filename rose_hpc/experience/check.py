"""Whether a file is what was written: every byte of its columns against its digests."""

from __future__ import annotations

from pathlib import Path

from rose_hpc.errors import DamagedError
from rose_hpc.experience.episodes import find_episodes
from rose_hpc.experience.scan import scan
from rose_hpc.experience.schema import ShardInfo


def verify(info: ShardInfo) -> None:
    """Read all rows of a shard or bank. Columns without a digest (of an unverified merge) cannot be checked.

    Raises:
        DamagedError: naming the columns that are not what was written.
    """
    found = scan(info.path, info.columns, info.rows)
    wrong = [name for name, column in info.columns.items() if column.digest not in (None, found[name].digest)]
    if wrong:
        raise _damaged(info.path, f"column {', '.join(map(repr, wrong))} is not what was written")
    if info.episodes is not None:
        episodes = find_episodes(info.path, info.columns, info.shard_offsets)
        if episodes is None or episodes.digest != info.episodes:
            raise _damaged(info.path, "its list of episodes is not that of its rows")


def _damaged(path: Path, what: str) -> DamagedError:
    return DamagedError(f"{path} is damaged: {what}", paths=[str(path)])

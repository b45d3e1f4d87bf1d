"""How much of the disk a run takes, as far as it can be told in a moment."""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

#: a login node is not kept busy for longer: a run may have millions of files, on a slow file system
_MOST_S = 0.2
_MOST_FILES = 50_000


@dataclass(frozen=True)
class DiskUse:
    """What was counted.

    Attributes:
        bytes: of the disk.
        files: files.
        complete: whether that is all; else it is at least so much.
    """

    bytes: int
    files: int
    complete: bool


def disk_use(folder: Path, most_s: float = _MOST_S, most_files: int = _MOST_FILES) -> DiskUse:
    """Count what is under ``folder``, for so many seconds and files at most. Links are not followed."""
    end = time.monotonic() + most_s
    size = files = 0
    waiting = deque([str(folder)])
    while waiting:
        try:
            with os.scandir(waiting.popleft()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                        continue
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    files += 1
                    if files >= most_files or time.monotonic() > end:
                        return DiskUse(size, files, complete=False)
        except OSError:  # removed meanwhile, or not ours to read
            continue
    return DiskUse(size, files, complete=True)


def in_words(size: float) -> str:
    """Bytes for people: ``"1.5 GB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
